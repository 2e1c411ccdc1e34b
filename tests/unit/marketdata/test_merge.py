"""The ten rules of the merge, each with the case that breaks without it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from marketdata.alignment import join_events, no_events
from marketdata.merge import Base, Merged, Part, Piece, Segment, _Attempt, merge_pieces
from tests.unit.marketdata.streams import H0, MASK, piece, plain, prices, stream

WINDOW_US = 2_000


def merge(base: Base | None, *pieces: Piece, window_us: int = WINDOW_US) -> Merged:
    return merge_pieces(base, pieces, window_us)


def reasons(merged: Merged) -> list[tuple[int, int, int, str]]:
    return sorted((r.piece.gatherer, r.start, r.stop, r.reason) for r in merged.rejected)


def test_two_equal_runs_become_one_segment_with_both_as_witnesses() -> None:
    """The normal case; everything else is worthless if this is not exact."""
    truth = plain(20)
    merged = merge(None, piece(truth, 0, 20, 0), piece(truth, 0, 20, 1))
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]
    assert merged.segments[0].gatherers(0, 20) == {0, 1}
    assert merged.mode == "exact"
    assert merged.rejected == []


def test_rule_1_a_reset_seen_by_one_two_or_all_is_one_event() -> None:
    """A close of kind (b): the empty snapshot is the only thing that empties the book."""
    truth = stream([(10, 50_000, 100), (20, 60_000, 100), (20, 0, 0), (90, 70_000, 5)])
    whole = piece(truth, 0, 4, 0)
    later = piece(truth, 2, 4, 1)  # its first event is the reset itself
    merged = merge(None, whole, later)
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]


def test_rule_1_a_leading_reset_with_another_inferred_time_still_aligns() -> None:
    """A reset has no exchange time; a run that knows no event before it infers another one."""
    truth = stream([(10, 50_000, 100), (20, 0, 0), (30, 70_000, 5)])
    other = stream([(10, 50_000, 100), (29, 0, 0), (30, 70_000, 5)])
    merged = merge(None, piece(truth, 0, 3, 0), piece(other, 1, 3, 1))
    assert [len(s.events) for s in merged.segments] == [3]
    assert merged.mode == "exact"


def test_rule_3_a_run_without_snapshot_gets_its_hash_from_the_overlap_and_extends() -> None:
    """After a gap the snapshot may never come; the events are good all the same."""
    truth = plain(30)
    floating = piece(truth, 10, 30, 1, anchored=False)
    merged = merge(None, piece(truth, 0, 20, 0), floating)
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]
    assert floating.constant == int(truth.h_before[10])
    assert np.array_equal(merged.segments[0].events.h_after, truth.h_after)


def test_rule_3_a_floating_run_passes_the_hash_on_to_the_next() -> None:
    truth = plain(40)
    first = piece(truth, 10, 25, 1, anchored=False)
    second = piece(truth, 20, 40, 2, anchored=False)
    merged = merge(None, piece(truth, 0, 15, 0), second, first)
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]


def test_rule_3_a_floating_run_that_touches_nothing_is_rejected() -> None:
    truth = plain(40)
    merged = merge(None, piece(truth, 0, 10, 0), piece(truth, 20, 40, 1, anchored=False))
    assert [len(s.events) for s in merged.segments] == [10]
    assert reasons(merged) == [(1, 0, 20, "unanchored")]


def test_rule_3_a_floating_run_that_fits_two_places_equally_is_not_guessed() -> None:
    truth = stream([(10, 10_000, 1)] * 4 + [(20, 30_000, 7)])
    floating = piece(truth, 1, 2, 1, anchored=False)
    merged = merge(None, piece(truth, 0, 5, 0), floating)
    assert reasons(merged) == [(1, 0, 1, "unanchored")]


def test_rule_4_equal_changes_in_one_microsecond_stay_apart() -> None:
    """Dropping repeats of content and microsecond left 44 of 66 recorded books wrong."""
    truth = stream([(10, 10_000, 5)] * 3 + [(11, 20_000, 5)] * 2)
    merged = merge(None, piece(truth, 0, 4, 0), piece(truth, 2, 5, 1))
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]


def test_rule_4_the_whole_overlap_must_be_equal_not_only_its_first_event() -> None:
    truth = plain(10)
    wrong = stream([*prices(truth)[:5], (600_000, 990_000, 77), (700_000, 980_000, 78)])
    merged = merge(None, piece(truth, 0, 10, 0), piece(wrong, 2, 7, 1))
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]
    assert ("disputed" in reasons(merged)[0][3]) is True


def test_rule_5_a_run_that_fits_two_segments_joins_them() -> None:
    truth = plain(30)
    merged = merge(
        None, piece(truth, 0, 10, 0), piece(truth, 20, 30, 0, run_id=2), piece(truth, 8, 22, 1)
    )
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]


def test_rule_5_runs_that_share_no_event_stay_two_segments_in_time_order() -> None:
    truth = plain(30)
    merged = merge(None, piece(truth, 15, 30, 1), piece(truth, 0, 10, 0))
    assert [prices(s.events) for s in merged.segments] == [prices(truth)[:10], prices(truth)[15:]]


def test_rule_5_a_join_that_contradicts_one_segment_is_voted_on() -> None:
    """The bridge fits the first segment and contradicts the second, which two others saw."""
    truth = plain(30)
    lying = stream([*prices(truth)[:20], *prices(truth)[21:]])
    merged = merge(
        None,
        piece(truth, 0, 10, 0),
        piece(truth, 19, 30, 0, run_id=2),
        piece(truth, 19, 30, 1),
        piece(lying, 5, 29, 2),
    )
    found = join_events([s.events for s in merged.segments])
    assert len(set(prices(found))) == len(prices(found))
    assert set(prices(found)) <= set(prices(truth))


def test_rule_6_seq_refuses_an_offset_that_content_alone_would_allow() -> None:
    """A cycle recurs: without seq the second run of the connection would lie on the first."""
    truth = stream([(10, 10_000, 5), (10, 10_000, -5)] * 4 + [(900, 20_000, 1)])
    first = piece(truth, 0, 3, 0, seq_from=1, seq_to=3, open_end=False)
    second = piece(truth, 6, 9, 0, run_id=2, seq_from=7, seq_to=9)
    merged = merge(None, first, second, piece(truth, 0, 9, 1))
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]
    places = {p.piece.run_id: p.start for p in merged.segments[0].parts if p.piece.gatherer == 0}
    assert places == {1: 0, 2: 6}


def test_rule_6_holds_against_the_last_run_before_this_window() -> None:
    truth = stream([(10, 10_000, 5), (10, 10_000, -5)] * 4)
    base = Base(2, int(truth.h_after[1]), 5, former={(0, 1): (2, 2)})
    lives = piece(truth, 2, 8, 1, position=2)
    after = piece(truth, 6, 8, 0, run_id=2, seq_from=7, seq_to=8)
    merged = merge(base, lives, after)
    part = next(p for p in merged.segments[0].parts if p.piece is after)
    assert part.start == 4
    tight = piece(truth, 2, 4, 0, run_id=2, seq_from=3, seq_to=4)
    part = next(p for p in merge(base, lives, tight).segments[0].parts if p.piece is tight)
    assert part.start == 0


def test_rule_6_runs_of_one_connection_with_crossed_seq_never_share_a_segment() -> None:
    truth = plain(20)
    merged = merge(
        None,
        piece(truth, 0, 12, 0, seq_from=1, seq_to=30),
        piece(truth, 8, 20, 0, run_id=2, seq_from=9, seq_to=40),
    )
    assert len(merged.segments) == 1
    assert {r.reason for r in merged.rejected} == {"disputed"}


def test_rule_6_an_earlier_run_is_bound_as_well_as_a_later_one() -> None:
    """The later run may be placed first; the earlier one must then fit before it."""
    truth = plain(20)
    late = piece(truth, 10, 20, 0, run_id=2, seq_from=13, seq_to=22)
    early = piece(truth, 9, 10, 0, seq_from=10, seq_to=10)
    merged = merge(None, late, early, piece(truth, 5, 20, 1))
    assert [prices(s.events) for s in merged.segments] == [prices(truth)[5:]]


def test_rule_6_segments_meeting_in_one_microsecond_are_ordered_by_who_saw_both() -> None:
    truth = stream([(10, 10_000, 1), (20, 20_000, 2), (20, 30_000, 3), (20, 40_000, 4), (30, 1, 5)])
    first = piece(truth, 0, 2, 0, seq_from=1, seq_to=2)
    second = piece(truth, 3, 5, 0, run_id=2, seq_from=4, seq_to=5)
    merged = merge(None, second, first)
    assert [prices(s.events)[0] for s in merged.segments] == [(10, 10_000, 1), (20, 40_000, 4)]
    assert [s.ambiguous for s in merged.segments] == [[], []]


def test_rule_6_a_connection_may_turn_the_order_of_two_segments_round() -> None:
    truth = stream([(20, 10_000, 1), (20, 20_000, 2), (20, 30_000, 3)])
    first = piece(truth, 0, 1, 0, seq_from=9, seq_to=9)
    second = piece(truth, 2, 3, 0, run_id=2, seq_from=3, seq_to=3)
    merged = merge(None, first, second)
    assert [s.parts[0].piece.run_id for s in merged.segments] == [2, 1]


def test_rule_6_without_a_common_connection_the_order_is_flagged() -> None:
    truth = stream([(10, 10_000, 1), (20, 20_000, 2), (20, 30_000, 3), (20, 40_000, 4), (30, 1, 5)])
    merged = merge(None, piece(truth, 0, 2, 0), piece(truth, 3, 5, 1))
    assert [s.ambiguous for s in merged.segments] == [[(1, 2)], [(0, 1)]]


def test_rule_8_agreement_inside_one_microsecond_proves_nothing() -> None:
    """The run may lie anywhere in a burst: it is kept aside whole."""
    burst = stream([(10, 10_000, -1)] * 3 + [(10, 20_000, -1)] * 3)
    seen = piece(burst, 0, 4, 0)
    floating = piece(burst, 3, 6, 1, anchored=False)
    merged = merge(None, seen, floating)
    assert reasons(merged) == [(1, 0, 3, "unanchored")]


def test_rule_8_a_run_that_covers_the_microsecond_fully_is_believed() -> None:
    truth = stream([(5, 5_000, 1), (10, 10_000, -1), (10, 20_000, -1), (15, 30_000, 1)])
    merged = merge(None, piece(truth, 1, 3, 0), piece(truth, 0, 4, 1, anchored=False))
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]


def test_rule_8_a_run_wholly_contained_is_believed() -> None:
    truth = stream([(5, 5_000, 1), (10, 10_000, -1), (10, 20_000, -1), (10, 30_000, 1)])
    merged = merge(None, piece(truth, 0, 4, 0), piece(truth, 1, 3, 1, anchored=False))
    assert merged.rejected == []


def test_a_closing_burst_of_785_removals_cut_by_all_gatherers_comes_out_whole() -> None:
    """Recorded closes remove up to 785 levels in one microsecond; every run is cut inside."""
    changes = [(10, 10_000 * (i % 80 + 1), -1) for i in range(785)]
    truth = stream([(5, 990_000, 1), *changes, (20, 980_000, 1)])
    merged = merge(
        None,
        piece(truth, 0, 300, 0),
        piece(truth, 200, 620, 1),
        piece(truth, 500, 787, 2),
        piece(truth, 450, 700, 0, run_id=2, seq_from=451),
    )
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]


def test_a_hole_of_two_events_between_equal_books_is_not_closed() -> None:
    """4.3 % of two-event holes leave the book unchanged: equal H is no proof (rule 7)."""
    truth = stream([(10, 1, 5), (20, 2, 5), (20, 2, -5), (30, 3, 5)])
    merged = merge(None, piece(truth, 0, 1, 0), piece(truth, 3, 4, 1))
    assert [len(s.events) for s in merged.segments] == [1, 1]
    assert merged.segments[0].events.h_after[-1] == merged.segments[1].events.h_before[0]


def lacking(n: int, missing: int) -> Piece:
    """A run of n events that silently lacks one."""
    truth = prices(plain(n))
    return piece(stream(truth[:missing] + truth[missing + 1 :]), 0, n - 1, 0)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_rule_9_two_gatherers_outvote_a_silently_wrong_one(order: tuple[int, ...]) -> None:
    """Without the vote the run that came second was thrown away: mostly a healthy one."""
    truth = plain(20)
    pieces = [lacking(20, 7), piece(truth, 0, 20, 1), piece(truth, 0, 20, 2)]
    merged = merge(None, *(pieces[i] for i in order), window_us=0)
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]
    assert reasons(merged) == [(0, 7, 19, "contradicted")]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_rule_9_two_gatherers_outvote_a_wrong_one_that_saw_more(order: tuple[int, ...]) -> None:
    """The wrong one is placed first; both others must reach their common branch through it."""
    truth = plain(30)
    pieces = [lacking(30, 7), piece(truth, 0, 20, 1), piece(truth, 2, 20, 2)]
    merged = merge(None, *(pieces[i] for i in order), window_us=0)
    assert [prices(s.events) for s in merged.segments] == [prices(truth)[:20]]
    assert reasons(merged) == [(0, 7, 29, "contradicted")]


@pytest.mark.parametrize("seen_before", [1, 3])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_rule_9_what_the_wrong_one_alone_saw_first_is_kept(
    order: tuple[int, ...], seen_before: int
) -> None:
    """It agrees with the others after that, and goes wrong only later: what is wrong is outvoted,
    what was right stays. All begin in one microsecond, so that the longer runs are placed first."""
    truth = stream([(100, 10_000 * (i + 1), 100 + i) for i in range(6)] + prices(plain(20)))
    found = stream(prices(truth)[:15] + prices(truth)[16:])
    pieces = [
        piece(found, 0, 24 - seen_before, 0),
        *(piece(truth, seen_before, 26, g) for g in (1, 2)),
    ]
    merged = merge(None, *(pieces[i] for i in order), window_us=0)
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]
    assert reasons(merged) == [(0, 15, 24 - seen_before, "contradicted")]
    assert merged.segments[0].gatherers(0, seen_before) == {0}
    assert merged.segments[0].gatherers(15, 26) == {1, 2}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_rule_9_holds_for_continuing_runs_too(order: tuple[int, ...]) -> None:
    truth = plain(20)
    base = Base(100, H0, 50_000)
    pieces = [lacking(20, 7), piece(truth, 0, 20, 1), piece(truth, 0, 20, 2)]
    for p in pieces:
        p.position = 100
    merged = merge(base, *(pieces[i] for i in order))
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]
    assert reasons(merged) == [(0, 7, 19, "contradicted")]


def test_rule_9_one_against_one_believes_the_run_whose_next_snapshot_agrees() -> None:
    truth = plain(20)
    wrong, right = lacking(20, 7), piece(truth, 0, 20, 1, audit=1)
    wrong.audit = -1
    merged = merge(None, wrong, right)
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]
    assert reasons(merged) == [(0, 7, 19, "contradicted")]


def test_rule_9_one_against_one_without_a_snapshot_is_disputed() -> None:
    truth = plain(20)
    merged = merge(None, lacking(20, 7), piece(truth, 0, 20, 1))
    assert merged.segments[0].disputed_from == 7
    assert [r.reason for r in merged.rejected] == ["disputed"]


def test_rule_9_a_run_with_a_level_below_zero_has_no_vote() -> None:
    truth = plain(20)
    wrong = lacking(20, 7)
    wrong.weak = True
    merged = merge(None, wrong, piece(truth, 0, 20, 1))
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]


def test_rule_9_events_on_the_tape_are_not_taken_back() -> None:
    """A run behind contradicts what is published: the tape stays, the run's witnesses count."""
    truth = plain(10)
    base = Base(3, int(truth.h_after[2]), 300_000, truth.part(2, 3), [0b110])
    wrong = stream([(250_000, 990_000, 3)], int(truth.h_before[2]))
    behind = piece(wrong, 0, 1, 0, position=2)
    merged = merge(base, behind, piece(truth, 3, 10, 1, position=3))
    assert prices(merged.segments[0].events) == prices(truth)[2:]
    assert reasons(merged) == [(0, 0, 1, "contradicted")]


