"""A dump of production in a store and back, with a real PostgreSQL and its own programs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import boto3
import pytest
from moto import mock_aws

from dedup import backup
from dedup.backup import back_up, found_backup, names, read_manifest, restore, verify
from kalshilake.store import LocalStore, Store, open_store
from marketdata.errors import LakeError, StorageError
from runtime.clock import Clock
from runtime.cluster_template import install_root
from runtime.config import BackupSettings, load
from runtime.embedded import EmbeddedPostgres
from runtime.partitions import Partitions
from runtime.postgres import migrate
from tests.databases import fresh_database, table_contents
from tests.dedup_rig import RESULT, make_recordings, run_through
from tests.dedup_rig import settings as merge_settings
from tests.gatherer_rows import make_stream
from tests.pgmatrix.witness import look

PREFIX = "backups/rds/"
PROGRAMS = install_root() / "bin"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dump of a few parts, although it is small."""
    monkeypatch.setattr(backup, "PART_BYTES", 20_000)


@pytest.fixture(scope="module")
def tape(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Production with a merged tape in it."""

    async def made() -> str:
        stream = make_stream(31, events=3_000)
        recordings = await make_recordings(postgres_server, stream, gaps=1, disconnects=0)
        production = await fresh_database(postgres_server, "production")
        lake = tmp_path_factory.mktemp("lake")
        await run_through(merge_settings(recordings, production, lake))
        return production

    return asyncio.run(made())


async def empty_database(server: EmbeddedPostgres, name: str) -> str:
    conn = await asyncpg.connect(server.dsn())
    await conn.execute(f"CREATE DATABASE {name}")
    await conn.close()
    return server.dsn(name)


def asked(production: str, place: str, **more: str) -> BackupSettings:
    return load(
        BackupSettings,
        {
            "KT_PRODUCTION_DSN": production,
            "KT_LAKE_URI": place,
            "KT_PG_BIN": str(PROGRAMS),
            **more,
        },
    )


@pytest.fixture(params=["directory", "s3"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A store of each kind."""
    if request.param == "directory":
        yield str(tmp_path / "bucket")
        return
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="kalshi-data-prod")
        yield "s3://kalshi-data-prod"


async def test_a_backup_comes_back_row_by_row(
    postgres_server: EmbeddedPostgres, tape: str, place: str
) -> None:
    """Into another database, whose tables are then those of production."""
    store = open_store(place)
    there = await back_up(asked(tape, place), store, Clock(0))
    assert len(there.parts) > 2
    assert names(store, PREFIX) == [there.name]
    assert found_backup(store, PREFIX, None) == there
    target = await empty_database(postgres_server, f"back_{place[:2].strip('/')}x")
    rows = await restore(there, store, PROGRAMS, target)
    assert rows["orderbook_delta"] > 1_000
    tables = (*RESULT, "merge_state", "gatherer_cursor")
    assert await table_contents(target, *tables) == await table_contents(tape, *tables)


async def test_what_came_back_is_stored_as_before_and_goes_on(
    postgres_server: EmbeddedPostgres, tape: str, tmp_path: Path
) -> None:
    """Hypertables come back as such: new rows find the old chunks, or make one."""
    store = LocalStore(tmp_path)
    there = await back_up(asked(tape, str(tmp_path)), store, Clock(0))
    target = await empty_database(postgres_server, "back_goes_on")
    await restore(there, store, PROGRAMS, target)
    before, after = await asyncpg.connect(tape), await asyncpg.connect(target)
    try:
        assert await look(after) == await look(before) is not None
        assert await migrate(after, "production") == []
        parts = "SELECT count(DISTINCT tableoid) FROM trade"
        had = await after.fetchval(parts)
        day = "SELECT min(exchange_ts) + $1 * INTERVAL '2 days' FROM trade"
        for later in (0, 1):
            at = await after.fetchval(day, later)
            us = int(at.timestamp()) * 1_000_000
            await Partitions().ensure(after, "trade", us, us, "day")
            await after.execute(
                "INSERT INTO trade VALUES ($1, 0, gen_random_uuid(), 1, 1, 1, 1, 0, 0, 1)", at
            )
            assert await after.fetchval(parts) == had + later
    finally:
        await before.close()
        await after.close()


async def test_verification_by_restore_counts_every_table(
    postgres_server: EmbeddedPostgres, tape: str, tmp_path: Path
) -> None:
    target = await empty_database(postgres_server, "back_verified")
    made = asked(tape, str(tmp_path), KT_VERIFY_DSN=target)
    there = await back_up(made, LocalStore(tmp_path), Clock(0))
    assert there.rows["orderbook_delta"] > 1_000
    assert there.rows["merge_state"] == 1
    with pytest.raises(StorageError, match="is not empty"):
        await restore(there, LocalStore(tmp_path), PROGRAMS, target)


async def test_rows_that_are_missing_afterwards_are_named(
    postgres_server: EmbeddedPostgres, tape: str, tmp_path: Path
) -> None:
    """The control of the counting: a manifest that promises one row more."""
    store = LocalStore(tmp_path)
    there = await back_up(asked(tape, str(tmp_path)), store, Clock(0))
    form = json.loads(store.get(f"{PREFIX}{there.name}/manifest.json"))
    form["rows"] = {"market": 10_000}
    store.put(f"{PREFIX}{there.name}/manifest.json", json.dumps(form).encode())
    target = await empty_database(postgres_server, "back_short")
    more = read_manifest(store, PREFIX, there.name)
    with pytest.raises(StorageError, match="market"):
        await restore(more, store, PROGRAMS, target)


