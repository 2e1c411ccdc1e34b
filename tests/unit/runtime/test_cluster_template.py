"""runtime.cluster_template: one initdb, many clusters, each with an identity of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import asyncpg
import psutil
import pytest

from marketdata.errors import StorageError
from runtime import cluster_template, embedded
from runtime.cluster_home import Account, open_directory, service_account
from runtime.cluster_template import (
    ClusterSource,
    give_new_identity,
    install_root,
    last_lines,
    run_initdb,
    tool,
    wheel_root,
)
from runtime.embedded import EmbeddedPostgres

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs as another account")


def test_another_postgresql_is_used_where_one_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(cluster_template.OWN_POSTGRES, raising=False)
    assert install_root() == wheel_root()
    monkeypatch.setenv(cluster_template.OWN_POSTGRES, str(tmp_path))
    with pytest.raises(StorageError, match="no bin/postgres"):
        install_root()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "postgres").touch()
    assert install_root() == tmp_path
    assert tool("pg_dump") == tmp_path / "bin" / "pg_dump"


def control_data(directory: Path) -> dict[str, str]:
    """What PostgreSQL's own program reads from pg_control; it checks the checksum."""
    done = subprocess.run(
        [tool("pg_controldata"), "-D", directory], capture_output=True, text=True, check=True
    )
    assert "WARNING" not in done.stdout + done.stderr
    pairs = (line.split(":", 1) for line in done.stdout.splitlines())
    return {name.strip(): value.strip() for name, value in pairs}


@needs_root
async def test_binaries_below_a_closed_directory_are_copied_to_where_they_can_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A checkout below /root: the account can neither read nor run what lies there."""
    monkeypatch.delenv(cluster_template.OWN_POSTGRES, raising=False)
    source = ClusterSource()
    real = cluster_template.blocked_at

    def closed(path: Path, account: Account) -> Path | None:
        return path if "site-packages" in str(path) else real(path, account)

    monkeypatch.setattr(embedded, "_SOURCE", source)
    monkeypatch.setattr(cluster_template, "blocked_at", closed)
    try:
        async with EmbeddedPostgres() as server:
            assert server.pid is not None
            executable = Path(psutil.Process(server.pid).exe())
            assert "site-packages" not in str(executable)
            connection = await asyncpg.connect(server.dsn())
            assert await connection.fetchval("SELECT 1") == 1
            await connection.close()
    finally:
        source.clean()


def test_identity_is_not_written_into_files_of_another_form(tmp_path: Path) -> None:
    """A later PostgreSQL may lay these files out otherwise: then initdb runs instead."""
    (tmp_path / "global").mkdir()
    (tmp_path / "pg_wal").mkdir()
    control = bytes(range(256)) * 4
    (tmp_path / "global" / "pg_control").write_bytes(control)
    (tmp_path / "pg_wal" / "000000010000000000000001").write_bytes(bytes(8192))
    assert not give_new_identity(tmp_path, 5)
    assert (tmp_path / "global" / "pg_control").read_bytes() == control


async def test_a_new_identity_is_one_that_postgresql_itself_accepts() -> None:
    """By its own checksum check, by a start, and by every WAL segment that initdb left."""
    home = open_directory("kalshi-tape-test-")
    shutil.chown(home, service_account().uid) if os.geteuid() == 0 else None
    source = ClusterSource()
    try:
        source.make(home / "cluster", service_account())
        before = control_data(home / "cluster")
        assert give_new_identity(home / "cluster", 42)
        after = control_data(home / "cluster")
        assert after.pop("Database system identifier") == "42"
        assert before.pop("Database system identifier") != "42"
        assert before == after
        async with EmbeddedPostgres(home / "cluster") as server:
            connection = await asyncpg.connect(server.dsn())
            query = "SELECT system_identifier FROM pg_control_system()"
            assert await connection.fetchval(query) == 42
            await connection.close()
            assert "database system was shut down" in server.log_path.read_text()  # not recovered
    finally:
        source.clean()
        shutil.rmtree(home)


def test_a_template_that_was_cleaned_away_is_made_again() -> None:
    """A recorder lives for months; /tmp is cleaned after days."""
    source = ClusterSource()
    account = service_account()
    try:
        first = source.template(account)
        shutil.rmtree(first.parent)
        second = source.template(account)
        assert second != first
        version = (source.binaries(account) / "bin" / "postgres", "--version")
        said = subprocess.run(version, capture_output=True, text=True, check=True).stdout
        assert f"(PostgreSQL) {(second / 'PG_VERSION').read_text().strip()}." in said
    finally:
        source.clean()
    assert not second.exists()


def test_initdb_that_fails_gives_its_own_words(tmp_path: Path) -> None:
    home = open_directory("kalshi-tape-test-")
    (home / "notes.txt").write_text("mine")
    home.chmod(0o755)
    try:
        with pytest.raises(StorageError, match=r"initdb failed in .*exists but is not empty"):
            # A checkout below a closed directory: a copy, which the account can run.
            run_initdb(ClusterSource().binaries(service_account()), home, service_account())
        with pytest.raises(StorageError, match="initdb did not run"):
            run_initdb(Path("/nowhere"), home, service_account())
    finally:
        shutil.rmtree(home)


def test_the_last_lines_are_those_that_say_something() -> None:
    assert last_lines("a\n\nb\nc\n d \n") == "b | c | d"
    assert last_lines("\n") == "it said nothing"