def test_rule_9_what_outvotes_the_tape_becomes_a_segment_of_its_own() -> None:
    truth = plain(10)
    base = Base(3, int(truth.h_after[2]), 300_000, truth.part(2, 3), [0b001])
    other = stream([(250_000, 990_000, 3), (350_000, 980_000, 3)], int(truth.h_before[2]))
    merged = merge(
        base,
        piece(other, 0, 2, 1, position=2),
        piece(other, 0, 2, 2, position=2),
        piece(truth, 3, 10, 0, position=3),
    )
    assert prices(merged.segments[0].events) == prices(truth)[2:3]
    assert prices(merged.segments[1].events) == prices(other)
    assert reasons(merged) == [(0, 0, 7, "contradicted")]


def test_rule_10_times_apart_are_merged_by_content_and_hash_in_a_window() -> None:
    truth = plain(20)
    shifted = stream([(us + 5, p, d) for us, p, d in prices(truth)])
    merged = merge(None, piece(truth, 0, 15, 0), piece(shifted, 10, 20, 1))
    assert merged.mode == "window"
    assert len(merged.segments[0].events) == 20
    assert merged.rejected == []


def test_rule_10_a_single_event_with_another_time_is_not_doubled() -> None:
    truth = plain(2)
    shifted = stream([(us + 5, p, d) for us, p, d in prices(truth)])
    merged = merge(None, piece(truth, 0, 1, 0), piece(shifted, 0, 1, 1))
    assert [len(s.events) for s in merged.segments] == [1]


