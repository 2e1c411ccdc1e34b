"""The plan: every market on one connection, events together, stable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatherer import plan as module
from gatherer.plan import MarketRef, Plan


def _markets(events: dict[str, int]) -> list[MarketRef]:
    return [
        MarketRef(f"{event}-{n}", event) for event, count in events.items() for n in range(count)
    ]


@given(
    st.dictionaries(st.text("ABCDEF", min_size=1, max_size=3), st.integers(1, 9), max_size=20),
    st.integers(1, 7),
    st.integers(0, 5),
)
def test_every_market_is_on_exactly_one_connection_and_none_is_overfull(
    events: dict[str, int], per_connection: int, rounds: int
) -> None:
    """A market carried twice would waste, one carried by nobody would be dark."""
    markets = _markets(events)
    plan = Plan("g1", per_connection)
    for cut in range(rounds + 1):
        plan.place(markets[: len(markets) * cut // (rounds or 1)])
    found = plan.place(markets)
    placed = [ticker for tickers in found.books.values() for ticker in tickers]
    assert sorted(placed) == sorted({m.ticker for m in markets})
    assert all(len(tickers) <= per_connection for tickers in found.books.values())
    assert found.unplaced == ()


def test_new_markets_move_no_other() -> None:
    """A moved market would be a gap in its recording."""
    plan = Plan("g1", 4)
    before = plan.place(_markets({"A": 3, "B": 2})).books
    after = plan.place(_markets({"A": 4, "B": 3, "C": 9})).books
    for number, tickers in before.items():
        assert after[number][: len(tickers)] == tickers


def test_markets_of_an_event_stay_together_while_they_fit() -> None:
    """A burst and its order across markets stay on one stream."""
    found = Plan("g1", 10).place(_markets({"A": 6, "B": 6, "C": 4}))
    for tickers in found.books.values():
        assert len({t.split("-")[0] for t in tickers}) <= 2
    homes = {e: {n for n, ts in found.books.items() for t in ts if t.startswith(e)} for e in "ABC"}
    assert all(len(numbers) == 1 for numbers in homes.values())


def test_gatherers_deal_events_in_their_own_order() -> None:
    """So that one connection's fault does not hit the same set of markets everywhere."""
    events = {f"E{n}": 5 for n in range(40)}
    one = Plan("g1", 20).place(_markets(events)).books
    two = Plan("g2", 20).place(_markets(events)).books
    assert one != two
    assert one == Plan("g1", 20).place(_markets(events)).books


def test_a_full_exchange_is_told_and_places_are_used_when_they_come_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beyond all connections markets are named as unplaced, never dropped quietly."""
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 2)
    plan = Plan("g1", 2)
    found = plan.place(_markets({"A": 3, "B": 3}))
    assert len(found.unplaced) == 2
    some = found.books[0][0]
    plan.remove([some, "unknown"])
    assert plan.connection_of(some) is None
    assert len(plan.place([]).unplaced) == 1


def test_a_limit_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="out of range"):
        Plan("g1", 0)
