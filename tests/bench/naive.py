"""The design that the merge is held against: poll by timestamp, insert with ON CONFLICT.

What many write first: ask each source for what was received since the last answer, insert it, and
let a unique key over the content of a change refuse what another source brought already. It is
built here as well as that design can be: an index on the time of receipt at each source, 5,000 rows
a statement and a transaction. One loop asks the sources in turn, as such programs do; `at_once`
gives each source a task of its own.

What it loses: changes that are equal in market, microsecond, side, price and size are one to it
(`lost`). On a live source it also loses what is committed behind a time that was already read;
here the sources are at rest, so that is not counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from runtime.postgres import Connection, connect

PAGE: Final = 5_000

_TABLE: Final = (
    "CREATE TABLE naive_delta (ticker text NOT NULL, exchange_ts timestamptz NOT NULL,"
    " received_ns bigint NOT NULL, side smallint NOT NULL, price integer NOT NULL,"
    " delta bigint NOT NULL, UNIQUE (ticker, exchange_ts, side, price, delta))"
)
_READ: Final = (
    "SELECT ticker, exchange_ts, received_ns, side, price, delta FROM orderbook_delta"
    " JOIN market USING (market_id) WHERE received_ns >= $1 ORDER BY received_ns LIMIT $2"
)
_WRITE: Final = (
    "INSERT INTO naive_delta VALUES ($1, $2, $3, $4, $5, $6)"
    " ON CONFLICT (ticker, exchange_ts, side, price, delta) DO NOTHING"
)


@dataclass(frozen=True, slots=True)
class Naive:
    """What it did. `kept`: rows it has in the end; `truth`: changes that there were."""

    seconds: float
    rows_in: int
    kept: int
    truth: int

    @property
    def lost(self) -> int:
        """Changes that happened and are not there."""
        return self.truth - self.kept


async def index(sources: Sequence[str]) -> None:
    """What a source needs so that it can be asked by time; made before anything is measured."""
    for dsn in sources:
        conn = await connect(dsn)
        await conn.execute(
            "CREATE INDEX IF NOT EXISTS naive_received ON orderbook_delta (received_ns)"
        )
        await conn.execute("ANALYZE orderbook_delta")
        await conn.close()


async def run(sources: Sequence[str], target: str, *, at_once: bool = False) -> Naive:
    """Merge everything that the sources hold into an empty database."""
    conn = await connect(target)
    await conn.execute(_TABLE)
    began = time.perf_counter()
    if at_once:
        read = await asyncio.gather(*(_alone(dsn, target) for dsn in sources))
    else:
        read = [await _in_turn(sources, target)]
    seconds = time.perf_counter() - began
    kept = int(await conn.fetchval("SELECT count(*) FROM naive_delta"))
    await conn.close()
    source = await connect(sources[0])
    truth = int(await source.fetchval("SELECT count(*) FROM orderbook_delta"))
    await source.close()
    return Naive(seconds, sum(read), kept, truth)


@dataclass(slots=True)
class _Source:
    """One source, and up to when it was read."""

    conn: Connection
    last_ns: int = -1
    at_last: int = 0
    rows: int = 0

    async def page(self) -> list[tuple[object, ...]]:
        """The next rows. From the last time on, so that a page that ends in it loses nothing."""
        found = await self.conn.fetch(_READ, self.last_ns, PAGE + self.at_last)
        new = found[self.at_last :]
        if new:
            self.last_ns = int(new[-1]["received_ns"])
            self.at_last = sum(1 for r in found if r["received_ns"] == self.last_ns)
            self.rows += len(new)
        return [tuple(record) for record in new]


async def _in_turn(sources: Sequence[str], target: str) -> int:
    """All sources to their end, a page of each in turn; the rows that they had."""
    store = await connect(target)
    waiting = [_Source(await connect(dsn)) for dsn in sources]
    rows = 0
    while waiting:
        for source in list(waiting):
            new = await source.page()
            if new:
                await store.executemany(_WRITE, new)
                continue
            waiting.remove(source)
            rows += source.rows
            await source.conn.close()
    await store.close()
    return rows


async def _alone(dsn: str, target: str) -> int:
    """One source to its end."""
    return await _in_turn([dsn], target)