def test_rule_10_a_window_is_never_wider_than_told() -> None:
    truth = plain(20)
    shifted = stream([(us + 5_000, p, d) for us, p, d in prices(truth)])
    merged = merge(None, piece(truth, 0, 20, 0), piece(shifted, 0, 20, 1))
    assert merged.mode == "exact"
    assert {r.reason for r in merged.rejected} == {"disputed"}


def test_rule_10_where_equal_times_are_proven_no_weaker_mode_is_tried() -> None:
    truth = plain(20)
    shifted = stream([(us + 5, p, d) for us, p, d in prices(truth)])
    merged = merge(None, piece(truth, 0, 20, 0), piece(shifted, 0, 20, 1), window_us=0)
    assert merged.mode == "exact"
    assert merged.rejected


def test_rule_10_own_order_inside_a_microsecond_is_merged_in_canonical_order() -> None:
    a = [(10, 10_000, 1), (20, 30_000, 2), (20, 20_000, 3), (20, 20_000, -1), (30, 40_000, 4)]
    b = [(10, 10_000, 1), (20, 20_000, 3), (20, 20_000, -1), (20, 30_000, 2), (30, 40_000, 4)]
    base = Base(7, H0, 5)
    merged = merge(
        base, piece(stream(a), 0, 5, 0, position=7), piece(stream(b), 0, 5, 1, position=7)
    )
    assert merged.mode == "groups"
    assert prices(merged.segments[0].events) == sorted(a, key=lambda e: (e[0], e[1]))
    assert merged.rejected == []


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_rule_10_one_wrong_run_does_not_cost_the_order(order: tuple[int, ...]) -> None:
    """In canonical order the clash comes two events later, so less is left out; yet two runs agree
    on everything as it is."""
    truth = [(10, 10_000, 1), (20, 40_000, 9), (20, 30_000, 2), (20, 20_000, 3), (30, 40_000, 4)]
    truth = [(us * 10_000, price, delta) for us, price, delta in truth]
    lacks = stream([e for e in truth if e[2] != 9])
    whole = stream(truth)
    pieces = [piece(lacks, 0, 4, 0), piece(whole, 0, 5, 1), piece(whole, 0, 5, 2)]
    for p in pieces:
        p.position = 7
    merged = merge(Base(7, H0, 5), *(pieces[i] for i in order))
    assert merged.mode == "exact"
    assert [prices(s.events) for s in merged.segments] == [truth]


