"""Which window a row belongs to: by its own time, never further back than the engines' margin."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from dedup import inflow as module
from dedup.arbitrate import Arbiter
from dedup.inflow import Inflow
from marketdata.rows import DeltaFlag, GathererBatch
from tests.hand import QUICK, Hand, drain, us

INFERRED = int(DeltaFlag.TS_INFERRED)


def taken(*batches: GathererBatch) -> Inflow:
    inflow = Inflow(0, QUICK.window_us, QUICK.engine_skew_us)
    for batch in batches:
        inflow.ids.update({i: i - 1 for i in batch.markets})
        inflow.absorb(batch)
    return inflow


def windows(inflow: Inflow) -> list[int]:
    """Windows of all rows, counted from the first second."""
    return sorted(int(w) - us(0) // QUICK.window_us for c in inflow.chunks for w in c.window)


def opened() -> Hand:
    hand = Hand(0)
    hand.start(0)
    hand.snap("A", {10_000: 5})
    hand.snap("B", {10_000: 5})
    return hand


def test_rows_go_by_their_own_exchange_time() -> None:
    hand = opened()
    for ms in (100, 999, 1_000, 2_500):
        hand.delta(ms, "A", 10_000, 1)
    assert windows(taken(hand.commit())) == [0, 0, 1, 2]


def test_a_slow_engine_within_the_margin_keeps_its_own_window() -> None:
    """The same row must get the same window at every gatherer, however markets interleave."""
    hand = opened()
    hand.delta(1_050, "A", 10_000, 1)
    hand.delta(980, "B", 10_000, 1)
    assert windows(taken(hand.commit())) == [0, 1]


def test_a_row_older_than_the_margin_goes_to_the_window_of_the_margin() -> None:
    """Else a window could not close before every engine had spoken."""
    hand = opened()
    hand.delta(5_000, "A", 10_000, 1)
    hand.delta(900, "B", 10_000, 1)
    assert windows(taken(hand.commit())) == [4, 5]


def test_within_a_market_the_window_never_goes_back() -> None:
    hand = opened()
    hand.delta(950, "A", 10_000, 1)
    hand.delta(1_010, "A", 10_000, 1, INFERRED)
    hand.delta(990, "A", 10_000, 1, int(DeltaFlag.TS_BACKWARD))
    assert windows(taken(hand.commit())) == [0, 1, 1]


def test_the_cut_of_batches_does_not_change_windows() -> None:
    def rows(commit_each: bool) -> list[int]:
        hand, batches = opened(), []
        for ms, flags in ((950, 0), (1_010, INFERRED), (990, 0), (1_500, 0), (2_020, 0)):
            hand.delta(ms, "A", 10_000, 1, flags)
            if commit_each:
                batches.append(hand.commit())
        batches.append(hand.commit())
        return windows(taken(*batches))

    assert rows(True) == rows(False)


def test_a_cut_takes_rows_and_snapshots_up_to_the_window_and_leaves_the_rest() -> None:
    hand = opened()
    for ms in (100, 900, 1_100, 2_200):
        hand.delta(ms, "A", 10_000, 1)
    hand.snap("B", {10_000: 5})
    inflow = taken(hand.commit())
    cut = inflow.cut(us(0) // QUICK.window_us)
    assert cut.rows["exchange_us"].tolist() == [us(100), us(900)]
    assert [len(found) for found in cut.snapshots.values()] == [1, 1]
    assert inflow.next_window() == us(1_100) // QUICK.window_us
    rest = inflow.cut(us(9_000) // QUICK.window_us)
    assert rest.rows.size == 2
    assert inflow.next_window() is None


def test_rows_for_a_closed_window_go_to_the_next_one() -> None:
    """INV-W3: late is not lost."""
    hand = opened()
    hand.delta(100, "A", 10_000, 1)
    inflow = taken(hand.commit())
    inflow.cut(us(5_000) // QUICK.window_us)
    hand.delta(200, "A", 10_000, 1)
    inflow.absorb(hand.commit())
    assert windows(inflow) == [6]


def test_what_was_published_is_not_taken_again_after_a_restart() -> None:
    hand = opened()
    for ms in (100, 1_200):
        hand.delta(ms, "A", 10_000, 1)
    batch = hand.commit()
    inflow = Inflow(0, QUICK.window_us, QUICK.engine_skew_us)
    inflow.closed = us(0) // QUICK.window_us
    inflow.reread = (inflow.closed, 1)
    inflow.runs = {
        run_id: msgspec.structs.replace(run, shown_us=us(100), max_window=0)
        for run_id, run in taken(batch).runs.items()
    }
    inflow.ids.update({i: i - 1 for i in batch.markets})
    inflow.absorb(batch)
    assert windows(inflow) == [1]


def test_reading_again_starts_at_the_first_batch_with_something_left() -> None:
    hand, batches = opened(), []
    for ms in (100, 1_200, 2_400):
        hand.delta(ms, "A", 10_000, 1)
        batches.append(hand.commit())
    inflow = taken(*batches)
    assert inflow.reread_from() == 1
    inflow.cut(us(0) // QUICK.window_us)
    assert inflow.reread_from() == 2
    inflow.cut(us(5_000) // QUICK.window_us)
    assert inflow.reread_from() == 4


def test_snapshots_of_a_run_without_a_time_wait_for_its_first_one() -> None:
    hand = opened()
    inflow = taken(hand.commit())
    assert (len(inflow.held), inflow.snapshots) == (2, [])
    hand.delta(3_050, "A", 10_000, 1)
    inflow.absorb(hand.commit())
    assert inflow.held == []
    assert {s.window for s in inflow.snapshots} == {us(2_950) // QUICK.window_us}


def test_the_end_of_a_run_comes_after_all_its_rows() -> None:
    hand = opened()
    hand.delta(2_500, "A", 10_000, 1)
    hand.stop()
    inflow = taken(hand.commit())
    assert [e.window for e in inflow.ends] == [us(2_500) // QUICK.window_us]
    assert inflow.ended


def test_the_end_of_a_run_that_showed_nothing_makes_no_window() -> None:
    """Which window would be its own followed from when it was read, and with it the market ids of
    production (found by the simulation)."""
    hand = opened()
    hand.end("gap")
    hand.start(3_000, "gap")
    hand.stop()
    inflow = taken(hand.commit())
    assert [e.run_id for e in inflow.lapsed(set())] == [1, 2]
    assert (inflow.ends, inflow.next_window()) == ([], None)


def test_the_end_of_a_run_of_which_a_window_took_something_keeps_its_window() -> None:
    """After a restart the run itself does not tell any more that it had rows."""
    hand = opened()
    hand.stop()
    inflow = taken(hand.commit())
    assert inflow.lapsed({1}) == []
    assert len(inflow.ends) == 1


def test_a_market_that_leaves_before_its_run_showed_a_time_waits_for_that_time() -> None:
    hand = opened()
    hand.control("market_removed", run_id=1, seq=hand.seq, market_id=1)
    inflow = taken(hand.commit())
    assert (inflow.ends, len(inflow.held_ends), inflow.reread_from()) == ([], 1, 1)
    hand.delta(3_050, "B", 10_000, 1)
    inflow.absorb(hand.commit())
    assert [e.window for e in inflow.ends] == [us(2_950) // QUICK.window_us]
    assert inflow.held_ends == []


def reset(ms: float) -> Hand:
    """A reset arrives before anything showed an exchange time."""
    hand = opened()
    hand.latest_us, hand.now_ns = 0, us(ms) * 1_000
    hand.snap("A", {})
    return hand


def reset_before_any_time(*, later_ms: float | None) -> tuple[Hand, Inflow]:
    """A run whose first row is a reset, which has no time where the run has shown none."""
    hand = reset(1_500)
    inflow = taken(hand.commit())
    assert (inflow.next_window(), inflow.reread_from()) == (None, 1)
    if later_ms is not None:
        hand.delta(later_ms, "B", 10_000, 1)
        inflow.absorb(hand.commit())
    return hand, inflow


def test_rows_from_before_a_runs_first_time_wait_for_it() -> None:
    """They stood in the window of 1970, or in whichever was next when they were read (INV-R1)."""
    hand, inflow = reset_before_any_time(later_ms=3_050)
    assert windows(inflow) == [2, 3]
    assert inflow.held_rows == {}
    hand.delta(3_060, "A", 10_000, 1)
    again = reset(1_500)
    again.delta(3_050, "B", 10_000, 1)
    again.delta(3_060, "A", 10_000, 1)
    inflow.absorb(hand.commit())
    assert windows(inflow) == windows(taken(again.commit())) == [2, 3, 3]


def test_rows_of_a_run_that_never_showed_a_time_count_when_they_came() -> None:
    """Seed 554 of the simulation: the run was forgotten, and its rows stopped every new process."""
    hand, inflow = reset_before_any_time(later_ms=None)
    hand.end("gap")
    inflow.absorb(hand.commit())
    assert windows(inflow) == [1]
    assert inflow.lapsed(set()) == []
    assert inflow.cut(inflow.chunks[0].next_window).rows.size == 1


def test_at_the_end_rows_without_any_time_are_counted_too() -> None:
    arbiter = Arbiter(1, QUICK)
    arbiter.absorb(reset(1_500).commit())
    assert sum(o.counts["rows_in"] for o in drain(arbiter, final=True)) == 1


@pytest.mark.parametrize("reads", [1, 2])
def test_a_run_that_showed_nothing_gives_the_same_outputs_however_it_was_read(reads: int) -> None:
    steady, odd = Hand(0), Hand(1)
    steady.start(0)
    steady.snap("A", {10_000: 5})
    odd.start(0)
    odd.snap("B", {10_000: 5})
    odd.control("market_removed", run_id=1, seq=odd.seq, market_id=2)
    odd.end("gap")
    for ms in range(100, 6_000, 100):
        steady.delta(ms, "A", 10_000, 1)
    steady.stop()
    arbiter, outputs = Arbiter(2, QUICK), []
    if reads == 1:
        odd.control("gatherer_end")
        arbiter.absorb(odd.commit())
        arbiter.absorb(steady.commit())
    else:
        arbiter.absorb(steady.commit())
        arbiter.absorb(odd.commit(9_000))
        outputs += drain(arbiter)
        odd.control("gatherer_end")
        arbiter.absorb(odd.commit())
    outputs += drain(arbiter, final=True)
    assert [o.window for o in outputs] == [us(0) // QUICK.window_us + n for n in range(6)]


def test_the_end_of_a_run_nobody_knows_any_more_is_ignored() -> None:
    hand = opened()
    hand.stop()
    batch = hand.commit()
    batch.controls = [c for c in batch.controls if c.kind == "run_end"]
    batch.snapshots = []
    assert taken(batch).ends == []


def test_ids_too_large_for_a_table_are_looked_up_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def keys(table_max: int) -> list[int]:
        monkeypatch.setattr(module, "_TABLE_MAX", table_max)
        hand = opened()
        for ms, market in itertools.product(range(0, 3_000, 500), "BCA"):
            hand.delta(ms + 100, market, 10_000, 1)
        return [int(k) for c in taken(hand.commit()).chunks for k in c.key]

    assert keys(1 << 22) == keys(0)


def test_rows_of_closed_windows_go_to_the_next_one_by_market_and_arrival() -> None:
    hand = opened()
    for ms in range(100, 5_000, 700):
        hand.delta(ms, "B", 10_000, 1)
        hand.delta(ms + 1, "A", 10_000, 1)
    inflow = Inflow(0, QUICK.window_us, QUICK.engine_skew_us)
    inflow.closed = us(0) // QUICK.window_us + 2
    batch = hand.commit()
    inflow.ids.update({i: i - 1 for i in batch.markets})
    inflow.absorb(batch)
    cut = inflow.cut(inflow.closed + 1)
    assert cut.key.tolist() == sorted(cut.key.tolist())
    for key in set(cut.key.tolist()):
        seqs = cut.rows["seq"][cut.key == key].tolist()
        assert len(seqs) > 1
        assert seqs == sorted(seqs)
