"""REST: filters, pages, books, refusals, signatures. Real calls to a running exchange."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from marketdata.exchange_status import maintenance_of
from marketdata.units import parse_ts_us
from tests.exchange_client import Running, exchange

PREFIX = "/trade-api/v2"


class Caller:
    """Signed and unsigned GET calls; waits where the token bucket says so."""

    def __init__(self, running: Running, session: aiohttp.ClientSession) -> None:
        self.running = running
        self._session = session

    async def get(self, path: str, *, signed: bool = False) -> tuple[int, Any]:
        while True:
            headers = {}
            if signed:
                headers = self.running.keys.headers("GET", PREFIX + path.split("?", maxsplit=1)[0])
            url = self.running.ready["rest_url"] + path
            async with self._session.get(url, headers=headers) as answer:
                body = await answer.json()
                if answer.status != 429:
                    return answer.status, body
            await asyncio.sleep(0.1)


@pytest.fixture
async def caller(tmp_path: Path) -> AsyncIterator[Caller]:
    flags = ("--synthetic", "120", "--seconds", "20", "--rate", "max")
    async with exchange(tmp_path, *flags) as running, aiohttp.ClientSession() as session:
        await running.done()
        yield Caller(running, session)


async def test_lists_are_paged_and_filtered(caller: Caller) -> None:
    """Every market once over all pages; closed ones only where asked for."""
    found: list[str] = []
    cursor, pages = "", 0
    while pages == 0 or cursor:
        _, body = await caller.get(f"/markets?limit=50&cursor={cursor}")
        found += [market["ticker"] for market in body["markets"]]
        cursor, pages = body["cursor"], pages + 1
    all_markets = json.loads((caller.running.truth / "markets.json").read_bytes())
    assert found == all_markets
    assert pages == 3
    _, opened = await caller.get("/markets?limit=1000&status=open&mve_filter=exclude")
    _, closed = await caller.get("/markets?limit=1000&status=closed,settled")
    assert len(opened["markets"]) + len(closed["markets"]) == len(found)
    assert closed["markets"]
    assert {m["status"] for m in opened["markets"]} == {"active"}
    _, combos = await caller.get("/markets?mve_filter=only")
    assert combos["markets"] == []
    event = opened["markets"][0]["event_ticker"]
    _, one = await caller.get(f"/markets?event_ticker={event}")
    assert {m["event_ticker"] for m in one["markets"]} == {event}
    _, named = await caller.get(f"/markets?tickers={found[0]},{found[3]}")
    assert [m["ticker"] for m in named["markets"]] == [found[0], found[3]]


async def test_lists_tell_what_was_created_or_updated_since(caller: Caller) -> None:
    """The control: from the beginning on it is all of them."""
    _, whole = await caller.get("/markets?limit=1000&min_created_ts=0")
    begins = sorted(parse_ts_us(market["created_time"]) for market in whole["markets"])
    since_s = -(-begins[-1] // 1_000_000)
    for name in ("min_created_ts", "min_updated_ts"):
        _, none = await caller.get(f"/markets?limit=1000&{name}={since_s}")
        _, some = await caller.get(f"/markets?limit=1000&{name}={since_s - 1}")
        assert none["markets"] == []
        assert 0 < len(some["markets"]) < len(whole["markets"])
    _, events = await caller.get(f"/events?min_updated_ts={since_s - 1}")
    assert 0 < len(events["events"]) < 24


async def test_events_nest_their_markets_and_series_exist(caller: Caller) -> None:
    """The discovery path: events with nested markets, then series."""
    _, body = await caller.get("/events?with_nested_markets=true&limit=200")
    nested = [market["ticker"] for event in body["events"] for market in event["markets"]]
    assert sorted(nested) == sorted(
        json.loads((caller.running.truth / "markets.json").read_bytes())
    )
    _, flat = await caller.get("/events?limit=1")
    assert "markets" not in flat["events"][0]
    assert flat["cursor"]
    event = flat["events"][0]
    status, one = await caller.get(f"/events/{event['event_ticker']}")
    assert status == 200
    assert one["event"]["event_ticker"] == event["event_ticker"]
    assert "markets" not in one["event"]
    _, whole = await caller.get(f"/events/{event['event_ticker']}?with_nested_markets=true")
    assert whole["event"]["markets"] == whole["markets"] == one["markets"]
    assert (await caller.get(f"/series/{event['series_ticker']}"))[0] == 200
    assert (await caller.get("/series"))[1]["series"]
    for path in ("/series/KXNONE", "/events/KXNONE", "/markets/KXNONE", "/nothing"):
        assert (await caller.get(path))[0] == 404


async def test_the_schedule_is_what_a_recorder_reads(caller: Caller) -> None:
    status, body = await caller.get("/exchange/schedule")
    assert status == 200
    assert maintenance_of(body) == ()
    assert set(body["schedule"]["standard_hours"][0]) > {"thursday", "start_time"}


async def test_trades_come_newest_first_and_equal_the_websocket_ids(caller: Caller) -> None:
    """Back-fill by REST must find the very ids of the trade channel."""
    ids: list[str] = []
    cursor, pages = "", 0
    while pages == 0 or cursor:
        _, body = await caller.get(f"/markets/trades?limit=100&cursor={cursor}")
        ids += [trade["trade_id"] for trade in body["trades"]]
        cursor, pages = body["cursor"], pages + 1
    lines = (caller.running.truth / "trades.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    assert ids == [trade["trade_id"] for trade in reversed(told)]
    middle = told[len(told) // 2]
    query = f"ticker={middle['market_ticker']}&min_ts={middle['ts']}&max_ts={middle['ts'] + 1}"
    _, few = await caller.get(f"/markets/trades?{query}")
    assert middle["trade_id"] in [trade["trade_id"] for trade in few["trades"]]
    assert {trade["ticker"] for trade in few["trades"]} == {middle["market_ticker"]}
    for wrong in ("min_ts=soon", "limit=-1", "cursor=%21%21"):
        assert (await caller.get(f"/markets/trades?{wrong}"))[0] == 400


async def test_order_books_need_a_signature_and_equal_each_other(caller: Caller) -> None:
    """One market and the batch form give the same book; unsigned is 401."""
    tickers = json.loads((caller.running.truth / "markets.json").read_bytes())[:3]
    status, body = await caller.get(f"/markets/{tickers[0]}/orderbook")
    assert (status, body["error"]["code"]) == (401, "authentication_error")
    _, one = await caller.get(f"/markets/{tickers[0]}/orderbook", signed=True)
    assert set(one["orderbook_fp"]) == {"yes_dollars", "no_dollars"}
    query = "&".join(f"tickers={ticker}" for ticker in tickers)
    _, many = await caller.get(f"/markets/orderbooks?{query}", signed=True)
    assert [row["ticker"] for row in many["orderbooks"]] == tickers
    assert many["orderbooks"][0]["orderbook_fp"] == one["orderbook_fp"]
    assert (await caller.get("/markets/orderbooks", signed=True))[0] == 400


async def test_depth_takes_the_best_levels(caller: Caller) -> None:
    """Ascending, the best bid last: so the end of each list; 0 is all of it."""
    ticker = json.loads((caller.running.truth / "markets.json").read_bytes())[0]
    path = f"/markets/{ticker}/orderbook"
    whole = (await caller.get(path, signed=True))[1]["orderbook_fp"]
    assert (await caller.get(f"{path}?depth=0", signed=True))[1]["orderbook_fp"] == whole
    top = (await caller.get(f"{path}?depth=2", signed=True))[1]["orderbook_fp"]
    assert len(whole["yes_dollars"]) > 2
    assert top == {side: levels[-2:] for side, levels in whole.items()}
    assert (await caller.get(f"{path}?depth=101", signed=True))[0] == 400


async def test_a_market_shows_its_newest_ticker_and_its_best_levels(caller: Caller) -> None:
    """REST and the ticker channel are two views of one state; a result comes with its status."""
    lines = (caller.running.truth / "tickers.jsonl").read_text().splitlines()
    told = {row["market_ticker"]: row for row in map(json.loads, lines)}
    _, page = await caller.get("/markets?limit=1000")
    compared = 0
    for market in page["markets"]:
        newest = told.get(market["ticker"])
        if newest is not None:
            assert market["last_price_dollars"] == newest["price_dollars"]
            for name in ("volume_fp", "open_interest_fp"):
                assert market[name] == newest[name]
            compared += 1
        has_result = market["status"] in ("determined", "finalized")
        assert (market["result"] != "") == has_result
    assert compared
    first = next(market for market in page["markets"] if market["status"] == "active")
    _, body = await caller.get(f"/markets/{first['ticker']}/orderbook?depth=1", signed=True)
    ((yes_price, yes_size),) = body["orderbook_fp"]["yes_dollars"]
    ((no_price, no_size),) = body["orderbook_fp"]["no_dollars"]
    assert (first["yes_bid_dollars"], first["yes_bid_size_fp"]) == (yes_price, yes_size)
    assert (first["no_bid_dollars"], first["yes_ask_size_fp"]) == (no_price, no_size)


async def test_too_many_calls_get_429_without_headers(caller: Caller) -> None:
    """The Basic tier's bucket: about 40 calls at once, then refusals in the exchange's form."""
    url = caller.running.ready["rest_url"] + "/exchange/status"
    refused = []
    async with aiohttp.ClientSession() as session:
        for _ in range(60):
            async with session.get(url) as answer:
                if answer.status == 429:
                    refused.append(await answer.json())
                    assert "Retry-After" not in answer.headers
    assert refused
    assert refused[0] == {"error": "too many requests"}


async def test_planned_refusals_have_the_bodies_of_the_exchange(tmp_path: Path) -> None:
    """503 carries the status body; calls without faults in between succeed."""
    flags = ("--synthetic", "2", "--seconds", "1", "--rate", "max", "--faults", "harsh")
    async with exchange(tmp_path, *flags) as running, aiohttp.ClientSession() as session:
        bodies: dict[int, Any] = {}
        while not {200, 503} <= set(bodies):
            async with session.get(running.ready["rest_url"] + "/exchange/status") as answer:
                bodies[answer.status] = await answer.json()
            await asyncio.sleep(0.04)
        assert bodies[503]["exchange_active"] is False
        assert bodies[200]["exchange_active"] is True
        assert set(bodies[200]) == set(bodies[503])
