"""The merge of three gatherer databases against its limit: the same bytes copied out and in.

The limit does what no merge can do without: binary COPY of the four row tables out of the three
databases side by side, binary COPY of the merged rows into production's tables with their keys. It
decides nothing. Rows of both rates are rows read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dedup import hour_parts, tape_rows
from dedup.arbitrate import Arbiter
from dedup.flow import Publishing, Reads, close_windows, take
from dedup.invariants import Invariants
from dedup.main import tune
from dedup.output import ArbiterSettings, WindowOutput
from dedup.publication import HOUR_US, Publication
from dedup.publish import Publisher
from dedup.readers import GathererReader
from kalshilake.store import open_store
from kalshilake.write import write_hour
from marketdata.rows import GathererBatch
from runtime import pgcopy
from runtime.partitions import Partitions
from runtime.postgres import Connection, connect, copy_in, copy_out, migrate

PATIENCE_S = 60.0
HOT_LAYOUTS = (pgcopy.DELTA_COPY, pgcopy.SNAPSHOT_COPY, pgcopy.TRADE_COPY, pgcopy.TICKER_COPY)
TAPE_LAYOUTS = (
    tape_rows.DELTA_COPY, tape_rows.SNAPSHOT_COPY, tape_rows.TRADE_COPY, tape_rows.TICKER_COPY,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did. `rows_in`: rows of all tables read; `counts`: the arbiter's."""

    seconds: float
    rows_in: int
    counts: dict[str, int]
    # Seconds in which it did nothing but read, decided, published; they overlap.
    phases: dict[str, float]


class _Timed(Arbiter):
    """The arbiter, with the seconds that it was at work."""

    busy_s = 0.0

    def absorb(self, batch: GathererBatch) -> None:
        at = time.perf_counter()
        super().absorb(batch)
        self.busy_s += time.perf_counter() - at

    def step(self, *, final: bool = False) -> WindowOutput | None:
        at = time.perf_counter()
        output = super().step(final=final)
        self.busy_s += time.perf_counter() - at
        return output


async def merge(hot: Sequence[str], production: str) -> Merged:
    """Merge everything that the gatherer databases hold into an empty production database.

    The service's own readers, flow, arbiter, invariants and publisher; what is left out of a
    deduplicator is the lake, health and metrics.
    """
    publisher = Publisher(production, {})
    await publisher.open()
    readers = [GathererReader(g, dsn, poll_s=0) for g, dsn in enumerate(hot)]
    arbiter = _Timed(len(hot), ArbiterSettings())
    invariants = Invariants()
    phases = dict.fromkeys(("read", "decide", "publish"), 0.0)

    def plan(outputs: list[WindowOutput]) -> Publication:
        made = publisher.plan(outputs)
        invariants.observe(made)
        return made

    async def publish(made: Publication) -> None:
        at = time.perf_counter()
        await publisher.commit(made, dict.fromkeys(range(len(hot)), 1))
        phases["publish"] += time.perf_counter() - at

    tune()
    np.unique(np.zeros(1))  # numpy loads a part of itself at the first call: once in a process
    began = time.perf_counter()
    tasks: Reads = {}
    publishing = Publishing(publish, 0, plan)
    while not all(r.exhausted for r in readers):
        at = time.perf_counter() - arbiter.busy_s
        await take(arbiter, readers, tasks, PATIENCE_S, lambda _batch: None)
        phases["read"] += time.perf_counter() - arbiter.busy_s - at
        await close_windows(arbiter, publishing, final=False)
    await close_windows(arbiter, publishing, final=True)
    await publishing.settled()
    seconds = time.perf_counter() - began
    phases["decide"] = arbiter.busy_s
    counts = dict(publisher.standing.counts)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await publisher.close()
    for reader in readers:
        await reader.close()
    if invariants.broken:
        raise RuntimeError(f"the merge broke {invariants.broken}")
    return Merged(seconds, sum(r.rows for r in readers), counts, phases)


