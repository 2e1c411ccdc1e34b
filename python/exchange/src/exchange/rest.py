"""REST of the simulated exchange: what a capture client asks for, and its usual refusals.

Purpose: answer from the venue's present state: exchange status, series, events, markets, trades,
order books; with the token bucket of the Basic tier and the 429 and 503 answers of the fault plan.
`GET /sim/status` (not part of the exchange) tells the progress of the play.

Does not do: historical endpoints, candlesticks, orders.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson
from aiohttp import web

from exchange.auth import KEY_HEADER, SIGNATURE_HEADER, Verifier
from exchange.faults import SECOND_US
from exchange.frames import price_text, size_text, time_text
from exchange.market_text import (
    EXCHANGE_INDEX,
    PRICE_LEVELS,
    SETTLEMENT_VALUES,
    made_up_result,
)
from exchange.timeline import NO, YES
from exchange.venue import PRICE_WHOLE, Market, Venue

PREFIX: Final = "/trade-api/v2"
STATUS_FILTERS: Final = {
    "unopened": ("initialized",),
    "open": ("active",),
    "paused": ("inactive",),
    "closed": ("closed", "determined", "disputed", "amended"),
    "settled": ("finalized",),
}
EVENTS_LIMIT: Final = (200, 200)  # default, most
MARKETS_LIMIT: Final = (100, 1000)
TRADES_LIMIT: Final = (100, 1000)
RESULT_STATUSES: Final = ("determined", "disputed", "amended", "finalized")
ORDERBOOK_TICKERS_MAX: Final = 100
DEPTH_MAX: Final = 100
TOKENS_PER_S: Final = 200
TOKENS_MAX: Final = 400
CALL_TOKENS: Final = 10
BUCKETS_MAX: Final = 1024
OWN_PATHS: Final = ("/sim/", "/replay/")  # no part of the exchange: neither signed nor counted
NEW_MARKET_404_US: Final = 1_000_000  # a market just created is not found for a while
_Row = TypeVar("_Row")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


def _json(row: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(row), status=status, content_type="application/json")


def _wrapped_error(status: int, code: str, message: str) -> web.Response:
    return _json({"error": {"code": code, "message": message}}, status)


class Rest:
    """The REST application around a venue."""

    def __init__(self, venue: Venue, verifier: Verifier, status: Callable[[], object]) -> None:
        self._venue = venue
        self._verifier = verifier
        self._status = status
        self._buckets: dict[str, _Bucket] = {}

    def application(self) -> web.Application:
        """The aiohttp application; its server's protocol takes over sockets from `server`."""

        @web.middleware
        async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._gate(request, handler)

        app = web.Application(middlewares=[gate])
        routes: dict[str, Handler] = {
            "/exchange/status": self._exchange_status,
            "/exchange/schedule": self._exchange_schedule,
            "/series": self._series_list,
            "/series/{series}": self._series,
            "/events": self._events,
            "/events/{event}": self._event,
            "/markets": self._markets,
            "/markets/trades": self._trades,
            "/markets/orderbooks": self._orderbooks,
            "/markets/{ticker}": self._market,
            "/markets/{ticker}/orderbook": self._orderbook,
        }
        for path, handler in routes.items():
            app.router.add_get(f"{PREFIX}{path}", handler)
        app.router.add_get("/sim/status", self._sim_status)
        return app

    # -- what every call passes ----------------------------------------------------------------

    async def _gate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(OWN_PATHS):
            return await handler(request)
        if not self._take_tokens(request.headers.get(KEY_HEADER, "")):
            return _json({"error": "too many requests"}, 429)
        planned = self._venue.plan.rest_fault()
        if planned is not None:
            self._venue.tell(f"rest_{planned}", None, path=request.path)
            if planned == 429:
                return _json({"error": "too many requests"}, 429)
            return _json(self._status_body(active=False), 503)
        if SIGNATURE_HEADER in request.headers or "orderbook" in request.path:
            now_ms = time.time_ns() // 1_000_000
            fault = self._verifier.fault(request.headers, request.method, request.path, now_ms)
            if fault is not None:
                return _wrapped_error(401, *fault)
        try:
            return await handler(request)
        except web.HTTPNotFound:
            return _json({"code": "not_found", "message": "not found", "details": ""}, 404)
        except web.HTTPBadRequest as refusal:
            return _wrapped_error(400, "bad_request", refusal.reason)

    def _take_tokens(self, key_id: str) -> bool:
        now_s = time.monotonic()
        if len(self._buckets) > BUCKETS_MAX:
            self._buckets.clear()
        bucket = self._buckets.setdefault(key_id, _Bucket(TOKENS_MAX, now_s))
        refilled = bucket.tokens + (now_s - bucket.at_s) * TOKENS_PER_S
        bucket.tokens, bucket.at_s = min(TOKENS_MAX, refilled), now_s
        if bucket.tokens < CALL_TOKENS:
            return False
        bucket.tokens -= CALL_TOKENS
        return True

    # -- exchange ------------------------------------------------------------------------------

    def _status_body(self, *, active: bool) -> dict[str, Any]:
        flags = {
            "exchange_active": active,
            "trading_active": active,
            "intra_exchange_transfers_active": active,
        }
        shard = {"exchange_index": EXCHANGE_INDEX, "description": "simulated", **flags}
        resume = None if active else time_text(self._venue.now_us)
        return {
            **flags,
            "exchange_estimated_resume_time": resume,
            "exchange_index_statuses": [shard],
        }

    async def _exchange_status(self, request: web.Request) -> web.Response:
        del request
        active = not self._venue.holes_open
        return _json(self._status_body(active=active), 200 if active else 503)

    async def _exchange_schedule(self, request: web.Request) -> web.Response:
        """Open around the clock, nothing announced: a play is too short for the weekly pause."""
        del request
        days = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
        hours = {day: [{"open_time": "00:00", "close_time": "00:00"}] for day in days}
        span = {"start_time": "2024-12-01T00:00:00Z", "end_time": "2200-12-01T00:00:00Z"}
        return _json(
            {"schedule": {"maintenance_windows": [], "standard_hours": [{**span, **hours}]}}
        )

    async def _sim_status(self, request: web.Request) -> web.Response:
        del request
        return _json(self._status())

    # -- series, events, markets ---------------------------------------------------------------

    def _series_body(self, ticker: str) -> dict[str, Any]:
        return {
            "ticker": ticker,
            "frequency": "custom",
            "title": ticker,
            "category": "Simulated",
            "categories": ["Simulated"],
            "tags": [],
            "settlement_sources": [],
            "contract_url": "",
            "contract_terms_url": "",
            "product_metadata": {},
            "fee_type": "quadratic",
            "fee_multiplier": 1,
            "additional_prohibitions": [],
            "exchange_index": EXCHANGE_INDEX,
        }

    async def _series_list(self, request: web.Request) -> web.Response:
        del request
        tickers = dict.fromkeys(market.spec.series_ticker for market in self._venue.markets)
        return _json({"series": [self._series_body(ticker) for ticker in tickers]})

    async def _series(self, request: web.Request) -> web.Response:
        ticker = request.match_info["series"]
        if all(market.spec.series_ticker != ticker for market in self._venue.markets):
            raise web.HTTPNotFound
        return _json({"series": self._series_body(ticker)})

    def _event_body(self, markets: list[Market], *, nested: bool) -> dict[str, Any]:
        spec = markets[0].spec
        body: dict[str, Any] = {
            "event_ticker": spec.event_ticker,
            "series_ticker": spec.series_ticker,
            "title": spec.event_ticker,
            "sub_title": "",
            "collateral_return_type": "",
            "mutually_exclusive": False,
            "category": "Simulated",
            "strike_period": "",
            "available_on_brokers": False,
            "product_metadata": {},
            "settlement_sources": [],
            "last_updated_ts": time_text(spec.open_us),
            "exchange_index": EXCHANGE_INDEX,
        }
        if nested:
            body["markets"] = [_market_body(market) for market in markets]
        return body

    def _by_event(self, markets: Iterable[Market]) -> list[list[Market]]:
        events: dict[str, list[Market]] = {}
        for market in markets:
            events.setdefault(market.spec.event_ticker, []).append(market)
        return list(events.values())

    async def _events(self, request: web.Request) -> web.Response:
        series = request.query.get("series_ticker")
        asked, since_us = _statuses(request.query.get("status")), _since_us(request)
        markets = [
            market
            for market in self._venue.markets
            if (series is None or market.spec.series_ticker == series)
            and (asked is None or market.status in asked)
            and market.spec.open_us >= since_us
        ]
        events = self._by_event(markets)
        nested = request.query.get("with_nested_markets") == "true"
        page, cursor = _page(request, events, EVENTS_LIMIT)
        rows = [self._event_body(held, nested=nested) for held in page]
        return _json({"events": rows, "cursor": cursor})

    async def _event(self, request: web.Request) -> web.Response:
        wanted = request.match_info["event"]
        markets = [m for m in self._venue.markets if m.spec.event_ticker == wanted]
        if not markets:
            raise web.HTTPNotFound
        rows = [_market_body(market) for market in markets]
        nested = request.query.get("with_nested_markets") == "true"
        return _json({"event": self._event_body(markets, nested=nested), "markets": rows})

    async def _markets(self, request: web.Request) -> web.Response:
        query = request.query
        tickers = set(query["tickers"].split(",")) if query.get("tickers") else None
        asked, since_us = _statuses(query.get("status")), _since_us(request)
        event, series = query.get("event_ticker"), query.get("series_ticker")
        markets = self._venue.markets if query.get("mve_filter") != "only" else []
        wanted = [
            market
            for market in markets
            if (asked is None or market.status in asked)
            and (tickers is None or market.spec.ticker in tickers)
            and event in (None, market.spec.event_ticker)
            and series in (None, market.spec.series_ticker)
            and market.spec.open_us >= since_us
        ]
        page, cursor = _page(request, wanted, MARKETS_LIMIT)
        return _json({"markets": [_market_body(market) for market in page], "cursor": cursor})

    def _found(self, ticker: str) -> Market:
        number = self._venue.numbers.get(ticker)
        if number is None:
            raise web.HTTPNotFound
        return self._venue.markets[number]

    async def _market(self, request: web.Request) -> web.Response:
        market = self._found(request.match_info["ticker"])
        fresh = self._venue.now_us - market.listed_us < NEW_MARKET_404_US
        if fresh and market.listed_us > self._venue.plan.start_us:
            raise web.HTTPNotFound
        return _json({"market": _market_body(market)})

    # -- trades and books ----------------------------------------------------------------------

    async def _trades(self, request: web.Request) -> web.Response:
        query = request.query
        low_us = _number(query.get("min_ts"), 0) * PRICE_WHOLE
        high_us = _number(query.get("max_ts"), 1 << 40) * PRICE_WHOLE
        ticker = query.get("ticker")
        number = None if ticker is None else self._venue.numbers.get(ticker, -1)
        rows = [
            rest
            for exchange_us, market, rest in reversed(self._venue.rest_trades)
            if low_us <= exchange_us <= high_us and number in (None, market)
        ]
        page, cursor = _page(request, rows, TRADES_LIMIT)
        body = b'{"trades":[%b],"cursor":"%b"}' % (b",".join(page), cursor.encode())
        return web.Response(body=body, content_type="application/json")

    async def _orderbook(self, request: web.Request) -> web.Response:
        market = self._found(request.match_info["ticker"])
        depth = _number(request.query.get("depth"), 0)
        if depth > DEPTH_MAX:
            raise web.HTTPBadRequest(reason="depth is more than 100")
        body = f'{{"orderbook_fp":{self._venue.orderbook_json(market.number, depth)}}}'
        return web.Response(text=body, content_type="application/json")

    async def _orderbooks(self, request: web.Request) -> web.Response:
        tickers = request.query.getall("tickers", [])
        if not 1 <= len(tickers) <= ORDERBOOK_TICKERS_MAX:
            raise web.HTTPBadRequest(reason="1 to 100 tickers are required")
        markets = (self._venue.numbers.get(ticker) for ticker in tickers)
        rows = [
            f'{{"ticker":"{self._venue.markets[number].spec.ticker}",'
            f'"orderbook_fp":{self._venue.orderbook_json(number)}}}'
            for number in markets
            if number is not None
        ]
        body = f'{{"orderbooks":[{",".join(rows)}]}}'
        return web.Response(text=body, content_type="application/json")


