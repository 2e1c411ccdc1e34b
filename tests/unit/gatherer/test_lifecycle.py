"""Single markets by REST: found at last, in few requests, never lost while REST is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gatherer import lifecycle as module
from gatherer.lifecycle import SingleMarkets
from marketdata import lookups as pure
from marketdata.lookups import SETTLED, Lookups
from marketdata.rest_bodies import Market
from tests.unit.gatherer.rest_lists import Exchange, client, market_body, until


@asynccontextmanager
async def asking(exchange: Exchange) -> AsyncIterator[tuple[Lookups, SingleMarkets, list[Market]]]:
    seen: list[Market] = []

    async def take(markets: list[Market]) -> None:
        seen.extend(markets)

    async with client(exchange) as (rest, clock):
        lookups = Lookups()
        made = SingleMarkets(rest, lookups, clock, take)
        task = asyncio.create_task(made.run())
        try:
            yield lookups, made, seen
        finally:
            task.cancel()
            await asyncio.wait([task])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.005)
    monkeypatch.setattr(pure, "GATHER_NS", 1_000_000)
    monkeypatch.setattr(pure, "AGAIN_NS", 1_000_000)


async def test_a_new_market_that_rest_does_not_know_yet_is_asked_for_again() -> None:
    """404 right after `created` is how the exchange works."""
    exchange = Exchange(market_body("NEW"))
    exchange.unknown["NEW"] = 4
    async with asking(exchange) as (lookups, made, seen):
        lookups.add("NEW", 0)
        await until(lambda: len(lookups) == 0)
        assert [market.ticker for market in seen] == ["NEW"]
        assert made.requests == 5
        assert {asked["path"] for asked in exchange.asked} == {"/markets/NEW"}


async def test_markets_of_a_burst_are_one_request() -> None:
    exchange = Exchange(*(market_body(f"M{n}") for n in range(250)))
    exchange.unknown["M7"] = 1
    async with asking(exchange) as (lookups, made, seen):
        for n in range(250):
            lookups.add(f"M{n}", 0)
        await until(lambda: len(lookups) == 0)
        assert {market.ticker for market in seen} == {f"M{n}" for n in range(250)}
        assert made.requests == 4  # 100, 100, 50, and the one that was not there at first
        assert exchange.asked[-1]["path"] == "/markets/M7"


async def test_a_settlement_is_asked_for_until_rest_tells_it() -> None:
    exchange = Exchange(market_body("A", status="determined"))
    async with asking(exchange) as (lookups, _, seen):
        lookups.add("A", 0, SETTLED)
        await until(lambda: len(seen) == 3)
        assert len(lookups) == 1
        exchange.markets = [market_body("A", status="finalized", result="yes")]
        await until(lambda: len(lookups) == 0)
        assert seen[-1].body["result"] == "yes"


async def test_a_question_outlives_an_exchange_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control of giving up: a failed request is no answer. A body that is none is no answer."""
    monkeypatch.setattr(pure, "TRIES_MAX", 3)
    exchange = Exchange(market_body("A"), market_body("B"))
    exchange.down = 9  # of a list, 404 is a failure
    async with asking(exchange) as (lookups, _, seen):
        lookups.add("A", 0)
        lookups.add("B", 0)
        await until(lambda: len(seen) == 2)
        assert lookups.given_up == 0
        exchange.markets.clear()
        lookups.add("A", 0)
        await until(lambda: lookups.given_up == 1)
        exchange.markets = [{"ticker": "A", "status": 5}, market_body("B")]
        lookups.add("A", 0)
        await until(lambda: lookups.given_up == 2)
