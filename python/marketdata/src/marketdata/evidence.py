"""What live data say about the exchange: equal times, equal order, replies that stand at their seq.

Purpose: three things of the exchange are not documented, and the merge rests on them: that two
connections give a change the same time, that they give changes in the same order, and that the
reply to `get_snapshot` is the book at its own seq. All three are measured here on what the merge
proves anyway, and what was seen decides: the comparison of a pair of gatherers (rule 10), and
whether a stretch known only backwards from a reply may stand alone.

A difference on any pair of connections falls back for its pair of gatherers at once; their proof is
the events since, over all their connections. So a new connection need not prove anew what the
exchange has shown, and cannot hide that it differs.

Invariants:
- INV-V1 a mode is `exact` only after EXACT_PROOF_EVENTS compared events without a difference.
- INV-V2 replies are proven only after REPLIES_PROOF telling ones without a differing one.
- INV-V3 nothing depends on how a window's events were read: a window is taken as a whole.
- INV-V4 memory is bounded: CONNECTION_PAIRS_MAX for each pair of gatherers; the rest is in its sum.

Does not do: aligning (alignment, merge), choosing replies among snapshots (dedup), telling anybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final, Literal

import numpy as np

from marketdata.alignment import Events
from marketdata.pieces import UNTIMED, Merged
from marketdata.rows import DeltaFlag

EXACT_PROOF_EVENTS: Final = 1_000  # compared events without a difference prove a pair's times equal
REPLIES_PROOF: Final = 1_000  # telling replies without a differing one prove that they stand at seq
CONNECTION_PAIRS_MAX: Final = 16  # told apart, of each pair of gatherers: those compared last
# So many more events must agree in a weaker mode, and none disagree, to give up what was proven.
FALLEN_EVENTS_MIN: Final = 8
APART_US: Final = (1, 10, 100, 1_000)  # upper bounds of the buckets of differences; one more above

PairMode = Literal["unproven", "exact", "window", "groups"]
Between = tuple[int, int, int, int]  # gatherer, connection, a higher gatherer, its connection
_MS_ONLY: Final = int(DeltaFlag.TS_MS_ONLY)
_BOUNDS: Final = np.array(APART_US)


def better(mine: tuple[int, int], best: tuple[int, int], *, agrees: bool, proven: bool) -> bool:
    """Is a weaker mode's result to be taken (rule 10)? Each is (left out, agreed).

    It must leave out less, and the runs must agree in it far more often, or contradict nothing and
    agree not far less. `proven`: equal times and order had been proven, so that a contradiction is
    most likely a wrong run: then it has to explain everything.
    """
    if proven:
        return agrees and mine[0] < best[0] and mine[1] >= best[1] + FALLEN_EVENTS_MIN
    return mine[0] < best[0] + agrees and (
        mine[1] > 2 * best[1] or (agrees and 2 * mine[1] >= best[1])
    )


@dataclass(slots=True)
class Likeness:
    """Events of two connections that were proven the same, and how their times and places differ.

    `compared` counts those with times of their own. `other_order`: places at which one had another
    event of that microsecond than the other.
    """

    compared: int = 0
    equal_us: int = 0
    other_order: int = 0
    apart_us_max: int = 0
    apart: list[int] = field(default_factory=lambda: [0] * (len(APART_US) + 1))

    @property
    def differs(self) -> bool:
        """Did anything differ?"""
        return self.compared != self.equal_us or self.other_order > 0

    def add(self, other: Likeness) -> None:
        """Take the other's counts in."""
        self.compared += other.compared
        self.equal_us += other.equal_us
        self.other_order += other.other_order
        self.apart_us_max = max(self.apart_us_max, other.apart_us_max)
        self.apart = [a + b for a, b in zip(self.apart, other.apart, strict=True)]


