"""The proof must notice every kind of error: each number has a tape that raises it and only it."""

from __future__ import annotations

import numpy as np
import pytest

from tape.proof import (
    Interval,
    MergedMarket,
    Verdict,
    check_holes,
    compare_market,
    exit_ok,
    is_subsequence,
    misordered_neighbours,
    next_is_reset,
    truth_book,
)
from tape.truth_view import EVENT_HOLE, EVENT_RESET, Truth

EVENT = np.dtype(
    [
        ("market", "i4"),
        ("kind", "u1"),
        ("side", "u1"),
        ("price", "i4"),
        ("delta", "i8"),
        ("exchange_us", "i8"),
    ]
)
# Two equal events in one microsecond, a normal one, a reset, one more.
ROWS = [
    (0, 0, 0, 500_000, 100, 1_000),
    (0, 0, 0, 500_000, 100, 1_000),
    (0, 0, 1, 400_000, -50, 2_000),
    (0, EVENT_RESET, 0, 0, 0, 3_000),
    (0, 0, 0, 600_000, 700, 4_000),
]
WHOLE = [Interval(0, 10_000, "complete")]


def events(rows: list[tuple[int, ...]] = ROWS) -> np.ndarray:
    return np.array(rows, dtype=EVENT)


def tape(indices: list[int], flagged: bool = False) -> MergedMarket:
    rows = [ROWS[i] for i in indices]
    reset = np.array([r[1] == EVENT_RESET for r in rows], dtype=bool)
    col = lambda n: np.array([r[n] for r in rows], dtype=np.int64)  # noqa: E731
    return MergedMarket(
        us=np.where(reset, 3_500, col(5)),  # the tape infers a reset's time: it must not matter
        side=np.where(reset, -1, col(2)),
        price=col(3),
        delta=col(4),
        flagged=np.full(len(rows), flagged),
    )


def judge(indices: list[int], received: list[bool], intervals: list[Interval]) -> Verdict:
    verdict = Verdict()
    compare_market("M", events(), np.array(received), tape(indices), intervals, verdict)
    return verdict


def test_equal_tape_gives_zeros_and_keeps_equal_events_apart() -> None:
    """Two equal changes in one microsecond are two."""
    verdict = judge([0, 1, 2, 3, 4], [True] * 5, WHOLE)
    assert (verdict.events_truth, verdict.events_merged) == (5, 5)
    assert exit_ok(verdict, audits_failed=0)


def test_one_of_two_equal_events_dropped_is_missing() -> None:
    """This is what a content key does; the proof must see it."""
    verdict = judge([0, 2, 3, 4], [True] * 5, WHOLE)
    assert (verdict.missing, verdict.extra, verdict.misordered) == (1, 0, 0)
    assert not exit_ok(verdict, audits_failed=0)


def test_an_event_twice_is_extra() -> None:
    """A false duplicate."""
    verdict = judge([0, 1, 2, 2, 3, 4], [True] * 5, WHOLE)
    assert (verdict.missing, verdict.extra) == (0, 1)


def test_a_dropped_reset_is_missing() -> None:
    """A reset is an event like any other."""
    assert judge([0, 1, 2, 4], [True] * 5, WHOLE).missing == 1


def test_two_neighbours_swapped_are_misordered_and_nothing_else() -> None:
    """Order is checked apart from the multiset."""
    verdict = judge([0, 1, 3, 2, 4], [True] * 5, WHOLE)
    assert (verdict.missing, verdict.extra, verdict.misordered) == (0, 0, 1)


def test_an_event_nobody_received_in_a_complete_interval_is_a_false_complete() -> None:
    """The worst bug this project can have."""
    received = [True, True, False, True, True]
    assert judge([0, 1, 3, 4], received, WHOLE).false_complete == 1
    gap = [
        Interval(0, 1_500, "complete"),
        Interval(1_500, 2_500, "gap"),
        Interval(2_500, 9_999, "complete"),
    ]
    assert judge([0, 1, 3, 4], received, gap).false_complete == 0


def test_an_event_outside_runs_that_is_on_the_tape_anyway_is_no_error() -> None:
    """A run without a snapshot that was aligned with another one counts for more, not for less."""
    verdict = judge([0, 1, 2, 3, 4], [True, True, False, True, True], WHOLE)
    assert exit_ok(verdict, audits_failed=0)


def test_a_loss_in_an_ambiguous_interval_is_counted_apart() -> None:
    """Cuts that no data can decide are reported, not hidden and not called missing."""
    around = [Interval(0, 1_500, "complete"), Interval(1_500, 2_500, "ambiguous")]
    verdict = judge([0, 1, 3, 4], [True] * 5, around)
    assert (verdict.missing, verdict.ambiguous) == (0, 1)


def test_failed_audits_alone_fail_the_proof() -> None:
    """A snapshot that disagrees with the running book is never fine."""
    assert not exit_ok(Verdict(), audits_failed=1)


@pytest.mark.parametrize(("small", "large", "answer"), [
    ("", "abc", True), ("ac", "abc", True), ("ca", "abc", False), ("aa", "aba", True),
    ("aaa", "aba", False),
])  # fmt: skip
def test_subsequence(small: str, large: str, answer: bool) -> None:
    """Small words, all cases."""
    assert is_subsequence(list(small), list(large)) is answer


@pytest.mark.parametrize(("merged", "truth", "wrong"), [
    ("abc", "abc", 0), ("bac", "abc", 1), ("cba", "abc", 2), ("aba", "aab", 1), ("axb", "ab", 0),
])  # fmt: skip
def test_misordered_neighbours(merged: str, truth: str, wrong: int) -> None:
    """Only a real disorder counts; unknown events are left out."""
    assert misordered_neighbours(list(merged), list(truth)) == wrong


def hole_truth() -> Truth:
    rows = [ROWS[0], (-1, EVENT_HOLE, 0, 0, 1_900, 1_500), ROWS[2]]
    return Truth(
        tickers=["M"], events=events(rows), sends=np.empty(0), conn_of_handshake={},
        books=[{"at": 0, "market": 0, "yes": [[500_000, 900]], "no": []},
               {"at": 2, "market": 0, "yes": [], "no": [[400_000, 50]]}],
    )  # fmt: skip


def test_a_hole_of_the_recording_called_complete_is_a_false_complete() -> None:
    """Nobody was connected: nobody may claim it."""
    claimed, honest = Verdict(), Verdict()
    check_holes(hole_truth(), {"M": WHOLE}, claimed)
    check_holes(
        hole_truth(),
        {"M": [Interval(0, 1_500, "complete"), Interval(2_000, 9_000, "complete")]},
        honest,
    )
    assert (claimed.false_complete, honest.false_complete) == (1, 0)


def test_truth_book_starts_anew_after_a_hole() -> None:
    """The book after a hole is the one the exchange gave then."""
    truth = hole_truth()
    assert truth_book(truth, 0, 1_200) == ({500_000: 1_000}, {})
    assert truth_book(truth, 0, 1_950) == ({}, {400_000: 50})
    assert truth_book(truth, 0, 2_000) == ({}, {})


def test_only_the_time_right_before_a_reset_is_forgiven() -> None:
    """An inferred time may be early; an empty book anywhere else stays wrong."""
    truth = Truth(["M"], events(), np.empty(0), {}, [])
    assert next_is_reset(truth, 0, 2_000)
    assert not next_is_reset(truth, 0, 1_500)
    assert not next_is_reset(truth, 0, 3_000)
    assert not next_is_reset(truth, 0, 9_000)
