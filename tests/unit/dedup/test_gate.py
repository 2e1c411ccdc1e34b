"""When a window may close. Waiting too little makes rows late; waiting too long delays the tape."""

from __future__ import annotations

from dedup.gate import WATERMARK, Patience, closed_by, reasons_to_wait
from dedup.inflow import Inflow
from marketdata.rows import GathererBatch
from tests.hand import QUICK, Hand, us

WINDOW_0 = us(0) // QUICK.window_us


def absorbed(*batches: GathererBatch) -> Inflow:
    inflow = Inflow(batches[0].gatherer, QUICK.window_us, QUICK.engine_skew_us)
    for batch in batches:
        inflow.ids.update({i: i - 1 for i in batch.markets})
        inflow.absorb(batch)
    return inflow


def playing(gatherer: int, to_ms: int, *, stop: bool = False) -> Inflow:
    hand = Hand(gatherer)
    hand.start(0)
    hand.snap("A", {10_000: 5})
    for ms in range(100, to_ms + 1, 100):
        hand.delta(ms, "A", 10_000, 100)
    if stop:
        hand.stop()
    return absorbed(hand.commit())


def test_nobody_has_shown_a_later_time() -> None:
    inflows = [playing(0, 900)]
    assert reasons_to_wait(inflows, WINDOW_0, QUICK, set()) == [
        "no gatherer has shown a later exchange time yet"
    ]


def test_all_runs_are_past_the_window_and_its_margin() -> None:
    assert reasons_to_wait([playing(0, 1_100)], WINDOW_0, QUICK, set()) == []


def test_a_time_within_the_engines_margin_is_not_enough() -> None:
    """Another market's engine may run 100 ms behind: its rows of the window are still to come."""
    assert len(reasons_to_wait([playing(0, 1_050)], WINDOW_0, QUICK, set())) == 1


def test_a_gatherer_that_ended_is_not_waited_for() -> None:
    inflows = [playing(0, 500, stop=True)]
    assert reasons_to_wait(inflows, WINDOW_0, QUICK, set()) == []


def test_a_gatherer_left_out_is_not_waited_for() -> None:
    inflows = [playing(0, 1_500), Inflow(1, QUICK.window_us, QUICK.engine_skew_us)]
    assert reasons_to_wait(inflows, WINDOW_0, QUICK, {1}) == []
    assert reasons_to_wait(inflows, WINDOW_0, QUICK, set()) == [
        "gatherer 2 has delivered nothing yet"
    ]


def test_a_gatherer_without_a_run_is_waited_for_until_its_commits_are_past() -> None:
    hand = Hand(1)
    hand.start(0)
    hand.end()
    inflows = [playing(0, 1_500), absorbed(hand.commit(300))]
    assert "behind with its commits" in reasons_to_wait(inflows, WINDOW_0, QUICK, set())[0]
    inflows = [playing(0, 1_500), absorbed(Hand(1).commit(1_600))]
    assert reasons_to_wait(inflows, WINDOW_0, QUICK, set()) == []


def test_floating_rows_are_waited_for_until_their_hold_is_over() -> None:
    hand = Hand(0)
    hand.start(0, "gap")
    for ms in range(100, 1_600, 100):
        hand.delta(ms, "A", 10_000, 100)
    first = hand.commit()
    reasons = reasons_to_wait([absorbed(first)], WINDOW_0, QUICK, set())
    assert reasons == ["gatherer 1: run 1 waits for a snapshot"]
    hand.delta(7_000, "A", 10_000, 100)
    assert reasons_to_wait([absorbed(first, hand.commit())], WINDOW_0, QUICK, set()) == []


def test_patience_needs_the_others_to_move_on_and_to_be_ahead() -> None:
    """A gatherer that catches up an hour must not make the others look dead."""
    patience = Patience(2, QUICK)
    ahead, behind = playing(0, 500), playing(1, 500)
    inflows = [ahead, behind]
    patience.nothing_new(1, inflows)
    patience.nothing_new(1, inflows)
    assert patience.left_out == set()
    ahead.max_received_ns += QUICK.patience_ns + 10**9
    patience.nothing_new(1, inflows)
    assert patience.left_out == {1}
    patience.delivered(1)
    assert patience.left_out == set()


def test_patience_is_not_lost_with_a_gatherer_that_is_only_catching_up() -> None:
    patience = Patience(2, QUICK)
    catching, live = playing(0, 500), playing(1, 500)
    live.max_received_ns += 100 * QUICK.patience_ns
    patience.nothing_new(1, [catching, live])
    catching.max_received_ns += 2 * QUICK.patience_ns
    patience.nothing_new(1, [catching, live])
    assert patience.left_out == set()


def closing(
    *inflows: Inflow, left_out: tuple[int, ...] = (), final: bool = False
) -> tuple[str, str]:
    return closed_by(list(inflows), WINDOW_0, QUICK, set(left_out), final=final)


def test_a_window_that_everybody_has_passed_closes_by_watermark() -> None:
    assert closing(playing(0, 1_500), playing(1, 1_200)) == (WATERMARK, "")


def test_a_gatherer_that_said_its_end_is_no_reason() -> None:
    assert closing(playing(0, 1_500), playing(1, 500, stop=True)) == (WATERMARK, "")


def test_each_reason_for_not_waiting_is_told_with_who_it_was() -> None:
    silent = Inflow(1, QUICK.window_us, QUICK.engine_skew_us)
    assert closing(playing(0, 1_500), silent, left_out=(1,)) == ("left out", "left out: gatherer 2")
    idle = playing(2, 500)
    assert closing(playing(0, 1_500), idle) == ("run idle", "run idle: gatherer 3 run 1")
    assert closing(playing(0, 1_500), idle, final=True)[0] == "final, run idle"
    floating = playing(0, 1_500)
    floating.floats[7] = (WINDOW_0, 1)
    assert closing(floating) == ("no snapshot", "no snapshot: gatherer 1")
    floating.floats[7] = (WINDOW_0 + 1, 1)
    assert closing(floating)[0] == WATERMARK
