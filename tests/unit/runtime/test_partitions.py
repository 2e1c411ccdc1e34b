"""runtime.partitions: the right partition for every hour, and a bound on wild times."""

from __future__ import annotations

import asyncpg
import pytest

from runtime import postgres
from runtime.partitions import (
    PARTITIONS_PER_CALL_MAX,
    SANE_TO_US,
    STEP_US,
    Partitions,
    as_hypertables,
    partition_name,
    starts,
)
from runtime.pgcopy import DELTA_COPY, pack_values

HOUR = STEP_US["hour"]
T0 = 1_770_000_000_000_000 // HOUR * HOUR  # 2026-02-02 02:00


def row(exchange_us: int) -> list[int]:
    return [exchange_us, *([1] * 10)]


async def tables_of_rows(connection: asyncpg.Connection) -> dict[str, int]:
    found = await connection.fetch(
        "SELECT tableoid::regclass::text AS name, count(*) FROM orderbook_delta GROUP BY 1"
    )
    return {record["name"]: record["count"] for record in found}


async def native_only(connection: asyncpg.Connection) -> None:
    if await postgres.backend(connection) != "native":
        pytest.skip("this server has hypertables: they make their own chunks")


@pytest.fixture
async def hot(connection: asyncpg.Connection) -> asyncpg.Connection:
    """A hot database with native partitions."""
    await native_only(connection)
    await postgres.migrate(connection, "gatherer_hot")
    return connection


async def test_rows_of_three_hours_go_to_three_partitions(hot: asyncpg.Connection) -> None:
    partitions = Partitions()
    made = await partitions.ensure(hot, "orderbook_delta", T0, T0 + 2 * HOUR)
    assert made == [f"orderbook_delta_p202602020{hour}" for hour in (2, 3, 4)]
    edge = pack_values(
        DELTA_COPY, [row(T0), row(T0 + HOUR - 1), row(T0 + HOUR), row(T0 + 2 * HOUR)]
    )
    await postgres.copy_in(hot, DELTA_COPY, edge)
    assert await tables_of_rows(hot) == {made[0]: 2, made[1]: 1, made[2]: 1}


async def test_what_is_known_is_not_asked_again(hot: asyncpg.Connection) -> None:
    partitions = Partitions()
    await partitions.ensure(hot, "orderbook_delta", T0, T0)
    assert partitions.missing("orderbook_delta", T0, T0 + HOUR - 1, "hour") == []
    assert await partitions.ensure(hot, "orderbook_delta", T0, T0) == []
    partitions.forget()
    assert partitions.missing("orderbook_delta", T0, T0, "hour") == [T0]
    assert await partitions.ensure(hot, "orderbook_delta", T0, T0) == []  # it is there already


async def test_a_wild_time_costs_a_row_in_default_and_no_partition(
    hot: asyncpg.Connection,
) -> None:
    """A frame may claim the year 9999 or the year 1; the recorder stores it and goes on."""
    partitions = Partitions()
    for wild in (0, SANE_TO_US, 253_370_764_800_000_000):
        assert await partitions.ensure(hot, "orderbook_delta", wild, wild) == []
        await postgres.copy_in(hot, DELTA_COPY, pack_values(DELTA_COPY, [row(wild)]))
    assert await tables_of_rows(hot) == {"orderbook_delta_default": 3}


def test_one_call_makes_at_most_the_limit() -> None:
    assert len(starts(T0, T0 + 10_000 * HOUR, "hour")) == PARTITIONS_PER_CALL_MAX
    assert starts(0, 2**62, "day")[0] == 1_577_836_800_000_000
    assert starts(T0 + HOUR, T0, "hour") == []


async def test_a_span_that_default_already_holds_stays_with_default(
    hot: asyncpg.Connection,
) -> None:
    """PostgreSQL refuses such a partition; the writer must not stop because of it."""
    await postgres.copy_in(hot, DELTA_COPY, pack_values(DELTA_COPY, [row(T0)]))
    partitions = Partitions()
    async with hot.transaction():
        made = await partitions.ensure(hot, "orderbook_delta", T0, T0 + HOUR)
        await postgres.copy_in(hot, DELTA_COPY, pack_values(DELTA_COPY, [row(T0 + HOUR)]))
    assert made == ["orderbook_delta_p2026020203"]
    assert partitions.left_to_default == 1
    assert partitions.missing("orderbook_delta", T0, T0, "hour") == []
    assert await tables_of_rows(hot) == {
        "orderbook_delta_default": 1,
        "orderbook_delta_p2026020203": 1,
    }


