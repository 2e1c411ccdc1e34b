"""Read back from the lake: what counts as verified, and which batches that covers."""

from __future__ import annotations

import hashlib
import io
from collections.abc import AsyncIterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dedup import archive as module
from dedup.archive import Archive, digest
from dedup.publication import HOUR_US
from dedup.repair_lake import Noted
from kalshilake.store import LocalStore
from runtime.health import Health
from runtime.postgres import Connection, connect, migrate


def body(n_rows: int) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"n": list(range(n_rows))}), out)
    return out.getvalue()


class Lake:
    """A production that noted objects, and the lake that holds them."""

    def __init__(self, conn: Connection, dsn: str, folder: Path) -> None:
        self.conn = conn
        self.store = LocalStore(folder)
        self.health = Health("deduplicator")
        self.archive = Archive(dsn, self.store, self.health)

    async def export(self, number: int, n_rows: int, *, dirty: bool = False) -> str:
        key, content = f"parquet/trades/{number}.parquet", body(n_rows)
        self.store.put(key, content)
        sha256 = hashlib.sha256(content).hexdigest()
        await self.conn.execute(
            "INSERT INTO lake_hour VALUES ($1, $2, false, 1) ON CONFLICT (hour_us)"
            " DO UPDATE SET rows_dirty = excluded.rows_dirty",
            number * HOUR_US, dirty,
        )  # fmt: skip
        await self.conn.execute(
            "INSERT INTO export_object (key, table_name, hour_us, n_rows, n_bytes, sha256)"
            " VALUES ($1, 'trades', $2, $3, 1, $4) ON CONFLICT (key) DO UPDATE"
            " SET n_rows = excluded.n_rows, sha256 = excluded.sha256",
            key, number * HOUR_US, n_rows, sha256,
        )  # fmt: skip
        await self.conn.execute(
            "INSERT INTO lake_version (version, sha256, exported_to_us) VALUES (1, '', $1)"
            " ON CONFLICT (only_row) DO UPDATE SET exported_to_us = excluded.exported_to_us",
            (number + 1) * HOUR_US + 60_000_000,
        )
        return key


@pytest.fixture
async def lake(dsn: str, tmp_path: Path) -> AsyncIterator[Lake]:
    conn = await connect(dsn)
    await migrate(conn, "production")
    yield Lake(conn, dsn, tmp_path)
    await conn.close()


async def test_hours_are_compared_once_and_verified_up_to_the_export(lake: Lake) -> None:
    assert await lake.archive.once() == 0
    assert lake.archive.verified_to_us == 0
    for number in (3, 4):
        await lake.export(number, number)
    assert await lake.archive.once() == 2
    assert lake.archive.verified_to_us == 5 * HOUR_US + 60_000_000
    assert await lake.archive.once() == 0, "known already"
    again = Archive(lake.archive._dsn, lake.store, lake.health)
    assert (await again.once(), again.verified_to_us) == (0, lake.archive.verified_to_us)


async def test_an_hour_that_is_to_be_exported_ends_it(lake: Lake) -> None:
    await lake.export(3, 3)
    await lake.export(4, 4, dirty=True)
    await lake.export(5, 5)
    assert await lake.archive.once() == 1
    assert lake.archive.verified_to_us == 4 * HOUR_US


async def test_a_new_version_of_an_hour_is_compared_again(lake: Lake) -> None:
    await lake.export(3, 3)
    await lake.archive.once()
    await lake.export(3, 30)
    assert await lake.archive.once() == 1


@pytest.mark.parametrize("harm", ["changed", "shorter", "gone", "other rows"])
async def test_what_comes_back_otherwise_is_told_and_not_verified(lake: Lake, harm: str) -> None:
    await lake.export(2, 2)
    key = await lake.export(3, 3)
    path = Path(lake.store.location.removeprefix("file://")) / key
    if harm == "gone":
        path.unlink()
    elif harm == "other rows":
        await lake.conn.execute("UPDATE export_object SET n_rows = 4 WHERE key = $1", key)
    else:
        path.write_bytes(body(3)[:-1] if harm == "shorter" else body(7))
    await lake.archive.once()
    assert lake.archive.verified_to_us == 3 * HOUR_US
    told = lake.health.get("archive")
    assert told is not None
    assert told.state == "failing"
    assert key in told.reason
    await lake.export(3, 3)
    await lake.archive.once()
    told = lake.health.get("archive")
    assert told is not None
    assert told.state == "ok"
    assert lake.archive.verified_to_us > 3 * HOUR_US


async def test_one_look_compares_so_many_hours(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOURS_A_LOOK", 2)
    for number in range(3, 8):
        await lake.export(number, 1)
    assert [await lake.archive.once() for _ in range(4)] == [2, 2, 1, 0]


async def test_only_batches_published_before_the_verified_time_are_covered(lake: Lake) -> None:
    archive = lake.archive
    for minute in range(4):
        archive.note(0, minute * 60_000_000 + HOUR_US, 10 + minute)
        archive.note(1, minute * 60_000_000 + HOUR_US, 50)
    assert archive.batch_of(0) == 0
    archive.verified_to_us = HOUR_US + 2 * 60_000_000
    assert (archive.batch_of(0), archive.batch_of(1)) == (12, 50)
    archive.note(0, HOUR_US + 400_000_000, 3)  # its database was replaced
    assert archive.batch_of(0) == 0
    assert archive.batch_of(1) == 50
    archive.verified_to_us = 2 * HOUR_US
    assert archive.batch_of(0) == 3


def noted(key: str, sha256: str, n_rows: int) -> Noted:
    return Noted(key, "trades", 0, 1, sha256, 0, n_rows)


def test_a_digest_names_every_object_with_its_rows() -> None:
    one, other = noted("a", "x", 1), noted("b", "y", 2)
    assert digest([one, other]) != digest([one])
    assert digest([one]) != digest([noted("a", "x", 2)])
