"""Openings and closings that no message announces."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from marketdata.market_clock import CLOSE_LOOK_NS, NS_PER_S, OPEN_LEAD_NS, Due, MarketClock


@given(st.integers(0, 2**32), st.integers(0, 80))
def test_each_name_is_due_once_at_the_time_that_was_said_last(seed: int, steps: int) -> None:
    """INV-75, against a plain dictionary."""
    rng, due, model = Random(seed), Due(), dict[str, int]()
    now = 0
    for _ in range(steps):
        name = f"M{rng.randrange(5)}"
        match rng.randrange(4):
            case 0 | 1:
                model[name] = now + rng.randrange(20)
                due.wait(name, model[name])
            case 2:
                model.pop(name, None)
                due.forget(name)
            case _:
                now += rng.randrange(10)
                expected = {n for n, at in model.items() if at <= now}
                found = due.take(now)
                assert len(found) == len(set(found))
                assert set(found) == expected
                assert [model[n] for n in found] == sorted(model[n] for n in found)
                for name in found:
                    del model[name]
        assert len(due) == len(model)
        assert due.next() == min(model.values(), default=None)
        assert all(name in due for name in model)


def test_no_more_are_taken_than_asked_for() -> None:
    due = Due()
    for n in range(5):
        due.wait(f"M{n}", n)
    assert due.take(9, 2) == ["M0", "M1"]
    assert due.take(9) == ["M2", "M3", "M4"]


def test_an_initialized_market_is_due_shortly_before_it_opens() -> None:
    clock, hour = MarketClock(), 3_600 * NS_PER_S
    assert not clock.opens("LATER", hour, 0)
    assert clock.opens("SOON", OPEN_LEAD_NS, 0)
    assert clock.opens("UNKNOWN", None, 0)
    assert clock.n_waiting == 1
    assert clock.take_opening(hour - OPEN_LEAD_NS - 1) == []
    assert clock.take_opening(hour - OPEN_LEAD_NS) == ["LATER"]
    assert clock.n_waiting == 0


def test_an_opening_that_is_moved_or_told_otherwise_is_forgotten() -> None:
    clock, hour = MarketClock(), 3_600 * NS_PER_S
    clock.opens("A", hour, 0)
    clock.opens("A", 2 * hour, 0)
    assert clock.take_opening(hour) == []
    clock.opened("A")
    assert clock.take_opening(9 * hour) == []


def test_a_closing_is_looked_at_shortly_after_and_not_if_it_was_past_before() -> None:
    clock, hour = MarketClock(), 3_600 * NS_PER_S
    clock.closes("A", hour, 0)
    clock.closes("PAST", hour, 2 * hour)
    clock.closes("NEVER", None, 0)
    clock.closes("GONE", hour, 0)
    clock.forget("GONE")
    assert clock.take_closing(hour) == []
    assert clock.take_closing(hour + CLOSE_LOOK_NS) == ["A"]
