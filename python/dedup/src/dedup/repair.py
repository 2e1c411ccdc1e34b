"""Repair of the past, decided: what a gatherer's spool adds to one market of a closed tape.

Purpose: the tape of a market is a row of *pieces* (epochs, in the order of time) with gaps between
them. A *stretch* is what one gatherer saw without a gap, from a known book on. Where the stretch
lies over pieces it must be equal to them, event by event and book by book; what it has between
them, before them or after them becomes a piece of its own.

Invariants:
- INV-P1 nothing that was numbered is touched: pieces are only added, each with a number of its own
  (from REPAIRED on), and only between two pieces, never inside one.
- INV-P2 a stretch that differs from the tape anywhere in its time adds nothing and proves nothing.
- INV-P3 a stretch proves its time complete only where every event it saw is on the tape afterwards.
- INV-P4 the outcome is a function of tape and stretches; given again with the outcome on the tape,
  nothing is left to add.

Does not do: reading spools and tape, SQL, trades and tickers (repair_sets), the order of time where
a stretch that touches no piece lies over one (it is refused).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np

from dedup.columns import picked
from marketdata.book import MASK, level_constant
from marketdata.coverage import REPAIRED_EPOCH
from marketdata.pieces import UNTIMED
from marketdata.rows import MERGED_ROW, DeltaFlag, DeltaRows

REPAIRED: Final = REPAIRED_EPOCH
"""Epochs from here on were added by repairs; the deduplicator counts up from 1."""

Span = tuple[int, int]


@dataclass(slots=True)
class Stretch:
    """What one gatherer saw of one market without a gap, near the time that is repaired.

    `rows`: DELTA_ROW by seq, none of them floating. `levels`: the book before the first of them, in
    its stored form, `start_hash` its hash. [from_us, to_us): what it proves, margins taken off.
    """

    gatherer: int
    run_id: int
    from_us: int
    to_us: int
    start_hash: int
    levels: bytes
    start_us: int
    start_received_ns: int
    rows: DeltaRows

    @property
    def name(self) -> str:
        """For reports."""
        return f"gatherer {self.gatherer + 1}, run {self.run_id}"


@dataclass(slots=True)
class Piece:
    """One epoch of the tape, the part near the time that is repaired.

    `rows`: MERGED_ROW without hole, by market_seq. `n_events`: of the whole epoch; more than the
    last row's number if rows after it were not loaded. `from_us`: where coverage begins to name it.
    """

    epoch: int
    from_us: int
    n_events: int
    rows: DeltaRows

    @property
    def begins(self) -> bool:
        """Whether its first event is among the rows (or it has none)."""
        return self.n_events == 0 or (self.rows.size > 0 and int(self.rows["market_seq"][0]) == 1)

    @property
    def ends(self) -> bool:
        """Whether its last event is among the rows (or it has none)."""
        last = int(self.rows["market_seq"][-1]) if self.rows.size else 0
        return self.n_events == last


@dataclass(slots=True)
class Fill:
    """A piece to be added: events that one stretch has and the tape lacks; there may be none.

    `after`: index of the piece before it, -1 for none; `behind`: its epoch, 0 for none. `until_us`:
    from there on coverage names the piece after it, 0 if there is none.
    """

    stretch: Stretch
    after: int
    from_us: int
    until_us: int
    first: int  # of the stretch's rows
    stop: int
    epoch: int = 0
    behind: int = 0

    @property
    def rows(self) -> DeltaRows:
        """Its events."""
        return self.stretch.rows[self.first : self.stop]


@dataclass(slots=True)
class Outcome:
    """What a market gains. `refused`: a stretch and why; `left`: time that lies over the edge;
    `fitted`: gatherer -> events of its stretches that are on the tape already."""

    fills: list[Fill] = field(default_factory=list)
    proofs: list[tuple[Stretch, Span]] = field(default_factory=list)
    refused: list[tuple[Stretch, str]] = field(default_factory=list)
    left: list[tuple[Stretch, Span]] = field(default_factory=list)
    fitted: dict[int, int] = field(default_factory=dict)


class Differs(Exception):  # noqa: N818 - it is a finding, not a fault of the program
    """The stretch and the tape do not say the same."""


def same_event(stretch: DeltaRows, tape: DeltaRows) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Row by row: the same change, the same book after it, the same time where both know it."""
    timed = ((stretch["flags"] | tape["flags"]) & UNTIMED) == 0
    same = (stretch["flags"] & DeltaFlag.RESET) == (tape["flags"] & DeltaFlag.RESET)
    for name in ("side", "price", "delta", "book_hash"):
        same &= stretch[name] == tape[name]
    made: np.ndarray[tuple[int], np.dtype[np.bool_]] = same & (
        ~timed | (stretch["exchange_us"] == tape["exchange_us"])
    )
    return made


