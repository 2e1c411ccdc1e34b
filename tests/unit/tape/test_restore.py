"""`tape restore`: the work is dedup.backup's and tested there."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import asyncpg

from dedup.backup import back_up
from kalshilake.store import LocalStore
from runtime.clock import Clock
from runtime.cluster_template import install_root
from runtime.config import BackupSettings, load
from runtime.embedded import EmbeddedPostgres
from tests.databases import fresh_database

PROGRAMS = install_root() / "bin"


def _backed_up(server: EmbeddedPostgres, bucket: Path) -> str:
    """The name of a backup of a production that has nothing but its tables and one window."""

    async def made() -> str:
        production = await fresh_database(server, "production")
        conn = await asyncpg.connect(production)
        await conn.execute("INSERT INTO merge_state VALUES (7, 0, 0, '{}', '{}')")
        await conn.close()
        settings = load(
            BackupSettings,
            {
                "KT_PRODUCTION_DSN": production,
                "KT_LAKE_URI": str(bucket),
                "KT_PG_BIN": str(PROGRAMS),
            },
        )
        return (await back_up(settings, LocalStore(bucket), Clock(0))).name

    return asyncio.run(made())


def _database(server: EmbeddedPostgres, name: str) -> str:
    async def made() -> None:
        conn = await asyncpg.connect(server.dsn())
        await conn.execute(f"CREATE DATABASE {name}")
        await conn.close()

    asyncio.run(made())
    return server.dsn(name)


def test_backups_are_listed_and_the_newest_comes_back(
    run, postgres_server: EmbeddedPostgres, tmp_path: Path, capsys
) -> None:
    bucket = tmp_path / "bucket"
    name = _backed_up(postgres_server, bucket)
    capsys.readouterr()
    code, out, _ = run("restore", bucket)
    assert (code, json.loads(out)["name"]) == (0, name)
    target = _database(postgres_server, "tape_restore")
    code, out, err = run("restore", bucket, "--to", target, "--pg-bin", PROGRAMS)
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["windows"], told["rows"]["merge_state"]) == (7, 1)
    code, _, err = run("restore", bucket, "--to", target, "--pg-bin", PROGRAMS)
    assert code == 2
    assert "is not empty" in err


def test_what_cannot_be_done_is_said(
    run, postgres_server: EmbeddedPostgres, tmp_path: Path, monkeypatch
) -> None:
    assert run("restore", tmp_path / "nothing") == (0, "", "")
    code, _, err = run("restore", tmp_path / "nothing", "--to", "postgresql://127.0.0.1:1/x",
                       "--pg-bin", PROGRAMS)  # fmt: skip
    assert code == 2
    assert "no backup in" in err
    bucket = tmp_path / "bucket"
    _backed_up(postgres_server, bucket)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = run("restore", bucket, "--to", postgres_server.dsn())
    assert code == 2
    assert "--pg-bin" in err
