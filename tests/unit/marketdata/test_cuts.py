"""Cut microseconds where each gatherer has its own order: put back where nobody has them whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from marketdata.alignment import Events
from marketdata.merge import Base, Merged, Piece, Segment, merge_pieces
from tests.unit.marketdata.streams import H0, piece, prices, stream

A = [(10, 10_000, 1), (20, 30_000, 2), (20, 20_000, 3), (30, 40_000, 4), (40, 60_000, 1),
     (40, 50_000, 7)]  # fmt: skip
B = [(10, 10_000, 1), (20, 20_000, 3), (20, 30_000, 2), (30, 40_000, 4), (40, 50_000, 7),
     (40, 60_000, 1)]  # fmt: skip


def merge(*pieces: Piece, base: Base | None = None) -> Merged:
    merged = merge_pieces(base, pieces, 2_000)
    assert merged.mode == "groups"
    return merged


def slow(events: Sequence[tuple[int, int, int]]) -> Events:
    """The events as a stream in which 10 stands for 100 ms: far beyond the match window."""
    return stream([(us * 10_000, price, delta) for us, price, delta in events])


def seen(segment: Segment) -> list[tuple[int, int, int]]:
    return [(us // 10_000, price, delta) for us, price, delta in prices(segment.events)]


def ended(events: Any, start: int, stop: int, gatherer: int, **more: Any) -> Piece:
    return piece(slow(events), start, stop, gatherer, open_end=False, **more)


def aside(merged: Merged) -> list[tuple[int, int, int]]:
    assert {r.reason for r in merged.rejected} <= {"cut_group"}
    return sorted((r.piece.gatherer, r.start, r.stop) for r in merged.rejected)


def test_what_only_cut_runs_have_is_put_back_and_flagged() -> None:
    """Both runs begin in microsecond 20's order and end inside 40: nothing of 10 to 40 is lost."""
    merged = merge(ended(A, 0, 5, 0), ended(B, 0, 5, 1))
    events = seen(merged.segments[0])
    assert events[:4] == sorted(A[:4], key=lambda e: e[:2])
    assert events[4:] == [(40, 60_000, 1)]  # one of the two ends: neither run has both
    assert merged.segments[0].ambiguous == [(0, 1), (4, 5)]
    assert aside(merged) == [(1, 0, 1), (1, 4, 5)]


def test_a_whole_microsecond_of_another_run_wins_over_a_cut_one() -> None:
    base = Base(7, H0, 5)
    merged = merge(
        piece(slow(A), 0, 6, 0, position=7), piece(slow(B), 0, 6, 1, position=7),
        ended(B, 2, 5, 2), base=base,
    )  # fmt: skip
    assert len(merged.segments[0].events) == 6
    assert aside(merged) == [(2, 0, 1), (2, 2, 3)]
    assert merged.segments[0].ambiguous == []


def test_a_cut_end_of_the_tape_goes_onto_it() -> None:
    """All runs end inside the last microsecond: the longest part stays."""
    base = Base(7, H0, 5)
    merged = merge(
        ended(A, 0, 6, 0, position=7), ended(B, 0, 5, 1, position=7), base=base
    )  # fmt: skip
    assert [e[0] for e in seen(merged.segments[0])] == [10, 20, 20, 30, 40, 40]
    assert merged.segments[0].ambiguous == [(4, 6)]
    assert aside(merged) == [(1, 4, 5)]


def test_a_continuing_run_with_nothing_but_a_cut_microsecond_brings_it() -> None:
    """Its only rows of this stretch: no part of it was placed, and they were lost."""
    base = Base(7, H0, 5)
    merged = merge(
        ended([(40, 60_000, 1), (40, 50_000, 7)], 0, 2, 0, position=7),
        ended([(40, 50_000, 7)], 0, 1, 1, position=7),
        base=base,
    )
    assert [p for _, p, _ in seen(merged.segments[0])] == [50_000, 60_000]
    assert [(p.first, p.start, p.length) for p in merged.segments[0].parts] == [(0, 0, 2)]
    assert aside(merged) == [(1, 0, 1)]


def two_sides(left: int, right: int, connection: int) -> Merged:
    """Two segments that meet inside microsecond 50, of which one has `left` and the other from
    `right` on. Both begin with a microsecond in two orders, so that groups are compared."""
    whole = [(10, 10_000, 1), (20, 30_000, 2), (20, 20_000, 3), (30, 10_000, 1),
             (50, 70_000, 1), (50, 80_000, 2), (50, 90_000, 3), (60, 10_000, 4)]  # fmt: skip
    turned = [whole[0], whole[2], whole[1], *whole[3:]]
    base = Base(7, H0, 5)
    return merge(
        ended(whole, 0, 4 + left, 0, position=7, connection=1),
        ended(turned, 0, 4, 1, position=7),
        piece(slow(whole), 4 + right, 8, 0 if connection == 1 else 2, connection=connection,
              run_id=2),
        base=base,
    )  # fmt: skip