def _shift_of(stretch: Stretch, piece: Piece) -> int | None:
    """Which row of the stretch is the piece's first loaded one, counted from the stretch's start;
    None if no event of the two is the same."""
    keys = _keys(piece.rows)
    places = {key: n for n, key in enumerate(keys)}
    shifts = {at - places[key] for at, key in enumerate(_keys(stretch.rows)) if key in places}
    if len(shifts) > 1:
        raise Differs(f"fits epoch {piece.epoch} in {len(shifts)} places")
    return shifts.pop() if shifts else None


def _keys(rows: DeltaRows) -> list[tuple[int, ...] | None]:
    """(time, side, price, delta, hash) of timed events; rows without a time find no place alone."""
    names = ("exchange_us", "side", "price", "delta", "book_hash", "flags")
    columns = (rows[name].tolist() for name in names)
    return [
        None if flags & UNTIMED else (us, side, price, delta, book_hash)
        for us, side, price, delta, book_hash, flags in zip(*columns, strict=True)
    ]


def _placed(stretch: Stretch, pieces: list[Piece]) -> dict[int, Span]:
    """Index of a piece -> the rows of the stretch that lie over it. Raises Differs."""
    found: dict[int, Span] = {}
    reached = 0
    for index, piece in enumerate(pieces):
        shift = _shift_of(stretch, piece)
        if shift is None:
            continue
        first, stop = max(shift, 0), min(shift + piece.rows.size, stretch.rows.size)
        if first < reached:
            raise Differs(f"fits epoch {piece.epoch} before the epoch that precedes it")
        over = piece.rows[first - shift : stop - shift]
        if not same_event(stretch.rows[first:stop], over).all():
            raise Differs(f"has other events than epoch {piece.epoch}")
        if (first > 0 and first == shift and not piece.begins) or (
            stop < stretch.rows.size and stop == shift + piece.rows.size and not piece.ends
        ):
            raise Differs(f"has events inside epoch {piece.epoch} that it lacks")
        found[index], reached = (first, stop), stop
    return found


def _check_whole(stretch: Stretch, pieces: list[Piece], found: dict[int, Span]) -> None:
    """Every event of the tape in the stretch's time must be among its rows (INV-P2)."""
    low, high = stretch.from_us, stretch.to_us
    for index, piece in enumerate(pieces):
        us = piece.rows["exchange_us"]
        mine = np.zeros(us.size, np.bool_)
        if index in found:
            first, stop = found[index]
            shift = _shift_of(stretch, piece) or 0
            mine[first - shift : stop - shift] = True
        strange = (us >= low) & (us < high) & ~mine
        if strange.any():
            raise Differs(f"lacks {int(strange.sum())} events of epoch {piece.epoch}")


def _place_in_time(stretch: Stretch, pieces: list[Piece]) -> int:
    """The piece before a stretch that touches none. Raises Differs where it lies over one."""
    if stretch.rows.size:
        low = min(int(stretch.rows["exchange_us"].min()), stretch.from_us)
        high = max(int(stretch.rows["exchange_us"].max()) + 1, stretch.to_us)
    else:
        low, high = stretch.from_us, stretch.to_us
    after = -1
    for index, piece in enumerate(pieces):
        if not piece.rows.size:
            continue
        us = piece.rows["exchange_us"]
        if int(us.max()) < low:
            after = index
        elif int(us.min()) < high:
            raise Differs(f"lies over epoch {piece.epoch} and has no event of it")
    return after


def _dealt(
    stretch: Stretch, pieces: list[Piece], places: Span, rows: Span, from_us: int
) -> list[Fill]:
    """Rows between two places in the order of pieces: before, between and after the pieces without
    loaded rows that stand there, by the times at which these begin."""
    made: list[Fill] = []
    (before, behind), (at, stop) = places, rows
    for n in range(before + 1, behind):
        begins_us = pieces[n].from_us
        cut = at + int(np.searchsorted(stretch.rows["exchange_us"][at:stop], begins_us))
        made.append(Fill(stretch, n - 1, from_us, 0, at, cut))
        at, from_us = cut, max(from_us, begins_us + 1)
    made.append(Fill(stretch, behind - 1, from_us, 0, at, stop))
    return made


