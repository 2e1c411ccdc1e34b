"""Small scripted exchanges for tests: sources made of a few items, venues with clients attached."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from exchange.commands import carry_out
from exchange.connection import Connection
from exchange.faults import FaultLevel, FaultPlan
from exchange.timeline import DeltaItem, Item, MarketSpec
from exchange.truth import TRUTH_EVENT, TRUTH_SEND, Ledger
from exchange.venue import Venue

START_US = 1_788_000_000_000_000
SECOND_US = 1_000_000


def spec(number: int, **fields: Any) -> MarketSpec:
    """A market with one level a side unless told otherwise."""
    given = {"yes": [(400_000, 10_000)], "no": [(500_000, 20_000)], **fields}
    return MarketSpec(
        ticker=f"KXTEST-26-T{number}",
        market_id=f"00000000-0000-4000-8000-{number:012d}",
        event_ticker="KXTEST-26",
        series_ticker="KXTEST",
        title=f"Test {number}",
        open_us=START_US - SECOND_US,
        close_us=START_US + 3600 * SECOND_US,
        **given,
    )


def delta(market: int, at_ms: int, change: int = 100, **fields: Any) -> DeltaItem:
    """A change of `change`/100 contracts, `at_ms` after the start."""
    at_us = START_US + at_ms * 1000
    given = {"side": 0, "price": 400_000, "exchange_us": at_us, **fields}
    return DeltaItem(at_us=at_us, market=market, delta=change, **given)


class ScriptSource:
    """The given items, then the end."""

    def __init__(self, markets: list[MarketSpec], items: list[Item], seconds: int = 60) -> None:
        self.markets = markets
        self.start_us = START_US
        self.end_us = START_US + seconds * SECOND_US
        self.events_expected = max(1, len(items))
        self._items = items

    def items(self) -> Iterator[Item]:
        return iter(self._items)


def busy_source(markets: int, events: int, *, seed: int = 1, step_us: int = 10_000) -> ScriptSource:
    """Additions and removals over some markets, one event each `step_us`, levels never negative."""
    rng = random.Random(seed)
    sizes: dict[tuple[int, int, int], int] = {}
    items: list[Item] = []
    for n in range(events):
        key = (rng.randrange(markets), rng.randrange(2), rng.randrange(100_000, 400_000, 10_000))
        held = sizes.get(key, 0)
        change = -rng.randint(1, held) if held and rng.random() < 0.5 else rng.randint(1, 5_000)
        sizes[key] = held + change
        at_us = START_US + n * step_us
        items.append(DeltaItem(at_us, key[0], key[1], key[2], change, at_us))
    specs = [spec(n, yes=[], no=[]) for n in range(markets)]
    return ScriptSource(specs, items, seconds=events * step_us // SECOND_US + 1)


def make_venue(
    source: ScriptSource,
    *,
    level: FaultLevel = FaultLevel.NONE,
    seed: int = 1,
    crew: int = 0,
) -> Venue:
    plan = FaultPlan(level, seed, source.start_us, source.end_us, source.events_expected)
    return Venue(source, plan, crew=crew, ledger=Ledger())


def ask(venue: Venue, connection: Connection, cmd: str, **params: Any) -> list[dict[str, Any]]:
    """Sends one command (id counts up) and returns the frames it brought."""
    connection.commands.append(
        json.dumps({"id": params.pop("id", 7), "cmd": cmd, "params": params}).encode()
    )
    carry_out(venue, connection)
    return taken(connection)


def book_client(venue: Venue, markets: list[int] | None = None) -> Connection:
    """A connection subscribed to the books of some (or all) markets; its frames stay in `out`."""
    connection = venue.open("00" * 8, 1)
    numbers = range(len(venue.markets)) if markets is None else markets
    tickers = [venue.markets[number].spec.ticker for number in numbers]
    params = {"channels": ["orderbook_delta"], "market_tickers": tickers}
    connection.commands.append(json.dumps({"id": 1, "cmd": "subscribe", "params": params}).encode())
    carry_out(venue, connection)
    return connection


def taken(connection: Connection) -> list[dict[str, Any]]:
    """The frames waiting on a connection, decoded; they are gone afterwards."""
    frames, connection.out = connection.out, []
    return [json.loads(frame) for frame in frames]


def sends_of(ledger: Ledger) -> Any:
    """The send records so far."""
    return np.frombuffer(bytes(ledger.sends), dtype=TRUTH_SEND)


def events_of(ledger: Ledger) -> Any:
    """The event records so far."""
    return np.frombuffer(bytes(ledger.events), dtype=TRUTH_EVENT)


def faults_of(ledger: Ledger) -> list[dict[str, Any]]:
    """The lines of faults.jsonl so far, without the plan."""
    return [json.loads(line) for line in bytes(ledger.lines["faults"]).splitlines()][1:]
