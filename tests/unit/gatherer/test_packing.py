"""Rows of all tables as COPY bytes, read back from a real server."""

from __future__ import annotations

import uuid

import asyncpg

from gatherer.intake import RowBatch
from gatherer.packing import pack
from marketdata import events
from marketdata.rows import ControlRow
from runtime.postgres import copy_in, migrate
from runtime.spool import Position
from tests.continuity_feed import BASE, T0, Feed, delta, snapshot, ticker, trade

SPOOL = uuid.UUID(int=7)


def _batch() -> RowBatch:
    feed = Feed("orderbook_delta", "trade")
    feed.send(snapshot(1, yes=[(400_000, 5)]), delta(2, size=-5), trade(1), ticker())
    rows = feed.continuity.take()
    rows.controls.append(
        ControlRow(
            0, 0, 5, "problem", 1, sid=2**40, reason="a\x00b", detail={"head": "x\x00\\u0000"}
        )
    )
    return RowBatch(rows, Position(1, 16), Position(1, 99), 1_000, 2_000)


async def test_every_table_arrives_with_its_values(dsn: str) -> None:
    """Bits of 64-bit hashes, 16-byte ids, times and JSON survive the way into the database."""
    packed = pack(_batch(), 3, SPOOL)
    connection = await asyncpg.connect(dsn)
    try:
        await migrate(connection, "gatherer_hot")
        for layout, body in packed.tables:
            assert await copy_in(connection, layout, body) == packed.counts[layout.table]
        row = await connection.fetchrow(
            "SELECT *, extract(epoch FROM exchange_ts)*1000000 AS us FROM orderbook_delta"
        )
        assert row is not None
        assert (row["us"], row["delta"], row["batch_id"], row["seq"]) == (T0 + 2, -5, 3, 2)
        kept = await connection.fetchrow("SELECT * FROM orderbook_snapshot")
        assert kept is not None
        assert (kept["market_id"], kept["batch_id"], len(kept["levels"])) == (BASE, 3, 20)
        sold = await connection.fetchrow("SELECT * FROM trade")
        assert sold is not None
        assert (sold["trade_id"].bytes, sold["count"], sold["batch_id"]) == (b"t" * 16, 200, 3)
        quoted = await connection.fetchrow("SELECT * FROM ticker")
        assert quoted is not None
        assert quoted["payload_key"] == 2**63 + 5 - 2**64
        told = await connection.fetch("SELECT * FROM control ORDER BY ord")
        assert [r["ord"] for r in told] == list(range(len(told)))
        assert (told[-1]["reason"], told[-1]["sid"]) == ("a\ufffdb", 2**31 - 1)
        assert await connection.fetchval("SELECT ticker FROM market") == "M"
    finally:
        await connection.close()


def test_packing_twice_gives_the_same_bytes_and_uid() -> None:
    """A repeated commit must be recognisable as the same one."""
    one, two = pack(_batch(), 3, SPOOL), pack(_batch(), 3, SPOOL)
    assert one == two
    assert pack(_batch(), 4, SPOOL).batch_uid != one.batch_uid


def test_a_heartbeat_has_no_tables() -> None:
    feed = Feed()
    feed.continuity.take()
    packed = pack(RowBatch(feed.continuity.take(), Position(1, 1), Position(1, 1), 5, 5), 1, SPOOL)
    assert (packed.tables, packed.counts, packed.n_rows) == ((), {}, 0)
    assert packed.max_received_ns == 5


def test_the_time_range_covers_resets_too() -> None:
    """Partitions are made for exactly this range."""
    feed = Feed("orderbook_delta")
    feed.send(snapshot(1, yes=[(1, 2)]), delta(2, us=T0 + 50), snapshot(3))
    batch = RowBatch(feed.continuity.take(), Position(1, 1), Position(1, 2), 1, 2)
    packed = pack(batch, 1, SPOOL)
    assert (packed.min_exchange_us, packed.max_exchange_us) == (T0 + 50, T0 + 50)
    assert packed.n_deltas == 2
    assert isinstance(events.UNSET, int)