def _statuses(asked: str | None) -> frozenset[str] | None:
    """The statuses that a filter's words (comma separated) mean; None: any."""
    if not asked:
        return None
    return frozenset(s for word in asked.split(",") for s in STATUS_FILTERS.get(word, ()))


def _since_us(request: web.Request) -> int:
    """The filters of lists by time: a made-up market is created and last updated as it opens."""
    query = request.query
    since_s = max(_number(query.get(f"min_{what}_ts"), 0) for what in ("created", "updated"))
    return since_s * SECOND_US


def _number(text: str | None, default: int) -> int:
    if text is None or text == "":
        return default
    if not (text.isascii() and text.isdigit()):
        raise web.HTTPBadRequest(reason="a parameter is not a whole number")
    return int(text)


def _page(
    request: web.Request, rows: list[_Row], limits: tuple[int, int]
) -> tuple[list[_Row], str]:
    """One page and the cursor of the next one: opaque, empty when this is the last."""
    usual, most = limits
    limit = min(max(_number(request.query.get("limit"), usual), 1), most)
    try:
        start = int(base64.urlsafe_b64decode(request.query.get("cursor") or "MA==").decode())
    except (binascii.Error, ValueError):
        raise web.HTTPBadRequest(reason="invalid cursor") from None
    end = start + limit
    cursor = "" if end >= len(rows) else base64.urlsafe_b64encode(str(end).encode()).decode()
    return rows[start:end], cursor


