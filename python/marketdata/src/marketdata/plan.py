"""Which connection carries which market, and why.

Purpose: markets -> connections, pure and stable: a new market moves no other, a restart plans the
same for the same input. Every call gives back only what changed (`Changes`).
Invariants:
- INV-70 a market that was placed is on exactly one book connection; while it moves on exactly two.
- INV-71 no connection holds more than `markets_per_connection`, which bounds what a gap of one
  connection can touch; there are at most `connections_max` of them.
- INV-72 a market is unplaced only while there is no room; unplaced markets are told, never
  forgotten, and take the first places that come free.
- INV-73 what a call costs depends on what changes, not on how many markets there are.
Markets of an event sit together while they fit: a burst and its order across markets stay on one
stream. Only hot markets leave their event: `rebalance` spreads them, one step at a time, and only
off a connection that carries more than `spread_percent` of the mean.
Moving is: carried on the new connection too, seen there (`arrived`), dropped on the old one.
Staggering: each gatherer deals the events to its connections in its own order, so that the same gap
or buffer overflow of one connection does not hit the same set of markets at every gatherer.
Does not do: talking to anybody; reading a clock; the channels without a market filter, which have
connections of their own so that their bursts never delay an order book.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Final

NS_PER_S: Final = 1_000_000_000
RATE_S: Final = 1_000
"""Rates are frames of a market in so many seconds: whole numbers, and small ones are not 0."""
CONNECTIONS_OF_A_USER: Final = 200
"""The exchange's limit, shared by all gatherers of the user and by what else its keys do."""
SUBSCRIPTIONS_PER_SESSION_MAX: Final = 500_000
"""The exchange's limit on order books of one connection."""
MARKETS_PER_CONNECTION_MAX: Final = 50_000

TRADE_CHANNEL: Final = "trade"
LIFECYCLE_CHANNEL: Final = "market_lifecycle_v2"
COMBO_LIFECYCLE_CHANNEL: Final = "multivariate_market_lifecycle"
OWN_CONNECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "trade": (TRADE_CHANNEL,),
    "ticker": ("ticker",),
    "lifecycle": (LIFECYCLE_CHANNEL,),
}
"""Connections of the channels without a market filter, by name."""


def own_connections(*, combos: bool, share: int = 1) -> dict[str, tuple[str, ...]]:
    """Those of one process: trades and tickers are of the whole exchange, so that the first process
    of a host carries them alone; new markets are everybody's business."""
    lifecycle = (LIFECYCLE_CHANNEL, COMBO_LIFECYCLE_CHANNEL) if combos else (LIFECYCLE_CHANNEL,)
    if share > 1:
        return {"lifecycle": lifecycle}
    return {**OWN_CONNECTIONS, "lifecycle": lifecycle}


class Why(StrEnum):
    """Why a market is where it is."""

    EVENT_HOME = "event home"
    FIRST_WITH_ROOM = "first with room"
    NEW_CONNECTION = "new connection"
    ROOMIEST = "most room left"
    HOT = "spread because hot"


