"""What each feed process is given, and what a silent or an orphaned one meets."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from gatherer.processes import FeedProcess, check, dsn_of, environment_of
from marketdata.errors import ConfigError, StorageError
from runtime import children
from runtime.children import watch_parent
from runtime.embedded import EmbeddedPostgres
from runtime.postgres import connect, migrate
from runtime.supervise import Supervisor
from tests.unit.gatherer.test_service import settings


def test_each_has_its_own_spool_schema_ports_and_share_of_requests(tmp_path: Path) -> None:
    given = {"KT_FEED_PROCESSES": "3", "KT_REST_RATE_PER_S": "6"}
    whole = settings(tmp_path, **given)
    environ = {"PATH": "/bin", "KT_KEY_ID": "id", "NOTIFY_SOCKET": "/run/x", "WATCHDOG_PID": "1"}
    one, two = (environment_of(environ, whole, n, (n, 10 + n)) for n in (1, 2))
    assert one["KT_SPOOL_DIR"] != two["KT_SPOOL_DIR"]
    assert one["KT_TIMESCALE_DSN"].endswith("?search_path=feed1")
    assert (one["KT_HEALTH_PORT"], one["KT_METRICS_PORT"]) == ("1", "11")
    assert float(one["KT_REST_RATE_PER_S"]) == 2.0
    assert not {"NOTIFY_SOCKET", "WATCHDOG_PID"} & one.keys(), "systemd hears of the whole only"
    assert (one["PATH"], one["KT_KEY_ID"]) == ("/bin", "id")


def test_a_query_of_the_connection_string_is_kept() -> None:
    dsn = "postgresql://u@/kalshi?host=/run/pg&port=5432"
    assert dsn_of(dsn, 2) == "postgresql://u@/kalshi?host=/run/pg&port=5432&search_path=feed2"


def test_a_number_beyond_the_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="KT_FEED_NUMBER 2 of 1"):
        check(settings(tmp_path, KT_FEED_NUMBER="2"))
    check(settings(tmp_path))


async def test_processes_share_a_database_and_not_a_table(cluster: EmbeddedPostgres) -> None:
    name = "feed_schemas"
    admin = await asyncpg.connect(cluster.dsn())
    await admin.execute(f"CREATE DATABASE {name}")
    await admin.close()
    for number in (1, 2):
        conn = await connect(dsn_of(cluster.dsn(name), number))
        assert await migrate(conn, "gatherer_hot")
        assert await migrate(conn, "gatherer_hot") == []
        await conn.execute("INSERT INTO market VALUES ($1, 1, 'A')", number)
        await conn.execute("SELECT tell_reader_cursor($1)", 10 * number)
        assert await conn.fetchval("SELECT market_id FROM market") == number
        assert await conn.fetchval("SELECT batch_id FROM reader_cursor") == 10 * number
        await conn.close()


@pytest.mark.parametrize("path", ["a,b", '"x"'])
async def test_a_search_path_that_is_no_name_of_ours_is_refused(
    cluster: EmbeddedPostgres, path: str
) -> None:
    conn = await connect(cluster.dsn(), search_path="none_there")
    await conn.execute("SELECT set_config('search_path', $1, false)", path)
    with pytest.raises(StorageError, match="none to make"):
        await migrate(conn, "gatherer_hot")
    await conn.close()


async def test_a_silent_process_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It listens to nobody: a shell takes `-m gatherer.main` for an option and a script's name."""
    monkeypatch.setattr(children, "SILENT_S", 0)
    monkeypatch.setattr(children, "RESTART_S", 0)
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    (tmp_path / "gatherer.main").write_text("sleep 30\n")
    monkeypatch.chdir(tmp_path)
    feed = FeedProcess(settings(tmp_path, KT_FEED_PROCESSES="2"), 1)
    running = asyncio.create_task(feed.run())
    async with aiohttp.ClientSession() as http, asyncio.timeout(20):
        while feed.restarts < 2:
            await asyncio.sleep(0.02)
            await feed.look(http)
    assert feed.answer is None
    await feed.stop(5)
    await asyncio.wait_for(running, 10)


async def test_an_orphan_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([10, 10, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(children, "LOOK_S", 0)
    supervisor = Supervisor("test")
    await asyncio.wait_for(watch_parent(supervisor), 5)
    assert "is gone" in supervisor.reason


def test_settings_of_several_processes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="KT_FEED_PROCESSES"):
        settings(tmp_path, KT_FEED_PROCESSES="9")