def test_rule_10_two_short_runs_in_two_orders_are_not_told_twice() -> None:
    """They lie within the match window altogether, so it saw no contradiction: each became a
    segment, and every event stood on the tape twice (own-order trial)."""
    a = [(20, 30_000, 2), (20, 20_000, 3), (700, 50_000, 4), (700, 40_000, 5), (900, 1, 1)]
    b = [(20, 20_000, 3), (20, 30_000, 2), (700, 40_000, 5), (700, 50_000, 4), (900, 1, 1)]
    merged = merge(Base(7, H0, 5), *(piece(stream(e), 0, 5, g) for g, e in enumerate((a, b))))
    assert merged.mode == "groups"
    told = [e for s in merged.segments for e in prices(s.events)]
    assert len(told) == len(set(told))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_rule_10_an_event_missed_in_a_cut_burst_does_not_cost_the_order(
    order: tuple[int, ...],
) -> None:
    """All runs begin with the burst of a close: in groups it is set aside as cut, and with it the
    contradiction. That is no agreement."""
    burst = [(100_000, 10_000 * (40 - n), n + 1) for n in range(30)]
    truth = [*burst, (900_000, 10_000, 100), (1_000_000, 10_000, 101)]
    lacks = stream([e for e in truth if e[2] != 9], H0)
    rest = stream(truth)
    pieces = [piece(lacks, 0, 31, 0), piece(rest, 0, 32, 1), piece(rest, 0, 32, 2)]
    merged = merge(None, *(pieces[i] for i in order))
    assert merged.mode == "exact"
    assert [prices(s.events) for s in merged.segments] == [truth]