async def tape_bytes(production: str) -> list[tuple[pgcopy.CopyLayout, bytearray]]:
    """The merged rows as COPY bytes without header and trailer, for the limit."""
    conn = await connect(production)
    made = []
    for layout in TAPE_LAYOUTS:
        columns = ", ".join(layout.names)
        body = await copy_out(conn, f"SELECT {columns} FROM {layout.table}")
        rows = body[len(pgcopy.HEADER) : -len(pgcopy.TRAILER)]
        if rows:
            made.append((layout, rows))
    await conn.close()
    return made


async def limit(
    hot: Sequence[str],
    production: str,
    tape: Sequence[tuple[pgcopy.CopyLayout, bytearray]],
    days_us: tuple[int, int],
) -> float:
    """Seconds of COPY out of the gatherer databases and COPY in of the merged rows."""
    conns = [await connect(dsn) for dsn in hot]
    target = await connect(production)
    await migrate(target, "production")
    partitions = Partitions()
    for layout, _ in tape:
        await partitions.ensure(target, layout.table, *days_us, "day")

    async def out(conn: Connection) -> None:
        for layout in HOT_LAYOUTS:
            await copy_out(conn, f"SELECT {', '.join(layout.names)} FROM {layout.table}")

    began = time.perf_counter()
    await asyncio.gather(*(out(conn) for conn in conns))
    async with target.transaction():
        for layout, rows in tape:
            await copy_in(target, layout, rows)
    seconds = time.perf_counter() - began
    for conn in (*conns, target):
        await conn.close()
    return seconds


@dataclass(frozen=True, slots=True)
class Exported:
    """Parquet objects of all hours' deltas: rows, bytes, seconds of kalshilake.write alone."""

    rows: int
    bytes: int
    seconds: float


async def export(production: str, folder: Path) -> Exported:
    """Write the deltas of every hour of a production database as the lake would."""
    conn = await connect(production)
    names: Mapping[int, str] = {
        r["market_id"]: r["ticker"]
        for r in await conn.fetch("SELECT market_id, ticker FROM market")
    }
    found = await conn.fetch(
        "SELECT DISTINCT (extract(epoch FROM exchange_ts) * 1000000)::bigint / $1::bigint AS hour"
        " FROM orderbook_delta ORDER BY 1", HOUR_US,
    )  # fmt: skip
    store = open_store(folder)
    rows = size = 0
    seconds = 0.0
    for record in found:
        hour_us = record["hour"] * HOUR_US
        parts = await hour_parts.delta_parts(conn, hour_us, names)
        at = time.perf_counter()
        made = write_hour(store, "orderbook_deltas", hour_us, parts, watermark_us=hour_us + HOUR_US)
        seconds += time.perf_counter() - at
        rows, size = rows + made.rows, size + made.bytes
    await conn.close()
    return Exported(rows, size, seconds)


async def delta_bytes(dsn: str) -> tuple[int, int]:
    """(rows, bytes) of a database's orderbook_delta, partitions, keys and indexes included."""
    conn = await connect(dsn)
    row: Any = await conn.fetchrow(
        "SELECT (SELECT count(*) FROM orderbook_delta) AS n_rows,"
        " sum(pg_total_relation_size(c.oid)) AS n_bytes FROM pg_class c"
        " JOIN pg_inherits i ON i.inhrelid = c.oid"
        " WHERE i.inhparent = 'orderbook_delta'::regclass"
    )
    await conn.close()
    return int(row["n_rows"]), int(row["n_bytes"])


async def time_span(dsn: str) -> tuple[int, int]:
    """(first, last) exchange time of a database's deltas in microseconds."""
    conn = await connect(dsn)
    row: Any = await conn.fetchrow(
        "SELECT (extract(epoch FROM min(exchange_ts)) * 1000000)::bigint AS first,"
        " (extract(epoch FROM max(exchange_ts)) * 1000000)::bigint AS last FROM orderbook_delta"
    )
    await conn.close()
    return int(row["first"]), int(row["last"])
