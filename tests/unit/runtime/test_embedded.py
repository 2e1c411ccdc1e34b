"""runtime.embedded: a real server that survives kill -9 and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import asyncpg
import psutil
import pytest

from marketdata.errors import StorageError
from runtime import embedded
from runtime.embedded import (
    EmbeddedPostgres,
    free_port,
    home_for,
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs as another account")


async def scalar(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def accounts() -> list[str]:
    return sorted(entry.pw_name for entry in pwd.getpwall())


async def test_server_starts_works_and_leaves_no_process_file_or_account() -> None:
    """The promise of `tape demo`."""
    before = accounts()
    async with EmbeddedPostgres() as server:
        pid = server.pid
        assert pid is not None
        assert await scalar(server.dsn(), "SHOW server_version_num") >= "150000"
        assert await scalar(server.dsn(), "SHOW fsync") == "on"
        assert await scalar(server.dsn(), "SHOW listen_addresses") == "127.0.0.1"
        family = psutil.Process(pid).children(recursive=True)
        assert psutil.Process(pid).uids().real != 0
    assert not psutil.pid_exists(pid)
    assert not any(child.is_running() for child in family)
    assert not server.data_dir.parent.exists()
    assert accounts() == before


async def test_committed_rows_survive_kill_9_on_the_same_port() -> None:
    """Clients hold the port in their settings: it must be the same after the restart."""
    async with EmbeddedPostgres() as server:
        dsn = server.dsn()
        await scalar(dsn, "CREATE TABLE t (x int)")
        for value in range(5):
            await scalar(dsn, f"INSERT INTO t VALUES ({value})")
        server.kill()
        assert not server.running
        with pytest.raises(OSError):
            await scalar(dsn, "SELECT 1")
        await server.restart()
        assert server.dsn() == dsn
        assert await scalar(dsn, "SELECT sum(x) FROM t") == 10
        await server.restart()  # a clean one
        assert await scalar(dsn, "SELECT sum(x) FROM t") == 10
        await server.start()  # already running: nothing happens
        assert await scalar(dsn, "SELECT count(*) FROM t") == 5


async def test_an_existing_cluster_is_opened_again_with_its_rows() -> None:
    home = home_for(Path(tempfile.mkdtemp()))
    first = EmbeddedPostgres(home / "a" / "b")
    try:
        await first.start()
        await scalar(first.dsn(), "CREATE TABLE t AS SELECT 7 AS x")
        identity = await scalar(first.dsn(), "SELECT system_identifier FROM pg_control_system()")
        await first.close()
        assert first.data_dir.exists()  # only temporary directories are removed
        async with EmbeddedPostgres(home / "a" / "b") as second:
            assert await scalar(second.dsn(), "SELECT x FROM t") == 7
            assert identity == await scalar(
                second.dsn(), "SELECT system_identifier FROM pg_control_system()"
            )
    finally:
        await first.close()
        shutil.rmtree(home)


STARTER = """
import sys, threading, time
from runtime.embedded import EmbeddedPostgres
server = EmbeddedPostgres()
if sys.argv[1] == "thread":
    thread = threading.Thread(target=server.start_blocking)
    thread.start(); thread.join()
else:
    server.start_blocking()
print(server.pid, server.data_dir, server.port, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
@pytest.mark.parametrize("starter", ["main", "thread"])
def test_server_ends_when_its_starter_is_killed_and_not_before(starter: str) -> None:
    """Also when a thread that has since ended started it: the signal follows the thread."""
    child = subprocess.Popen(
        [sys.executable, "-c", STARTER, starter], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    pid, directory, port = child.stdout.readline().split()
    try:
        server = psutil.Process(int(pid))
        asyncio.run(scalar(f"postgresql://tape@127.0.0.1:{port}/postgres", "SELECT pg_sleep(0.3)"))
        family = [server, *server.children(recursive=True)]
        child.send_signal(signal.SIGKILL)
        child.wait()
        _, alive = psutil.wait_procs(family, timeout=30)
        assert alive == []
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        shutil.rmtree(Path(directory).parent, ignore_errors=True)


async def test_a_busy_port_is_told_plainly() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = EmbeddedPostgres(port=taken.getsockname()[1])
        try:
            with pytest.raises(StorageError, match=r"port \d+ on 127\.0\.0\.1 is in use"):
                await server.start()
        finally:
            await server.close()


async def test_a_port_taken_between_choice_and_start_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seven clusters start at once; two may choose the same number."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        answers = iter([taken.getsockname()[1], free_port()])
        monkeypatch.setattr(embedded, "free_port", lambda: next(answers))
        async with EmbeddedPostgres() as server:
            assert server.port != taken.getsockname()[1]


def test_a_directory_with_something_else_in_it_is_not_touched() -> None:
    home = home_for(Path(tempfile.mkdtemp()))
    try:
        (home / "notes.txt").write_text("mine")
        with pytest.raises(StorageError, match="not empty and holds no postgresql cluster"):
            EmbeddedPostgres(home).start_blocking()
        assert [p.name for p in home.iterdir()] == ["notes.txt"]
    finally:
        shutil.rmtree(home)


def test_too_little_space_is_told_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(embedded, "FREE_SPACE_MIN_BYTES", 2**62)
    server = EmbeddedPostgres()
    with pytest.raises(StorageError, match=r"only \d+ MB free"):
        server.start_blocking()
    assert not server.data_dir.exists()
    server.close_blocking()


def test_a_broken_cluster_gives_the_servers_own_words() -> None:
    home = home_for(Path(tempfile.mkdtemp()))
    server = EmbeddedPostgres(home / "c")
    try:
        server.start_blocking()
        server.stop_blocking()
        (home / "c" / "PG_VERSION").write_text("9.1\n")
        with pytest.raises(StorageError, match=r"did not start in .*9\.1"):
            server.start_blocking()
    finally:
        server.close_blocking()
        shutil.rmtree(home)


def test_a_wrong_setting_gives_the_servers_own_words() -> None:
    server = EmbeddedPostgres(settings={"shared_buffers": "a lot"})
    try:
        with pytest.raises(StorageError, match="shared_buffers"):
            server.start_blocking()
    finally:
        server.close_blocking()


async def test_many_servers_can_be_started_at_once_from_threads() -> None:
    servers = [EmbeddedPostgres() for _ in range(3)]
    try:
        await asyncio.gather(*(server.start() for server in servers))
        assert len({server.port for server in servers}) == 3
        identities = {
            await scalar(s.dsn(), "SELECT system_identifier FROM pg_control_system()")
            for s in servers
        }
        assert len(identities) == 3
        assert threading.active_count() < 50
    finally:
        await asyncio.gather(*(server.close() for server in servers))