def _quotes(market: Market) -> dict[str, Any]:
    """Best prices from the book; what trading left behind as the newest ticker message told it."""
    yes = max(market.book[YES], default=0)
    no = max(market.book[NO], default=0)
    told: dict[str, Any] = orjson.loads(market.told) if market.told else {}
    return {
        "yes_bid_dollars": price_text(yes),
        "yes_bid_size_fp": size_text(market.book[YES].get(yes, 0)),
        "yes_ask_dollars": price_text(PRICE_WHOLE - no),
        "yes_ask_size_fp": size_text(market.book[NO].get(no, 0)),
        "no_bid_dollars": price_text(no),
        "no_ask_dollars": price_text(PRICE_WHOLE - yes),
        "last_price_dollars": told.get("price_dollars") or price_text(0),
        "volume_fp": told.get("volume_fp", size_text(0)),
        "volume_24h_fp": told.get("volume_fp", size_text(0)),
        "open_interest_fp": told.get("open_interest_fp", size_text(0)),
        # A day ago: no play is that long.
        "previous_yes_bid_dollars": price_text(0),
        "previous_yes_ask_dollars": price_text(0),
        "previous_price_dollars": price_text(0),
    }


def _settlement(market: Market) -> dict[str, Any]:
    """The result of a market that has one; "" before."""
    if market.status not in RESULT_STATUSES:
        return {"result": "", "expiration_value": ""}
    result = made_up_result(market.spec.ticker)
    return {
        "result": result,
        "expiration_value": result,
        "settlement_value_dollars": SETTLEMENT_VALUES[result],
    }


def _market_body(market: Market) -> dict[str, Any]:
    spec = market.spec
    return {
        "ticker": spec.ticker,
        "event_ticker": spec.event_ticker,
        "market_type": "binary",
        "title": spec.title,
        "subtitle": "",
        "yes_sub_title": spec.title,
        "no_sub_title": spec.title,
        "created_time": time_text(spec.open_us),
        "updated_time": time_text(spec.open_us),
        "open_time": time_text(spec.open_us),
        "close_time": time_text(spec.close_us),
        "expected_expiration_time": time_text(spec.close_us),
        "expiration_time": time_text(spec.close_us),
        "latest_expiration_time": time_text(spec.close_us),
        "settlement_timer_seconds": 60,
        "settlement_bounds_type": "default",
        "status": market.status,
        **_quotes(market),
        "notional_value_dollars": "1.0000",
        "liquidity_dollars": "0.0000",
        **_settlement(market),
        "can_close_early": True,
        "rules_primary": "",
        "rules_secondary": "",
        **PRICE_LEVELS,
        "is_provisional": False,
        "exchange_index": EXCHANGE_INDEX,
        **spec.details,
    }
