"""Old rows leave the hot database only behind what a reader verified in the lake."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import asyncpg
import pytest

from gatherer import hot_retention as module
from gatherer.hot_retention import HOUR_NS, WEEK_NS, HotKeeper
from runtime.clock import Clock
from runtime.config import GathererSettings
from runtime.partitions import Partitions
from runtime.postgres import Connection, backend, connect, migrate

TABLES = ("ingest_batch", "orderbook_delta", "trade", "ticker", "orderbook_snapshot")


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[Connection]:
    made = await connect(dsn)
    await migrate(made, "gatherer_hot")
    yield made
    await made.close()


def keeper(dsn: str, *, age_ns: int = 2 * WEEK_NS, **more: Any) -> HotKeeper:
    values = {"timescale_dsn": dsn, "hot_retain_hours": 24, "hot_retain": "auto"}
    settings = cast(GathererSettings, SimpleNamespace(**values | more))
    return HotKeeper(settings, Clock().wall_ns() - age_ns, Clock())


async def filled(conn: Connection, hours: int = 50) -> None:
    """A batch an hour up to now, each with a row of every table."""
    now_us = Clock().wall_ns() // 1_000
    first_us = now_us - hours * 3_600_000_000
    await Partitions().ensure(conn, "orderbook_delta", first_us, now_us)
    await Partitions().ensure(conn, "orderbook_delta", now_us - 3_600_000_000, now_us)
    columns = {
        table: await conn.fetch(
            "SELECT column_name AS name, data_type AS kind FROM information_schema.columns"
            " WHERE table_name = $1 AND is_generated = 'NEVER' ORDER BY ordinal_position",
            table,
        )
        for table in TABLES
    }
    for batch in range(1, hours + 1):
        us = first_us + batch * 3_600_000_000
        for table, found in columns.items():
            values = ", ".join(_value(r["name"], r["kind"], batch, us) for r in found)
            names = ", ".join(r["name"] for r in found)
            await conn.execute(f"INSERT INTO {table} ({names}) VALUES ({values})")


def _value(name: str, kind: str, batch: int, us: int) -> str:
    if name == "batch_id":
        return str(batch)
    if name in ("max_received_ns", "min_received_ns", "received_ns"):
        return str(us * 1_000)
    if name == "exchange_ts":
        return f"to_timestamp({us / 1e6})"
    if name == "xid":
        return "pg_current_xact_id()"
    return {"uuid": "gen_random_uuid()", "bytea": "''", "text": "''"}.get(kind, "0")


async def left(conn: Connection) -> dict[str, int]:
    return {t: await conn.fetchval(f"SELECT count(*) FROM {t}") for t in TABLES}


async def archived(conn: Connection, batch: int) -> None:
    await conn.execute("SELECT tell_reader_archive($1)", batch)


async def test_nothing_goes_before_a_reader_verified_it(dsn: str, conn: Connection) -> None:
    await filled(conn)
    before = await left(conn)
    await conn.execute("SELECT tell_reader_cursor(50)")
    found = await keeper(dsn).once()
    assert "verified in the lake" in found.reason
    assert await left(conn) == before


async def test_the_older_of_age_and_verified_decides(dsn: str, conn: Connection) -> None:
    await filled(conn)
    await archived(conn, 10)
    found = await keeper(dsn).once()
    assert (found.batch, found.batches, found.dry) == (10, 10, False)
    counts = await left(conn)
    assert counts["trade"] == counts["ticker"] == counts["ingest_batch"] == 40
    assert counts["orderbook_delta"] >= 40
    await archived(conn, 50)
    found = await keeper(dsn).once()
    assert 25 <= found.batch <= 26, "a day is kept"
    counts = await left(conn)
    assert counts["trade"] == 50 - found.batch
    assert 50 - found.batch <= counts["orderbook_delta"] <= 51 - found.batch
    assert await conn.fetchval("SELECT min(batch_id) FROM orderbook_delta") >= found.batch


async def test_a_partition_with_one_later_row_stays(dsn: str, conn: Connection) -> None:
    await filled(conn)
    await archived(conn, 50)
    await conn.execute("UPDATE orderbook_delta SET batch_id = 49 WHERE batch_id = 3")
    found = await keeper(dsn).once()
    # The first hour has none of the rows: a partition was made for it, a chunk never is.
    assert found.partitions == (3 if await backend(conn) == "native" else 2)
    assert await conn.fetchval("SELECT count(*) FROM orderbook_delta WHERE batch_id = 49") == 2


async def test_in_the_first_week_it_only_says_what_would_go(dsn: str, conn: Connection) -> None:
    await filled(conn)
    await archived(conn, 50)
    before = await left(conn)
    found = await keeper(dsn, age_ns=WEEK_NS - HOUR_NS).once()
    assert found.dry
    assert found.batches >= 25
    assert found.partitions >= 25
    assert await left(conn) == before
    assert (await keeper(dsn, hot_retain="dry").once()).dry
    assert await left(conn) == before


async def test_the_newest_batch_row_stays(dsn: str, conn: Connection) -> None:
    """Batch ids go on from it, whatever was removed."""
    await filled(conn, 5)
    await conn.execute("UPDATE ingest_batch SET max_received_ns = batch_id")
    await archived(conn, 5)
    await keeper(dsn).once()
    counts = await left(conn)
    assert (counts["ingest_batch"], counts["trade"]) == (1, 0)
    assert await conn.fetchval("SELECT max(batch_id) FROM ingest_batch") == 5


async def test_the_slowest_reader_decides(dsn: str, conn: Connection) -> None:
    await filled(conn)
    await conn.execute(
        "INSERT INTO reader_cursor VALUES ('one', 50, now(), 7), ('two', 50, now(), 9)"
    )
    assert (await keeper(dsn).once()).batch == 7


async def test_a_long_backlog_goes_in_steps(
    dsn: str, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEP_BATCHES", 4)
    monkeypatch.setattr(module, "STEPS_MAX", 3)
    await filled(conn)
    await archived(conn, 50)
    keeping = keeper(dsn)
    assert (await keeping.once()).batches == 12
    assert (await keeping.once()).batches == 12
    assert keeping.removed_batches == 24


async def test_the_word_of_the_reader_is_its_own(conn: Connection) -> None:
    with pytest.raises(asyncpg.PostgresError):
        await conn.execute("SET ROLE pg_read_all_data; SELECT tell_reader_archive(1)")