@pytest.mark.parametrize("fault", ["flip", "short", "gone", "swapped"])
async def test_a_part_that_changed_is_named(tape: str, tmp_path: Path, fault: str) -> None:
    store = LocalStore(tmp_path)
    there = await back_up(asked(tape, str(tmp_path)), store, Clock(0))
    first, second = (tmp_path / part.key for part in there.parts[:2])
    body = first.read_bytes()
    if fault == "flip":
        first.write_bytes(bytes([body[0] ^ 1]) + body[1:])
    elif fault == "short":
        first.write_bytes(body[:-1])
    elif fault == "gone":
        first.unlink()
    else:
        first.write_bytes(second.read_bytes())
    with pytest.raises(LakeError, match=r"00000\.part"):
        await verify(there, store, PROGRAMS)


class Losing(LocalStore):
    """A place that loses what it was given."""

    def get(self, key: str) -> bytes:
        body = super().get(key)
        return body[:-1] if key.endswith("00001.part") else body


async def test_what_was_not_read_back_whole_is_no_backup(tape: str, tmp_path: Path) -> None:
    store: Store = Losing(tmp_path)
    with pytest.raises(LakeError, match=r"00001\.part is not what was stored"):
        await back_up(asked(tape, str(tmp_path)), store, Clock(0))
    assert names(store, PREFIX) == []
    with pytest.raises(LakeError, match="no backup"):
        found_backup(store, PREFIX, None)


async def test_troubles_say_what_they_are(
    postgres_server: EmbeddedPostgres, tape: str, tmp_path: Path
) -> None:
    store = LocalStore(tmp_path)
    wrong = asked(tape, str(tmp_path)).model_copy(update={"pg_bin": Path("/nowhere")})
    with pytest.raises(StorageError, match="KT_PG_BIN"):
        await back_up(wrong, store, Clock(0))
    empty = await empty_database(postgres_server, "no_tape")
    with pytest.raises(StorageError, match="nothing to back up"):
        await back_up(asked(empty, str(tmp_path)), store, Clock(0))
    refusing = tmp_path / "bin"
    refusing.mkdir()
    (refusing / "pg_dump").write_text("#!/bin/sh\necho some words >&2\nexit 3\n")
    (refusing / "pg_dump").chmod(0o755)
    told = asked(tape, str(tmp_path)).model_copy(update={"pg_bin": refusing})
    with pytest.raises(StorageError, match=r"pg_dump failed \(3\): some words"):
        await back_up(told, store, Clock(0))
    there = await back_up(asked(tape, str(tmp_path)), store, Clock(0))
    with pytest.raises(LakeError, match=there.name):
        found_backup(store, PREFIX, "2020-01-01T000000Z")
    (tmp_path / PREFIX / there.name / "manifest.json").write_text("{}")
    with pytest.raises(LakeError, match="is no manifest"):
        found_backup(store, PREFIX, None)


async def test_a_password_is_on_no_command_line(tape: str, tmp_path: Path) -> None:
    """Anybody on the host reads command lines."""
    spy = tmp_path / "bin"
    spy.mkdir()
    script = '#!/bin/sh\necho "$PGPASSWORD" > "$0.password"\necho "$@" > "$0.arguments"\nexit 1\n'
    (spy / "pg_dump").write_text(script)
    (spy / "pg_dump").chmod(0o755)
    with_password = tape.replace("://tape@", "://tape:s%40cret@")
    assert with_password != tape
    made = asked(with_password, str(tmp_path)).model_copy(update={"pg_bin": spy})
    with pytest.raises(StorageError):
        await back_up(made, LocalStore(tmp_path), Clock(0))
    assert (spy / "pg_dump.password").read_text() == "s@cret\n"
    arguments = (spy / "pg_dump.arguments").read_text()
    assert "cret" not in arguments
    assert "--dbname=postgresql://tape@" in arguments


def test_the_program_ends_with_its_code(tape: str, tmp_path: Path) -> None:
    environ = {name: text for name, text in os.environ.items() if not name.startswith("KT_")}
    good = {
        "KT_PRODUCTION_DSN": tape,
        "KT_LAKE_URI": str(tmp_path),
        "KT_PG_BIN": str(PROGRAMS),
    }
    for code, settings, words in (
        (2, {}, "KT_PG_BIN: is not set"),
        (1, {**good, "KT_PG_BIN": "/nowhere"}, "hint: set KT_PG_BIN"),
        (0, good, "backup stored"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "dedup.backup"],
            env={**environ, **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert len(names(LocalStore(tmp_path), PREFIX)) == 1


async def test_the_program_brings_a_backup_back_into_an_empty_production_alone(
    postgres_server: EmbeddedPostgres, tape: str, tmp_path: Path
) -> None:
    """`kalshi-backup --restore [NAME]`, as the deploy runs it on the host."""
    there = await back_up(asked(tape, str(tmp_path)), open_store(str(tmp_path)), Clock(0))
    target = await empty_database(postgres_server, "brought_back")
    environ = {name: text for name, text in os.environ.items() if not name.startswith("KT_")}
    environ |= {"KT_LAKE_URI": str(tmp_path), "KT_PG_BIN": str(PROGRAMS)}
    for production, words, code, said in (
        (target, ["--restore", "19990101"], 1, "no backup 19990101"),
        (target, ["--restore", there.name], 0, "backup restored"),
        (target, ["--restore"], 1, "is not empty"),
    ):
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-m", "dedup.backup", *words],
            env={**environ, "KT_PRODUCTION_DSN": production},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    tables = (*RESULT, "merge_state", "gatherer_cursor")
    assert await table_contents(target, *tables) == await table_contents(tape, *tables)
