"""Worlds whose clocks lie apart: receipts that overtake each other, come late, or before the event.

The truth of the received clock is computed here from plain lists, with nothing of the product: an
event is in force once it and all before it in its epoch were received.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from kalshilake import paths
from kalshilake.clocks import CLOCKS_APART_US
from kalshilake.tables import times_us
from tests.lake_world import Epoch, Levels, Market, World, world_tables, write_world

DAY_US = 24 * paths.US_PER_HOUR
TABLES = ("orderbook_deltas", "trades", "orderbook_snapshots")


@dataclass
class Heard:
    """A world, and when each of its events was received: [(ticker, epoch number)][event]."""

    world: World
    receipts: dict[tuple[str, int], list[int]]
    trades: pa.Table

    def in_force(self, market: Market, epoch: Epoch) -> list[int]:
        """When each event of an epoch is in force by receipt."""
        return list(accumulate(self.receipts[market.ticker, epoch.number], max))

    def book_at(self, market: Market, at_us: int) -> tuple[Epoch, int, Levels] | None:
        """(epoch, events in force, book) at a moment of receipt; None where nothing is proven."""
        for epoch in market.epochs:
            if epoch.from_us + CLOCKS_APART_US <= at_us < epoch.to_us - CLOCKS_APART_US:
                n = bisect_right(self.in_force(market, epoch), at_us)
                return epoch, n, epoch.book_after(n)
        return None


def delay_us(rng: random.Random, *, is_trade: bool) -> int:
    """Mostly as in life; now and then what nobody should count on."""
    kind = rng.random()
    if is_trade and kind < 0.3:
        return rng.randint(1, 3 * DAY_US)
    if kind < 0.80:
        return rng.randint(5_000, 300_000)
    if kind < 0.88:
        return -rng.randint(0, 60_000)  # the gatherer's clock was behind
    if kind < 0.96:
        return rng.randint(300_000, 9_000_000)
    if kind < 0.97:
        return -rng.randint(CLOCKS_APART_US, 60_000_000)  # and here it was far behind
    if kind < 0.985:
        return rng.randint(CLOCKS_APART_US, 90_000_000)  # further apart than any claim allows for
    return rng.randint(1, paths.US_PER_HOUR)


def heard(root: Path, world: World, seed: int = 1) -> Heard:
    """Write the world with receipts of its own."""
    rng = random.Random(f"{world.seed} {seed}")
    whole = world_tables(world)
    for name in TABLES:
        rows = whole[name]
        times = times_us(rows.column("exchange_ts"))
        late = [int(us) + delay_us(rng, is_trade=name == "trades") for us in times.tolist()]
        place = rows.schema.get_field_index("received_at")
        column = pa.array(np.array(late, np.int64)).cast(rows.schema.field(place).type)
        whole[name] = rows.set_column(place, rows.schema.field(place), column)
    write_world(root, world, whole)
    rows = whole["orderbook_deltas"]
    receipts: dict[tuple[str, int], dict[int, int]] = {}
    for ticker, epoch, seq, us in zip(
        rows["market_ticker"].to_pylist(), rows["epoch"].to_pylist(),
        rows["market_seq"].to_pylist(), times_us(rows["received_at"]).tolist(), strict=True,
    ):  # fmt: skip
        receipts.setdefault((ticker, epoch), {})[seq] = us
    found = {
        (m.ticker, e.number): [
            us for _, us in sorted(receipts.get((m.ticker, e.number), {}).items())
        ]
        for m in world.markets
        for e in m.epochs
    }
    return Heard(world, found, whole["trades"])
