"""Which single market is asked for when: a 404 after `created` must not be the last word."""

from __future__ import annotations

import pytest

from marketdata import lookups as module
from marketdata.lookups import AGAIN_MAX_NS, AGAIN_NS, GATHER_NS, SETTLED, TRIES_MAX, Lookups

DONE = frozenset({"determined", "finalized"})


def asked_at(made: Lookups, now: int) -> tuple[int, list[str]]:
    """When the next question is due, and what it is."""
    due = made.next_due()
    assert due is not None
    return due - now, made.take(due)


def test_reasons_of_a_burst_are_asked_together_and_one_request_has_a_limit() -> None:
    made = Lookups()
    for n in range(module.TOGETHER_MAX + 5):
        made.add(f"M{n}", n)
    assert made.take(GATHER_NS - 1) == []
    assert len(made.take(GATHER_NS + 500)) == module.TOGETHER_MAX
    assert len(made.take(GATHER_NS + 500)) == 5
    assert made.take(GATHER_NS + 500) == []


def test_a_market_that_is_not_found_is_asked_for_again_with_growing_waits() -> None:
    made, now, waits = Lookups(), 0, []
    made.add("NEW", now)
    wait, asked = asked_at(made, now)
    assert (wait, asked) == (GATHER_NS, ["NEW"])
    while len(made):
        made.not_found("NEW", now)
        if len(made):
            wait, asked = asked_at(made, now)
            waits.append(wait)
            now += wait
    assert waits[:3] == [AGAIN_NS, 2 * AGAIN_NS, 4 * AGAIN_NS]
    assert max(waits) == AGAIN_MAX_NS
    assert len(waits) == TRIES_MAX - 1
    assert (made.given_up, made.next_due()) == (1, None)


def test_a_settlement_is_asked_for_until_rest_tells_it() -> None:
    """REST lags behind the frame: an answer of before is not the end."""
    made = Lookups()
    made.add("A", 0, DONE)
    made.take(GATHER_NS)
    made.answered("A", "closed", GATHER_NS)
    made.add("A", GATHER_NS, SETTLED)
    made.take(3 * AGAIN_NS)
    made.answered("A", "determined", 3 * AGAIN_NS)
    assert len(made) == 1, "what is waited for became more"
    _, asked = asked_at(made, 0)
    assert asked == ["A"]
    made.answered("A", "finalized", 9 * AGAIN_NS)
    assert len(made) == 0


def test_a_reason_that_comes_during_the_request_is_not_answered_by_it() -> None:
    made = Lookups()
    made.add("A", 0)
    made.take(GATHER_NS)
    made.add("A", GATHER_NS)
    made.answered("A", "active", GATHER_NS + 1)
    assert len(made) == 1
    made.take(2 * GATHER_NS)
    made.answered("A", "active", 2 * GATHER_NS)
    assert (len(made), made.next_due()) == (0, None)


def test_a_request_that_fails_is_no_try() -> None:
    """REST may be away for an hour."""
    made, now = Lookups(), 0
    made.add("A", now)
    for _ in range(5 * TRIES_MAX):
        wait, asked = asked_at(made, now)
        now += wait
        made.failed(asked, now)
    assert (len(made), made.given_up) == (1, 0)


def test_more_than_the_limit_is_counted_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_MAX", 2)
    made = Lookups()
    for name in "ABCA":
        made.add(name, 0)
    assert (len(made), made.left_out) == (2, 1)
    made.answered("UNKNOWN", "active", 0)
    made.not_found("UNKNOWN", 0)
    assert len(made) == 2
