"""Feed arbitration of one market: several runs of its events become one sequence, or say why not.

Purpose: the ten rules found on recorded data (docs/invariants.md), for one market and one stretch
of exchange time. A run of one subscription is a contiguous substring of the market's true sequence;
it has one offset in it, proven by equality of (kind, side, price, delta, H before) over the whole
overlap.

Invariants:
- INV-M1 every event of every piece is accounted for: placed in a segment or rejected with a reason.
- INV-M2 the result does not depend on the order in which the pieces are given.
- INV-M3 nothing is appended that overlaps in time and does not align (rule 9 decides by vote, else
  it is disputed); nothing is placed where the seq numbers of its connection forbid it (rule 6).
- INV-M4 a weaker mode of comparison (rule 10) is used only where the stronger one contradicts
  itself, and is reported.

Does not do: building pieces from rows, joints by shared live time (rule 7), epochs, numbering.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from marketdata.alignment import (
    Events,
    agreement,
    candidate_offsets,
    canonical,
    floating_offsets,
    join_events,
    no_events,
)
from marketdata.cuts import Cut, mend, retold
from marketdata.evidence import better
from marketdata.pieces import (
    UNTIMED,
    Base,
    Merged,
    Mode,
    Part,
    Piece,
    Rejected,
    Segment,
    order_ties,
    timed_range,
)
from marketdata.rows import DeltaFlag

__all__ = [
    "UNTIMED",
    "Base",
    "Merged",
    "Mode",
    "Part",
    "Piece",
    "Rejected",
    "Segment",
    "merge_pieces",
]


def merge_pieces(
    base: Base | None, pieces: Iterable[Piece], match_window_us: int, *, proven: bool = False
) -> Merged:
    """Merge one market's pieces of one stretch of time onto its base.

    Comparison modes are tried from strong to weak until nothing is contradicted (rule 10). What is
    contradicted is decided by vote (rule 9); a weaker mode counts only if it is better by far.
    `match_window_us`: width of the second mode; 0: there is only the first. `proven`: these have
    shown equal times and order, so that a contradiction is a wrong run and no reason to widen
    anything, unless a weaker mode explains everything, and much more than the first.
    """
    ordered = sorted(pieces, key=_place_order)
    modes: tuple[tuple[Mode, int], ...] = (("exact", 0),)
    if match_window_us:
        modes += (("window", match_window_us), ("groups", 0))
    best: tuple[int, int, Merged, dict[int, int]] | None = None
    for mode, tolerance_us in modes:
        for piece in ordered:
            piece.constant = 0
        near_us = 0 if proven and mode == "exact" else match_window_us
        attempt = _Attempt(base, tolerance_us, near_us, grouped=mode == "groups")
        attempt.run(ordered)
        merged = attempt.finish(mode)
        left_out = sum(r.stop - r.start for r in merged.rejected)
        agreed = _agreed(merged)
        # A wrong run is contradicted in every mode, and the others agree in all of them: that is
        # no reason to give up times or order. Where these are not equal, next to nothing agrees.
        agrees = not attempt.contradicted
        if best is None or better((left_out, agreed), best[:2], agrees=agrees, proven=proven):
            best = (left_out, agreed, merged, attempt.constants)
        if agrees:
            break
    assert best is not None
    for piece in ordered:
        piece.constant = best[3].get(id(piece), 0)
    return best[2]


def _agreed(merged: Merged) -> int:
    """Rows that were placed where another run had the same event."""
    placed = sum(part.length for s in merged.segments for part in s.parts)
    return placed - sum(len(s.events) - s.emitted for s in merged.segments)


def _place_order(piece: Piece) -> tuple[int, int, int, int, int]:
    start = int(piece.events.us[0]) if len(piece.events) else 0
    return start, -len(piece.events), piece.gatherer, piece.run_id, piece.seq_from


class _Attempt:
    """One try at merging, in one comparison mode."""

    def __init__(
        self, base: Base | None, tolerance_us: int, match_window_us: int, *, grouped: bool
    ) -> None:
        self.base = base
        self.tolerance_us = tolerance_us
        self.near_us = match_window_us
        self.grouped = grouped
        self.segments: list[Segment] = []
        self.rejected: list[Rejected] = []
        self.constants: dict[int, int] = {}
        self.loose: set[int] = set()
        self.cuts: dict[int, Cut] = {}  # id(piece) -> what grouping cut off
        self.late: dict[int, int] = {}  # id(piece) -> events at its beginning that came too late
        self.contradicted = False
        if base is not None:
            self.segments.append(Segment(base.events, len(base.events), is_base=True))

    # -- placing ---------------------------------------------------------------------------------

    def run(self, pieces: Sequence[Piece]) -> None:
        """Continuing runs first, then anchored ones, then those whose H is not known (rule 3)."""
        with_events = [p for p in pieces if len(p.events)]
        pinned = [p for p in with_events if p.position is not None and not self._overtaken(p)]
        pinned.sort(key=lambda p: (-(p.position or 0) - len(p.events), p.gatherer, p.run_id))
        for piece in pinned:
            self._place_pinned(piece)
        for piece in with_events:
            if piece.anchored and piece not in pinned:
                self._place_anchored(piece)
        self._place_floating([p for p in with_events if not p.anchored and p.position is None])

    def _overtaken(self, piece: Piece) -> bool:
        """Did others put later events onto the tape before this continuing run showed its own?"""
        assert self.base is not None
        assert piece.position is not None
        first = self.base.count - piece.position
        return (
            first < len(piece.events)
            and int(piece.events.us[first]) < self.base.last_us
            and not piece.events.flags[first] & (UNTIMED | int(DeltaFlag.TS_BACKWARD))
        )

    def _events(self, piece: Piece) -> tuple[Events, int]:
        """(events to compare, how many were cut off at the front)."""
        events = piece.events
        if not self.grouped:
            return events, 0
        first, stop = 0, len(events)
        if piece.position is None:  # the run may have begun inside its first microsecond
            first = int(np.argmax(events.us != events.us[0])) or stop
        if not piece.open_end and first < stop:  # and ended inside its last
            stop = int(np.flatnonzero(events.us == events.us[-1])[0])
        stop = max(first, stop)
        self.cuts[id(piece)] = Cut(
            piece, canonical(events.part(0, first)), canonical(events.part(stop, len(events)))
        )
        return canonical(events.part(first, stop)), first

    def _cut_before(self, piece: Piece) -> int:
        """Events that were taken off the piece's beginning."""
        cut = self.cuts.get(id(piece))
        return (len(cut.head) if cut else 0) + self.late.get(id(piece), 0)

    def _cut_between(self, earlier: Piece, later: Piece) -> int:
        """Events of two runs, one after the other, that were taken off where they meet."""
        cut = self.cuts.get(id(earlier))
        return (len(cut.tail) if cut else 0) + self._cut_before(later)

    def _reject(self, piece: Piece, start: int, stop: int, reason: str) -> None:
        if stop > start:
            self.rejected.append(Rejected(piece, start, stop, reason))

    def _place_pinned(self, piece: Piece) -> None:
        base, segment = self.base, self.segments[0]
        assert base is not None
        assert piece.position is not None
        offset = piece.position - (base.count - len(base.events))
        events, first = self._events(piece)
        start, agreed, length = agreement(events, segment.events, offset, self.tolerance_us)
        if agreed == length:
            self._add(segment, piece, events, first, offset)
            return
        at = start + agreed
        self._add(segment, piece, events.part(0, at), first, offset)
        self._contradict(segment, at + offset, piece, events.part(at, len(events)), first + at)

    def _place_anchored(self, piece: Piece) -> None:
        events, first = self._events(piece)
        late = self._late(events)
        if late:
            self._reject(piece, first, first + late, "late")
            self.late[id(piece)] = late
            events, first = events.part(late, len(events)), first + late
        if len(events) == 0:
            return
        fits: list[tuple[Segment, int]] = []
        worst: tuple[Segment, int, int] | None = None  # segment, index in it, index in events
        for segment in self.segments:
            offset, clash = self._try(segment, piece, events)
            if offset is not None:
                fits.append((segment, offset))
            elif clash is not None and (worst is None or clash[1] > worst[2]):
                worst = (segment, clash[0], clash[1])
        if worst is not None:  # a rival of that segment is reached through it
            fits = [f for f in fits if f[0].branch is None or f[0].branch[0] is not worst[0]]
        if fits:
            self._join(fits, piece, events, first)
            self.contradicted |= worst is not None  # the two segments are told apart at the end
        elif worst is None:
            self._new(piece, events, first)
        else:
            segment, index, at = worst
            if at:
                self._add(segment, piece, events.part(0, at), first, index - at)
                index = max(index, at)  # the segment begins with the piece where that was earlier
            self._contradict(segment, index, piece, events.part(at, len(events)), first + at)

    def _late(self, events: Events) -> int:
        """Leading events of a new run that lie before the end of the tape and are not kept."""
        if self.base is None:
            return 0
        if self.base.count == 0:
            return self.base.before_epoch(events)
        timed = (events.flags & UNTIMED) == 0
        old = np.flatnonzero(timed & (events.us <= self.base.last_us))
        if old.size == 0:
            return 0
        kept = candidate_offsets(events, self.base.events, self.near_us)
        return max(-kept[-1], 0) if kept else int(old[-1]) + 1

    def _try(
        self, segment: Segment, piece: Piece, events: Events
    ) -> tuple[int | None, tuple[int, int] | None]:
        """(offset, None) if the piece fits, (None, clash) if it contradicts, else (None, None)."""
        valid: list[tuple[int, int]] = []
        clash: tuple[int, int] | None = None
        overlap = self._overlap_in_time(segment, events)
        for offset in candidate_offsets(events, segment.events, self.near_us):
            if not self._seq_allows(segment, piece, offset, len(events)):
                continue
            start, agreed, length = agreement(events, segment.events, offset, self.tolerance_us)
            if agreed == length and (offset >= 0 or not segment.is_base):
                valid.append((length, offset))
                continue
            if agreed == 0:  # a like event at another time; it counts only if all the rest fits too
                _, near, _ = agreement(events, segment.events, offset, self.near_us)
                if near < length:
                    continue
            elif not overlap:
                continue  # one microsecond that both cut: they need not share it at all
            # What it has before the segment and agrees with goes onto it; the tape has no before.
            at = start + agreed if offset >= 0 or (agreed and not segment.is_base) else 0
            if clash is None or at > clash[1]:
                clash = (max(0, offset + at), at)
        if valid:
            return self._choose(segment, piece, events, valid), None
        if clash is None and overlap:
            clash = (self._index_at(segment, int(events.us[0])), 0)
        return None, clash

    def _choose(
        self, segment: Segment, piece: Piece, events: Events, valid: list[tuple[int, int]]
    ) -> int:
        """One of several (overlap, offset): the longest overlap; of equals, the one that a live
        run must have, whose last event is the segment's last. A closed cycle cut by both is flagged
        """
        if len(valid) == 1:
            self._flag_cut_cycle(segment, events, valid[0][1])
            return valid[0][1]
        longest = max(length for length, _ in valid)
        offsets = sorted(offset for length, offset in valid if length == longest)
        chosen = offsets[-1] if piece.open_end else offsets[0]
        at_end = piece.open_end and chosen + len(events) == len(segment.events)
        if not at_end:
            self.loose.add(id(piece))
        room = len(segment.events) - len(events)
        inside = all(0 <= offset <= room for _, offset in valid)
        if not at_end and not inside:
            start = max(0, chosen)
            segment.ambiguous.append((start, start + longest))
        return chosen

    def _flag_cut_cycle(self, segment: Segment, events: Events, offset: int) -> None:
        """Where both are cut inside one microsecond in which the book returns to a former state,
        the overlap found is one of several possible, and no data can decide.
        """
        if offset > 0 and offset + len(events) > len(segment.events):
            first, second, at = segment.events, events, offset
        elif offset < 0 and offset + len(events) < len(segment.events):
            first, second, at = events, segment.events, -offset
        else:
            return  # one contains the other: its ends are not cut by both
        us, shared = int(second.us[0]), len(first) - at
        if us != int(first.us[-1]):
            return
        group = join_events([first.part(0, len(first)), second.part(shared, len(second))])
        inside = group.us == us
        states = [*group.h_before[inside].tolist(), int(group.h_after[inside][-1])]
        if len(set(states)) < len(states):
            start = max(0, offset)
            segment.ambiguous.append((start, start + shared))

    def _overlap_in_time(self, segment: Segment, events: Events) -> bool:
        """Do both know a common stretch of time longer than the tolerance?"""
        new = segment.events.part(segment.emitted, len(segment.events))
        a, b = timed_range(new), timed_range(events)
        if a is None or b is None:
            return False
        wide = self.tolerance_us
        return max(a[0], b[0]) + wide < min(a[1], b[1]) or any(
            outer[0] + wide < inner[0] <= inner[1] < outer[1] - wide
            for outer, inner in ((a, b), (b, a))
        )

    def _index_at(self, segment: Segment, us: int) -> int:
        """First not yet emitted event of the segment that is not before `us`."""
        later = np.flatnonzero(segment.events.us[segment.emitted :] >= us)
        return segment.emitted + (int(later[0]) if later.size else len(segment.events))

    def _seq_allows(self, segment: Segment, piece: Piece, offset: int, length: int) -> bool:
        """Rule 6: runs of one connection are disjoint, in order, no further apart than seq says."""
        mine = (piece.gatherer, piece.connection)
        for part in segment.parts:
            other = part.piece
            if (other.gatherer, other.connection) != mine or other is piece or part.loose:
                continue
            if other.seq_to < piece.seq_from:
                room, missing = offset - part.end, piece.seq_from - other.seq_to - 1
                missing += self._cut_between(other, piece)
            elif piece.seq_to < other.seq_from:
                room, missing = part.start - offset - length, other.seq_from - piece.seq_to - 1
                missing += self._cut_between(piece, other)
            else:
                return False
            if room < 0 or (room > missing and other.run_id != piece.run_id):
                return False
        if segment.is_base and self.base is not None and mine in self.base.former:
            position, seq_to = self.base.former[mine]
            room = offset + self.base.count - len(self.base.events) - position
            most = piece.seq_from - seq_to - 1 + self._cut_before(piece)
            if seq_to < piece.seq_from and not 0 <= room <= most:
                return False
        return True

    def _add(self, segment: Segment, piece: Piece, events: Events, first: int, offset: int) -> None:
        """Put `events` (those from `first` on of the piece) at `offset`; the segment may grow."""
        if offset < 0:
            segment.events = join_events([events.part(0, -offset), segment.events])
            self._shift(segment, -offset)
            offset = 0
        extra = offset + len(events) - len(segment.events)
        if extra > 0:
            tail = events.part(len(events) - extra, len(events))
            segment.events = join_events([segment.events, tail]) if len(segment.events) else tail
        if len(events):
            loose = id(piece) in self.loose
            segment.parts.append(Part(piece, first, offset, len(events), loose))

    def _shift(self, segment: Segment, by: int) -> None:
        for part in segment.parts:
            part.start += by
        segment.ambiguous = [(a + by, b + by) for a, b in segment.ambiguous]
        for other in self.segments:
            if other.branch is not None and other.branch[0] is segment:
                other.branch = (segment, other.branch[1] + by)

    def _new(self, piece: Piece, events: Events, first: int) -> Segment:
        segment = Segment(no_events())
        self._add(segment, piece, events, first, 0)
        self.segments.append(segment)
        return segment

    def _join(
        self, fits: list[tuple[Segment, int]], piece: Piece, events: Events, first: int
    ) -> None:
        """Rule 5: the piece extends one segment; if it fits several, they become one."""
        fits.sort(key=lambda f: (not f[0].is_base, -f[1]))
        target, offset = fits[0]
        self._add(target, piece, events, first, offset)
        start = max(offset, 0)  # where the piece's first event stands now
        for other, other_offset in fits[1:]:
            at = start - other_offset
            if at >= 0:  # else it is a rival that claims events before the live end of the tape
                self._absorb(target, other, at)

    def _absorb(self, target: Segment, other: Segment, at: int) -> None:
        extra = at + len(other.events) - len(target.events)
        if extra > 0:
            tail = other.events.part(len(other.events) - extra, len(other.events))
            target.events = join_events([target.events, tail])
        for part in other.parts:
            part.start += at
            target.parts.append(part)
        target.ambiguous += [(a + at, b + at) for a, b in other.ambiguous]
        for segment in self.segments:
            if segment.branch is not None and segment.branch[0] is other:
                segment.branch = (target, segment.branch[1] + at)
        self.segments.remove(other)

    # -- floating runs ---------------------------------------------------------------------------

    def _place_floating(self, pieces: list[Piece]) -> None:
        """Each takes H from a segment it fits and passes it on (rule 3), until nothing moves."""
        waiting = pieces
        progress = True
        while waiting and progress:
            progress = False
            left = []
            for piece in waiting:
                if self._place_one_floating(piece):
                    progress = True
                else:
                    left.append(piece)
            waiting = left
        for piece in waiting:
            events, first = self._events(piece)
            self._reject(piece, first, first + len(events), "unanchored")

    def _place_one_floating(self, piece: Piece) -> bool:
        """Find the one constant under which the run fits; then place it like an anchored run."""
        reach: dict[int, int] = {}  # constant -> events of the overlaps that prove it
        floating, first = self._events(piece)
        for segment in self.segments:
            for offset, constant in floating_offsets(floating, segment.events, self.tolerance_us):
                events = floating.shifted(constant)
                _, agreed, length = agreement(events, segment.events, offset, self.tolerance_us)
                if (
                    agreed == length
                    and (offset >= 0 or not segment.is_base)
                    and self._seq_allows(segment, piece, offset, len(events))
                    and self._wide_enough(segment, events, offset, length)
                ):
                    reach[constant] = reach.get(constant, 0) + length
        best = max(reach.values(), default=0)
        choice = [c for c, length in reach.items() if length == best]
        if len(choice) != 1:
            return False  # nothing fits, or several places are equally good: never guess
        events = floating.shifted(choice[0])
        fits: list[tuple[Segment, int]] = []
        for segment in self.segments:
            offset_found, clash = self._try(segment, piece, events)
            if clash is not None:
                return False
            if offset_found is not None:
                fits.append((segment, offset_found))
        assert fits, "the constant was proven by one of these segments"
        piece.constant = self.constants[id(piece)] = choice[0]
        if id(piece) in self.cuts:
            self.cuts[id(piece)] = self.cuts[id(piece)].shifted(choice[0])
        self._join(fits, piece, events, first)
        return True

    def _wide_enough(self, segment: Segment, events: Events, offset: int, length: int) -> bool:
        """Rule 8: agreement inside one microsecond that neither covers fully proves nothing."""
        if offset >= 0 and offset + len(events) <= len(segment.events):
            return True
        start = max(0, -offset)
        us = events.us[start : start + length]
        if us[0] != us[-1]:
            return True
        whole_run = bool(events.us[0] < us[0] and events.us[-1] > us[-1])
        before = segment.is_base or bool(segment.events.us[0] < us[0])
        return whole_run or (before and bool(segment.events.us[-1] > us[-1]))

    # -- contradictions --------------------------------------------------------------------------

    def _contradict(
        self, segment: Segment, index: int, piece: Piece, events: Events, first: int
    ) -> None:
        """The piece goes its own way from `index` of the segment on: keep both until the vote."""
        self.contradicted = True
        for rival in self.segments:
            if rival.branch is None or rival.branch[0] is not segment:
                continue
            offsets = candidate_offsets(events, rival.events, self.tolerance_us)
            for offset in offsets:
                _, agreed, length = agreement(events, rival.events, offset, self.tolerance_us)
                if agreed == length:
                    self._add(rival, piece, events, first, offset)
                    return
        self._new(piece, events, first).branch = (segment, index)

    def _vote(self, segment: Segment, index: int, rival: Segment) -> int:
        """Rule 9: 1 if the rival is believed, -1 if the segment is, 0 if nobody can say."""
        ours = segment.gatherers(index, len(segment.events) + 1)
        if segment.is_base and self.base is not None and index < segment.emitted:
            for mask in self.base.witnesses[index:]:
                ours |= {g for g in range(mask.bit_length()) if mask >> g & 1}
        theirs = rival.gatherers(0, len(rival.events) + 1)
        mine = (len(ours - theirs), segment.audit(index))
        yours = (len(theirs - ours), rival.audit(0))
        return (yours > mine) - (yours < mine)

    def _resolve(self, rival: Segment) -> None:
        assert rival.branch is not None
        segment, index = rival.branch
        rival.branch = None
        if segment not in self.segments:  # what it contradicted was itself contradicted
            self._drop(rival, 0, "contradicted")
            self.segments.remove(rival)
            return
        verdict = self._vote(segment, index, rival)
        if verdict < 0:
            self._drop(rival, 0, "contradicted")
            self.segments.remove(rival)
        elif verdict > 0:
            cut = max(index, segment.emitted)
            self._drop(segment, cut, "contradicted")
            joined = index >= segment.emitted and index == len(segment.events)
            if joined and self._continues(segment, rival):
                self._absorb(segment, rival, index)
        else:
            self._drop(rival, 0, "disputed")
            self.segments.remove(rival)
            index = max(index, segment.emitted)
            if segment.disputed_from < 0 or index < segment.disputed_from:
                segment.disputed_from = index

    def _continues(self, segment: Segment, rival: Segment) -> bool:
        """Does the rival's first event follow the segment's last in the chain of book hashes?"""
        if len(segment.events):
            return bool(segment.events.h_after[-1] == rival.events.h_before[0])
        return self.base is not None and self.base.h_end == int(rival.events.h_before[0])

    def _drop(self, segment: Segment, index: int, reason: str) -> None:
        """Take the events from `index` on off the segment; their parts are rejected from there."""
        kept = []
        for part in segment.parts:
            if part.end > index:
                keep = max(0, index - part.start)
                self._reject(part.piece, part.first + keep, part.first + part.length, reason)
                part.length = keep
            if part.length:
                kept.append(part)
        segment.parts = kept
        segment.events = segment.events.part(0, index)

    # -- result ----------------------------------------------------------------------------------

    def finish(self, mode: Mode) -> Merged:
        """Decide what is contradicted, then put the segments in time order."""
        while True:
            rivals = [s for s in self.segments if s.branch is not None]
            if not rivals:
                break
            rivals.sort(key=lambda s: (s.branch[1] if s.branch else 0, len(s.events)))
            self._resolve(rivals[-1])
        base = [s for s in self.segments if s.is_base]
        others = [s for s in self.segments if not s.is_base and len(s.events)]
        others.sort(key=lambda s: (int(s.events.us[0]), int(s.events.us[-1])))
        apart = self._apart(base + others)
        if not self.grouped:
            apart = retold(apart, self._reject)
        self.contradicted |= any(self._shares_content(a, b) for a, b in pairwise(apart))
        if self.cuts:
            mend(self.base, apart, self.cuts, self._reject)
        return Merged(apart[: len(base)] + order_ties(apart[len(base) :]), self.rejected, mode)

    def _shares_content(self, before: Segment, after: Segment) -> bool:
        """Do two segments meet inside the tolerance and tell there of the same changes? Then they
        may be the same events, in an order that this mode cannot compare.
        """
        if not self.tolerance_us or not len(before.events) or not len(after.events):
            return False
        from_us = int(after.events.us[0]) - self.tolerance_us
        to_us = int(before.events.us[-1]) + self.tolerance_us
        ours = before.events.content[before.events.us >= from_us].tolist()
        return not set(ours).isdisjoint(after.events.content[after.events.us <= to_us].tolist())

    def _apart(self, segments: list[Segment]) -> list[Segment]:
        """INV-M3 once more, whatever led here: no two segments know a common time."""
        kept: list[Segment] = []
        for segment in segments:
            before = kept[-1] if kept else None
            if before is not None and self._overlap_in_time(before, segment.events):
                ours = before.gatherers(before.emitted, len(before.events))
                if len(segment.gatherers(0, len(segment.events))) <= len(ours):
                    self._drop(segment, 0, "contradicted")
                    continue
                self._drop(before, before.emitted, "contradicted")
                if not before.is_base:
                    kept.pop()
            kept.append(segment)
        return kept
