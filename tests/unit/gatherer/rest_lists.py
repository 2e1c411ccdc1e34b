"""A REST exchange whose lists a test may change, with the filters that the exchange documents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

from gatherer.auth import Signer
from gatherer.rest import RestClient
from marketdata.units import format_ts_us, parse_ts_us
from runtime.clock import Clock

SIGNER = Signer("id", rsa.generate_private_key(public_exponent=65537, key_size=2048))
BEGIN_S = 1_800_000_000
WORDS = {"open": ("active",), "unopened": ("initialized",), "paused": ("inactive",)}
COMBO = {"mve_collection_ticker": "KXMVE-C"}


def iso(seconds: int) -> str:
    """A time of the exchange, so many seconds after the beginning."""
    return format_ts_us((BEGIN_S + seconds) * 1_000_000)


def market_body(ticker: str, seconds: int = 0, **more: Any) -> dict[str, Any]:
    """A market created and updated at this time."""
    times = {"created_time": iso(seconds), "updated_time": iso(seconds)}
    return {"ticker": ticker, "event_ticker": "E-1", "status": "active", **times, **more}


class Exchange:
    """Its lists. `asked`: every query, path first."""

    def __init__(self, *markets: dict[str, Any]) -> None:
        self.markets = list(markets) or [market_body("A"), market_body("B")]
        self.hidden: set[str] = set()  # from the lists of markets; their event shows them
        self.refused: set[str] = set()  # statuses
        self.unknown: dict[str, int] = {}  # ticker -> how often it is answered with 404
        self.down = 0
        self.knows_filters = True
        self.asked: list[dict[str, str]] = []

    async def answer(self, request: web.Request) -> web.Response:
        path = request.path.removeprefix("/trade-api/v2")
        query = dict(request.query)
        self.asked.append({"path": path, **query})
        if self.down:
            self.down -= 1
            raise web.HTTPNotFound
        if query.get("status") in self.refused:
            raise web.HTTPBadRequest
        if path == "/markets":
            return _paged(query, "markets", list(self._listed(query)))
        if path == "/events":
            return _paged(query, "events", [self._event(name) for name in self._events(query)])
        if path.startswith("/markets/"):
            return self._one(path.removeprefix("/markets/"))
        return web.json_response({"series": [{"ticker": t, "title": "s"} for t in ("E", "OTHER")]})

    def _listed(self, query: dict[str, str]) -> Iterator[dict[str, Any]]:
        tickers = query["tickers"].split(",") if "tickers" in query else None
        since = {"created": query.get("min_created_ts"), "updated": query.get("min_updated_ts")}
        for body in self.markets:
            is_combo = "mve_collection_ticker" in body
            wanted = [
                body["ticker"] not in self.hidden or tickers is not None,
                query.get("mve_filter") != "exclude" or not is_combo,
                query.get("mve_filter") != "only" or is_combo,
                "status" not in query or body["status"] in WORDS[query["status"]],
                tickers is None or (body["ticker"] in tickers and not self._is_unknown(body)),
                str(body["event_ticker"]).startswith(query.get("series_ticker", "")),
            ]
            if self.knows_filters:
                for name, at in since.items():
                    time_us = parse_ts_us(body[f"{name}_time"])
                    wanted.append(at is None or time_us >= int(at) * 1_000_000)
            if all(wanted):
                yield body

    def _events(self, query: dict[str, str]) -> list[str]:
        series = query.get("series_ticker", "")
        events = dict.fromkeys(str(body["event_ticker"]) for body in self.markets)
        return [event for event in events if event.startswith(series)]

    def _event(self, name: str) -> dict[str, Any]:
        nested = [body for body in self.markets if body["event_ticker"] == name]
        series = name.split("-", maxsplit=1)[0]
        times = {"last_updated_ts": iso(0)}
        return {"event_ticker": name, "series_ticker": series, "markets": nested, **times}

    def _is_unknown(self, body: dict[str, Any]) -> bool:
        left = self.unknown.get(body["ticker"], 0)
        self.unknown[body["ticker"]] = max(0, left - 1)
        return left > 0

    def _one(self, ticker: str) -> web.Response:
        for body in self.markets:
            if body["ticker"] == ticker and not self._is_unknown(body):
                return web.json_response({"market": body})
        raise web.HTTPNotFound


def _paged(query: dict[str, str], key: str, rows: list[Any]) -> web.Response:
    first, size = int(query.get("cursor", 0)), int(query["limit"])
    cursor = str(first + size) if first + size < len(rows) else ""
    return web.json_response({key: rows[first : first + size], "cursor": cursor})


@asynccontextmanager
async def client(exchange: Exchange) -> AsyncIterator[tuple[RestClient, Clock]]:
    """The exchange on a socket, and a client of ours."""
    app = web.Application()
    app.router.add_get("/{rest:.*}", exchange.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    clock = Clock()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/trade-api/v2"
    try:
        async with RestClient(
            url, SIGNER, rate_per_s=1000, wall_ns=clock.wall_ns, monotonic_ns=clock.monotonic_ns
        ) as rest:
            yield rest, clock
    finally:
        await runner.cleanup()


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
