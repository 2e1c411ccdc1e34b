"""When a window may close. Waiting too little makes rows late; waiting too long delays the tape."""

from __future__ import annotations

from dataclasses import replace

from dedup.gate import WATERMARK, Patience, closed_by, reasons_to_wait
from dedup.inflow import Inflow
from dedup.output import ArbiterSettings
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


def patience(
    left_out: tuple[int, ...] = (),
    had_nothing: dict[int, int] | None = None,
    settings: ArbiterSettings = QUICK,
) -> Patience:
    """`had_nothing`: gatherer -> ms that somebody had shown when it was asked, and had nothing."""
    made = Patience(3, settings)
    made.left_out = set(left_out)
    for gatherer, ms in (had_nothing or {}).items():
        made.had_nothing(gatherer, us(ms) * 1_000 + 1_000)  # hands count single ns
    return made


def waits(inflows: list[Inflow], *left_out: int, **had_nothing: int) -> list[str]:
    """Why the first window waits. `had_nothing`: g1=1_500 and the like."""
    asked = {int(name[1:]): ms for name, ms in had_nothing.items()}
    return reasons_to_wait(inflows, WINDOW_0, patience(left_out, asked))


def test_nobody_has_shown_a_later_time() -> None:
    inflows = [playing(0, 900)]
    assert waits(inflows) == ["no gatherer has shown a later exchange time yet"]


def test_all_runs_are_past_the_window_and_its_margin() -> None:
    assert waits([playing(0, 1_100)]) == []


def test_a_time_within_the_engines_margin_is_not_enough() -> None:
    """Another market's engine may run 100 ms behind: its rows of the window are still to come."""
    assert len(waits([playing(0, 1_050)])) == 1


ASKED_AGAIN = "gatherer {} said it ended: it is asked whether it began again"


def test_a_gatherer_that_ended_is_waited_for_until_it_had_nothing_more() -> None:
    inflows = [playing(0, 500, stop=True)]
    assert waits(inflows) == [ASKED_AGAIN.format(1)]
    assert waits(inflows, g0=499) == [ASKED_AGAIN.format(1)]
    assert waits(inflows, g0=500) == []


def test_the_word_of_an_end_is_good_for_what_was_asked_since() -> None:
    """All ended and began again; the first one's batches are here, the other was not asked yet."""
    inflows = [playing(0, 1_500), playing(1, 500, stop=True)]
    for asked_ms in (0, 500, 999):  # the first row behind the window came at 1,000 ms
        assert waits(inflows, g1=asked_ms) == [ASKED_AGAIN.format(2)]
    assert waits(inflows, g1=1_000) == []


def test_nobody_waits_for_a_time_that_no_gatherer_will_show() -> None:
    """All have ended behind the window, within its grace: the last they showed is asked about."""
    inflows = [playing(0, 1_150, stop=True), playing(1, 500, stop=True)]
    graceful = replace(QUICK, grace_ns=2_000_000_000)
    for asked, waited in (({}, 2), ({0: 1_150}, 1), ({0: 1_150, 1: 1_150}, 0)):
        reasons = reasons_to_wait(inflows, WINDOW_0, patience((), asked, graceful))
        assert len(reasons) == waited


def test_a_gatherer_left_out_is_not_waited_for() -> None:
    inflows = [playing(0, 1_500), Inflow(1, QUICK.window_us, QUICK.engine_skew_us)]
    assert waits(inflows, 1) == []
    assert waits(inflows) == ["gatherer 2 has delivered nothing yet"]


def test_a_gatherer_without_a_run_is_waited_for_until_its_commits_are_past() -> None:
    hand = Hand(1)
    hand.start(0)
    hand.end()
    inflows = [playing(0, 1_500), absorbed(hand.commit(300))]
    assert "behind with its commits" in waits(inflows)[0]
    inflows = [playing(0, 1_500), absorbed(Hand(1).commit(1_600))]
    assert waits(inflows) == []


def test_floating_rows_are_waited_for_until_their_hold_is_over() -> None:
    hand = Hand(0)
    hand.start(0, "gap")
    for ms in range(100, 1_600, 100):
        hand.delta(ms, "A", 10_000, 100)
    first = hand.commit()
    reasons = waits([absorbed(first)])
    assert reasons == ["gatherer 1: run 1 waits for a snapshot"]
    hand.delta(7_000, "A", 10_000, 100)
    assert waits([absorbed(first, hand.commit())]) == []


def test_patience_needs_the_others_to_move_on_and_to_be_ahead() -> None:
    """A gatherer that catches up an hour must not make the others look dead."""
    asking = Patience(2, QUICK)
    ahead, behind = playing(0, 500), playing(1, 500)
    inflows = [ahead, behind]
    asking.nothing_new(1, inflows)
    asking.nothing_new(1, inflows)
    assert asking.left_out == set()
    ahead.max_received_ns += QUICK.patience_ns + 10**9
    asking.nothing_new(1, inflows)
    assert asking.left_out == {1}
    asking.delivered(1)
    assert asking.left_out == set()


def test_patience_is_not_lost_with_a_gatherer_that_is_only_catching_up() -> None:
    asking = Patience(2, QUICK)
    catching, live = playing(0, 500), playing(1, 500)
    live.max_received_ns += 100 * QUICK.patience_ns
    asking.nothing_new(1, [catching, live])
    catching.max_received_ns += 2 * QUICK.patience_ns
    asking.nothing_new(1, [catching, live])
    assert asking.left_out == set()


def closing(
    *inflows: Inflow,
    left_out: tuple[int, ...] = (),
    had_nothing: dict[int, int] | None = None,
    final: bool = False,
) -> tuple[str, str]:
    return closed_by(list(inflows), WINDOW_0, patience(left_out, had_nothing), final=final)


def test_a_window_that_everybody_has_passed_closes_by_watermark() -> None:
    assert closing(playing(0, 1_500), playing(1, 1_200)) == (WATERMARK, "")


def test_a_gatherer_that_said_its_end_is_no_reason_once_it_had_nothing_more() -> None:
    both = playing(0, 1_500), playing(1, 500, stop=True)
    assert closing(*both, had_nothing={1: 1_500}) == (WATERMARK, "")
    assert closing(*both, had_nothing={1: 1_500}, left_out=(1,)) == (WATERMARK, "")
    assert closing(*both, final=True) == ("final", "final: gatherer 1"), "and not the second"


def test_a_gatherer_that_said_its_end_and_does_not_answer_is_left_out() -> None:
    both = playing(0, 1_500), playing(1, 500, stop=True)
    assert waits(list(both), 1) == []
    assert closing(*both, left_out=(1,)) == ("left out", "left out: gatherer 2")


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
