"""A hot database made again from the spool has the rows that the gatherer had committed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gatherer.spool_rebuild import rebuild
from marketdata.errors import StorageError
from runtime.clock import Clock
from runtime.embedded import EmbeddedPostgres
from runtime.spool_files import lock
from tests.spool_world import write_spool

# How rows are dealt into batches is no part of what they say.
DEALT = {"batch_id", "ord"}
TABLES = ("market", "orderbook_delta", "orderbook_snapshot", "trade", "ticker", "control")


async def database(server: EmbeddedPostgres, name: str) -> str:
    conn = await asyncpg.connect(server.dsn())
    await conn.execute(f"DROP DATABASE IF EXISTS {name}")
    await conn.execute(f"CREATE DATABASE {name}")
    await conn.close()
    return server.dsn(name)


async def rows(dsn: str) -> dict[str, list[Any]]:
    conn = await asyncpg.connect(dsn)
    try:
        found = {}
        for table in TABLES:
            all_rows = await conn.fetch(f"SELECT * FROM {table}")
            kept = [tuple(v for k, v in row.items() if k not in DEALT) for row in all_rows]
            found[table] = sorted(kept, key=repr)
        return found
    finally:
        await conn.close()


async def test_rebuilt_rows_are_the_committed_rows(
    cluster: EmbeddedPostgres, tmp_path: Path
) -> None:
    live = await database(cluster, "spool_live")
    again = await database(cluster, "spool_again")
    await write_spool(tmp_path, live)
    done = await rebuild(tmp_path, again, Clock(0))
    expected = await rows(live)
    assert len(expected["orderbook_delta"]) > 1_000
    assert all(expected[table] for table in TABLES)
    assert await rows(again) == expected
    assert done.rows == sum(map(len, expected.values()))
    assert done.first_segment == 1
    once_more = await rebuild(tmp_path, again, Clock(0))
    assert once_more.rows == 0, "it goes on where its cursor stands"
    assert await rows(again) == expected


async def test_without_its_oldest_segments_the_rest_is_made(
    cluster: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Retention removed them: the state at the first one left is in it."""
    whole = await database(cluster, "spool_whole")
    rest = await database(cluster, "spool_rest")
    await write_spool(tmp_path)
    await rebuild(tmp_path, whole, Clock(0))
    (tmp_path / "00000001.seg").unlink()
    done = await rebuild(tmp_path, rest, Clock(0))
    assert done.first_segment == 2
    every, left = await rows(whole), await rows(rest)
    assert 0 < len(left["orderbook_delta"]) < len(every["orderbook_delta"])
    for table in ("orderbook_delta", "trade", "ticker"):
        assert set(left[table]) <= set(every[table])


async def test_it_is_refused_where_it_would_spoil_something(
    cluster: EmbeddedPostgres, tmp_path: Path
) -> None:
    target = await database(cluster, "spool_refused")
    await write_spool(tmp_path / "one")
    await write_spool(tmp_path / "two")
    handle = lock(tmp_path / "one")
    try:
        with pytest.raises(StorageError, match="in use by another process"):
            await rebuild(tmp_path / "one", target, Clock(0))
    finally:
        await asyncio.to_thread(__import__("os").close, handle)
    await rebuild(tmp_path / "one", target, Clock(0))
    with pytest.raises(StorageError, match="rows of another spool"):
        await rebuild(tmp_path / "two", target, Clock(0))
    with pytest.raises(StorageError, match="is no spool"):
        await rebuild(tmp_path, target, Clock(0))