def test_rule_10_groups_cut_by_a_run_are_set_aside() -> None:
    a = [(10, 10_000, 1), (20, 30_000, 2), (20, 20_000, 3), (30, 40_000, 4), (40, 1, 1)]
    b = [(10, 10_000, 1), (20, 20_000, 3), (20, 30_000, 2), (30, 40_000, 4), (40, 1, 1)]
    base = Base(7, H0, 5)
    merged = merge(
        base,
        piece(stream(a), 0, 5, 0, position=7),
        piece(stream(b), 0, 5, 1, position=7),
        piece(stream(b), 2, 5, 2, open_end=False),
    )
    assert merged.mode == "groups"
    assert reasons(merged) == [(2, 0, 1, "cut_group"), (2, 2, 3, "cut_group")]


def test_rule_10_a_run_inside_one_group_is_set_aside_whole() -> None:
    a = [(10, 10_000, 1), (20, 30_000, 2), (20, 20_000, 3), (30, 40_000, 4)]
    b = [(10, 10_000, 1), (20, 20_000, 3), (20, 30_000, 2), (30, 40_000, 4)]
    base = Base(7, H0, 5)
    merged = merge(
        base,
        piece(stream(a), 0, 4, 0, position=7),
        piece(stream(b), 0, 4, 1, position=7),
        piece(stream(b), 1, 2, 2, open_end=False),
    )
    assert reasons(merged) == [(2, 0, 1, "cut_group")]


def test_a_continuing_run_extends_the_tape_from_its_position() -> None:
    truth = plain(20)
    base = Base(10, int(truth.h_after[9]), 1_000_000)
    merged = merge(base, piece(truth, 10, 20, 0, position=10), piece(truth, 10, 18, 1, position=10))
    assert prices(merged.segments[0].events) == prices(truth)[10:]
    assert merged.segments[0].emitted == 0


def test_a_run_that_was_behind_confirms_what_is_on_the_tape() -> None:
    truth = plain(20)
    base = Base(10, int(truth.h_after[9]), 1_000_000, truth.part(8, 10), [1, 1])
    merged = merge(base, piece(truth, 8, 14, 1, position=8), piece(truth, 10, 12, 0, position=10))
    assert prices(merged.segments[0].events) == prices(truth)[8:14]
    assert merged.segments[0].emitted == 2


def test_rows_of_a_new_run_before_the_end_of_the_tape_are_late_and_the_rest_is_placed() -> None:
    truth = plain(20)
    base = Base(10, int(truth.h_after[9]), 1_000_000)
    merged = merge(base, piece(truth, 10, 20, 0, position=10), piece(truth, 5, 20, 1))
    assert prices(merged.segments[0].events) == prices(truth)[10:]
    assert reasons(merged) == [(1, 0, 5, "late")]


@pytest.mark.parametrize("margin", [0, 1, 3])
def test_what_was_before_an_epoch_without_events_does_not_come_after_its_first(
    margin: int,
) -> None:
    """Seen in the simulation: the epoch had begun with a book, its first events came from the run
    that began it, and a late run's earlier events, or all of it a second time, went behind them."""
    truth = plain(20)
    step = int(truth.us[1] - truth.us[0])
    began_us = int(truth.us[5])
    base = Base(
        0, int(truth.h_after[4]), 0, begun_us=(began_us - margin * step, began_us + margin * step)
    )
    live = piece(truth, 5, 12, 0, position=0)
    merged = merge(base, live, piece(truth, 2, 12, 1))
    assert [prices(s.events) for s in merged.segments] == [prices(truth)[5:12]]
    assert reasons(merged) == [(1, 0, 3, "late")]
    merged = merge(base, live, piece(truth, 2, 5, 1, open_end=False))
    assert [prices(s.events) for s in merged.segments] == [prices(truth)[5:12]]
    assert reasons(merged) == [(1, 0, 3, "late")]
    alone = merge(base, piece(truth, 2, 12, 1))
    assert [prices(s.events) for s in alone.segments if len(s.events)] == [prices(truth)[5:12]]


def test_rule_6_counts_what_was_late_of_a_run() -> None:
    """Two of its events are on the tape already: the rest stands two further from the last run of
    the connection than seq says. It was refused, a healthy gatherer with it (extreme trials)."""
    truth = plain(20)
    base = Base(6, int(truth.h_after[5]), int(truth.us[5]), former={(1, 2): (3, 3)})
    run = piece(truth, 4, 20, 1)
    run.seq_from = 5  # one event is missing after the third
    merged = merge(base, piece(truth, 6, 20, 0, position=6), run, window_us=0)
    assert [r[3] for r in reasons(merged)] == ["late"]
    assert merged.segments[0].gatherers(0, 20) == {0, 1}


