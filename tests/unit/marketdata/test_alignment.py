"""Candidates, whole-overlap equality and canonical order: the arithmetic under the merge."""

from __future__ import annotations

import numpy as np

from marketdata.alignment import (
    agreement,
    candidate_offsets,
    canonical,
    chain_break,
    floating_offsets,
    join_events,
    no_events,
    times_agree,
)
from marketdata.rows import DeltaFlag
from tests.unit.marketdata.streams import plain, prices, stream


def test_offsets_are_found_both_ways() -> None:
    truth = plain(20)
    assert candidate_offsets(truth.part(5, 15), truth, 0) == [5]
    assert candidate_offsets(truth, truth.part(5, 15), 0) == [-5]
    assert candidate_offsets(truth.part(0, 5), truth.part(5, 10), 0) == []
    assert candidate_offsets(no_events(), truth, 0) == []
    assert candidate_offsets(truth, no_events(), 0) == []


def test_a_recurring_transition_at_another_time_is_no_candidate() -> None:
    """2 % of transitions recur, never within 4.7 ms: time tells them apart."""
    truth = stream([(10, 1, 5), (20, 1, -5), (9_000, 1, 5)])
    assert candidate_offsets(truth.part(2, 3), truth.part(0, 2), 2_000) == []


def test_floating_runs_give_the_constant_they_lack() -> None:
    truth = plain(20)
    floating = truth.part(8, 12).shifted(-int(truth.h_before[8]))
    assert floating_offsets(floating, truth, 0) == [(8, int(truth.h_before[8]))]
    later = stream([(us + 9_000, price, delta) for us, price, delta in prices(truth)[8:12]])
    assert floating_offsets(later, truth, 2_000) == []
    assert floating_offsets(no_events(), truth, 0) == []
    assert floating_offsets(floating, no_events(), 0) == []


def test_agreement_counts_the_equal_prefix_of_the_overlap() -> None:
    truth = plain(10)
    other = stream([*prices(truth)[:6], (700_000, 990_000, 1)])
    assert agreement(other.part(2, 7), truth, 2, 0) == (0, 4, 5)
    assert agreement(truth, truth.part(4, 8), -4, 0) == (4, 4, 4)
    assert agreement(truth, truth, 10, 0) == (0, 0, 0)


def test_times_agree_exactly_or_within_the_tolerance() -> None:
    a, b = stream([(10, 1, 5), (20, 2, 5)]), stream([(10, 1, 5), (24, 2, 5)])
    assert times_agree(a, b, 0).tolist() == [True, False]
    assert times_agree(a, b, 4).tolist() == [True, True]


def test_an_inferred_time_agrees_with_every_time() -> None:
    """INV-A3: a frame without time gets that of the event before it, which differs by run."""
    a, b = stream([(10, 1, 5)]), stream([(99_999, 1, 5)])
    a.flags[0] = int(DeltaFlag.TS_INFERRED)
    assert times_agree(a, b, 0).tolist() == [True]


def test_a_time_in_milliseconds_agrees_with_every_microsecond_of_it() -> None:
    a, b = stream([(5_000, 1, 5), (6_000, 1, 5)]), stream([(5_999, 1, 5), (7_001, 1, 5)])
    a.flags[:] = int(DeltaFlag.TS_MS_ONLY)
    assert times_agree(a, b, 0).tolist() == [True, False]


def test_a_broken_chain_of_hashes_is_found_at_its_first_event() -> None:
    truth = stream([(10, 1, 5), (20, 2, 5), (30, 0, 0), (40, 2, 5)])
    assert chain_break(truth) == -1
    truth.h_after[2] = np.uint64(7)  # a reset must leave 0
    truth.h_before[3] = np.uint64(7)
    assert chain_break(truth) == 2
    assert chain_break(no_events()) == -1


def test_canonical_order_is_the_same_for_every_order_inside_a_microsecond() -> None:
    a = stream([(10, 30, 1), (10, 20, 2), (10, 20, -1), (11, 5, 1), (11, 4, 1)])
    b = stream([(10, 20, 2), (10, 20, -1), (10, 30, 1), (11, 4, 1), (11, 5, 1)])
    left, right = canonical(a), canonical(b)
    assert prices(left) == prices(right)
    assert np.array_equal(left.h_after, right.h_after)
    assert chain_break(left) == -1
    assert left.h_after[-1] == a.h_after[-1]


def test_nothing_moves_across_a_reset_in_canonical_order() -> None:
    a = stream([(10, 30, 1), (10, 0, 0), (10, 20, 2), (10, 10, 2), (12, 0, 0)])
    ordered = canonical(a)
    assert prices(ordered) == [(10, 30, 1), (10, 0, 0), (10, 10, 2), (10, 20, 2), (12, 0, 0)]
    assert chain_break(ordered) == -1


def test_a_reset_may_be_the_first_event_of_a_canonical_stretch() -> None:
    a = stream([(10, 0, 0), (10, 20, 2), (10, 10, 2)])
    assert prices(canonical(a)) == [(10, 0, 0), (10, 10, 2), (10, 20, 2)]
    assert chain_break(canonical(a)) == -1
    assert len(canonical(a.part(0, 1))) == 1


def test_joining_one_stretch_copies_nothing() -> None:
    truth = plain(3)
    assert join_events([truth]) is truth
    assert prices(join_events([truth.part(0, 1), truth.part(1, 3)])) == prices(truth)
