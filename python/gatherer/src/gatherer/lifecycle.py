"""Single markets by REST: the questions of the roll, asked in few requests.

Purpose: a market that a lifecycle frame or the clock gave reason to ask for is read from REST,
alone by its own address (404: not known yet) or together with others in one list, until its answer
is what was waited for (marketdata.lookups).
Invariants: one request at a time; the exchange being away delays answers and loses no question.
Does not do: deciding (marketdata.roll), history rows (discovery), pacing and retries (rest).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from gatherer.rest import RestClient, RestError
from marketdata import rest_bodies
from marketdata.errors import WireError
from marketdata.lookups import Lookups
from marketdata.rest_bodies import Market
from runtime import logs
from runtime.clock import Clock

POLL_S: Final = 0.2
TRIES: Final = 2
"""Of a request; the question itself is asked again."""
NOT_FOUND: Final = 404

log = logs.get("lifecycle")

OnMarkets = Callable[[list[Market]], Awaitable[None]]


class SingleMarkets:
    """See the module's text."""

    def __init__(
        self, rest: RestClient, lookups: Lookups, clock: Clock, on_markets: OnMarkets
    ) -> None:
        self._rest = rest
        self._lookups = lookups
        self._clock = clock
        self._on_markets = on_markets
        self.requests = 0
        self.problems = 0

    async def run(self) -> None:
        """Ask for what is due, for ever."""
        while True:
            tickers = self._lookups.take(self._clock.monotonic_ns())
            if tickers:
                await self._ask(tickers)
            else:
                await asyncio.sleep(POLL_S)

    async def _ask(self, tickers: list[str]) -> None:
        self.requests += 1
        try:
            found = await self._read(tickers)
        except (RestError, WireError) as error:
            self._lookups.failed(tickers, self._clock.monotonic_ns())
            log.warning("markets were not told", markets=len(tickers), error=str(error))
            return
        await self._on_markets(found)
        now_ns = self._clock.monotonic_ns()
        statuses = {market.ticker: market.status for market in found}
        for ticker in tickers:
            if ticker in statuses:
                self._lookups.answered(ticker, statuses[ticker], now_ns)
            else:
                self._lookups.not_found(ticker, now_ns)

    async def _read(self, tickers: list[str]) -> list[Market]:
        if len(tickers) > 1:
            query: dict[str, str | int] = {"tickers": ",".join(tickers), "limit": len(tickers)}
            return self._page(await self._rest.get("/markets", query, tries=TRIES))
        try:
            body = await self._rest.get(f"/markets/{tickers[0]}", tries=TRIES)
        except RestError as error:
            if error.status != NOT_FOUND:
                raise
            return []
        return self._page({"markets": [body.get("market")]})

    def _page(self, body: dict[str, Any]) -> list[Market]:
        page = rest_bodies.markets_page(body)
        self.problems += len(page.problems)
        return page.items
