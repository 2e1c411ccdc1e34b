"""One hour of production as Arrow tables, ready for the lake.

Purpose: the queries and conversions of an export. An hour is named by its first microsecond; rows
belong to the hour of their exchange time.

What holds: equal production rows give equal tables, whatever order the heap returns them in (the
lake's writer sorts totally).

Does not do: order-book changes, which may be many (hour_parts), choosing hours, writing objects.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import asyncpg
import numpy as np
import pyarrow as pa

from dedup import tape_rows
from dedup.publication import HOUR_US
from dedup.tape_rows import Rows
from kalshilake import tables as lake_tables
from runtime.pgcopy import CopyLayout, unpack_rows
from runtime.postgres import Connection, copy_out

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_U64: Final = (1 << 64) - 1


def moment(us: int) -> datetime:
    """Microseconds since 1970 as an exact UTC datetime."""
    return _EPOCH + timedelta(microseconds=us)


async def hour_rows(
    conn: Connection, layout: CopyLayout, hour_us: int, dtype: np.dtype[np.void]
) -> Rows:
    """The rows of a fixed-width table with exchange times in the hour."""
    return await rows_between(conn, layout, hour_us, hour_us + HOUR_US, dtype)


_SUMMARIZE: Final = """
SELECT brin_summarize_new_values(i.indexrelid) FROM pg_inherits h
JOIN pg_index i ON i.indrelid = h.inhrelid JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am a ON a.oid = c.relam
WHERE h.inhparent = to_regclass($1) AND a.amname = 'brin' AND c.relkind = 'i'
"""


async def rows_between(
    conn: Connection,
    layout: CopyLayout,
    from_us: int,
    to_us: int,
    dtype: np.dtype[np.void],
    *,
    limit: int | None = None,
) -> Rows:
    """The rows of a fixed-width table with exchange times from <= t < to; any `limit` of them."""
    columns = ", ".join(layout.names)
    body = await copy_out(
        conn,
        f"SELECT {columns} FROM {layout.table}"  # noqa: S608  (names are ours, times are dates)
        f" WHERE exchange_ts >= '{moment(from_us).isoformat()}'"
        f" AND exchange_ts < '{moment(to_us).isoformat()}'"
        + ("" if limit is None else f" LIMIT {limit}"),
    )
    return unpack_rows(layout, body, dtype)


async def summarized(conn: Connection, table: str) -> None:
    """Let the block index of the table's times know every row that is there.

    Autovacuum does that now and then. Until then every slice of time is looked for in all rows of
    the day: an hour of 18 million rows stood still for longer than five minutes.
    """
    try:
        async with conn.transaction():
            await conn.execute(_SUMMARIZE, table)
    except asyncpg.InsufficientPrivilegeError:
        return  # not our table: slower, not wrong


@asynccontextmanager
async def by_time(conn: Connection, table: str) -> AsyncIterator[None]:
    """Inside, a stretch of time of a table is found by its block index: without statistics of a
    young partition the planner would read the day for each stretch."""
    await summarized(conn, table)
    async with conn.transaction():
        await conn.execute("SET LOCAL enable_seqscan = off")
        yield


async def trade_table(conn: Connection, hour_us: int, names: Mapping[int, str]) -> pa.Table:
    """trades of the hour."""
    rows = await hour_rows(conn, tape_rows.TRADE_COPY, hour_us, tape_rows.TRADE_ROW)
    return lake_tables.trades_table(
        market_ticker=[names[m] for m in rows["market_id"].tolist()],
        exchange_us=_column(rows, "exchange_us"),
        received_ns=_column(rows, "received_ns"),
        trade_id=[bytes(t) for t in rows["trade_id"].tolist()],
        yes_price=_column(rows, "yes_price"),
        no_price=_column(rows, "no_price"),
        count=_column(rows, "count"),
        taker_side=_column(rows, "taker_side"),
        is_block_trade=(_column(rows, "flags") & 1) != 0,
        sources=_column(rows, "sources"),
    )


async def ticker_table(conn: Connection, hour_us: int, names: Mapping[int, str]) -> pa.Table:
    """tickers of the hour."""
    rows = await hour_rows(conn, tape_rows.TICKER_COPY, hour_us, tape_rows.TICKER_ROW)
    return lake_tables.tickers_table(
        market_ticker=[names[m] for m in rows["market_id"].tolist()],
        exchange_us=_column(rows, "exchange_us"),
        received_ns=_column(rows, "received_ns"),
        payload_key=_column(rows, "payload_key"),
        sources=_column(rows, "sources"),
        values={name: _column(rows, name) for name in rows.dtype.names or ()},
    )


async def snapshot_table(conn: Connection, hour_us: int, names: Mapping[int, str]) -> pa.Table:
    """orderbook_snapshots of the hour."""
    rows = await conn.fetch(
        "SELECT (extract(epoch FROM exchange_ts) * 1000000)::bigint AS us, received_ns, book_hash,"
        " market_id, epoch, market_seq, sources, levels FROM orderbook_snapshot"
        " WHERE exchange_ts >= $1 AND exchange_ts < $2",
        moment(hour_us),
        moment(hour_us + HOUR_US),
    )
    return lake_tables.snapshots_table(
        market_ticker=[names[r["market_id"]] for r in rows],
        exchange_us=np.array([r["us"] for r in rows], "i8"),
        received_ns=np.array([r["received_ns"] for r in rows], "i8"),
        epoch=np.array([r["epoch"] for r in rows], "i4"),
        market_seq=np.array([r["market_seq"] for r in rows], "i8"),
        book_hash=np.array([r["book_hash"] & _U64 for r in rows], "u8"),
        levels=[r["levels"] for r in rows],
        sources=np.array([r["sources"] for r in rows], "i2"),
    )


def _column(rows: Rows, name: str) -> np.ndarray[Any, np.dtype[Any]]:
    return cast("np.ndarray[Any, np.dtype[Any]]", np.ascontiguousarray(rows[name]))
