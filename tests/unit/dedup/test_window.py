"""What a run proves: from behind its first time, to its last one, with the engines' margin."""

from __future__ import annotations

import pytest

from dedup.inflow import Inflow
from dedup.window import RunTimes, WindowSink, empty_block, open_claim
from marketdata.coverage import OPEN_US
from marketdata.rows import MERGED_ROW
from tests.hand import QUICK, Hand, us

SKEW = QUICK.engine_skew_us


def played() -> tuple[Inflow, RunTimes]:
    hand = Hand(0)
    hand.start(0)
    hand.snap("A", {10_000: 5})  # seq 1
    hand.snap("B", {10_000: 5})  # seq 2
    hand.delta(100, "A", 10_000, 1)
    hand.delta(200, "B", 10_000, 1)
    hand.control("market_removed", run_id=1, seq=hand.seq, market_id=1)
    hand.delta(300, "B", 10_000, 1)
    batch = hand.commit()
    inflow = Inflow(0, QUICK.window_us, SKEW)
    inflow.ids.update({i: i - 1 for i in batch.markets})
    inflow.absorb(batch)
    cut = inflow.cut(us(900) // QUICK.window_us)
    return inflow, RunTimes(QUICK, [inflow], [cut])


def test_a_claim_starts_behind_the_next_time_shown_less_sure_if_it_is_another_markets() -> None:
    inflow, times = played()
    run = inflow.runs[1]
    assert times.claim_start(run, 0, "A", 1) == us(100) + 1
    assert times.claim_start(run, 1, "B", 2) == us(100) + 1 + SKEW
    assert times.claim_start(run, 0, "A", 99) == -1


def test_a_claim_from_the_runs_start_needs_the_runs_first_time() -> None:
    inflow, times = played()
    run = inflow.runs[1]
    assert times.claim_start(run, 0, "A", 0) == -1
    assert times.advance(["A", "B", "C"]) == {(0, 1)}
    assert times.claim_start(run, 0, "A", 0) == us(100) + 1
    assert times.claim_start(run, 1, "B", 0) == us(100) + 1 + SKEW
    assert times.advance(["A", "B", "C"]) == set()


def test_silence_is_proven_up_to_the_last_time_less_the_margin() -> None:
    inflow, times = played()
    run = inflow.runs[1]
    assert times.proof_to(run, 2, 7, 2) == 7
    times.advance(["A", "B", "C"])
    assert times.proof_to(run, 1, us(100), 2) == us(300) - SKEW
    assert times.proof_to(run, 1, us(290), 2) == us(290)
    assert times.proof_to(run, 1, us(100), 1) == us(300)


def test_a_market_that_left_is_proven_only_up_to_its_leaving() -> None:
    inflow, times = played()
    times.advance(["A", "B", "C"])
    assert times.proof_to(inflow.runs[1], 0, us(100), 2) == us(200) - SKEW
    assert times.end_of(inflow.runs[1], 0) is not None
    assert times.end_of(inflow.runs[1], 1) is None


@pytest.mark.parametrize("reads", [1, 2])
def test_a_market_that_left_is_proven_up_to_its_leaving_however_it_was_read(reads: int) -> None:
    """The window was that of the end of the read; there was nothing in it from before the leaving,
    the claim ended at the market's own last row, and a market that moved to another connection
    had a hole in its coverage that was none."""
    hand, batches = Hand(0), []
    hand.start(0)
    hand.snap("A", {10_000: 5})
    hand.delta(100, "A", 10_000, 1)
    for ms in range(1_000, 3_000, 200):
        hand.delta(ms, "B", 10_000, 1)
    hand.control("market_removed", run_id=1, seq=hand.seq, market_id=1)
    if reads == 2:
        batches.append(hand.commit())
    for ms in range(3_100, 5_000, 200):
        hand.delta(ms, "B", 10_000, 1)
    batches.append(hand.commit())
    inflow = Inflow(0, QUICK.window_us, SKEW)
    for batch in batches:
        inflow.ids.update({i: i - 1 for i in batch.markets})
        inflow.absorb(batch)
    left = inflow.ends[0]
    assert left.window == us(2_800) // QUICK.window_us
    for window in range(us(100) // QUICK.window_us, left.window + 1):
        times = RunTimes(QUICK, [inflow], [inflow.cut(window)])
        times.advance(["A", "B", "C"])
    assert times.end_of(inflow.runs[1], 0) == left
    assert times.proof_to(inflow.runs[1], 0, us(100), 2) == us(2_800) - SKEW


def test_a_claim_is_kept_once_and_the_last_word_counts() -> None:
    inflow, _ = played()
    sink = WindowSink()
    claim = open_claim("A", inflow.runs[1], 5)
    sink.claim(claim)
    sink.claim(claim)
    assert list(sink.claims.values()) == [claim]
    assert claim.to_us == OPEN_US


def test_blocks_have_the_production_layout() -> None:
    assert empty_block(2).dtype == MERGED_ROW
