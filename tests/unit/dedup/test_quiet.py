"""Runs without events: their place in time, their contradictions, their end."""

from __future__ import annotations

from typing import Any

from dedup.arbitrate import Arbiter
from dedup.output import WindowOutput
from tests.hand import QUICK, Hand, drain, merge, us
from tests.unit.dedup.test_arbitrate import added, statuses, tape

BOOK = {100_000: 500}


def busy(gatherer: int, book_b: dict[int, int], *, n: int = 40, **change: Any) -> Hand:
    """Market A shows time each 100 ms; B is quiet, or changes at `change["at"]`."""
    hand = Hand(gatherer)
    hand.start(change.get("start", 0))
    hand.snap("A", BOOK) if not change.get("start") else None
    hand.snap("B", book_b)
    for i in range(change.get("start", 0) // 100, n):
        if not change.get("start"):
            hand.delta(100 * (i + 1), "A", 10_000 * (i % 50 + 1), 100)
        else:
            hand.delta(100 * (i + 1), "C", 10_000 * (i % 50 + 1), 100)
        if change.get("at") == 100 * (i + 1):
            hand.delta(100 * (i + 1), "B", 50_000, 9)
    if change.get("stop", True):
        hand.stop()
    return hand


def frames(outputs: list[WindowOutput], ticker: str) -> list[tuple[int, int]]:
    return [
        (s.epoch, s.market_seq)
        for o in outputs
        for s in o.snapshots
        if o.tickers[s.market] == ticker
    ]


def test_quiet_runs_with_one_book_share_an_epoch_and_one_keyframe() -> None:
    outputs = merge(busy(0, BOOK), busy(1, BOOK), busy(2, BOOK))
    assert frames(outputs, "B") == [(1, 0)]
    assert [g for o in outputs for g in o.gaps] == []


def test_a_quiet_run_between_two_events_of_another_stands_between_them() -> None:
    """Compared with the window's end it would look like a contradiction."""
    short = Hand(1)
    short.start(1_010)
    short.snap("B", BOOK)
    for ms in (1_100, 1_250, 1_400):
        short.delta(ms, "C", 10_000, 1)
    short.stop()
    outputs = merge(busy(0, BOOK, at=1_700), short)
    assert [m for o in outputs for m in o.marks] == []
    assert "complete" in {s for _, _, s in statuses(outputs, "B", 3_000)}


def test_a_short_quiet_run_before_the_first_event_opens_the_epoch_in_its_time() -> None:
    first = Hand(0)
    first.start(0)
    first.snap("B", BOOK)
    for ms in (100, 300, 500):
        first.delta(ms, "C", 10_000, 1)
    first.stop()
    second = Hand(1)
    second.start(700)
    second.snap("B", {**BOOK, 10_000: 1})
    second.delta(800, "B", 20_000, 1)
    second.delta(950, "B", 20_000, 1)
    second.stop()
    outputs = merge(first, second)
    epochs = [(e.epoch, e.from_us < us(600)) for o in outputs for e in o.epochs if e.ticker == "B"]
    assert epochs == [(1, True), (2, False)]
    assert {row[3] for row in tape(outputs, "B")} == {2}


def test_two_live_runs_with_different_quiet_books_are_disputed() -> None:
    outputs = merge(busy(0, BOOK), busy(1, {70_000: 3}))
    assert "disputed" in {s for _, _, s in statuses(outputs, "B", 3_500)}


def test_two_live_runs_outvote_a_third_with_another_quiet_book() -> None:
    outputs = merge(busy(0, BOOK), busy(1, BOOK), busy(2, {70_000: 3}))
    assert {s for a, _, s in statuses(outputs, "B", 3_500) if a >= 200} == {"complete"}
    wrong = [c for c in added(outputs).claims if c.ticker == "B" and c.gatherer == 2 and c.valid]
    assert wrong == []


def test_two_runs_that_come_later_outvote_the_one_that_was_there() -> None:
    outputs = merge(busy(0, {70_000: 3}), busy(1, BOOK, start=1_000), busy(2, BOOK, start=1_000))
    late = [s for a, _, s in statuses(outputs, "B", 3_500) if a >= 3_000]
    assert late[-1] == "complete"


def test_a_run_that_misses_an_event_two_others_saw_loses_its_claim() -> None:
    outputs = merge(busy(0, BOOK, at=1_500), busy(1, BOOK, at=1_500), busy(2, BOOK))
    assert [row[0] for row in tape(outputs, "B")] == [1_500]
    reasons = {c.reason for o in outputs for c in o.claims if c.gatherer == 2 and c.ticker == "B"}
    assert "missed an event" in reasons


def test_a_run_that_missed_an_event_and_ends_right_after_it_loses_its_claim_too() -> None:
    """It was waited for a window that never came: its claim stood, over an event it had missed."""
    outputs = merge(busy(0, BOOK, at=3_600), busy(1, BOOK, at=3_600), busy(2, BOOK))
    assert [row[0] for row in tape(outputs, "B")] == [3_600]
    closed = [c for c in added(outputs).claims if c.gatherer == 2 and c.ticker == "B"]
    assert [c.reason for c in closed] == ["missed an event"]
    assert all(c.to_us <= us(3_600) for c in closed)


def test_an_event_that_only_one_of_two_live_runs_saw_is_disputed() -> None:
    outputs = merge(busy(0, BOOK, at=1_500), busy(1, BOOK))
    assert "disputed" in {s for _, _, s in statuses(outputs, "B", 3_500)}
    covered = [(a, b) for a, b, s in statuses(outputs, "B", 3_500) if s == "complete"]
    assert not any(a <= 1_500 < b for a, b in covered)


def test_a_reset_that_a_later_run_dates_later_is_the_same_reset() -> None:
    """A reset has no time on the wire: each run gives it the latest time it has shown. One that
    begins before it may bring it in a later window than the others did; it stood on the tape a
    second time then, behind a gap that was none (found by the simulation)."""
    first, later = Hand(0), Hand(1)
    first.start(0)
    first.snap("A", BOOK)
    first.snap("B", BOOK)
    for ms in (100, 200, 900):
        first.delta(ms, "A", 10_000, 1)
    first.snap("B", {})
    later.start(950)
    later.snap("C", BOOK)
    later.delta(1_050, "C", 10_000, 1)
    later.snap("B", BOOK)
    later.snap("B", {})
    for hand in (first, later):
        for ms in (2_100, 2_900, 3_500):
            hand.delta(ms, "C" if hand is later else "A", 10_000, 1)
        hand.stop()
    outputs = merge(first, later)
    assert len(tape(outputs, "B")) == 1
    assert [g for o in outputs for g in o.gaps] == []
    assert sum(o.counts.get("duplicate_rows", 0) for o in outputs) == 1


def test_a_late_run_does_not_stand_where_an_epoch_begins_that_it_has_not_reached() -> None:
    """Seed 890 of the simulation: its book was equal, so what it brought of before the gap stood
    behind the gap a second time."""
    late, steady = Hand(1), Hand(0)
    for hand in (steady, late):
        hand.start(0)
        hand.snap("A", BOOK)
        hand.snap("B", BOOK)
        hand.delta(1_000, "A", 20_000, 5)
        hand.delta(1_500, "B", 10_000, 1)
    arbiter = Arbiter(2, QUICK)
    arbiter.absorb(late.commit())
    for hand in (steady, late):
        hand.delta(2_000, "A", 30_000, 7)
        hand.delta(2_000, "A", 30_000, -7)
    steady.delta(2_500, "B", 10_000, 1)
    steady.end()
    steady.start(5_000)
    steady.snap("A", {**BOOK, 20_000: 5})
    steady.snap("B", {**BOOK, 10_000: 2})
    for ms in range(5_100, 8_000, 100):
        steady.delta(ms, "B", 10_000, 1)
    arbiter.absorb(steady.commit())
    arbiter.leave_out(1)
    outputs = drain(arbiter)
    assert [g.kind for o in outputs for g in o.gaps if g.ticker == "A"] == ["book_equal"]
    late.stop()
    arbiter.absorb(late.commit())
    outputs += drain(arbiter, final=True)
    assert [row[0] for row in tape(outputs, "A")] == [1_000, 2_000, 2_000]
    assert sum(q.n_rows for o in outputs for q in o.quarantine if q.ticker == "A") == 2