def test_a_new_run_that_is_late_altogether_adds_nothing() -> None:
    truth = plain(20)
    base = Base(10, int(truth.h_after[9]), 1_000_000)
    merged = merge(base, piece(truth, 5, 9, 1))
    assert reasons(merged) == [(1, 0, 4, "late")]
    assert [len(s.events) for s in merged.segments] == [0]


def test_a_new_run_that_overlaps_kept_events_of_the_tape_is_not_late() -> None:
    truth = plain(20)
    base = Base(10, int(truth.h_after[9]), 1_000_000, truth.part(8, 10), [1, 1])
    merged = merge(base, piece(truth, 9, 20, 1))
    assert merged.rejected == []
    assert prices(merged.segments[0].events) == prices(truth)[8:]


def test_events_that_a_new_run_claims_before_the_live_end_are_contradictions() -> None:
    """A continuing run saw nothing between the tape's end and its next event."""
    truth = plain(20)
    base = Base(10, int(truth.h_after[9]), 1_000_000)
    extra = stream([(1_050_000, 990_000, 5), *prices(truth)[10:]], int(truth.h_after[9]))
    merged = merge(
        base,
        piece(truth, 10, 20, 0, position=10),
        piece(truth, 10, 20, 2, position=10),
        piece(extra, 0, 11, 1),
    )
    assert prices(merged.segments[0].events) == prices(truth)[10:]
    assert {r.reason for r in merged.rejected} == {"contradicted"}


def test_a_cut_cycle_is_flagged_when_no_data_can_decide() -> None:
    """The runs meet inside a closed cycle: the count of its events is uncertain."""
    cycle = [(10, 10_000, 5), (10, 10_000, -5)]
    truth = stream([(5, 20_000, 1), *cycle * 3, (20, 30_000, 1)])
    left = piece(truth, 0, 5, 0, open_end=False)
    right = piece(truth, 3, 8, 1)
    merged = merge(None, left, right)
    assert merged.segments[0].ambiguous != []


def test_a_live_run_in_a_cycle_stands_at_the_end() -> None:
    cycle = [(10, 10_000, 5), (10, 10_000, -5)]
    truth = stream([(5, 20_000, 1), *cycle * 2])
    live = piece(truth, 3, 5, 1)
    merged = merge(None, piece(truth, 0, 5, 0), live)
    part = next(p for p in merged.segments[0].parts if p.piece is live)
    assert part.start == 3
    assert merged.segments[0].ambiguous == []


@pytest.mark.parametrize("seed", range(20))
def test_the_order_in_which_pieces_are_given_does_not_matter(seed: int) -> None:
    """INV-M2: which gatherer answered first must not show on the tape."""
    rng = np.random.default_rng(seed)
    truth = plain(60, step_us=int(rng.integers(1, 4)))
    pieces = []
    for run in range(8):
        start = int(rng.integers(0, 50))
        stop = int(rng.integers(start + 1, 61))
        pieces.append(
            piece(truth, start, stop, run % 3, run_id=run, connection=run, anchored=run % 4 != 3)
        )
    results = []
    for _ in range(3):
        order = rng.permutation(len(pieces))
        merged = merge(None, *(pieces[i] for i in order))
        results.append(([prices(s.events) for s in merged.segments], reasons(merged)))
    assert results[0] == results[1] == results[2]


def test_nothing_in_gives_nothing_out() -> None:
    merged = merge(None)
    assert merged.segments == []
    merged = merge(Base(3, H0 & MASK, 7), piece(no_events(), 0, 0, 0))
    assert [len(s.events) for s in merged.segments] == [0]


def test_a_like_event_at_another_time_is_ignored_if_what_follows_differs() -> None:
    """A flicker recurs within the window of rule 10: it is another event, not another clock."""
    truth = stream([(10, 10_000, 5), (20, 10_000, -5), (900, 10_000, 5), (950, 30_000, 1)])
    merged = merge(None, piece(truth, 0, 2, 0), piece(truth, 2, 4, 1))
    assert merged.mode == "exact"
    assert [len(s.events) for s in merged.segments] == [2, 2]


def test_a_floating_run_extends_a_segment_that_others_contradict_further_on() -> None:
    truth = plain(20)
    wrong = stream(prices(truth)[:9] + prices(truth)[10:])
    merged = merge(
        None,
        piece(truth, 5, 18, 0),
        piece(truth, 5, 18, 2),
        piece(wrong, 6, 18, 1),
        piece(truth, 0, 8, 3, anchored=False),
        window_us=0,
    )
    assert [prices(s.events) for s in merged.segments] == [prices(truth)[:18]]
    assert reasons(merged) == [(1, 3, 12, "contradicted")]


def test_a_floating_run_that_contradicts_any_segment_is_not_placed() -> None:
    truth = plain(30)
    odd = stream([*prices(truth)[:12], *prices(truth)[13:]])
    merged = merge(
        None,
        piece(truth, 0, 6, 0),
        piece(truth, 10, 30, 1),
        piece(odd, 2, 25, 2, anchored=False),
    )
    assert reasons(merged) == [(2, 0, 23, "unanchored")]


def test_what_contradicts_a_contradicted_run_goes_with_it() -> None:
    """Three runs, three stories: the two that agree with nobody are set aside."""
    truth = plain(20)
    first = stream([*prices(truth)[:5], *prices(truth)[6:]])
    second = stream([*prices(first)[:9], *prices(first)[10:]])
    merged = merge(
        None,
        piece(truth, 0, 20, 0),
        piece(truth, 0, 20, 1),
        piece(truth, 0, 20, 4),
        piece(first, 0, 19, 2),
        piece(second, 6, 18, 3),
        window_us=0,
    )
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]
    assert {(r.piece.gatherer, r.reason) for r in merged.rejected} == {
        (2, "contradicted"), (3, "contradicted")
    }  # fmt: skip