def at_50(merged: Merged) -> list[int]:
    return [p for s in merged.segments for us, p, _ in seen(s) if us == 50]


def test_two_parts_of_one_microsecond_never_bring_an_event_twice() -> None:
    """They share the middle event: only the longer part, and nothing doubled."""
    assert at_50(two_sides(left=2, right=1, connection=9)) == [
        70_000,
        80_000,
    ]  # as long, and the smaller gatherer's


def test_two_parts_without_common_content_both_count() -> None:
    assert at_50(two_sides(left=1, right=2, connection=9)) == [70_000, 90_000]


def test_runs_of_one_connection_are_disjoint_so_both_parts_count() -> None:
    assert at_50(two_sides(left=1, right=2, connection=1)) == [70_000, 90_000]


def test_rule_6_counts_what_was_cut_off_between_two_runs_of_a_connection() -> None:
    """One seq is missing between them, but two cut ends lie there as well: they were refused, the
    second run was disputed and its gatherer silent until the next snapshot."""
    whole = [(10, 10_000, 1), (20, 30_000, 2), (20, 20_000, 3), (30, 10_000, 1), (40, 50_000, 1),
             (40, 60_000, 1), (40, 70_000, 1), (50, 10_000, 2), (60, 20_000, 1)]  # fmt: skip
    turned = [whole[0], whole[2], whole[1], *whole[3:]]
    base = Base(7, H0, 5)
    merged = merge(
        piece(slow(turned), 0, 9, 1, position=7),
        ended(whole, 0, 5, 0, position=7),
        piece(slow(whole), 6, 9, 0, run_id=2),
        base=base,
    )
    assert aside(merged) == [(0, 0, 1), (0, 4, 5)]
    assert merged.segments[0].disputed_from == -1
    assert len(merged.segments) == 1


def test_a_floating_run_is_compared_by_whole_microseconds_too() -> None:
    base = Base(7, H0, 5)
    merged = merge(
        piece(slow(A), 0, 6, 0, position=7), piece(slow(B), 0, 6, 1, position=7),
        ended(B, 0, 6, 2, anchored=False), base=base,
    )  # fmt: skip
    assert merged.segments[0].gatherers(1, 4) == {0, 1, 2}
    assert aside(merged) == [(2, 0, 1), (2, 4, 6)]


def exactly(*pieces: Piece, base: Base | None = None) -> Merged:
    """Where nothing but one microsecond is shared, the first mode sees no contradiction."""
    merged = merge_pieces(base, pieces, 2_000)
    assert merged.mode == "exact"
    return merged


def test_a_run_that_begins_inside_the_last_microsecond_of_the_tape_adds_nothing() -> None:
    """Own order inside a microsecond, recorded data: it came onto the tape a second time, behind a
    gap. What remains of the run stands behind it."""
    last = piece(slow(B), 5, 6, 2)  # 60_000 by its order; the others have it first
    merged = exactly(piece(slow(A), 0, 6, 0), last)
    assert [len(s.events) for s in merged.segments] == [6]
    assert aside(merged) == [(2, 0, 1)]
    on = slow([*B, (50, 70_000, 9), (60, 70_000, 8)])
    merged = exactly(piece(slow(A), 0, 6, 0), piece(on, 4, 8, 2))
    assert [e[0] for e in seen(merged.segments[0])] == [10, 20, 20, 30, 40, 40, 50, 60]
    assert (merged.segments[0].events.h_before[1:] == merged.segments[0].events.h_after[:-1]).all()
    assert aside(merged) == [(2, 0, 2)]
    assert merged.segments[0].gatherers(6, 8) == {2}
    assert merged.segments[0].gatherers(4, 6) == {0}


def test_two_first_runs_with_nothing_but_one_microsecond_are_one() -> None:
    """Both have all of it, each in its order: eight events stood where there were four."""
    merged = exactly(piece(slow(A), 4, 6, 0), piece(slow(B), 4, 6, 1))
    assert [len(s.events) for s in merged.segments] == [2]
    assert aside(merged) == [(1, 0, 2)]


def test_like_changes_in_one_microsecond_that_lead_elsewhere_are_not_the_same() -> None:
    """The control: without the book after them, a second equal change would be lost."""
    twice = slow([(10, 10_000, 1), (40, 60_000, 2), (40, 60_000, 2), (50, 20_000, 1)])
    merged = exactly(
        piece(twice, 0, 2, 0, open_end=False), piece(twice, 2, 4, 1)
    )  # fmt: skip
    assert sum(len(s.events) for s in merged.segments) == 4
    assert merged.rejected == []
    more = slow([*A[:4], (40, 70_000, 9), (40, 60_000, 1), (40, 50_000, 7)])
    merged = exactly(piece(slow(A), 0, 4, 0), piece(more, 4, 7, 1))
    assert sum(len(s.events) for s in merged.segments) == 7