def compare(a: Events, b: Events) -> Likeness:
    """Two recordings of the same events, place by place."""
    flags = a.flags | b.flags
    if np.array_equal(a.us, b.us) and np.array_equal(a.content, b.content):  # nearly always
        timed = int(np.count_nonzero((flags & UNTIMED) == 0))
        return Likeness(compared=timed, equal_us=timed)
    apart = np.abs(a.us - b.us)
    rounded = ((flags & _MS_ONLY) != 0) & (a.us // 1000 == b.us // 1000) & (apart > 0)
    apart = apart[((flags & UNTIMED) == 0) & ~rounded]
    some = apart[apart > 0]
    counts = np.bincount(np.searchsorted(_BOUNDS, some), minlength=len(APART_US) + 1)
    return Likeness(
        compared=int(apart.size),
        equal_us=int(apart.size - some.size),
        other_order=int(np.count_nonzero(a.content != b.content)),
        apart_us_max=int(some.max(initial=0)),
        apart=counts.tolist(),
    )


@dataclass(slots=True)
class Replies:
    """Replies to `get_snapshot`, compared with the book of their run at their seq.

    `agreed`: and the book changed close by, so that at another place it would have differed.
    `quiet`: agreed, and told nothing. `unknown`: the run's book was not known there.
    """

    agreed: int = 0
    quiet: int = 0
    differed: int = 0
    unknown: int = 0
    streak: int = 0  # agreed since one differed
    proven: bool = False

    def add(self, other: Replies) -> None:
        """Take the other's counts in."""
        self.agreed += other.agreed
        self.quiet += other.quiet
        self.differed += other.differed
        self.unknown += other.unknown


@dataclass(frozen=True, slots=True)
class Change:
    """What had been seen of the exchange holds no longer, or holds again: an alert.

    `subject`: a pair of gatherers ("0-1") or "replies".
    """

    subject: str
    before: str
    after: str


class Seen:
    """What one window shows."""

    def __init__(self) -> None:
        self.between: dict[Between, Likeness] = {}
        self.differing: set[str] = set()  # pairs of gatherers
        self.replies = Replies()

    def equal(self, runs: Iterable[tuple[int, int]], events: int) -> None:
        """Runs, as (gatherer, connection), brought the same `events` at the same times."""
        for (g, c), (h, d) in combinations(runs, 2):
            if g != h:
                known = self._at((g, c, h, d) if g < h else (h, d, g, c))
                known.compared += events
                known.equal_us += events

    def merged(self, merged: Merged) -> None:
        """What the merge of one market proved."""
        for segment in merged.segments:
            for p, q in combinations(segment.parts, 2):
                low, high = max(p.start, q.start), min(p.end, q.end)
                if high <= low or p.piece.gatherer == q.piece.gatherer or p.loose or q.loose:
                    continue
                if p.piece.gatherer > q.piece.gatherer:
                    p, q = q, p  # noqa: PLW2901
                at, there = p.first + low - p.start, q.first + low - q.start
                a = p.piece.events.part(at, at + high - low)
                b = q.piece.events.part(there, there + high - low)
                found = compare(a, b)
                self._at(
                    (p.piece.gatherer, p.piece.connection, q.piece.gatherer, q.piece.connection)
                ).add(found)
                if found.differs:
                    self.differing.add(f"{p.piece.gatherer}-{q.piece.gatherer}")

    def _at(self, between: Between) -> Likeness:
        found = self.between.get(between)
        if found is None:
            found = self.between[between] = Likeness()
        return found


@dataclass(slots=True)
class ConnectionPair:
    """Two connections: what was seen of them, and the window that compared them last."""

    window: int
    likeness: Likeness


@dataclass(slots=True)
class GathererPair:
    """Two gatherers: the mode that follows, the events without a difference since the last one, and
    what was seen over all of their connections. `connections`: by "connection-connection"; `more`
    were forgotten.
    """

    mode: PairMode = "unproven"
    streak: int = 0
    likeness: Likeness = field(default_factory=Likeness)
    connections: dict[str, ConnectionPair] = field(default_factory=dict)
    more: int = 0

    def _take(self, window: int, between: Between, found: Likeness) -> None:
        name = f"{between[1]}-{between[3]}"
        known = self.connections.get(name)
        if known is None:
            known = self.connections[name] = ConnectionPair(window, Likeness())
        known.window = window
        known.likeness.add(found)

    def _trim(self) -> None:
        if len(self.connections) > CONNECTION_PAIRS_MAX:
            oldest = sorted(self.connections, key=lambda n: (self.connections[n].window, n))
            for name in oldest[: len(oldest) - CONNECTION_PAIRS_MAX]:
                del self.connections[name]
                self.more += 1

    def close(self, window: int, found: Mapping[Between, Likeness]) -> tuple[PairMode, PairMode]:
        """Take one window in; (mode before, mode now)."""
        before, total = self.mode, Likeness()
        for between, likeness in sorted(found.items()):
            self._take(window, between, likeness)
            total.add(likeness)
        self._trim()
        self.likeness.add(total)
        if total.differs:
            self.streak = 0
            # The weaker mode stays until the stronger one is proven: no change to and fro.
            self.mode = "groups" if total.other_order or before == "groups" else "window"
        else:
            self.streak += total.compared
            if self.streak >= EXACT_PROOF_EVENTS:
                self.mode = "exact"
        return before, self.mode


@dataclass(slots=True)
class Evidence:
    """Everything seen so far: by pair of gatherers ("0-1"), and of replies."""

    pairs: dict[str, GathererPair] = field(default_factory=dict)
    replies: Replies = field(default_factory=Replies)

    def exact(self, pairs: Iterable[str], seen: Seen) -> bool:
        """Are equal times and order proven for all these pairs, this window's difference included?
        No pair at all needs no proof.
        """
        return all(
            pair in self.pairs and self.pairs[pair].mode == "exact" and pair not in seen.differing
            for pair in pairs
        )

    def replies_proven(self, seen: Seen) -> bool:
        """May a stretch rest on one reply alone?"""
        return self.replies.proven and not seen.replies.differed

    def close(self, window: int, seen: Seen) -> list[Change]:
        """Take a whole window in; what changed that had been established."""
        found: dict[str, dict[Between, Likeness]] = {}
        for between, likeness in seen.between.items():
            found.setdefault(f"{between[0]}-{between[2]}", {})[between] = likeness
        changes = []
        for name, mine in sorted(found.items()):
            before, after = self.pairs.setdefault(name, GathererPair()).close(window, mine)
            if before not in ("unproven", after):
                changes.append(Change(name, before, after))
        return changes + self._close_replies(seen.replies)

    def _close_replies(self, seen: Replies) -> list[Change]:
        mine = self.replies
        mine.add(seen)
        mine.streak = 0 if seen.differed else mine.streak + seen.agreed
        was, mine.proven = (
            mine.proven,
            not seen.differed and (mine.proven or mine.streak >= REPLIES_PROOF),
        )
        return [Change("replies", "proven", "unproven")] if was and not mine.proven else []


__all__ = [
    "APART_US",
    "CONNECTION_PAIRS_MAX",
    "EXACT_PROOF_EVENTS",
    "FALLEN_EVENTS_MIN",
    "REPLIES_PROOF",
    "Change",
    "ConnectionPair",
    "Evidence",
    "GathererPair",
    "Likeness",
    "Replies",
    "Seen",
    "better",
    "compare",
]
