"""A lake whose markets are proven from end to end, for replays: every event can be compared.

Made from a seed as in lake_world, with one epoch a market over the whole hour, ticker states in the
form in use, and trades on whole milliseconds.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa

from kalshilake import paths, tables
from kalshilake.read import Lake
from kalshilake.schema import TABLES
from kalshilake.store import LocalStore
from kalshilake.tables import times_us
from kalshilake.write import commit_version, write_hour
from marketdata.typed import STATE, payload_key
from tests.lake_world import (
    START,
    Epoch,
    Event,
    Levels,
    Market,
    World,
    coverage_rows,
    keyframe_table,
    merged_rows,
)

SECOND_US = 1_000_000
BEGINS = START + 10 * SECOND_US


def replay_world(seed: int, markets: int, events: int, seconds: int) -> World:
    """Markets with so many events each, evenly dense, bursts of equal times among them."""
    rng = random.Random(seed)
    ends = BEGINS + seconds * SECOND_US
    world = World(seed, 1, [])
    for number in range(markets):
        book: Levels = {(0, 400_000): 5_000, (1, 550_000): 7_000}
        epoch = Epoch(1, BEGINS, ends, dict(book), keyframes=[0])
        times = sorted(rng.randrange(BEGINS + 1, ends) for _ in range(events))
        for place, us in enumerate(times):
            key = (rng.randrange(2), rng.randrange(1, 60) * 10_000)
            held = book.get(key, 0)
            delta = -rng.randint(1, held) if held and rng.random() < 0.5 else rng.randint(1, 5_000)
            book[key] = held + delta
            if not book[key]:
                del book[key]
            at = times[place - 1] if place and rng.random() < 0.2 else us
            at = max(at, epoch.events[-1].us if epoch.events else at)
            epoch.events.append(Event(at, side=key[0], price=key[1], delta=delta))
        world.markets.append(Market(f"KXPLAY-25-T{number:03}", [epoch]))
    return world


def _times(world: World, per_market: int, salt: int) -> list[tuple[str, int]]:
    rng = random.Random(world.seed + salt)
    first, last = BEGINS // 1000 + 1, world.markets[0].epochs[0].to_us // 1000
    return [
        (market.ticker, rng.randrange(first, last) * 1000)
        for market in world.markets
        for _ in range(per_market)
    ]


def _trades(world: World) -> pa.Table:
    rows = _times(world, 20, 1)
    rng = random.Random(world.seed)
    us, cents = np.array([r[1] for r in rows]), np.arange(len(rows)) % 99 + 1
    return tables.trades_table(
        [r[0] for r in rows], us, us * 1000, [rng.randbytes(16) for _ in rows], cents * 10_000,
        1_000_000 - cents * 10_000, cents, cents % 2, cents * 0, cents * 0 + 7,
    )  # fmt: skip


def _states(world: World) -> pa.Table:
    rows = _times(world, 20, 2)
    n = np.arange(1, len(rows) + 1)
    us = np.array([r[1] for r in rows])
    names = ("volume", "open_interest", "dollar_volume", "dollar_open_interest", "yes_bid_size",
             "yes_ask_size", "last_trade_size", "price", "yes_bid", "yes_ask")  # fmt: skip
    scales = (7, 3, 1, 2, 5, 6, 4, 0, 0, 0)
    values = {k: n * s if s else n % 99 * 10_000 + 10_000 for k, s in zip(names, scales)}  # noqa: B905
    keys = [
        payload_key(STATE.pack(at, *(int(values[k][i]) for k in names)))
        for i, at in enumerate(us.tolist())
    ]
    return tables.tickers_table(
        [r[0] for r in rows], us, us * 1000, np.array(keys, np.uint64), n * 0 + 7, values
    )


def write_replay_lake(root: Path, world: World) -> None:
    """The world as a lake of one hour."""
    markets = [
        {"market_ticker": m.ticker, "event_ticker": "KXPLAY-25", "series_ticker": "KXPLAY",
         "title": f"Played {m.ticker}", "first_seen": START, "body": "{}"}
        for m in world.markets
    ]  # fmt: skip
    rows = {
        "orderbook_deltas": tables.deltas_table(*merged_rows(world)),
        "orderbook_snapshots": keyframe_table(world),
        "trades": _trades(world),
        "tickers": _states(world),
        "coverage": tables.records_table("coverage", coverage_rows(world)),
        "markets": tables.records_table("markets", markets),
    }
    store, watermark = LocalStore(root), START + paths.US_PER_HOUR
    records = [write_hour(store, n, START, t, watermark_us=watermark) for n, t in rows.items()]
    commit_version(store, records, watermark_us=watermark)


def contents(lake: Lake) -> dict[str, list[tuple[object, ...]]]:
    """Everything that two tapes of one exchange have in common, in order."""
    wanted = {
        "orderbook_deltas": ("market_ticker", "exchange_ts", "kind", "side", "price", "delta"),
        "trades": ("market_ticker", "exchange_ts", "trade_id", "yes_price", "no_price", "count",
                   "taker_side", "is_block_trade"),
        "tickers": tuple(c for c in TABLES["tickers"].schema.names
                         if c not in ("received_at", "sources")),
    }  # fmt: skip
    made = {}
    for table, names in wanted.items():
        held = lake.rows(table, None, START, START + paths.US_PER_HOUR, None)
        columns = [
            times_us(held.column(n)).tolist() if n == "exchange_ts" else held.column(n).to_pylist()
            for n in names
        ]
        made[table] = list(zip(*columns, strict=True))
    return made