def _empty_from(pieces: list[Piece], index: int, until_us: int) -> int:
    """The first piece from `index` on that has rows, or begins at `until_us` or later."""
    while index < len(pieces) and not pieces[index].rows.size and pieces[index].from_us < until_us:
        index += 1
    return index


def _segments(stretch: Stretch, pieces: list[Piece], found: dict[int, Span]) -> list[Fill]:
    """What the stretch has between, before and after the pieces that it lies over."""
    n_rows = stretch.rows.size
    high = max(stretch.to_us, int(stretch.rows["exchange_us"][-1]) + 1 if n_rows else 0)
    if not found:
        after = _place_in_time(stretch, pieces)
        after = _empty_from(pieces, after + 1, stretch.from_us + 1) - 1
        behind = _empty_from(pieces, after + 1, high)
        return _dealt(stretch, pieces, (after, behind), (0, n_rows), stretch.from_us)
    made: list[Fill] = []
    order = sorted(found)
    first = found[order[0]][0]
    if first > 0:
        before = order[0] - 1
        while before >= 0 and not pieces[before].rows.size:
            if pieces[before].from_us <= stretch.from_us:
                break
            before -= 1
        made += _dealt(stretch, pieces, (before, order[0]), (0, first), stretch.from_us)
    elif _quiet_before(stretch, pieces, order[0]):
        last_us = int(pieces[order[0] - 1].rows["exchange_us"][-1])
        made.append(Fill(stretch, order[0] - 1, max(last_us + 1, stretch.from_us), 0, 0, 0))
    for before, behind in pairwise(order):
        if any(pieces[n].rows.size for n in range(before + 1, behind)):
            raise Differs(f"passes over epoch {pieces[before + 1].epoch}")
        between = found[before][1], found[behind][0]
        from_us = int(pieces[before].rows["exchange_us"][-1]) + 1
        made += _dealt(stretch, pieces, (before, behind), between, from_us)
    last = found[order[-1]][1]
    from_us = int(pieces[order[-1]].rows["exchange_us"][-1]) + 1
    if last < n_rows:
        behind = _empty_from(pieces, order[-1] + 1, high)
        made += _dealt(stretch, pieces, (order[-1], behind), (last, n_rows), from_us)
    elif _quiet_after(stretch, pieces, order[-1]):
        made.append(Fill(stretch, order[-1], from_us, 0, last, last))
    return made


def _quiet_before(stretch: Stretch, pieces: list[Piece], index: int) -> bool:
    """Whether the stretch begins with the book in which the epoch before a piece ended, and with
    the piece: it saw that nothing lies between, and has no event of the epoch before."""
    piece = pieces[index]
    if index == 0 or not piece.begins or stretch.from_us >= piece.from_us:
        return False
    before = pieces[index - 1]
    first_of_both = int(piece.rows["market_seq"][0]) == 1 and bool(
        same_event(stretch.rows[:1], piece.rows[:1]).all()
    )
    ended = before.rows.size > 0 and before.ends
    return first_of_both and ended and int(before.rows["book_hash"][-1]) == stretch.start_hash


def _quiet_after(stretch: Stretch, pieces: list[Piece], index: int) -> bool:
    """The same at its end: it goes on without an event into the next epoch, which begins with the
    book in which this one ended."""
    piece = pieces[index]
    if index + 1 >= len(pieces) or not piece.ends:
        return False
    after = pieces[index + 1]
    if not after.begins or not after.rows.size or stretch.to_us <= after.from_us:
        return False
    first = after.rows[0]
    if int(first["flags"]) & UNTIMED:
        return False
    step = level_constant(int(first["side"]), int(first["price"])) * int(first["delta"])
    before = (int(first["book_hash"]) - step) & MASK
    return before == int(piece.rows["book_hash"][-1])


def _needed(fill: Fill, pieces: list[Piece]) -> bool:
    """Whether it adds anything: events, or the proof that nothing lies between two epochs."""
    if fill.stop > fill.first:
        return True
    behind = fill.after + 1
    if fill.after < 0 or behind >= len(pieces):
        return False
    return pieces[fill.after].epoch < REPAIRED and pieces[behind].epoch < REPAIRED


def _until(fill: Fill, pieces: list[Piece]) -> int:
    """From when on coverage names the piece after the fill."""
    behind = fill.after + 1
    if behind >= len(pieces):
        return 0
    piece = pieces[behind]
    last = int(fill.rows["exchange_us"].max()) + 1 if fill.rows.size else fill.from_us
    until = max(piece.from_us, last)
    if piece.begins and piece.rows.size:
        until = min(until, max(int(piece.rows["exchange_us"].min()), last))
    return until


