"""Which markets are recorded by a process."""

from __future__ import annotations

from typing import Any

import pytest

from marketdata.rest_bodies import market
from marketdata.selection import Combos, Selection, event_of, is_priced, series_of

DEAD = {
    "yes_bid_dollars": "0.0000", "yes_ask_dollars": "1.0000", "volume_fp": "0.00",
    "open_interest_fp": "0.00", "yes_bid_size_fp": "0.00", "yes_ask_size_fp": "0.00",
}  # fmt: skip


def body(ticker: str = "KXA-1-X", *, combo: bool = False, **more: Any) -> dict[str, Any]:
    given = {"ticker": ticker, "event_ticker": event_of(ticker), "status": "active", **DEAD, **more}
    return {**given, "mve_collection_ticker": "KXMVE-C"} if combo else given


@pytest.mark.parametrize(
    "alive",
    [
        {"volume_fp": "0.01"}, {"open_interest_fp": "5.00"}, {"yes_ask_dollars": "0.9999"},
        {"yes_bid_dollars": "0.0001"}, {"yes_ask_size_fp": "1.00"}, {"volume_fp": "many"},
        {"volume_fp": None, "volume": 3},
    ],
)  # fmt: skip
def test_an_offer_a_trade_or_a_contract_makes_a_market_priced(alive: dict[str, Any]) -> None:
    """So does a number that cannot be read: not recorded cannot be repaired."""
    assert is_priced(body(**alive))


def test_a_market_without_any_of_them_is_not_priced() -> None:
    """97 of 100 combinations."""
    assert not is_priced(body())
    assert not is_priced({})
    assert not is_priced(body(yes_ask_dollars="0.0000"))


@pytest.mark.parametrize(
    ("combos", "dead", "priced", "created"),
    [("none", False, False, False), ("priced", False, True, False), ("all", True, True, True)],
)
def test_combinations_are_taken_as_chosen(
    combos: Combos, dead: bool, priced: bool, created: bool
) -> None:
    chosen = Selection(combos)
    assert chosen.takes(market(body(combo=True))) == dead
    assert chosen.takes(market(body(combo=True, volume_fp="1.00"))) == priced
    assert chosen.takes_created("KXMVE-1", is_multivariate=True) == created
    assert chosen.takes(market(body()))
    assert chosen.takes_created("KXA-1", is_multivariate=False)
    assert len(chosen.mve_filters) == (1 if combos == "none" else 2)


def test_series_and_shares_divide_markets_by_their_event() -> None:
    only = Selection(series=frozenset({"KXA"}))
    assert only.takes(market(body("KXA-1-X")))
    assert not only.takes(market(body("KXAB-1-X")))
    events = [f"KXA-{n}" for n in range(200)]
    halves = [Selection(share=n, shares=2) for n in (1, 2)]
    for event in events:
        assert sum(half.takes_event(event) for half in halves) == 1
    assert all(any(half.takes_event(event) for event in events) for half in halves)


def test_tickers_tell_their_event_and_series() -> None:
    assert event_of("KXBTC15M-26MAY131400-00") == "KXBTC15M-26MAY131400"
    assert event_of("LONE") == "LONE"
    assert series_of("KXBTC15M-26MAY131400") == "KXBTC15M"
