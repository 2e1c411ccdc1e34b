"""Reading a gatherer's database (a real PostgreSQL): nothing lost, nothing twice, one order."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pytest

import runtime
from dedup import pull as puller
from dedup.pull import Position, Pull
from marketdata.errors import StorageError
from marketdata.rows import GathererBatch
from runtime.embedded import EmbeddedPostgres
from runtime.postgres import server_identity
from tests.gatherer_rows import make_stream, record, write_batches

HOT = Path(runtime.__file__).parent / "migrations" / "gatherer_hot" / "0001_initial.sql"
Connection = asyncpg.Connection


@pytest.fixture(scope="module")
def server() -> Any:
    with_server = EmbeddedPostgres()
    with_server.start_blocking()
    yield with_server
    with_server.close_blocking()


@pytest.fixture
async def hot(server: EmbeddedPostgres) -> str:
    """The DSN of a fresh hot database."""
    name = f"hot_{uuid.uuid4().hex[:8]}"
    conn = await asyncpg.connect(server.dsn())
    await conn.execute(f"CREATE DATABASE {name}")
    await conn.close()
    conn = await asyncpg.connect(server.dsn(name))
    await conn.execute(HOT.read_text())
    await conn.close()
    return server.dsn(name)


@pytest.fixture
async def conn(hot: str) -> AsyncIterator[Connection]:
    """A connection to it."""
    opened = await asyncpg.connect(hot)
    yield opened
    await opened.close()


async def read_all(
    conn: Connection, position: Position | None = None, max_rows: int = 10_000
) -> tuple[list[GathererBatch], Position]:
    """Everything after a position, in as many reads as it takes."""
    position = position or Position()
    found = []
    while True:
        got: Pull = await puller.pull(conn, 0, position, max_rows=max_rows)
        position = got.position
        if got.batch is None:
            return found, position
        found.append(got.batch)


def joined(batches: list[GathererBatch]) -> dict[str, Any]:
    """What all batches together hold, for comparison."""
    return {
        "deltas": np.concatenate([b.deltas for b in batches]).tolist(),
        "snapshots": [s for b in batches for s in b.snapshots],
        "trades": np.concatenate([b.trades for b in batches]).tolist(),
        "tickers": np.concatenate([b.tickers for b in batches]).tolist(),
        "controls": [c for b in batches for c in b.controls],
        "markets": {k: v for b in batches for k, v in b.markets.items()},
    }


@pytest.mark.parametrize("max_rows", [1, 300, 100_000])
async def test_rows_come_back_as_written_whatever_the_size_of_a_read(
    conn: Connection, max_rows: int
) -> None:
    """The merge sees what the gatherer stored, value for value, in batch order."""
    made = record(make_stream(1), 0, seed=1, gaps=2, disconnects=1)
    await write_batches(conn, made)
    found, position = await read_all(conn, max_rows=max_rows)
    assert joined(found) == joined(made)
    assert position.last_batch_id == made[-1].last_batch_id
    assert [b.first_batch_id for b in found] == sorted(b.first_batch_id for b in found)
    again, _ = await read_all(conn, position)
    assert again == []


async def test_physical_order_of_the_heap_does_not_show(conn: Connection) -> None:
    """Free space, partitions, scans that start in the middle change the heap's order, not ours."""
    made = record(make_stream(2), 0, seed=2, gaps=2)
    await write_batches(conn, made, shuffle=random.Random(5))
    heap = [tuple(r) for r in await conn.fetch("SELECT batch_id, run_id, seq FROM orderbook_delta")]
    assert heap != sorted(heap), "the control: the heap itself is out of order"
    found, _ = await read_all(conn, max_rows=500)
    assert joined(found) == joined(made)


async def _writer(dsn: str, worker: int, count: int) -> None:
    """Commits batches whose ids come from one sequence, at uneven pace: ids overtake each other."""
    conn = await asyncpg.connect(dsn)
    rng = random.Random(worker)
    for _ in range(count):
        async with conn.transaction():
            batch_id = await conn.fetchval("SELECT nextval('ids')")
            await conn.execute(
                "INSERT INTO ingest_batch (batch_id, batch_uid, n_deltas, n_rows,"
                " min_received_ns, max_received_ns) VALUES ($1, $2, 0, 0, 1, 1)",
                batch_id,
                uuid.uuid4(),
            )
            await asyncio.sleep(rng.random() * 0.004)
    await conn.close()