async def test_days_are_named_and_bounded_by_utc_days(connection: asyncpg.Connection) -> None:
    await connection.execute("SET TIME ZONE 'America/New_York'")
    await connection.execute(
        "CREATE TABLE t (exchange_ts timestamptz NOT NULL) PARTITION BY RANGE (exchange_ts)"
    )
    assert await Partitions().ensure(connection, "t", T0, T0, "day") == ["t_p20260202"]
    await connection.execute("INSERT INTO t VALUES ('2026-02-02 23:59:59.999999+00')")
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute("INSERT INTO t VALUES ('2026-02-03 00:00:00+00')")
    assert partition_name("t", T0, "hour") == "t_p2026020202"


def test_migrations_become_hypertables_where_timescaledb_is() -> None:
    """The same columns, keys and indexes; no default partition, no index that nobody asked for."""
    for folder, total in (("gatherer_hot", 1), ("production", 4), ("gatherer_meta", 0)):
        found = [m.sql.count("PARTITION BY RANGE") for m in postgres.migrations(folder)]
        assert sum(found) == total
        for migration, count in zip(postgres.migrations(folder), found, strict=True):
            sql = as_hypertables(migration.sql, "1 hour")
            assert sql.count("SELECT public.create_hypertable(") == count
            assert sql.count("create_default_indexes => false") == count
            assert "PARTITION" not in sql
            assert sql.startswith("CREATE EXTENSION") == (count > 0)
            assert sql.count("CREATE INDEX") == migration.sql.count("CREATE INDEX")
            native_tables = migration.sql.count("CREATE TABLE")
            assert sql.count("CREATE TABLE") == native_tables - count
    first = as_hypertables(postgres.migrations("gatherer_hot")[0].sql, "1 hour")
    assert "'orderbook_delta', public.by_range('exchange_ts', INTERVAL '1 hour')" in first


def test_a_partitioned_table_in_another_form_is_not_silently_left_native() -> None:
    with pytest.raises(AssertionError, match="a form not known here"):
        as_hypertables("CREATE TABLE t (a int) PARTITION BY LIST (a);", "1 day")


async def test_a_table_without_native_partitions_gets_none(connection: asyncpg.Connection) -> None:
    """A hypertable makes its own chunks; the writer calls `ensure` all the same."""
    await connection.execute("CREATE TABLE t (exchange_ts timestamptz NOT NULL)")
    assert await Partitions().ensure(connection, "t", T0, T0 + HOUR) == []


async def test_hypertables_take_the_same_rows(connection: asyncpg.Connection) -> None:
    """Runs where the server has the extension; the embedded one has not."""
    if await postgres.backend(connection) != "hypertable":
        pytest.skip("this server has no timescaledb")
    await postgres.migrate(connection, "gatherer_hot")
    await Partitions().ensure(connection, "orderbook_delta", T0, T0)
    # Unlike partitions, chunks have no default: a wild time makes a chunk of its own.
    for at in (T0, T0 + HOUR - 1, T0 + HOUR, 0, SANE_TO_US, 253_370_764_800_000_000):
        await postgres.copy_in(connection, DELTA_COPY, pack_values(DELTA_COPY, [row(at)]))
    chunks = await tables_of_rows(connection)
    assert sorted(chunks.values()) == [1, 1, 1, 1, 2]
    assert all("_hyper_" in name for name in chunks)


async def test_two_writers_that_need_the_same_partition_get_along(dsn: str) -> None:
    first, second = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    try:
        await native_only(first)
        await postgres.migrate(first, "gatherer_hot")
        a, b = Partitions(), Partitions()
        made_a = await a.ensure(first, "orderbook_delta", T0, T0)
        made_b = await b.ensure(second, "orderbook_delta", T0, T0)
        assert (len(made_a), len(made_b)) == (1, 0)
    finally:
        await first.close()
        await second.close()