def test_three_runs_with_three_stories_are_disputed_from_the_first_difference() -> None:
    truth = plain(20)
    second = stream([*prices(truth)[:8], *prices(truth)[9:]])
    third = stream([*prices(truth)[:8], *prices(truth)[10:]])
    merged = merge(None, piece(truth, 0, 20, 0), piece(second, 0, 19, 1), piece(third, 0, 18, 2))
    assert merged.segments[0].disputed_from == 8
    assert {r.reason for r in merged.rejected} == {"disputed"}


def test_continuing_runs_that_differ_at_once_are_outvoted_at_once() -> None:
    """Nothing of this window is agreed yet: what follows must follow the end of the tape."""
    truth = plain(20)
    base = Base(5, int(truth.h_after[4]), 500_000)
    wrong = stream([(550_000 + i, 990_000, 1 + i) for i in range(30)], int(truth.h_after[4]))
    merged = merge(
        base,
        piece(wrong, 0, 30, 0, position=5),
        piece(truth, 5, 20, 1, position=5),
        piece(truth, 5, 20, 2, position=5),
    )
    assert prices(merged.segments[0].events) == prices(truth)[5:]


def test_a_later_run_joins_the_live_end_and_not_the_rival_before_it() -> None:
    truth = plain(20)
    base = Base(10, int(truth.h_after[9]), 1_000_000)
    extra = stream([(1_050_000, 990_000, 5), *prices(truth)[10:14]], int(truth.h_after[9]))
    extra.h_before[1:] = truth.h_before[10:14]  # from there on its book is right by chance
    extra.h_after[1:] = truth.h_after[10:14]
    merged = merge(
        base,
        piece(truth, 10, 20, 0, position=10),
        piece(truth, 10, 20, 2, position=10),
        piece(extra, 0, 5, 1),
        piece(truth, 12, 20, 3),
        window_us=0,
    )
    assert prices(merged.segments[0].events) == prices(truth)[10:]
    assert {(r.piece.gatherer, r.reason) for r in merged.rejected} == {(1, "contradicted")}


def test_rule_6_a_place_before_the_last_run_of_the_connection_is_refused() -> None:
    """The cycle fits at two places; at the first one the connection had seen it already."""
    cycle = [(10, 10_000, 5), (10, 10_000, -5)]
    truth = stream([(5, 20_000, 1), *cycle, *cycle, (20, 30_000, 1)])
    first = piece(truth, 0, 3, 0, open_end=False)
    second = piece(truth, 3, 5, 0, run_id=2, open_end=False)
    merged = merge(None, piece(truth, 0, 6, 1), first, second)
    part = next(p for p in merged.segments[0].parts if p.piece is second)
    assert (part.start, part.loose) == (3, False)


def test_rule_6_binds_an_earlier_run_that_is_placed_later() -> None:
    truth = plain(20)
    late = piece(truth, 10, 20, 0, run_id=2, seq_from=13, seq_to=22)
    early = piece(truth, 3, 9, 0, seq_from=4, seq_to=9, anchored=False)
    merged = merge(None, late, early, piece(truth, 0, 14, 1))
    assert merged.rejected == []
    assert {p.piece.run_id: p.start for p in merged.segments[0].parts if p.piece.gatherer == 0} == {
        1: 3, 2: 10
    }  # fmt: skip


@pytest.mark.parametrize("truth_wins", [True, False])
def test_a_bridge_that_denies_the_second_segment_is_voted_on(truth_wins: bool) -> None:
    truth = plain(20)
    bridge = stream([*prices(truth)[:14], *prices(truth)[15:]])
    more = truth if truth_wins else bridge
    start, stop = (10, 20) if truth_wins else (3, 19)
    merged = merge(
        None,
        piece(truth, 0, 6, 0),
        piece(truth, 10, 20, 1),
        piece(bridge, 3, 19, 2),
        piece(more, start, stop, 3),
        piece(more, start, stop, 4),
        window_us=0,
    )
    found = [e for s in merged.segments for e in prices(s.events)]
    assert found == prices(truth if truth_wins else bridge)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1), (1, 1)])
def test_two_segments_that_know_a_common_time_never_stay_both(first: int, second: int) -> None:
    """INV-M3, whatever led there: the one with fewer gatherers goes, of equals the later."""
    truth, other = plain(20), plain(20, step_us=110_000, h0=7)
    attempt = _Attempt(None, 0, 0, grouped=False)
    for events, count, offset in ((truth, first, 0), (other, second, 10)):
        segment = Segment(events)
        segment.parts = [Part(piece(events, 0, 20, offset + g), 0, 0, 20) for g in range(count)]
        attempt.segments.append(segment)
    merged = attempt.finish("exact")
    kept = other if second > first else truth
    assert [prices(s.events) for s in merged.segments] == [prices(kept)]
    assert {r.reason for r in merged.rejected} == {"contradicted"}


