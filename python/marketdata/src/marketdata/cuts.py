"""Microseconds that a run began or ended inside, where every gatherer has an order of its own.

Purpose: in the third mode of rule 10 whole microseconds are compared in canonical order, and what a
run has of its first and last one is set aside, as it may be only part of it. Where another run has
that microsecond whole, it says all there is. Where none has, the part is put back at the end of the
segment that it leads to: its events did happen, there, though perhaps not alone. They are flagged.

A microsecond that one run ends with and another begins with, in another order, leaves no overlap in
time and no contradiction: `retold` finds it by what it holds and by the book that it leads to.

Invariants: INV-X1 no event comes onto the tape twice: of two parts of one microsecond from
different connections both count only if they have no content in common. INV-X2 every cut event is
put back or rejected (`cut_group`).

Does not do: finding the cuts (merge.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from marketdata.alignment import Events, join_events
from marketdata.pieces import Base, Part, Piece, Segment

Reject = Callable[[Piece, int, int, str], None]


@dataclass(slots=True)
class Cut:
    """What was cut off a piece, in canonical order: up to its first whole microsecond, and from the
    end of its last one on."""

    piece: Piece
    head: Events
    tail: Events

    def shifted(self, constant: int) -> Cut:
        """The same with the H that alignment gave."""
        return Cut(self.piece, self.head.shifted(constant), self.tail.shifted(constant))


@dataclass(slots=True)
class _Loose:
    """A cut end that may be put back: `events` of the piece of `part`."""

    part: Part
    events: Events

    @property
    def us(self) -> int:
        return int(self.events.us[0])

    def rank(self) -> tuple[int, int, int]:
        piece = self.part.piece
        return len(self.events), -piece.gatherer, -piece.run_id


def mend(
    base: Base | None, segments: Sequence[Segment], cuts: Mapping[int, Cut], reject: Reject
) -> None:
    """Put cut ends back onto `segments` (in time order), and reject all others."""
    heads = [_best_head(s, cuts) for s in segments]
    tails = [_best_tail(base, s, cuts) for s in segments]
    ends = [_last_us(base, s) for s in segments]
    for i, head in enumerate(heads):
        before = tails[i - 1] if i else None
        if before is not None and before.us == int(segments[i].events.us[0]):
            tails[i - 1] = before = None  # the segment after it has that microsecond whole
        if head is None:
            continue
        if i and ends[i - 1] >= head.us:
            heads[i] = None  # the segment before it has that microsecond whole
        elif before is not None and before.us == head.us and not _apart(before, head):
            shorter = heads if head.rank() <= before.rank() else tails
            shorter[i if shorter is heads else i - 1] = None
    kept = set()
    for segment, head, tail in zip(segments, heads, tails, strict=True):
        if tail is not None:
            _append(segment, tail)
            kept.add((id(tail.part.piece), "tail"))
        if head is not None:
            _prepend(segment, head)
            kept.add((id(head.part.piece), "head"))
    for key, cut in cuts.items():
        n = len(cut.piece.events)
        if (key, "head") not in kept:
            reject(cut.piece, 0, len(cut.head), "cut_group")
        if (key, "tail") not in kept:
            reject(cut.piece, n - len(cut.tail), n, "cut_group")


def retold(segments: Sequence[Segment], reject: Reject) -> list[Segment]:
    """`segments` (in time order) without what one begins with and the one before it ends with: all
    of it in the same microsecond, and the same book after it. The two become one."""
    kept: list[Segment] = []
    for segment in segments:
        again = _again(kept[-1].events, segment.events) if kept else 0
        if not again:
            kept.append(segment)
            continue
        before, n = kept[-1], len(kept[-1].events)
        for part in segment.parts:
            gone = min(max(again - part.start, 0), part.length)
            if gone:
                reject(part.piece, part.first, part.first + gone, "cut_group")
            part.first, part.length = part.first + gone, part.length - gone
            part.start = n + max(part.start - again, 0)
        before.parts += [part for part in segment.parts if part.length]
        before.ambiguous += [
            (n + max(a - again, 0), n + b - again) for a, b in segment.ambiguous if b > again
        ]
        left = segment.events.part(again, len(segment.events))
        before.events = join_events([before.events, left]) if len(left) else before.events
        if segment.disputed_from >= 0 and before.disputed_from < 0:
            before.disputed_from = n + max(segment.disputed_from - again, 0)
    return kept


def _again(before: Events, after: Events) -> int:
    """How many events `after` begins with that are among those `before` ends with."""
    if not len(before) or not len(after) or before.us[-1] != after.us[0]:
        return 0
    us = int(after.us[0])
    n = int(np.count_nonzero(np.cumprod(after.us == us)))
    m = int(np.count_nonzero(np.cumprod(before.us[::-1] == us)))
    told = Counter(before.content[len(before) - m :].tolist())
    same_book = after.h_after[n - 1] == before.h_after[-1]
    return n if same_book and Counter(after.content[:n].tolist()) <= told else 0


def _last_us(base: Base | None, segment: Segment) -> int:
    last = int(segment.events.us[-1]) if len(segment.events) else -1
    return max(last, base.last_us) if segment.is_base and base is not None else last


def _best_head(segment: Segment, cuts: Mapping[int, Cut]) -> _Loose | None:
    """The longest part of the microsecond before the segment."""
    if segment.is_base or not len(segment.events):
        return None
    found = []
    for part in segment.parts:
        cut = cuts.get(id(part.piece))
        if cut is not None and len(cut.head) and part.start == 0 and part.first == len(cut.head):
            found.append(_Loose(part, cut.head))
    return max(found, key=_Loose.rank, default=None)


def _best_tail(
    base: Base | None, segment: Segment, cuts: Mapping[int, Cut]
) -> _Loose | None:  # fmt: skip
    """The longest part of the microsecond after the segment."""
    found = []
    end = len(segment.events)
    if segment.is_base and base is not None and end == segment.emitted:
        found = [  # of continuing runs that have nothing else
            _Loose(Part(cut.piece, 0, end, 0), cut.tail)
            for cut in cuts.values()
            if cut.piece.position == base.count and len(cut.tail) == len(cut.piece.events)
        ]
    for part in segment.parts:
        cut = cuts.get(id(part.piece))
        if cut is None or not len(cut.tail) or part.end != len(segment.events):
            continue
        if part.first + part.length + len(cut.tail) == len(part.piece.events):
            found.append(_Loose(part, cut.tail))
    return max(found, key=_Loose.rank, default=None)


def _apart(tail: _Loose, head: _Loose) -> bool:
    """Are these certainly different events (INV-X1)?"""
    a, b = tail.part.piece, head.part.piece
    if (a.gatherer, a.connection) == (b.gatherer, b.connection):
        return True  # its runs are disjoint
    return not set(tail.events.content.tolist()) & set(head.events.content.tolist())


def _append(segment: Segment, tail: _Loose) -> None:
    n = len(segment.events)
    segment.events = join_events([segment.events, tail.events])
    if not tail.part.length:
        segment.parts.append(tail.part)
    tail.part.length += len(tail.events)
    segment.ambiguous.append((n, n + len(tail.events)))


def _prepend(segment: Segment, head: _Loose) -> None:
    n = len(head.events)
    segment.events = join_events([head.events, segment.events])
    for part in segment.parts:
        part.start += n
    head.part.first, head.part.start = 0, 0
    head.part.length += n
    segment.ambiguous = [(0, n), *((a + n, b + n) for a, b in segment.ambiguous)]
