"""Old days leave production only behind the lake, are noted, and never come back by themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from dedup.archive import Archive
from dedup.export import Exporter
from dedup.publication import DAY_US, HOUR_US
from dedup.repair_store import check_interval
from dedup.retain import TABLES, Mode, Retention, dropped_days
from kalshilake.store import LocalStore
from marketdata.errors import StorageError
from runtime.health import Health
from runtime.partitions import Partitions
from runtime.postgres import Connection, connect, migrate

FIRST = 1_700_006_400_000_000 // DAY_US * DAY_US
DAYS = 12
EMPTY = bytes(8).hex()


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[Connection]:
    """Twelve days of a tape, a row of every table a day, and one beside the partitions."""
    made = await connect(dsn)
    await migrate(made, "production")
    for table in TABLES:
        for day in range(DAYS - 1):  # of the last day there is no partition: the default takes it
            at = FIRST + day * DAY_US
            await Partitions().ensure(made, table, at, at, "day")
    for day in range(DAYS):
        at = (FIRST + day * DAY_US + HOUR_US) // 1_000_000
        for table, values in (
            ("orderbook_delta", f"0, 1, 0, 1, 1, {day + 1}, 1, 0, 0, 1"),
            ("orderbook_snapshot", f"0, 0, 1, 1, {day + 1}, 1, decode('{EMPTY}', 'hex')"),
            ("trade", "0, gen_random_uuid(), 1, 1, 1, 1, 0, 0, 1"),
            ("ticker", f"0, {day}, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1"),
        ):
            await made.execute(f"INSERT INTO {table} VALUES (to_timestamp({at}), {values})")
        await made.execute(
            "INSERT INTO lake_hour VALUES ($1, false, false, 1)", FIRST + day * DAY_US + HOUR_US
        )
    await made.execute("INSERT INTO market VALUES (1, 'A', $1)", FIRST)
    await made.execute(
        "INSERT INTO merge_state VALUES (1, $1, 0, '{}', '{}')", FIRST + DAYS * DAY_US
    )
    yield made
    await made.close()


def retention(
    dsn: str, verified_to_us: int, keep_days: int = 3, mode: Mode = "auto"
) -> tuple[Retention, list[int]]:
    dropped: list[int] = []
    archive = cast(Archive, SimpleNamespace(verified_to_us=verified_to_us))
    return Retention(dsn, archive, keep_days, mode, dropped.append), dropped


async def rows(conn: Connection) -> dict[str, int]:
    return {t: await conn.fetchval(f"SELECT count(*) FROM {t}") for t in TABLES}


async def test_a_day_goes_only_when_all_of_it_is_verified(dsn: str, conn: Connection) -> None:
    keeping, dropped = retention(dsn, FIRST + 2 * DAY_US + HOUR_US)
    found = await keeping.once()
    assert (len(found.days), found.dry) == (2, False)
    assert dropped == [FIRST, FIRST + DAY_US] == sorted(await dropped_days(conn))
    assert set((await rows(conn)).values()) == {DAYS - 2}
    assert (await keeping.once()).days == []


async def test_what_is_to_be_kept_stays_however_verified(dsn: str, conn: Connection) -> None:
    keeping, _ = retention(dsn, FIRST + 30 * DAY_US)
    await keeping.once()
    assert set((await rows(conn)).values()) == {3}
    everything, _ = retention(dsn, FIRST + 30 * DAY_US, keep_days=0)
    await everything.once()
    assert set((await rows(conn)).values()) == {0}, "and the default partition's rows"


@pytest.mark.parametrize("mode", ["dry", "auto"])
async def test_at_first_it_only_says_what_would_go(dsn: str, conn: Connection, mode: Mode) -> None:
    if mode == "auto":
        await conn.execute("UPDATE merge_state SET closed_to_us = $1", FIRST + 6 * DAY_US)
    keeping, dropped = retention(dsn, FIRST + 5 * DAY_US, keep_days=1, mode=mode)
    found = await keeping.once()
    assert (len(found.days), found.dry, dropped) == (5, True, [])
    assert set((await rows(conn)).values()) == {DAYS}


async def test_a_dropped_day_is_not_exported_again_nor_repaired(
    dsn: str, conn: Connection, tmp_path: Path
) -> None:
    """A late row would else replace an hour of the lake by itself."""
    store = LocalStore(tmp_path)
    exporter = Exporter(store, [])
    keeping, _ = retention(dsn, FIRST + 4 * DAY_US)
    await keeping.once()
    late = FIRST + DAY_US + HOUR_US
    await conn.execute("UPDATE lake_hour SET rows_dirty = true WHERE hour_us = $1", late)
    await exporter.open(conn)
    assert await exporter.export(conn, FIRST + 20 * DAY_US, 0, {1: "A"}, final=True) is None
    assert exporter.hours_waiting == 0
    assert "left production" in exporter.told()
    held = FIRST + 5 * DAY_US + HOUR_US
    await conn.execute("UPDATE lake_hour SET rows_dirty = true WHERE hour_us = $1", held)
    await exporter.open(conn)
    assert await exporter.export(conn, FIRST + 20 * DAY_US, 0, {1: "A"}, final=True) is not None
    with pytest.raises(StorageError, match="have left production"):
        await check_interval(conn, late, late + HOUR_US)
    await check_interval(conn, held + DAY_US, held + DAY_US + HOUR_US)


async def test_an_hour_of_a_dropped_day_holds_nothing_up(
    dsn: str, conn: Connection, tmp_path: Path
) -> None:
    keeping, _ = retention(dsn, FIRST + 4 * DAY_US)
    await keeping.once()
    await conn.execute("UPDATE lake_hour SET rows_dirty = true WHERE hour_us < $1", FIRST + DAY_US)
    await conn.execute("INSERT INTO lake_version VALUES (true, 1, '', $1)", FIRST + 12 * DAY_US)
    archive = Archive(dsn, LocalStore(tmp_path), Health("deduplicator"))
    for _ in range(3):
        await archive.once()
    assert archive.verified_to_us == FIRST + 12 * DAY_US