def test_a_segment_that_outvotes_the_tapes_new_events_leaves_what_is_published() -> None:
    truth, other = plain(20), plain(20, step_us=110_000, h0=7)
    attempt = _Attempt(Base(2, H0, 5, truth.part(0, 2), [1, 1]), 0, 0, grouped=False)
    base = attempt.segments[0]
    base.events = truth
    base.parts = [Part(piece(truth, 0, 20, 0), 0, 0, 20)]
    rival = Segment(other)
    rival.parts = [Part(piece(other, 0, 20, g), 0, 0, 20) for g in (1, 2)]
    attempt.segments.append(rival)
    merged = attempt.finish("exact")
    assert [prices(s.events) for s in merged.segments] == [prices(truth)[:2], prices(other)]


def test_a_reset_alone_that_fits_nowhere_is_a_segment_of_its_own() -> None:
    """It has no time of its own, so it cannot overlap anything in time."""
    truth = plain(5)
    lone = stream([(50_000, 0, 0)], 77)
    merged = merge(None, piece(truth, 0, 5, 0), piece(lone, 0, 1, 1))
    assert sorted(len(s.events) for s in merged.segments) == [1, 5]


def test_a_continuing_run_that_others_overtook_is_placed_anew() -> None:
    """It was silent while the others went on: its rows come after later ones are on the tape."""
    truth = plain(20)
    base = Base(10, int(truth.h_after[9]), 1_000_000)
    old = stream([(400_000, 990_000, 1), (1_100_000, 110_000, 110)], int(truth.h_after[9]))
    merged = merge(base, piece(old, 0, 2, 1, position=10))
    assert (1, 0, 1, "late") in reasons(merged)


def test_a_rival_that_differs_from_another_rival_further_on_is_kept_apart() -> None:
    truth = plain(20)
    second = stream([*prices(truth)[:8], *prices(truth)[9:]])
    third = stream([*prices(truth)[:8], *prices(truth)[9:12], *prices(truth)[13:]])
    merged = merge(
        None,
        piece(truth, 0, 20, 0),
        piece(truth, 0, 20, 4),
        piece(second, 0, 19, 1),
        piece(third, 0, 18, 2),
    )
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]
    assert {r.piece.gatherer for r in merged.rejected} == {1, 2}


def test_a_segment_that_is_joined_takes_its_rivals_along() -> None:
    truth = plain(20)
    wrong = stream([*prices(truth)[:15], *prices(truth)[16:]])
    merged = merge(
        None,
        piece(truth, 0, 6, 0),
        piece(truth, 10, 20, 0, run_id=2),
        piece(truth, 10, 20, 1),
        piece(wrong, 10, 19, 2),
        piece(truth, 4, 12, 3, anchored=False),
        window_us=0,
    )
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]
    assert reasons(merged) == [(2, 5, 9, "contradicted")]


def test_an_overlap_inside_a_cycle_that_both_runs_cut_is_flagged() -> None:
    """It fits at one place, but the true runs may lie a whole cycle further apart."""
    cycle = [(10, 10_000, 5), (10, 10_000, -5)]
    truth = stream([(5, 20_000, 1), *cycle, *cycle, (20, 30_000, 1)])
    merged = merge(None, piece(truth, 0, 4, 0, open_end=False), piece(truth, 2, 6, 1))
    assert [len(s.events) for s in merged.segments] == [6]
    assert merged.segments[0].ambiguous == [(2, 4)]


def test_runs_cut_in_one_microsecond_may_share_nothing_of_it() -> None:
    """A like event with another one after it is no contradiction: the runs may lie apart."""
    cycle = [(10, 10_000, 5), (10, 10_000, -5)]
    truth = stream([(5, 20_000, 1), *cycle, *cycle, (20, 30_000, 1)])
    merged = merge(None, piece(truth, 0, 4, 0, open_end=False), piece(truth, 4, 6, 1))
    assert [len(s.events) for s in merged.segments] == [4, 2]
    assert merged.rejected == []


def test_rule_10_one_runs_last_event_inside_anothers_time_by_less_than_the_tolerance() -> None:
    """Clocks 5 us apart, recorded data: a run ended with a change at 544, another began with the
    next one at 539. It lay inside the other's time, and was thrown away as contradicted."""
    truth = stream([(100_000, 10_000, 1), (160_542, 20_000, 5), (160_542, 30_000, 7),
                    (228_492, 40_000, 2), (300_000, 10_000, 3)])  # fmt: skip
    early, late = (
        stream([(us + shift, price, delta) for us, price, delta in prices(truth)])
        for shift in (2, -3)
    )
    base = Base(1, int(truth.h_before[1]), 100_002)
    last = piece(early, 1, 2, 1, position=1, open_end=False)
    again = piece(early, 3, 5, 1, run_id=2)  # behind the gap it saw what the other saw
    merged = merge(base, last, piece(late, 2, 5, 2), again)
    assert merged.rejected == []
    found = [e for s in merged.segments for e in prices(s.events)]
    assert [e[1:] for e in found] == [e[1:] for e in prices(truth)[1:]]


def test_rule_10_a_run_well_inside_anothers_time_is_still_contradicted() -> None:
    """The control: by more than the tolerance both knew that time."""
    truth = plain(20)
    wrong = stream([(us, 870_000, 5) for us in (1_050_000, 1_060_000, 1_070_000)], h0=77)
    merged = merge(None, piece(truth, 0, 20, 0), piece(wrong, 0, 3, 1))
    assert {r[3] for r in reasons(merged)} <= {"disputed", "contradicted"}
    assert [prices(s.events) for s in merged.segments] == [prices(truth)]
