"""Which connection carries which market.

Purpose: markets -> connections, pure and stable: adding a market moves no other market, a restart
plans the same for the same input. One connection of its own carries the channels without a market
filter (trade, ticker, lifecycle), so that their bursts never delay an order book.
Invariants: every market is on exactly one book connection; no connection holds more than
`markets_per_connection`; all markets of an event sit together while they fit (a burst and its order
across markets stay on one stream).
Staggering: each gatherer deals the events to its connections in its own order, so that the same gap
or buffer overflow of one connection does not hit the same set of markets at every gatherer.
Does not do: talking to anybody; reading a clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

CONNECTIONS_MAX: Final = 190
"""Below the exchange's default of 200 connections per user, shared with what else the key does."""

MARKETS_PER_CONNECTION_MAX: Final = 50_000

BOOK_CHANNEL: Final = "orderbook_delta"
SHARED_CHANNELS: Final = ("trade", "ticker", "market_lifecycle_v2")


@dataclass(frozen=True, slots=True)
class MarketRef:
    """A market as the plan sees it. `event` may be the ticker itself where it is not known."""

    ticker: str
    event: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """What each connection carries: number -> tickers; `shared` is the unfiltered connection."""

    books: Mapping[int, tuple[str, ...]]
    shared: tuple[str, ...] = SHARED_CHANNELS
    unplaced: tuple[str, ...] = field(default=())
    """Markets beyond CONNECTIONS_MAX * markets_per_connection: shown in health, never dropped
    quietly."""


class Plan:
    """Grows with the markets. `place` returns the assignment after taking new markets in."""

    def __init__(self, gatherer: str, markets_per_connection: int) -> None:
        if not 1 <= markets_per_connection <= MARKETS_PER_CONNECTION_MAX:
            raise ValueError(f"markets_per_connection {markets_per_connection} is out of range")
        self._gatherer = gatherer
        self._per_connection = markets_per_connection
        self._members: list[list[str]] = []
        self._where: dict[str, int] = {}
        self._event_at: dict[str, int] = {}
        self._unplaced: dict[str, str] = {}  # ticker -> event, tried again at every `place`

    def place(self, markets: Iterable[MarketRef]) -> Assignment:
        """Take in markets (known ones are ignored) and return the whole assignment."""
        fresh: dict[str, set[str]] = {}
        for ticker, event in self._unplaced.items():
            fresh.setdefault(event, set()).add(ticker)
        self._unplaced.clear()
        for market in markets:
            if market.ticker not in self._where:
                fresh.setdefault(market.event, set()).add(market.ticker)
        for event in sorted(fresh, key=self._rank):
            self._place_event(event, sorted(fresh[event]))
        return self.assignment()

    def remove(self, tickers: Iterable[str]) -> None:
        """Forget markets that have ended; their places are free for new ones."""
        for ticker in tickers:
            self._unplaced.pop(ticker, None)
            at = self._where.pop(ticker, None)
            if at is not None:
                self._members[at].remove(ticker)

    def assignment(self) -> Assignment:
        """What each connection is to carry now."""
        books = {n: tuple(tickers) for n, tickers in enumerate(self._members) if tickers}
        return Assignment(books=books, unplaced=tuple(self._unplaced))

    def connection_of(self, ticker: str) -> int | None:
        """The number of the book connection that carries `ticker`; None where nobody does."""
        return self._where.get(ticker)

    def _rank(self, event: str) -> bytes:
        return hashlib.sha256(f"{self._gatherer}\0{event}".encode()).digest()

    def _place_event(self, event: str, tickers: list[str]) -> None:
        """Put an event's markets together where they fit, else spread over several connections."""
        while tickers:
            at = self._room_for(event, len(tickers))
            if at is None:
                for ticker in tickers:
                    self._unplaced[ticker] = event
                return
            room = self._per_connection - len(self._members[at])
            for ticker in tickers[:room]:
                self._members[at].append(ticker)
                self._where[ticker] = at
            self._event_at[event] = at
            tickers = tickers[room:]

    def _room_for(self, event: str, wanted: int) -> int | None:
        """Where the event lives already, else the first connection with room for all of it, else a
        new connection, else the one with the most room."""
        home = self._event_at.get(event)
        if home is not None and len(self._members[home]) < self._per_connection:
            return home
        fitting = min(wanted, self._per_connection)
        for n, members in enumerate(self._members):
            if self._per_connection - len(members) >= fitting:
                return n
        if len(self._members) < CONNECTIONS_MAX:
            self._members.append([])
            return len(self._members) - 1
        roomiest = min(range(len(self._members)), key=lambda n: len(self._members[n]))
        return roomiest if len(self._members[roomiest]) < self._per_connection else None
