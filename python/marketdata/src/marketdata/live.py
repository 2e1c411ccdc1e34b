"""One market's line: events beyond the closed windows, each given out as soon as it is proven.

Purpose: tell of a gatherer's next row, at once, whether it is the tape's next event, and give it
the number that the tape will give it.

How it is proven: a closed window leaves runs that are *placed*: the merge has shown, by equality
over a whole overlap, that a run's next row is the tape's event number `position` + 1. A run is a
contiguous piece of the market's sequence, so the row after it has the next number, and so on. All
placed runs are counted from there: whoever brings the next number first is published, what the
others bring under a number that is published must be that event. Nothing is found by book hash: a
closed cycle (+x, then -x) returns to the same hash, so equal hashes never give a place.

Invariants:
- LIVE-1 what is given out carries numbers without a hole behind those of the tape, and each one's
  hash before is the hash after the one before it.
- LIVE-2 nothing is given out of a run that is not placed, nor of a placed one from its first doubt
  on: a relative hash, a level below zero, a broken chain, a snapshot that anchors anew, differs or
  resets, the end of its subscription, a row that was not heard. The next closed window decides.
- LIVE-3 two placed runs that differ under one number end the line until the next closed window.
- LIVE-4 what was given out and is not on the tape under its number is withdrawn and counted.

Does not do: many markets (dedup.live), SQL, deciding what is true: the tape does.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, NamedTuple

from marketdata.rows import DeltaFlag

BAD_FLAGS: Final = int(DeltaFlag.FLOATING | DeltaFlag.NEGATIVE | DeltaFlag.RESET)
PAUSED_CLOSINGS: Final = 60
"""Closed windows with the market in them for which a contradicted line says nothing."""

RunKey = tuple[int, int]  # (gatherer, run_id)


class Row(NamedTuple):
    """A gatherer's row as a line needs it. `seq`: within its run."""

    seq: int
    side: int
    price: int
    delta: int
    h_before: int
    h_after: int
    flags: int
    exchange_us: int
    received_ns: int


class Place(NamedTuple):
    """How a run stands after a closed window: its next row is event `position` + 1 of the epoch.

    `position` is -1 where the merge has not placed it. `last_seq`: up to here its rows were taken.
    """

    gatherer: int
    run_id: int
    position: int
    h: int
    last_seq: int


class Event(NamedTuple):
    """What was given out: the row under its number in the epoch, and whose row it was."""

    live_id: int
    number: int
    row: Row
    key: RunKey


@dataclass(slots=True)
class Follower:
    """One run in this market. `rows`: those behind its place, kept for the next closed window."""

    rows: list[Row] = field(default_factory=list)
    place: Place | None = None  # after the last closed window
    position: int = -1  # -1: not followed
    h: int = 0
    last_seq: int = -1
    cuts: list[int] = field(default_factory=list)  # nothing follows over one of these
    unheard_seq: int = -1  # up to here rows may be missing among `rows`
    again: bool = False  # its rows are to be counted again

    def stand(self) -> None:
        """Count from the place again."""
        place, self.again = self.place, True
        if place is None or place.last_seq < self.unheard_seq:
            self.position = -1
        else:
            self.position, self.h = place.position, place.h
        self.last_seq = -1 if place is None else place.last_seq

    def miss(self, seq: int) -> None:
        """Rows up to this one are not here: only a place behind it counts."""
        self.rows.clear()
        self.unheard_seq = max(self.unheard_seq, seq)
        self.position = -1


