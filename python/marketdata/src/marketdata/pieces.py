"""What the merge works on: pieces of runs, the end of the tape, segments.

Purpose: the words of marketdata.merge as types, and the order of segments that meet in one
microsecond (the last sentence of rule 6).

Does not do: placing anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from marketdata.alignment import Events, no_events
from marketdata.rows import DeltaFlag

Mode = Literal["exact", "window", "groups"]
UNTIMED: Final = int(DeltaFlag.RESET | DeltaFlag.TS_INFERRED)


@dataclass(slots=True, eq=False)
class Piece:
    """A contiguous stretch of one run in one market, without a cut.

    `position`: events of the base's epoch before its first event, if that is known from earlier
    stretches (a continuing run); None: to be found. `seq_from`/`seq_to`: sequence numbers between
    which this connection saw everything (rule 6). `audit`: what the next snapshot of this run said
    about its book: +1 agreed, -1 differed, 0 unknown (rule 9). `weak`: a level went below zero.
    """

    gatherer: int
    connection: int
    run_id: int
    seq_from: int
    seq_to: int
    events: Events
    anchored: bool = True
    position: int | None = None
    audit: int = 0
    weak: bool = False
    open_end: bool = True  # the run goes on after this stretch
    constant: int = 0  # found by alignment: what a floating run's H lacked (rule 3)


@dataclass(slots=True)
class Base:
    """The end of the tape so far: where continuing runs go on.

    `events`: those already on the tape that some continuing run has not shown yet (usually none);
    `witnesses`: their source masks. `count`: events of the epoch on the tape, `events` included.
    `former`: (gatherer, connection) -> (position, seq_to) at which its last run ended (rule 6).
    `begun_us`: between these two times the epoch began, as far as other markets' times tell.
    """

    count: int
    h_end: int
    last_us: int
    events: Events = field(default_factory=no_events)
    witnesses: list[int] = field(default_factory=list)
    former: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    begun_us: tuple[int, int] = (0, 0)

    def before_epoch(self, events: Events) -> int:
        """How many leading events of a new run are from before an epoch that has no event yet: its
        number 1 comes after them.

        The epoch began with a book and no event, so its time is known from other markets only; in
        the margin of that the chain of hashes tells where its book is reached.
        """
        timed = (events.flags & UNTIMED) == 0
        low, high = (
            int(found[-1]) + 1 if (found := np.flatnonzero(timed & (events.us < us))).size else 0
            for us in self.begun_us
        )
        books = [*events.h_before.tolist(), int(events.h_after[-1])]
        reached = [k for k in range(low, max(low, high) + 1) if books[k] == self.h_end]
        return reached[0] if len(reached) == 1 else low


@dataclass(slots=True, eq=False)
class Part:
    """Events first..first+length of `piece` stand at start..start+length of its segment."""

    piece: Piece
    first: int
    start: int
    length: int
    loose: bool = False  # one of several equal places: binds no other run (rule 6)

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(slots=True, eq=False)
class Segment:
    """A known stretch of the market's sequence; its first `emitted` events are on the tape."""

    events: Events
    emitted: int = 0
    is_base: bool = False
    parts: list[Part] = field(default_factory=list)
    ambiguous: list[tuple[int, int]] = field(default_factory=list)  # index ranges
    disputed_from: int = -1  # index from which gatherers contradict each other undecided
    branch: tuple[Segment, int] | None = None  # contradicts that segment from that index on

    def gatherers(self, start: int, stop: int) -> set[int]:
        """Gatherers with a part that reaches into start..stop and shows no impossible book."""
        return {
            p.piece.gatherer
            for p in self.parts
            if p.end > start and p.start < stop and not p.piece.weak
        }

    def audit(self, start: int) -> int:
        """Sum of what the next snapshots said about the runs that go past `start`."""
        return sum(p.piece.audit for p in self.parts if p.end > start)


@dataclass(slots=True)
class Rejected:
    """Events start..stop of `piece` that are not on the tape, and why."""

    piece: Piece
    start: int
    stop: int
    reason: str


@dataclass(slots=True)
class Merged:
    """Segments in time order (the base's first, if there is a base), and what was left out."""

    segments: list[Segment]
    rejected: list[Rejected]
    mode: Mode


def timed_range(events: Events) -> tuple[int, int] | None:
    timed = events.us[(events.flags & UNTIMED) == 0]
    return (int(timed[0]), int(timed[-1])) if timed.size else None


def order_ties(segments: list[Segment]) -> list[Segment]:
    """Segments meeting in a microsecond: in the order of a connection that saw both, or flagged."""
    for i in range(len(segments) - 1):
        a, b = segments[i], segments[i + 1]
        if int(a.events.us[-1]) < int(b.events.us[0]):
            continue
        order = _seen_by_both(a, b)
        if order > 0:
            segments[i], segments[i + 1] = b, a
        elif order == 0:
            us = int(b.events.us[0])
            a.ambiguous.append((int(np.searchsorted(a.events.us, us)), len(a.events)))
            b.ambiguous.append((0, int(np.searchsorted(b.events.us, us, side="right"))))
    return segments


def _seen_by_both(a: Segment, b: Segment) -> int:
    """-1 if a connection saw a before b, 1 if b before a, 0 if none saw both."""
    for p in a.parts:
        for q in b.parts:
            if (p.piece.gatherer, p.piece.connection) == (q.piece.gatherer, q.piece.connection):
                return -1 if p.piece.seq_to < q.piece.seq_from else 1
    return 0
