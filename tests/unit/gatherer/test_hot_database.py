"""One transaction for each batch, and the cursor as its lock, against a real server."""

from __future__ import annotations

import uuid

import asyncpg
import pytest

from gatherer.hot_database import CursorMovedError, HotDatabase, highest_id
from gatherer.intake import RowBatch
from gatherer.packing import PackedBatch
from marketdata.errors import StorageError
from runtime.embedded import free_port
from runtime.spool import START, Position
from tests.continuity_feed import Feed, delta, snapshot, ticker, trade

SPOOL = uuid.UUID(int=5)


async def _store(database: HotDatabase, batch: RowBatch, last_batch_id: int) -> PackedBatch:
    return await database.commit(batch, last_batch_id, database.pack(batch, last_batch_id))


def _batch(start: Position, end: Position) -> RowBatch:
    feed = Feed("orderbook_delta", "trade")
    feed.send(snapshot(1, yes=[(400_000, 5)]), delta(2), trade(1), ticker())
    return RowBatch(feed.continuity.take(), start, end, 1_000, 2_000)


async def test_a_batch_moves_the_cursor_with_its_rows(dsn: str) -> None:
    database = HotDatabase(dsn, SPOOL, print)
    try:
        found = await database.open()
        assert (found.cursor, found.batch_id, found.told_ns) == (START, 0, 0)
        end = Position(1, 900)
        packed = await _store(database, _batch(START, end), found.batch_id)
        assert (packed.batch_id, packed.counts["ticker"]) == (1, 1)
        await database.close()
        again = await database.open()
        assert (again.cursor, again.batch_id, again.told_ns) == (end, 1, 2_000)
        assert database.left_to_default == 0
    finally:
        await database.close()
        await database.close()  # twice is once


async def test_the_same_rows_are_never_stored_twice(dsn: str) -> None:
    """A commit whose answer was lost is tried again: the cursor says that it went through."""
    database = HotDatabase(dsn, SPOOL, print)
    try:
        await database.open()
        end = Position(1, 900)
        await _store(database, _batch(START, end), 0)
        with pytest.raises(CursorMovedError):
            await _store(database, _batch(START, end), 0)
        with pytest.raises(CursorMovedError):
            await _store(database, _batch(Position(1, 100), end), 1)
        connection = await asyncpg.connect(dsn)
        assert await connection.fetchval("SELECT count(*) FROM orderbook_delta") == 1
        assert await connection.fetchval("SELECT count(*) FROM ingest_batch") == 1
        await connection.close()
    finally:
        await database.close()
    assert issubclass(CursorMovedError, StorageError)


async def test_a_commit_of_a_lost_spool_that_arrives_late_does_not_hold_its_successor_up(
    dsn: str,
) -> None:
    """Seed 8 of the simulation: the new spool's next batch had an id that was taken meanwhile, and
    every new connection began with the same id again."""
    lost, made = HotDatabase(dsn, SPOOL, print), HotDatabase(dsn, uuid.UUID(int=6), print)
    rows = Feed().continuity
    rows.take()
    nothing = RowBatch(rows.take(), START, Position(1, 400), 1_000, 2_000)
    try:
        await lost.open()
        assert (await made.open()).batch_id == 0
        await _store(lost, _batch(START, Position(1, 900)), 0)
        with pytest.raises(CursorMovedError, match="batch 1 is there already"):
            await _store(made, nothing, 0)
        assert made.refused == [], "no row was at fault"
        await made.close()
        found = await made.open()
        assert (found.cursor, found.batch_id) == (START, 1)
        assert (await _store(made, nothing, 1)).batch_id == 2
    finally:
        await lost.close()
        await made.close()


async def test_a_spool_made_where_another_was_lost_begins_behind_its_ids(dsn: str) -> None:
    """Its clock alone does not tell: 100,000 markets are more ids than three hours of minutes."""
    nobody = f"postgresql://postgres@127.0.0.1:{free_port()}/none"
    assert await highest_id(nobody) == 0
    assert await highest_id(dsn) == 0, "no tables yet"
    database = HotDatabase(dsn, SPOOL, print)
    try:
        await database.open()
        assert await highest_id(dsn) == 0
        await _store(database, _batch(START, Position(1, 900)), 0)
    finally:
        await database.close()
    found = await highest_id(dsn)
    connection = await asyncpg.connect(dsn)
    assert found >= await connection.fetchval("SELECT max(market_id) FROM market") > 0
    await connection.execute("UPDATE market SET market_id = 2000000000")
    await connection.close()
    assert await highest_id(dsn) == 2_000_000_000