@dataclass(frozen=True, slots=True)
class MarketRef:
    """A market as the plan sees it. `event` may be the ticker itself where it is not known."""

    ticker: str
    event: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the plan. Rates are in frames of a market per RATE_S seconds."""

    markets_per_connection: int = 2_000
    connections_max: int = 60  # book connections of this gatherer
    hot_rate: int = 50 * RATE_S  # from here on a market is hot
    hot_max: int = 500  # the hottest so many are looked at
    spread_percent: int = 150  # of the mean: what a connection's hot markets may bring
    moves_max: int = 4  # under way at a time
    rest_ns: int = 600 * NS_PER_S  # a market that moved stays at least so long

    def __post_init__(self) -> None:
        if not 1 <= self.markets_per_connection <= MARKETS_PER_CONNECTION_MAX:
            raise ValueError(f"markets_per_connection {self.markets_per_connection} out of range")
        if not 1 <= self.connections_max <= CONNECTIONS_OF_A_USER:
            raise ValueError(f"connections_max {self.connections_max} is out of range")


@dataclass(slots=True)
class Place:
    """Where a market is. `moving_to`: where it is carried besides, on its way; -1: nowhere."""

    ticker: str
    event: str
    connection: int
    why: Why
    rate: int = 0  # frames per RATE_S when it was last looked at and hot; else 0
    moved_ns: int = 0
    moving_to: int = -1


@dataclass(slots=True)
class Changes:
    """What connections are to carry from now on, and no longer."""

    add: dict[int, list[str]] = field(default_factory=dict)
    drop: dict[int, list[str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.add or self.drop)


class Plan:
    """Grows and shrinks with the markets."""

    def __init__(self, gatherer: str, limits: Limits) -> None:
        self.limits = limits
        self._gatherer = gatherer
        self._members: list[dict[str, None]] = []
        self._places: dict[str, Place] = {}
        self._homes: dict[str, tuple[int, int]] = {}  # event -> (connection, markets placed)
        self._unplaced: dict[str, str] = {}  # ticker -> event
        self._moving: dict[str, None] = {}
        self._hot: tuple[str, ...] = ()

    # --- what a shell asks

    def place_of(self, ticker: str) -> Place | None:
        """Where a market is; None where nobody carries it."""
        return self._places.get(ticker)

    def knows(self, ticker: str) -> bool:
        """Whether it was given to `place` and not removed, placed or not."""
        return ticker in self._places or ticker in self._unplaced

    def places(self) -> Iterable[Place]:
        """Every market that is placed."""
        return self._places.values()

    def books(self) -> dict[int, tuple[str, ...]]:
        """What each connection carries."""
        return {n: tuple(tickers) for n, tickers in enumerate(self._members) if tickers}

    @property
    def connections(self) -> tuple[int, ...]:
        """Numbers of the connections that carry anything."""
        return tuple(number for number, held in enumerate(self._members) if held)

    def carried_by(self, number: int) -> tuple[str, ...]:
        """What one connection carries."""
        return tuple(self._members[number]) if number < len(self._members) else ()

    @property
    def moving(self) -> tuple[str, ...]:
        """Markets that are on two connections now."""
        return tuple(self._moving)

    @property
    def unplaced(self) -> tuple[str, ...]:
        """Markets beyond all room."""
        return tuple(self._unplaced)

    @property
    def n_placed(self) -> int:
        """Markets on a connection."""
        return len(self._places)

    @property
    def n_unplaced(self) -> int:
        """Markets on none."""
        return len(self._unplaced)

    # --- markets come and go

    def place(
        self, markets: Iterable[MarketRef], rates: Mapping[str, int] | None = None
    ) -> Changes:
        """Take in markets; known ones are ignored. Those with a hot rate are dealt round."""
        fresh: dict[str, set[str]] = {}
        for market in markets:
            if not self.knows(market.ticker):
                fresh.setdefault(market.event, set()).add(market.ticker)
        changes = Changes()
        if rates:
            self._deal_hot(fresh, rates, changes)
        for event in sorted(fresh, key=self._rank):
            self._place_event(event, sorted(fresh[event]), changes)
        return changes

    def remove(self, tickers: Iterable[str]) -> Changes:
        """Forget markets that have ended; unplaced ones take their places."""
        changes = Changes()
        for ticker in tickers:
            self._unplaced.pop(ticker, None)
            place = self._places.pop(ticker, None)
            if place is None:
                continue
            self._moving.pop(ticker, None)
            for at in {place.connection, place.moving_to} - {-1}:
                del self._members[at][ticker]
                changes.drop.setdefault(at, []).append(ticker)
            home, count = self._homes[place.event]
            if count > 1:
                self._homes[place.event] = home, count - 1
            else:
                del self._homes[place.event]
        return self._filled(changes)

    def _filled(self, changes: Changes) -> Changes:
        """Unplaced markets take the places that these changes set free."""
        room = sum(map(len, changes.drop.values()))
        waiting = list(islice(self._unplaced.items(), room))
        events: dict[str, list[str]] = {}
        for ticker, event in waiting:
            del self._unplaced[ticker]
            events.setdefault(event, []).append(ticker)
        for event, tickers in events.items():
            self._place_event(event, tickers, changes)
        return changes

    def _rank(self, event: str) -> bytes:
        return hashlib.sha256(f"{self._gatherer}\0{event}".encode()).digest()

    def _place_event(self, event: str, tickers: list[str], changes: Changes) -> None:
        """Put an event's markets together where they fit, else spread over several connections."""
        while tickers:
            found = self._room_for(event, len(tickers))
            if found is None:
                self._unplaced |= dict.fromkeys(tickers, event)
                return
            at, why = found
            room = self._room(at)
            for ticker in tickers[:room]:
                self._settle(Place(ticker, event, at, why), changes)
            tickers = tickers[room:]

    def _settle(self, place: Place, changes: Changes) -> None:
        ticker, at = place.ticker, place.connection
        self._places[ticker] = place
        self._members[at][ticker] = None
        count = self._homes.get(place.event, (at, 0))[1]
        self._homes[place.event] = at, count + 1
        changes.add.setdefault(at, []).append(ticker)

    def _room(self, at: int) -> int:
        return self.limits.markets_per_connection - len(self._members[at])

    def _room_for(self, event: str, wanted: int) -> tuple[int, Why] | None:
        """Where the event lives already, else the first connection with room for all of it, else a
        new connection, else the one with the most room."""
        home = self._homes.get(event, (-1, 0))[0]
        if home >= 0 and self._room(home) > 0:
            return home, Why.EVENT_HOME
        fitting = min(wanted, self.limits.markets_per_connection)
        for n in range(len(self._members)):
            if self._room(n) >= fitting:
                return n, Why.FIRST_WITH_ROOM
        if len(self._members) < self.limits.connections_max:
            self._members.append({})
            return len(self._members) - 1, Why.NEW_CONNECTION
        roomiest = max(range(len(self._members)), key=self._room)
        return (roomiest, Why.ROOMIEST) if self._room(roomiest) > 0 else None

    # --- hot markets

    def _deal_hot(
        self, fresh: dict[str, set[str]], rates: Mapping[str, int], changes: Changes
    ) -> None:
        """Take the hottest out of `fresh` and deal them round over all connections needed."""
        limits = self.limits
        known = [
            (rates[ticker], ticker, event)
            for event, tickers in fresh.items()
            for ticker in tickers
            if rates.get(ticker, 0) >= limits.hot_rate
        ]
        hottest = sorted(known, key=lambda one: (-one[0], one[1]))[: limits.hot_max]
        if not hottest:
            return
        total = self.n_placed + sum(map(len, fresh.values()))
        needed = min(-(-total // limits.markets_per_connection), limits.connections_max)
        while len(self._members) < needed:
            self._members.append({})
        offset = self._rank("")[0]  # the hottest is not on the same connection everywhere
        for turn, (rate, ticker, event) in enumerate(hottest):
            at = (offset + turn) % len(self._members)
            if self._room(at) > 0:
                fresh[event].remove(ticker)
                self._settle(Place(ticker, event, at, Why.HOT, rate), changes)

    def rebalance(self, rates: Mapping[str, int], now_ns: int) -> Changes:
        """Look at the rates of the last interval and begin moves of hot markets, if any are due.

        `rates`: frames per RATE_S seconds; those of quiet markets may be left out.
        """
        hottest = self._hottest(rates)
        load = [0] * len(self._members)
        for place in hottest:
            load[place.connection if place.moving_to < 0 else place.moving_to] += place.rate
        changes = Changes()
        if len(load) < 2:
            return changes
        allowed = sum(load) * self.limits.spread_percent // (100 * len(load))
        has_hottest: set[int] = set()
        for place in hottest:
            source = place.connection
            if source not in has_hottest:  # the hottest of a connection stays
                has_hottest.add(source)
                continue
            if load[source] <= allowed or not self._may_move(place, now_ns):
                continue
            target = min(range(len(load)), key=lambda n: (self._room(n) <= 0, load[n], n))
            if self._room(target) > 0 and load[target] + place.rate < load[source]:
                load[target] += place.rate
                load[source] -= place.rate
                self._begin_move(place, target, changes)
        return changes

    def _hottest(self, rates: Mapping[str, int]) -> list[Place]:
        """The hottest markets, hottest first, their rates noted."""
        for ticker in self._hot:
            if ticker in self._places:
                self._places[ticker].rate = 0
        hot = [
            (rate, ticker)
            for ticker, rate in rates.items()
            if rate >= self.limits.hot_rate and ticker in self._places
        ]
        hot.sort(key=lambda one: (-one[0], one[1]))
        self._hot = tuple(ticker for _, ticker in hot[: self.limits.hot_max])
        places = [self._places[ticker] for ticker in self._hot]
        for place in places:
            place.rate = rates[place.ticker]
        return places

    def _may_move(self, place: Place, now_ns: int) -> bool:
        if place.moving_to >= 0 or len(self._moving) >= self.limits.moves_max:
            return False
        return not place.moved_ns or now_ns - place.moved_ns >= self.limits.rest_ns

    def _begin_move(self, place: Place, target: int, changes: Changes) -> None:
        place.moving_to = target
        self._moving[place.ticker] = None
        self._members[target][place.ticker] = None
        changes.add.setdefault(target, []).append(place.ticker)

    def arrived(self, ticker: str, now_ns: int) -> Changes:
        """Its book was seen on the new connection: the old one may let it go."""
        place = self._ended(ticker)
        if place is None:
            return Changes()
        old, place.connection, place.moving_to = place.connection, place.moving_to, -1
        place.why, place.moved_ns = Why.HOT, now_ns
        del self._members[old][ticker]
        return self._filled(Changes(drop={old: [ticker]}))

    def give_up(self, ticker: str, now_ns: int) -> Changes:
        """Its book did not come on the new connection: it stays where it was."""
        place = self._ended(ticker)
        if place is None:
            return Changes()
        target, place.moving_to, place.moved_ns = place.moving_to, -1, now_ns
        del self._members[target][ticker]
        return self._filled(Changes(drop={target: [ticker]}))

    def _ended(self, ticker: str) -> Place | None:
        if ticker not in self._moving:
            return None
        del self._moving[ticker]
        return self._places[ticker]