async def test_transaction_window_loses_nothing_under_concurrent_writers(
    hot: str, conn: Connection
) -> None:
    """Ids are taken at insert and seen at commit: paging by id loses rows, the window does not."""
    await conn.execute("CREATE SEQUENCE ids")
    writers = [asyncio.create_task(_writer(hot, w, 150)) for w in range(4)]
    by_window: list[int] = []
    by_serial: list[int] = []
    position, last = Position(), 0
    while True:
        done = all(w.done() for w in writers)
        paged = await conn.fetch("SELECT batch_id FROM ingest_batch WHERE batch_id > $1", last)
        by_serial += [r["batch_id"] for r in paged]
        last = max([last, *by_serial])
        got = await puller.pull(conn, 0, position)
        position = got.position
        if got.batch is not None:
            by_window += [got.batch.first_batch_id, got.batch.last_batch_id]
            taken = await conn.fetch(
                "SELECT batch_id FROM ingest_batch WHERE xid < $1::text::xid8",
                str(position.next_xid),
            )
            by_window = sorted(r["batch_id"] for r in taken)
        elif done:
            break
    await asyncio.gather(*writers)
    assert by_window == list(range(1, 601))
    assert len(set(by_serial)) < 600, "the control: paging by id must lose some"


async def test_uncommitted_transaction_holds_the_window_back(hot: str) -> None:
    """A later commit is not read past an open one; when that commits, both come, once."""
    made = record(make_stream(3, events=400), 0, seed=3)
    assert len(made) >= 4
    slow, reader, fast = [await asyncpg.connect(hot) for _ in range(3)]
    await write_batches(fast, made[:1])
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute("SELECT pg_current_xact_id()")
    await write_batches(fast, made[2:])
    found, position = await read_all(reader)
    assert [b.last_batch_id for b in found] == [1]
    got = await puller.pull(reader, 0, position)
    assert got.batch is None
    assert got.backlog == len(made) - 1
    await transaction.rollback()
    await write_batches(fast, made[1:2])
    more, _ = await read_all(reader, position)
    whole = joined(found + more)
    whole["deltas"].sort(key=lambda r: (r[7], r[5], r[6]))
    assert whole["deltas"] == joined(made)["deltas"]
    for conn in (slow, reader, fast):
        await conn.close()


async def test_restart_reads_again_from_the_batch_it_is_told(conn: Connection) -> None:
    """The merger says from which batch it needs rows again; ids of markets come along."""
    made = record(make_stream(4), 0, seed=4, gaps=1)
    await write_batches(conn, made)
    _, position = await read_all(conn)
    again = await puller.resume(conn, position.system_identifier, 5)
    found, end = await read_all(conn, again, max_rows=200)
    assert found[0].first_batch_id == 5
    assert joined(found)["deltas"] == joined(made[4:])["deltas"]
    assert found[0].markets == joined(made)["markets"]
    assert end.next_xid >= position.next_xid
    nothing_new = await puller.resume(conn, position.system_identifier, len(made) + 1)
    assert (await read_all(conn, nothing_new))[0] == []


async def test_replaced_cluster_goes_on_by_batch_id(conn: Connection) -> None:
    """Transaction ids of another cluster mean nothing; batch ids still do."""
    made = record(make_stream(5), 0, seed=5)
    await write_batches(conn, made)
    elsewhere = Position(system_identifier=1, next_xid=1 << 40, last_batch_id=3)
    found, position = await read_all(conn, elsewhere)
    assert position.by_batch
    assert joined(found)["deltas"] == joined(made[3:])["deltas"]
    resumed = await puller.resume(conn, 1, 4)
    assert resumed.by_batch
    assert resumed.last_batch_id == 3
    with pytest.raises(StorageError, match="was replaced"):
        await puller.pull(conn, 0, Position(1, 0, len(made) + 5))


@pytest.mark.parametrize("replaced", [False, True])
async def test_batches_that_are_gone_are_told_after_a_restart(
    conn: Connection, replaced: bool
) -> None:
    """A read ends before a hole, and the next one says what is missing before it."""
    made = record(make_stream(5), 0, seed=5, disconnects=1)
    await write_batches(conn, made)
    identity = await server_identity(conn)
    holes = [(4, 6), (9, 10)]
    for first, after in holes:
        await conn.execute(
            "DELETE FROM ingest_batch WHERE batch_id >= $1 AND batch_id < $2", first, after
        )
    position = await puller.resume(conn, 1 if replaced else identity, 4)
    assert position.by_batch == replaced
    told = []
    while (got := await puller.pull(conn, 0, position)).batch is not None:
        assert got.batch.first_batch_id == (got.gone.to_batch if got.gone else -1)
        told.append((got.gone.from_batch, got.gone.to_batch))
        position = got.position
    assert told == holes
    assert position.last_batch_id == len(made)
    fresh = await puller.pull(conn, 0, Position())
    assert fresh.gone is None, "a tape that begins has lost nothing"


async def test_deleted_rows_are_noticed(conn: Connection) -> None:
    """A batch row tells how many deltas it has: fewer is never taken for a quiet time."""
    made = record(make_stream(6), 0, seed=6)
    await write_batches(conn, made)
    await conn.execute("DELETE FROM orderbook_delta WHERE batch_id = 2 AND side = 0")
    with pytest.raises(StorageError, match="delta rows"):
        await read_all(conn)
