"""A refused row stands alone: the others are stored, it is kept, and no claim reaches over it."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import asyncpg
import numpy as np
import pytest

from gatherer import refusal
from gatherer.hot_database import HotDatabase
from gatherer.intake import RowBatch
from gatherer.packing import PackedBatch
from gatherer.refusal import RefusedRow, closing_controls
from marketdata.errors import StorageError
from marketdata.rows import DELTA_ROW, ControlKind
from runtime.spool import START, Position
from tests.continuity_feed import Feed, delta, snapshot, ticker, trade

SPOOL = uuid.UUID(int=6)
END = Position(3, 900)


async def _store(database: HotDatabase, batch: RowBatch, last_batch_id: int) -> PackedBatch:
    return await database.commit(batch, last_batch_id, database.pack(batch, last_batch_id))


def _batch(changes: int) -> RowBatch:
    feed = Feed("orderbook_delta", "trade")
    feed.send(snapshot(1, yes=[(400_000, 5)]))
    feed.send(*(delta(seq) for seq in range(2, 2 + changes)))
    feed.send(trade(1), ticker())
    return RowBatch(feed.continuity.take(), START, END, 1_000, 2_000)


async def _opened(dsn: str) -> tuple[HotDatabase, asyncpg.Connection[Any]]:
    database = HotDatabase(dsn, SPOOL, lambda _told: None)
    await database.open()
    return database, await asyncpg.connect(dsn)


@pytest.mark.parametrize("poison", [[2], [21], [7, 8, 19]])
async def test_refused_changes_are_kept_aside_and_the_rest_is_in_order(
    dsn: str, poison: list[int]
) -> None:
    """Seqs 2 to 21 are offered; the table refuses some by a check of its own."""
    database, connection = await _opened(dsn)
    try:
        seqs = ", ".join(map(str, poison))
        await connection.execute(
            f"ALTER TABLE orderbook_delta ADD CONSTRAINT poison CHECK (seq NOT IN ({seqs}))"
        )
        packed = await _store(database, _batch(20), 0)
        assert [row.seq for row in database.refused] == poison
        stored = [r["seq"] for r in await connection.fetch("SELECT seq FROM orderbook_delta")]
        assert stored == [seq for seq in range(2, 22) if seq not in poison]
        assert (packed.n_deltas, packed.counts["trade"]) == (len(stored), 1)
        batch = await connection.fetchrow("SELECT * FROM ingest_batch")
        assert (batch["n_deltas"], batch["n_rows"]) == (packed.n_deltas, packed.n_rows)
        kept = await connection.fetch("SELECT * FROM refused_row ORDER BY ord")
        assert [row["seq"] for row in kept] == poison
        place = (kept[0]["segment"], kept[0]["offset_bytes"])
        assert (place, (kept[0]["end_segment"], kept[0]["end_offset_bytes"])) == (START, END)
        assert "poison" in kept[0]["reason"]
        assert np.frombuffer(kept[0]["row_bytes"], DELTA_ROW)["seq"].tolist() == poison[:1]
        removed = await connection.fetch("SELECT * FROM control WHERE kind = 'market_removed'")
        assert [row["seq"] for row in removed] == [seq - 1 for seq in poison]
        assert {row["reason"] for row in removed} == {"refused_row"}
        # The next batch is whole again.
        assert database.refused
        rows = replace(_batch(0).rows, markets=[])
        await _store(database, RowBatch(rows, END, Position(3, 950), 3_000, 4_000), 1)
        assert database.refused == []
    finally:
        await connection.close()
        await database.close()


@pytest.mark.parametrize(
    ("table", "closes"),
    [
        ("orderbook_snapshot", ControlKind.MARKET_REMOVED),
        ("trade", ControlKind.RUN_END),
        ("ticker", None),
    ],
)
async def test_each_table_may_lose_a_row_and_ends_what_claimed_it(
    dsn: str, table: str, closes: str | None
) -> None:
    """Tickers carry no claim: their loss is told, and ends nothing."""
    database, connection = await _opened(dsn)
    try:
        await connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT poison CHECK (false)")
        packed = await _store(database, _batch(3), 0)
        assert [row.table for row in database.refused] == [table]
        assert table not in packed.counts
        added = await connection.fetch("SELECT kind FROM control WHERE reason = 'refused_row'")
        assert [r["kind"] for r in added] == [ControlKind.PROBLEM, *([closes] if closes else [])]
    finally:
        await connection.close()
        await database.close()


async def test_a_value_that_no_column_holds_is_refused_like_any_other(dsn: str) -> None:
    """The packing says no before the server could."""
    database, connection = await _opened(dsn)
    try:
        batch = _batch(5)
        rows = np.frombuffer(batch.rows.deltas, DELTA_ROW).copy()
        rows["exchange_us"][2] = 2**63 - 1
        batch.rows.deltas[:] = rows.tobytes()
        await _store(database, batch, 0)
        assert [row.seq for row in database.refused] == [4]
        assert await connection.fetchval("SELECT count(*) FROM orderbook_delta") == 4
    finally:
        await connection.close()
        await database.close()


async def test_a_table_that_refuses_everything_is_an_outage_and_nothing_is_set_aside(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong schema must not empty the spool into the quarantine."""
    monkeypatch.setattr(refusal, "REFUSED_ROWS_MAX", 4)
    database, connection = await _opened(dsn)
    try:
        await connection.execute("ALTER TABLE orderbook_delta ADD CONSTRAINT poison CHECK (false)")
        with pytest.raises(StorageError, match="more than 4 rows"):
            await _store(database, _batch(20), 0)
        assert await connection.fetchval("SELECT count(*) FROM refused_row") == 0
        assert await connection.fetchval("SELECT batch_id FROM spool_cursor") == 0
    finally:
        await connection.close()
        await database.close()


@pytest.mark.parametrize("table", ["control", "market"])
async def test_rows_that_give_the_others_their_meaning_are_never_set_aside(
    dsn: str, table: str
) -> None:
    """A change without its run or its market could not be read."""
    database, connection = await _opened(dsn)
    try:
        await connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT poison CHECK (false)")
        with pytest.raises(asyncpg.CheckViolationError):
            await _store(database, _batch(3), 0)
        assert await connection.fetchval("SELECT count(*) FROM ingest_batch") == 0
    finally:
        await connection.close()
        await database.close()


def test_the_claim_ends_with_the_number_before_the_refused_row() -> None:
    """Else the time of the refused row would still be claimed."""
    row = RefusedRow("orderbook_delta", 5, 7, 3, 41, 1_000, b"", "no")
    problem, removed = closing_controls([row])
    assert problem.detail["seq"] == 41
    assert (removed.seq, removed.market_id, removed.run_id) == (40, 7, 3)
