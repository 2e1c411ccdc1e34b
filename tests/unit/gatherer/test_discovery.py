"""Discovery: REST rounds and lifecycle frames into subscriptions and history."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

from gatherer import discovery as module
from gatherer.auth import Signer
from gatherer.discovery import Discovery, History, history_row
from gatherer.rest import RestClient
from marketdata import events
from marketdata.plan import Limits, Plan
from runtime.clock import Clock
from runtime.embedded import EmbeddedPostgres

SIGNER = Signer("id", rsa.generate_private_key(public_exponent=65537, key_size=2048))


def _market(ticker: str, **more: Any) -> dict[str, Any]:
    return {"ticker": ticker, "event_ticker": "E-1", "status": "active", "title": "t", **more}


class Exchange:
    """Lists that a test may change."""

    def __init__(self) -> None:
        self.markets = [_market("A"), _market("B")]
        self.down = 0

    async def answer(self, request: web.Request) -> web.Response:
        if self.down:
            self.down -= 1
            raise web.HTTPNotFound
        path = request.path.rsplit("/", 1)[1]
        if path == "markets":
            assert request.query["mve_filter"] == "exclude"
            chosen = request.query.get("series_ticker")
            shown = [
                m
                for m in self.markets
                if chosen is None or str(m["event_ticker"]).startswith(f"{chosen}-")
            ]
            return web.json_response({"markets": shown, "cursor": ""})
        if path == "events":
            event = {"event_ticker": "E-1", "series_ticker": "E", "title": "x"}
            return web.json_response({"events": [event], "cursor": ""})
        listed = [{"ticker": "E", "title": "s"}, {"ticker": "OTHER", "title": "s"}]
        return web.json_response({"series": listed})


@asynccontextmanager
async def discovering(
    exchange: Exchange, history: History, interval_s: float = 0.05, series: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Discovery, list[dict[int, tuple[str, ...]]]]]:
    app = web.Application()
    app.router.add_get("/{rest:.*}", exchange.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    clock, plan = Clock(), Plan("g1", Limits(10))
    told = list[dict[int, tuple[str, ...]]]()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/trade-api/v2"
    try:
        async with RestClient(
            url, SIGNER, rate_per_s=1000, wall_ns=clock.wall_ns, monotonic_ns=clock.monotonic_ns
        ) as rest:
            made = Discovery(
                rest,
                plan,
                history,
                clock,
                interval_s=interval_s,
                on_changes=lambda _: told.append(plan.books()),
                series=series,
            )
            task = asyncio.create_task(made.run())
            try:
                yield made, told
            finally:
                task.cancel()
                await asyncio.wait([task])
    finally:
        await runner.cleanup()


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_open_markets_are_assigned_and_new_ones_join(dsn: str) -> None:
    """A market nobody subscribed to is dark for good: books cannot be bought afterwards."""
    exchange = Exchange()
    async with discovering(exchange, History(dsn)) as (made, told):
        await until(lambda: made.rounds >= 1)
        assert set(told[0][0]) == {"A", "B"}
        exchange.markets.append(_market("C"))
        await until(lambda: "C" in told[-1][0])
        exchange.markets.clear()
        before = made.rounds
        await until(lambda: made.rounds > before + 1)
        assert set(told[-1][0]) == {"A", "B", "C"}, "a market not listed stays subscribed"


async def test_a_created_market_is_subscribed_before_rest_knows_it(dsn: str) -> None:
    """REST may answer 404 right after `created`; its first seconds are worth having."""
    async with discovering(Exchange(), History(dsn), 60) as (made, told):
        await until(lambda: made.rounds == 1)
        metadata = {"additional_metadata": {"event_ticker": "E-1"}}
        made.on_event(events.MarketLifecycle("NEW", "created", False, metadata, 1, 1))
        assert "NEW" in told[-1][0]
        count = len(told)
        made.on_event(events.MarketLifecycle("MVE", "created", True, {}, 1, 1))
        made.on_event(events.MarketLifecycle("A", "deactivated", False, {}, 1, 1))
        made.on_event(events.EventLifecycle("E-1", {}, 1, 1))
        assert len(told) == count


async def test_a_settled_market_leaves_after_its_hold(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing frames come late: it stays for a while."""
    exchange = Exchange()
    async with discovering(exchange, History(dsn)) as (made, told):
        await until(lambda: made.rounds >= 1)
        exchange.markets = [_market("B")]
        made.on_event(events.MarketLifecycle("A", "settled", False, {}, 1, 1))
        before = made.rounds
        await until(lambda: made.rounds > before + 1)
        assert "A" in told[-1][0]
        monkeypatch.setattr(module, "SETTLED_HOLD_NS", 0)
        await until(lambda: "A" not in told[-1][0])


