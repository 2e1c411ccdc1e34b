"""What becomes of a market, whoever tells of it."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from marketdata.events import MarketLifecycle
from marketdata.market_clock import CLOSE_LOOK_NS, NS_PER_S, OPEN_LEAD_NS
from marketdata.plan import Limits, Plan
from marketdata.rest_bodies import Market, market
from marketdata.roll import SETTLED_HOLD_NS, Now, Roll
from marketdata.selection import Selection

HOUR_NS = 3_600 * NS_PER_S
BEGIN_US = 1_800_000_000_000_000
STATUSES = (
    "initialized", "active", "inactive", "closed", "determined", "disputed", "amended", "finalized",
)  # fmt: skip


def at(seconds: int) -> Now:
    return Now(BEGIN_US * 1_000 + seconds * NS_PER_S, seconds * NS_PER_S)


def told(ticker: str, status: str, **more: Any) -> Market:
    made = market({"ticker": ticker, "event_ticker": "E-1", "status": status})
    return made._replace(**more)


def frame(ticker: str, kind: str, *, combo: bool = False, **body: Any) -> MarketLifecycle:
    return MarketLifecycle(ticker, kind, combo, body, 1, 1)


def roll(**chosen: Any) -> Roll:
    return Roll(Plan("g1", Limits(100)), Selection(**chosen))


def carried(made: Roll) -> set[str]:
    return {ticker for tickers in made.plan.books().values() for ticker in tickers}


def test_open_and_paused_markets_are_placed_and_others_are_not() -> None:
    made = roll()
    changes = made.told([told(status.upper(), status) for status in STATUSES], at(0))
    assert carried(made) == {"INITIALIZED", "ACTIVE", "INACTIVE"}  # it opens, nobody says when
    assert sorted(changes.add[0]) == ["ACTIVE", "INACTIVE", "INITIALIZED"]


def test_an_initialized_market_is_placed_just_before_it_opens() -> None:
    made = roll()
    opens_us = BEGIN_US + 3_600 * 1_000_000
    made.told([told("A", "initialized", open_us=opens_us)], at(0))
    assert (carried(made), made.n_waiting) == (set(), 1)
    lead_s = OPEN_LEAD_NS // NS_PER_S
    assert not made.tick(at(3_600 - lead_s - 1))
    changes = made.tick(at(3_600 - lead_s))
    assert changes.add == {0: ["A"]}
    assert made.n_waiting == 0


def test_a_market_that_opens_earlier_is_not_placed_twice() -> None:
    made = roll()
    made.told([told("A", "initialized", open_us=BEGIN_US + 10**10)], at(0))
    assert made.told([told("A", "active")], at(5)).add == {0: ["A"]}
    assert made.n_waiting == 0
    assert not made.tick(at(20_000))


def test_a_created_market_is_placed_at_once_and_asked_for() -> None:
    """Whatever its opening time: its first seconds are worth having."""
    made = roll()
    metadata = {"event_ticker": "KXNEW-1"}
    body = {"additional_metadata": metadata, "open_ts": 2**31, "close_ts": 2**32}
    changes = made.announced(frame("NEW-1-A", "created", **body), at(0))
    assert changes.add == {0: ["NEW-1-A"]}
    place = made.plan.place_of("NEW-1-A")
    assert place is not None
    assert place.event == "KXNEW-1"
    assert len(made.lookups) == 1
    made.told([told("NEW-1-A", "initialized", open_us=BEGIN_US + 10**10)], at(1))
    assert carried(made) == {"NEW-1-A"}, "REST's word about its opening takes nothing away"


def test_combinations_and_other_series_are_passed_over() -> None:
    made = roll(series=frozenset({"KXA"}))
    assert not made.announced(frame("KXB-1-A", "created"), at(0))
    assert not made.announced(frame("KXA-1-A", "created", combo=True), at(0))
    assert len(made.lookups) == 0
    assert made.announced(frame("KXA-1-A", "activated"), at(0))
    assert roll(combos="all").announced(frame("KXMVE-1-A", "created", combo=True), at(0))


def test_a_settled_market_leaves_after_its_hold() -> None:
    """Closing frames come late; by frame and by REST alike."""
    made = roll()
    made.told([told("A", "active"), told("B", "active"), told("C", "active")], at(0))
    made.announced(frame("A", "settled"), at(10))
    made.told([told("B", "finalized")], at(20))
    hold_s = SETTLED_HOLD_NS // NS_PER_S
    assert not made.tick(at(10 + hold_s - 1))
    assert made.tick(at(10 + hold_s)).drop == {0: ["A"]}
    assert made.tick(at(20 + hold_s)).drop == {0: ["B"]}
    assert made.take_ended() == ["A", "B"]
    assert made.take_ended() == []
    assert carried(made) == {"C"}


def test_a_market_that_opens_again_stays() -> None:
    made = roll()
    made.told([told("A", "active"), told("B", "active")], at(0))
    made.announced(frame("A", "settled"), at(1))
    made.told([told("B", "finalized")], at(1))
    made.announced(frame("A", "activated"), at(2))
    made.told([told("B", "active")], at(2))
    assert not made.tick(at(10_000))
    assert carried(made) == {"A", "B"}


def test_the_end_of_a_market_is_asked_for_until_it_is_told() -> None:
    made = roll()
    made.told([told("A", "active", close_us=BEGIN_US + 60 * 1_000_000)], at(0))
    made.tick(at(60))
    assert len(made.lookups) == 0
    made.tick(at(60 + CLOSE_LOOK_NS // NS_PER_S))
    assert made.lookups.take(at(99).monotonic_ns) == ["A"]
    made.lookups.answered("A", "closed", at(99).monotonic_ns)
    made.announced(frame("A", "determined", result="yes"), at(100))
    made.lookups.take(at(101).monotonic_ns)
    made.lookups.answered("A", "closed", at(101).monotonic_ns)
    assert len(made.lookups) == 1
    made.lookups.answered("A", "determined", at(110).monotonic_ns)
    made.announced(frame("A", "close_date_updated", close_ts=BEGIN_US // 10**6 + 500), at(120))
    made.lookups.take(at(130).monotonic_ns)
    made.lookups.answered("A", "determined", at(130).monotonic_ns)
    made.tick(at(500 + CLOSE_LOOK_NS // NS_PER_S))
    assert len(made.lookups) == 1


def test_a_recorded_market_that_no_list_shows_is_asked_for() -> None:
    """The frame of its end was lost: found by the next full round."""
    made = roll()
    made.told([told(t, "active") for t in "ABC"], at(0))
    made.announced(frame("C", "settled"), at(0))
    made.lookups.take(at(9).monotonic_ns)
    made.lookups.answered("C", "finalized", at(9).monotonic_ns)
    assert made.listed({"A"}, at(10)) == 1
    assert made.lookups.take(at(11).monotonic_ns) == ["B"]


@given(st.integers(0, 2**32), st.integers(0, 60))
def test_no_recorded_market_leaves_but_by_settlement(seed: int, steps: int) -> None:
    """INV-77 and INV-78 over any order of what is told; changes are exactly what is carried."""
    rng, made = Random(seed), roll()
    books, settled_s = set[str](), dict[str, int]()
    seconds = 0
    for _ in range(steps):
        seconds += rng.choice((0, 1, 30, 700))
        ticker = f"E-{rng.randrange(5)}"
        match rng.randrange(3):
            case 0:
                status = rng.choice(STATUSES)
                opens_us = BEGIN_US + (seconds + rng.choice((-5, 10, 5_000))) * 1_000_000
                changes = made.told([told(ticker, status, open_us=opens_us)], at(seconds))
                if status == "finalized" and ticker in books:
                    settled_s.setdefault(ticker, seconds)
                elif status in ("active", "inactive"):
                    settled_s.pop(ticker, None)
                    assert made.plan.knows(ticker)
            case 1:
                kind = rng.choice(("created", "activated", "deactivated", "determined", "settled"))
                changes = made.announced(frame(ticker, kind), at(seconds))
                if kind == "settled" and ticker in books:
                    settled_s.setdefault(ticker, seconds)
                elif kind == "activated":
                    settled_s.pop(ticker, None)
                if kind in ("created", "activated"):
                    assert made.plan.knows(ticker)
            case _:
                changes = made.tick(at(seconds))
        gone = {t for tickers in changes.drop.values() for t in tickers}
        for ticker in gone:
            assert seconds - settled_s.pop(ticker) >= SETTLED_HOLD_NS // NS_PER_S
        books = (books - gone) | {t for tickers in changes.add.values() for t in tickers}
        assert books == carried(made)