@dataclass(slots=True)
class Line:
    """The market's end of the tape and what was given out beyond it."""

    epoch: int = 0
    count: int = 0  # events of the epoch on the tape, or given out and found there
    h_end: int = 0
    h_live: int = 0
    why: str = "no window of the market has closed"  # why nothing is given out; "": it is
    paused: int = 0
    pending: list[Event] = field(default_factory=list)
    followers: dict[RunKey, Follower] = field(default_factory=dict)

    # -- rows ------------------------------------------------------------------------------------

    def heard(self, key: RunKey, row: Row, next_id: int) -> Event | None:
        """A run's next row; the event that is given out for it, if it is proven."""
        return self.took(self.follower(key), key, row, next_id)

    def took(self, follower: Follower, key: RunKey, row: Row, next_id: int) -> Event | None:
        """`heard` of a run that was looked up before."""
        rows = follower.rows
        if rows and row.seq <= rows[-1].seq:
            return None  # a repeat, which the merge skips too
        rows.append(row)
        return self._step(follower, key, row, next_id)

    def follower(self, key: RunKey) -> Follower:
        """The run in this market."""
        found = self.followers.get(key)
        if found is None:
            found = self.followers[key] = Follower()
        return found

    def cut(self, key: RunKey, seq: int) -> None:
        """From this place on nothing follows from what the run showed before."""
        follower = self.follower(key)
        if follower.place is None or follower.place.last_seq < seq:  # else read again
            follower.cuts.append(seq)

    def unheard(self, key: RunKey, seq: int) -> None:
        """Rows of the run up to this one may be missing here."""
        follower = self.follower(key)
        follower.miss(seq)
        if not self._followed():
            self.end("behind")

    def _step(self, follower: Follower, key: RunKey, row: Row, next_id: int) -> Event | None:
        if follower.position < 0 or row.seq <= follower.last_seq:
            return None  # not placed, or before its place
        cut = bool(follower.cuts) and row.seq >= min(follower.cuts)
        if cut or row.flags & BAD_FLAGS or row.h_before != follower.h:
            follower.position = -1
            if not self._followed():
                self.end(_doubt(row, cut=cut))
            return None
        number = follower.position + 1
        follower.position, follower.h, follower.last_seq = number, row.h_after, row.seq
        at = number - self.count - 1
        if at < 0 or self.why:
            return None  # on the tape already, or the line has ended
        if at < len(self.pending):
            if not _same(self.pending[at].row, row):
                self.end("runs differ")
            return None
        assert at == len(self.pending), "a placed run is at most one event ahead of the line"
        if row.h_before != self.h_live:
            self.end("runs differ")
            return None
        event = Event(next_id, number, row, key)
        self.pending.append(event)
        self.h_live = row.h_after
        return event

    def _followed(self) -> bool:
        return any(f.position >= 0 for f in self.followers.values())

    def end(self, why: str) -> None:
        """Nothing is given out until the next closed window."""
        self.why = self.why or why

    # -- closed windows --------------------------------------------------------------------------

    def found(self, epoch: int, number: int, side: int, price: int, delta: int, h: int) -> str:
        """The tape's next event: "same" as was given out, "differs", or "missed": nothing was."""
        if epoch != self.epoch or number != self.count + 1 or not self.pending:
            self.end("the tape is ahead")
            return "differs" if self.pending and epoch == self.epoch else "missed"
        row = self.pending[0].row
        if (row.side, row.price, row.delta, row.h_after) != (side, price, delta, h):
            return "differs"
        del self.pending[0]
        self.count, self.h_end = number, h
        return "same"

    def withdraw(self) -> list[Event]:
        """What was given out is not what is on the tape: take it back, and be silent for a time."""
        gone, self.pending = self.pending, []
        self.h_live = self.h_end
        self.end("contradicted before")
        self.paused = PAUSED_CLOSINGS
        return gone

    def closed(
        self,
        epoch: int,
        count: int,
        h_end: int,
        places: Iterable[Place],
        next_id: int,
        silent: str = "",
    ) -> tuple[list[Event], list[Event]]:
        """A window with this market has closed: (given out now, taken back).

        All runs are counted again from their places on the tape. `silent`: why nothing is to be
        given out all the same.
        """
        gone: list[Event] = []
        fits = epoch == self.epoch and count == self.count and h_end == self.h_end
        if self.pending and not fits:
            gone = self.withdraw()
        steady = fits and not self.why
        self.epoch, self.count, self.h_end = epoch, count, h_end
        if not self.pending:
            self.h_live = h_end
        self._place(places, steady=steady)
        self.paused = max(0, self.paused - 1)
        self.why = silent or ("contradicted before" if self.paused else "")
        return self.again(next_id), gone

    def _place(self, places: Iterable[Place], *, steady: bool) -> None:
        """`steady`: the line goes on; a run that stands where it was counted to goes on, too."""
        known = {(p.gatherer, p.run_id): p for p in places}
        for key, place in known.items():
            follower = self.follower(key)
            rows = follower.rows
            del rows[: bisect_right(rows, place.last_seq, key=_seq)]
            follower.cuts = [seq for seq in follower.cuts if seq > place.last_seq]
            follower.place = place
            counted = follower.position - len(rows) == place.position >= 0
            if not (steady and counted and (rows[0].h_before if rows else follower.h) == place.h):
                follower.stand()
        for key, follower in list(self.followers.items()):
            if key not in known:
                follower.place, follower.position = None, -1
                if not follower.rows:
                    del self.followers[key]

    def again(self, next_id: int) -> list[Event]:
        """Every follower's rows once more, from its place on; what is given out now."""
        if not self.why and not self._followed():
            behind = any(f.unheard_seq > f.last_seq for f in self.followers.values() if f.place)
            self.end("behind" if behind else "no run is placed")
        made: list[Event] = []
        for key, follower in sorted(self.followers.items()):
            redo, follower.again = follower.again and follower.position >= 0, False
            for row in follower.rows if redo else ():
                event = self._step(follower, key, row, next_id + len(made))
                if event is not None:
                    made.append(event)
        return made

    def forget_before(self, received_ns: int) -> None:
        """Rows that no window takes are not kept for ever: their run must be placed behind them."""
        for follower in self.followers.values():
            if follower.rows and follower.rows[0].received_ns < received_ns:
                follower.miss(max(r.seq for r in follower.rows))

    # -- silence ---------------------------------------------------------------------------------

    def forget(self, why: str) -> None:
        """What was given out is nowhere any more, and nothing is given out until `resume`."""
        self.pending.clear()
        self.h_live = self.h_end
        self.why = why

    def resume(self, next_id: int) -> list[Event]:
        """Everything that is proven beyond the tape, given out (again)."""
        self.why = "contradicted before" if self.paused else ""
        for follower in self.followers.values():
            follower.stand()
        return self.again(next_id)


_seq = attrgetter("seq")


def _same(one: Row, other: Row) -> bool:
    return one[1:6] == other[1:6]


def _doubt(row: Row, *, cut: bool) -> str:
    """Why this row does not follow, in the words of the counter."""
    if row.flags & int(DeltaFlag.RESET):
        return "reset"
    if row.flags & int(DeltaFlag.FLOATING):
        return "no snapshot yet"
    if row.flags & int(DeltaFlag.NEGATIVE):
        return "below zero"
    return "cut" if cut else "broken chain"


def last_id(events: Sequence[Event]) -> int:
    """The largest id; 0: there is none."""
    return events[-1].live_id if events else 0
