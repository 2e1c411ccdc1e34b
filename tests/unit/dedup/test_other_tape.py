"""A tape begins in an empty production only where the lake's store knows of none."""

from __future__ import annotations

from pathlib import Path

import pytest

from dedup.other_tape import found
from dedup.publish import Publisher
from kalshilake.store import LocalStore, open_store
from marketdata.errors import StorageError
from runtime.embedded import EmbeddedPostgres
from runtime.postgres import connect
from tests.databases import empty_database
from tests.unit.dedup.test_export import SETTINGS, Line
from tests.window_outputs import window_output

BACKUPS = "backups/rds/"


async def test_an_empty_production_and_an_empty_store_may_begin(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    conn = await connect(await empty_database(postgres_server))
    assert await found(conn, open_store(tmp_path), BACKUPS) == ""
    await conn.close()


async def test_backups_of_a_tape_are_known_by_their_prefix(production: str, tmp_path: Path) -> None:
    """A tape younger than an hour has no version in the lake yet."""
    store = open_store(tmp_path)
    store.put("backups/rds/2026-03-01T010004Z/manifest.json", b"{}")
    conn = await connect(production)
    assert "there are backups of one in backups/rds/" in await found(conn, store, BACKUPS)
    assert await found(conn, store, "backups/other/") == ""
    assert await found(conn, store) == ""
    await conn.close()


async def test_a_tape_that_has_begun_goes_on_whatever_the_store_says(
    production: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was set back to before its first window, too; tables alone are no tape."""

    def away(self: object, prefix: str) -> object:
        raise StorageError("no route to the lake")

    monkeypatch.setattr(LocalStore, "list", away)
    store = open_store(tmp_path / "lake")
    conn = await connect(production)
    assert "no route to the lake" in await found(conn, store)
    publisher = Publisher(production, SETTINGS)
    assert (await publisher.open()).fresh
    assert await found(conn, store) == ""
    await publisher.close()
    await conn.close()


async def test_a_lake_with_a_version_has_a_tape(
    production: str, postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    line = await Line(production, tmp_path / "lake").open()
    await line.publish(window_output(0, ["A", "B"]))
    await line.export()
    await line.close()
    conn = await connect(await empty_database(postgres_server))
    assert "the lake has one up to 20" in await found(conn, open_store(tmp_path / "lake"))
    await conn.close()