async def test_a_first_round_that_fails_is_repeated_at_once(dsn: str) -> None:
    """Without it nothing is recorded; the interval is for later rounds."""
    exchange = Exchange()
    exchange.down = 2
    async with discovering(exchange, History(dsn), 60) as (made, _):
        await until(lambda: made.rounds == 1)
        assert made.reason == ""


async def test_history_keeps_one_row_for_each_content_over_restarts(dsn: str) -> None:
    """Prices change with every trade; what a market is does not."""
    history = History(dsn)
    task = asyncio.create_task(history.run())
    for n in range(3):
        body = _market("A", volume_fp=f"{n}.00", yes_bid_dollars="0.1000")
        history.offer(history_row("market", "A", "active", body, 100 + n))
        await until(lambda: history.pending == 0)
    history.offer(history_row("market", "A", "closed", _market("A", status="closed"), 200))
    history.offer(history_row("event", "E-1", "", {"event_ticker": "E-1"}, 200))
    history.offer(history_row("series", "E", "", {"ticker": "E", "text": "a\x00b"}, 200))
    await history.stop()
    await asyncio.wait_for(task, 20)
    again = History(dsn)
    task = asyncio.create_task(again.run())
    await until(lambda: bool(again._newest))
    again.offer(history_row("market", "A", "closed", _market("A", status="closed"), 300))
    assert again.pending == 0
    await again.stop()
    await asyncio.wait_for(task, 20)
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch("SELECT * FROM market_history ORDER BY valid_from_ns")
    assert [(r["valid_from_ns"], r["status"]) for r in rows] == [(100, "active"), (200, "closed")]
    assert "volume_fp" not in json.loads(rows[0]["body"])
    assert await connection.fetchval("SELECT count(*) FROM event_history") == 1
    assert await connection.fetchval("SELECT count(*) FROM series_history") == 1
    await connection.close()


async def test_rows_wait_while_the_database_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata is late then; recording does not notice."""
    monkeypatch.setattr(module, "PENDING_ROWS_MAX", 2)
    told: list[str] = []
    history = History("postgresql://127.0.0.1:1/none", on_state=told.append)
    task = asyncio.create_task(history.run())
    for n in range(4):
        history.offer(history_row("market", f"M{n}", "active", _market(f"M{n}"), 1))
    await until(lambda: bool(told))
    assert (history.pending, history.rows_left_out) == (2, 2)
    task.cancel()
    await asyncio.wait([task])


async def test_a_database_that_refuses_us_is_tried_again(
    cluster: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role locked by mistake once ended the whole recorder; the metadata can wait."""
    monkeypatch.setattr(module, "backoff_s", lambda _: 0.01)
    admin = await asyncpg.connect(cluster.dsn())
    await admin.execute("CREATE ROLE keeper NOLOGIN")
    await admin.execute("CREATE DATABASE kept OWNER keeper")
    told: list[str] = []
    refused = re.sub(r"//[^@]+@", "//keeper@", cluster.dsn("kept"))
    assert "keeper" in refused
    history = History(refused, on_state=told.append)
    history.offer(history_row("market", "M", "active", _market("M"), 1))
    task = asyncio.create_task(history.run())
    try:
        await until(lambda: len(told) >= 2)
        assert "refuses us" in told[-1]
        assert not task.done()
        await admin.execute("ALTER ROLE keeper LOGIN")
        await until(lambda: history.rows_written == 1)
        assert told[-1] == ""
        await history.stop()
        await asyncio.wait_for(task, 20)
    finally:
        task.cancel()
        await asyncio.wait([task])
        await admin.close()


async def test_bodies_that_cannot_be_read_do_not_hide_the_others(dsn: str) -> None:
    exchange = Exchange()
    exchange.markets.insert(0, {"ticker": "", "status": "active"})
    async with discovering(exchange, History(dsn)) as (made, told):
        await until(lambda: made.rounds >= 1)
        assert set(told[0][0]) == {"A", "B"}
        assert made.problems >= 1


async def test_only_chosen_series_are_subscribed(dsn: str) -> None:
    """By REST and by lifecycle frames alike; the control: without a choice all are."""
    exchange = Exchange()
    exchange.markets.append(_market("OTHER-1-A", event_ticker="OTHER-1"))
    async with discovering(exchange, History(dsn), 60, ("OTHER",)) as (made, told):
        await until(lambda: made.rounds == 1)
        assert set(told[-1][0]) == {"OTHER-1-A"}
        for parent in ("E-1", "OTHER-2"):
            metadata = {"additional_metadata": {"event_ticker": parent}}
            made.on_event(events.MarketLifecycle(f"{parent}-N", "created", False, metadata, 1, 1))
        assert set(told[-1][0]) == {"OTHER-1-A", "OTHER-2-N"}
    async with discovering(exchange, History(dsn), 60) as (made, told):
        await until(lambda: made.rounds == 1)
        assert set(told[-1][0]) == {"A", "B", "OTHER-1-A"}
