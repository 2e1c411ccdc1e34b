"""gatherer.side_rows against a real database: in order, patient, bounded, old rows removed."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from gatherer import side_rows as module
from gatherer.side_rows import KEPT_NS, SideRows
from runtime.clock import Clock
from runtime.embedded import EmbeddedPostgres

AUDIT = "INSERT INTO rest_audit VALUES ($1, $2, $3, $4, $5)"


@pytest.fixture(autouse=True)
def _writes_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.01)


def put(rows: SideRows, *times_ns: int) -> None:
    for at in times_ns:
        rows.put(AUDIT, at, at + 1, ["A", "B"], [-5, 0], [0, 5])


async def written(rows: SideRows, count: int) -> None:
    async with asyncio.timeout(30):
        while rows.written < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_rows_are_written_in_order_and_each_book_is_seen_through_the_view(dsn: str) -> None:
    rows, now = SideRows(dsn, Clock(0)), Clock(0).wall_ns()
    put(rows, now + 2, now + 1)
    task = asyncio.create_task(rows.run())
    await written(rows, 2)
    task.cancel()
    connection = await asyncpg.connect(dsn)
    found = await connection.fetch("SELECT * FROM rest_book_audit")
    await connection.close()
    assert [tuple(row)[0:1] + tuple(row)[2:] for row in found] == [
        (now + 2, "A", -5, 0), (now + 2, "B", 0, 5), (now + 1, "A", -5, 0), (now + 1, "B", 0, 5),
    ]  # fmt: skip


async def test_rows_older_than_they_are_kept_for_are_removed(dsn: str) -> None:
    now = Clock(0).wall_ns()
    for _ in range(2):  # what was written is looked at when a writer begins
        rows = SideRows(dsn, Clock(0))
        put(rows, now - KEPT_NS - 10**9, now)
        task = asyncio.create_task(rows.run())
        await written(rows, 2)
        await asyncio.sleep(0.2)
        task.cancel()
    connection = await asyncpg.connect(dsn)
    kept = [r["sent_ns"] for r in await connection.fetch("SELECT sent_ns FROM rest_audit")]
    await connection.close()
    assert kept == [now, now]


async def test_while_the_database_is_away_rows_wait_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ROWS_MAX", 3)
    states: list[str] = []
    now = Clock(0).wall_ns()
    async with EmbeddedPostgres() as server:
        rows = SideRows(server.dsn(), Clock(0), on_state=states.append)
        task = asyncio.create_task(rows.run())
        put(rows, now)
        await written(rows, 1)
        server.kill()
        put(rows, now, now, now)
        waiting = asyncio.create_task(rows.room())
        async with asyncio.timeout(30):
            while not states[-1]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not waiting.done()
        server.start_blocking()
        await written(rows, 4)
        await waiting
        task.cancel()
        connection = await asyncpg.connect(server.dsn())
        assert await connection.fetchval("SELECT count(*) FROM rest_audit") == 4
        await connection.close()
    assert rows.pending == 0
