"""INV-V1 to INV-V4: what live data say about the exchange, and what follows from it."""

from __future__ import annotations

import numpy as np

from marketdata.evidence import (
    CONNECTION_PAIRS_MAX,
    EXACT_PROOF_EVENTS,
    REPLIES_PROOF,
    Change,
    Evidence,
    Replies,
    Seen,
    better,
    compare,
)
from marketdata.merge import merge_pieces
from marketdata.rows import DeltaFlag
from tests.unit.marketdata.streams import piece, plain, stream


def seen_equal(events: int, connection: int = 1) -> Seen:
    seen = Seen()
    seen.equal([(0, connection), (1, connection)], events)
    return seen


def seen_apart(by_us: int, n: int = 20) -> Seen:
    """Two runs of the same events, the second one's times `by_us` later."""
    truth = plain(n)
    late = plain(n)
    late.us = late.us + by_us
    seen = Seen()
    seen.merged(merge_pieces(None, [piece(truth, 0, n, 0), piece(late, 0, n, 1)], 2_000))
    return seen


def test_equal_recordings_are_equal_in_time_and_place() -> None:
    found = compare(plain(10), plain(10))
    assert (found.compared, found.equal_us, found.other_order, found.apart_us_max) == (10, 10, 0, 0)
    assert not found.differs


def test_differences_are_counted_by_size() -> None:
    """A bucket for each bound, the bound included, and one above."""
    events, other = plain(7), plain(7)
    other.us = other.us + np.array([0, 1, -2, 10, 11, 1_000, 1_001])
    found = compare(events, other)
    assert (found.compared, found.equal_us, found.apart_us_max) == (7, 1, 1_001)
    assert found.apart == [1, 2, 1, 1, 1]
    assert found.differs


def test_times_that_nobody_gave_or_that_were_cut_off_are_not_compared() -> None:
    events, other = plain(3), plain(3)
    other.us = events.us // 1000 * 1000
    events.us = other.us + 7
    other.flags = np.array([DeltaFlag.TS_MS_ONLY, DeltaFlag.TS_INFERRED, 0], np.int16)
    found = compare(events, other)
    assert (found.compared, found.equal_us, found.apart) == (1, 0, [0, 1, 0, 0, 0])


def test_another_order_inside_one_microsecond_is_seen_through_the_third_mode() -> None:
    """The merge compares whole groups then; here the runs are compared as they came."""
    own = stream(
        [(10, 50_000, 1), (20, 60_000, 1), (20, 70_000, 1), (30, 80_000, 1)]
        + [(40 + i, 10_000 * (i + 10), 1) for i in range(20)]
    )
    other = stream(
        [(10, 50_000, 1), (20, 70_000, 1), (20, 60_000, 1), (30, 80_000, 1)]
        + [(40 + i, 10_000 * (i + 10), 1) for i in range(20)]
    )
    n = len(own)
    merged = merge_pieces(None, [piece(own, 0, n, 0), piece(other, 0, n, 1)], 2_000)
    assert merged.mode == "groups"
    seen, evidence = Seen(), Evidence()
    seen.merged(merged)
    evidence.close(1, seen)
    assert evidence.pairs["0-1"].likeness.other_order == 2
    assert evidence.pairs["0-1"].mode == "groups"


def test_a_pair_is_exact_after_so_many_events_and_not_before() -> None:
    evidence = Evidence()
    evidence.close(1, seen_equal(EXACT_PROOF_EVENTS - 1))
    assert not evidence.exact(["0-1"], Seen())
    assert evidence.close(2, seen_equal(1)) == []  # first proof: nothing changed
    assert evidence.exact(["0-1"], Seen())
    assert evidence.exact([], Seen())
    assert not evidence.exact(["0-1", "0-2"], Seen())


def test_one_difference_falls_back_at_once_and_is_told_and_proven_again() -> None:
    evidence = Evidence()
    evidence.close(1, seen_equal(EXACT_PROOF_EVENTS))
    apart = seen_apart(5)
    assert not evidence.exact(["0-1"], apart), "already in the window that shows it"
    assert evidence.close(2, apart) == [Change("0-1", "exact", "window")]
    assert evidence.close(3, seen_equal(EXACT_PROOF_EVENTS - 1)) == []
    assert evidence.close(4, seen_apart(5)) == [], "no change, and the proof begins anew"
    assert evidence.close(5, seen_equal(EXACT_PROOF_EVENTS - 1)) == []
    assert evidence.close(6, seen_equal(1)) == [Change("0-1", "window", "exact")]


def test_runs_of_one_gatherer_are_no_evidence() -> None:
    seen = Seen()
    seen.equal([(0, 1), (0, 2)], 5)
    assert seen.between == {}


def test_connections_are_told_apart_up_to_a_limit() -> None:
    """INV-V4: the sum keeps all; the oldest pairs go."""
    evidence = Evidence()
    for n in range(CONNECTION_PAIRS_MAX + 5):
        evidence.close(n, seen_equal(10, connection=n))
    pair = evidence.pairs["0-1"]
    assert (len(pair.connections), pair.more) == (CONNECTION_PAIRS_MAX, 5)
    assert "4-4" not in pair.connections
    assert "5-5" in pair.connections
    assert pair.likeness.compared == 10 * (CONNECTION_PAIRS_MAX + 5)


def test_replies_are_proven_by_telling_ones_only_and_one_that_differs_withdraws() -> None:
    evidence, seen = Evidence(), Seen()
    seen.replies = Replies(agreed=REPLIES_PROOF - 1, quiet=10_000, unknown=10_000)
    assert evidence.close(1, seen) == []
    assert not evidence.replies_proven(Seen())
    one = Seen()
    one.replies = Replies(agreed=1)
    assert evidence.close(2, one) == []
    assert evidence.replies_proven(Seen())
    wrong = Seen()
    wrong.replies = Replies(agreed=5, differed=1)
    assert not evidence.replies_proven(wrong)
    assert evidence.close(3, wrong) == [Change("replies", "proven", "unproven")]
    assert evidence.close(4, one) == []
    assert not evidence.replies_proven(Seen())


def test_what_was_proven_is_given_up_only_for_a_mode_that_explains_everything() -> None:
    """Rule 10: (left out, agreed) of a weaker mode against the first."""
    assert better((0, 20), (10, 0), agrees=True, proven=True)
    assert not better((0, 20), (10, 0), agrees=False, proven=True)
    assert not better((0, 7), (10, 0), agrees=True, proven=True)
    assert not better((10, 20), (10, 0), agrees=True, proven=True)
    assert better((5, 21), (10, 10), agrees=False, proven=False)