def subtracted(span: Span, holes: list[Span]) -> list[Span]:
    """The parts of a span outside of the holes."""
    parts, at = [], span[0]
    for low, high in sorted(holes):
        if low > at:
            parts.append((at, min(low, span[1])))
        at = max(at, high)
    parts.append((at, span[1]))
    return [(low, high) for low, high in parts if low < high]


def _ties(pieces: list[Piece]) -> list[Span]:
    """What stays unproven: microseconds in which two pieces meet, for which of their events came
    first is not told; and joints between two epochs without a piece of a repair between them."""
    made: list[Span] = []
    filled = [p for p in pieces if p.rows.size]
    for before, after in pairwise(filled):
        us = int(after.rows["exchange_us"].min())
        if int(before.rows["exchange_us"].max()) >= us:
            made.append((us, int(before.rows["exchange_us"].max()) + 1))
    for before, after in pairwise(pieces):
        if before.epoch < REPAIRED and after.epoch < REPAIRED:
            made.append((after.from_us - 1, after.from_us + 1))  # nothing proves the joint itself
    return made


def repair_market(
    pieces: list[Piece], stretches: list[Stretch], span: Span, next_epoch: int
) -> Outcome:
    """What the stretches add to a market in [from, to) = `span`. `next_epoch`: first free number.

    `pieces` in the order of time; it is left as it was.
    """
    made, now = Outcome(), list(pieces)
    added: dict[int, Fill] = {}  # epoch -> fill
    proven: list[tuple[Stretch, list[Span]]] = []
    for stretch in sorted(stretches, key=lambda s: (s.gatherer, s.from_us, s.run_id)):
        if stretch.to_us <= stretch.from_us and not stretch.rows.size:
            continue
        try:
            found = _placed(stretch, now)
            _check_whole(stretch, now, found)
            fills = [f for f in _segments(stretch, now, found) if _needed(f, now)]
        except Differs as difference:
            made.refused.append((stretch, str(difference)))
            continue
        over = sum(stop - first for first, stop in found.values())
        made.fitted[stretch.gatherer] = made.fitted.get(stretch.gatherer, 0) + over
        holes: list[Span] = []
        for fill in reversed(fills):
            fill.from_us = max(fill.from_us, span[0])
            if not fill.rows.size and not _lies_in(fill, now, span):
                continue
            low, high = _time_of(fill)
            if low < span[0] or high > span[1]:
                holes.append((low, high))
                made.left.append((stretch, (low, high)))
                continue
            fill.until_us = _until(fill, now)
            fill.epoch = next_epoch
            fill.behind = now[fill.after].epoch if fill.after >= 0 else 0
            next_epoch += 1
            now.insert(fill.after + 1, _as_piece(fill))
            added[fill.epoch] = fill
        proven.append((stretch, holes))
    made.fills = [added[p.epoch] for p in now if p.epoch in added]
    ties = _ties(now)
    for stretch, holes in proven:
        low, high = max(stretch.from_us, span[0]), min(stretch.to_us, span[1])
        if low < high:
            made.proofs += [(stretch, part) for part in subtracted((low, high), holes + ties)]
    return made


def _time_of(fill: Fill) -> Span:
    rows = fill.rows
    if not rows.size:
        return fill.from_us, fill.from_us
    return int(rows["exchange_us"].min()), int(rows["exchange_us"].max()) + 1


def _lies_in(fill: Fill, pieces: list[Piece], span: Span) -> bool:
    """Whether the joint that a fill without events stands at is in the time that is repaired."""
    behind = pieces[fill.after + 1].rows
    return fill.from_us < span[1] and behind.size > 0 and int(behind["exchange_us"][0]) > span[0]


def _as_piece(fill: Fill) -> Piece:
    rows = fill.rows
    numbered = picked(rows, np.arange(rows.size))
    return Piece(fill.epoch, fill.from_us, rows.size, numbered_rows(numbered, fill.epoch))


def numbered_rows(rows: DeltaRows, epoch: int) -> DeltaRows:
    """Rows of a gatherer as the events of an epoch, without market and witnesses."""
    made = np.zeros(rows.size, MERGED_ROW)
    for name in ("exchange_us", "received_ns", "delta", "book_hash", "price", "side", "flags"):
        made[name] = rows[name]
    made["market_seq"] = np.arange(1, rows.size + 1)
    made["epoch"] = epoch
    return made
