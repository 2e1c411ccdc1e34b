"""runtime.postgres against a real server: retries, migrations, commits with a lost answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from marketdata.errors import StorageError
from runtime import postgres
from runtime.embedded import EmbeddedPostgres, free_port
from runtime.pgcopy import CopyLayout
from runtime.postgres import TRANSIENT, connect, copy_in, or_lost


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, sql in files.items():
        (folder / f"{name.removeprefix('v')}.sql").write_text(sql)
    return folder


async def test_connect_gives_up_with_every_reason_when_told_so() -> None:
    told: list[str] = []
    dsn = f"postgresql://u:hunter2@127.0.0.1:{free_port()}/x"
    with pytest.raises(StorageError, match="no connection after 2 tries") as caught:
        await postgres.connect(dsn, tries_max=2, on_retry=told.append)
    assert len(told) == 2
    assert "hunter2" not in str(caught.value) + "".join(told)


async def test_connect_says_at_once_what_waiting_cannot_repair(dsn: str) -> None:
    with pytest.raises(StorageError, match="refuses us"):
        await postgres.connect(dsn.rsplit("/", 1)[0] + "/no_such_database")


async def test_connect_waits_for_a_server_that_is_not_there_yet() -> None:
    """At boot the recorder may be up before its database."""
    async with EmbeddedPostgres() as server:
        server.kill()
        heard: list[str] = []

        def start_once(reason: str) -> None:
            heard.append(reason)
            if not server.running:
                server.start_blocking()

        connection = await postgres.connect(server.dsn(), on_retry=start_once)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()
        assert heard


def test_backoff_is_capped_full_jitter() -> None:
    values = [postgres.backoff_s(attempt) for attempt in range(200)]
    assert all(0 <= value <= postgres.RETRY_CAP_S for value in values)
    assert len(set(values)) > 150


async def test_migrations_are_applied_once_and_in_order(
    connection: asyncpg.Connection, tmp_path: Path
) -> None:
    folder = write(tmp_path, v0001_a="CREATE TABLE a (x int)", v0002_b="ALTER TABLE a ADD y int")
    assert await postgres.migrate(connection, folder) == [1, 2]
    assert await postgres.migrate(connection, folder) == []
    write(tmp_path, v0003_c="INSERT INTO a VALUES (1, 2)")
    assert await postgres.migrate(connection, folder) == [3]
    assert await connection.fetchval("SELECT y FROM a") == 2


async def test_a_failing_migration_leaves_nothing_half_done(
    connection: asyncpg.Connection, tmp_path: Path
) -> None:
    folder = write(tmp_path, v0001_a="CREATE TABLE a (x int); SELECT 1/0")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await postgres.migrate(connection, folder)
    assert await connection.fetchval("SELECT to_regclass('a')") is None
    write(tmp_path, v0001_a="CREATE TABLE a (x int)")
    assert await postgres.migrate(connection, folder) == [1]


async def test_an_edited_migration_is_refused(
    connection: asyncpg.Connection, tmp_path: Path
) -> None:
    folder = write(tmp_path, v0001_a="CREATE TABLE a (x int)")
    await postgres.migrate(connection, folder)
    write(tmp_path, v0001_a="CREATE TABLE a (x bigint)")
    with pytest.raises(StorageError, match="applied with other contents"):
        await postgres.migrate(connection, folder)


async def test_a_program_goes_on_with_a_database_of_a_later_version(
    connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """While a release goes out, the former one restarts beside the new schema."""
    newer = write(tmp_path / "new", v0001_a="SELECT 1", v0002_b="SELECT 2")
    await postgres.migrate(connection, newer)
    older = write(tmp_path / "old", v0001_a="SELECT 1")
    assert await postgres.migrate(connection, older) == []
    assert await postgres.migrate(connection, newer) == []
    changed = write(tmp_path / "changed", v0001_a="SELECT 3")
    with pytest.raises(StorageError, match="applied with other contents"):
        await postgres.migrate(connection, changed)


async def test_a_later_version_that_breaks_older_programs_is_refused_by_them(
    connection: asyncpg.Connection, tmp_path: Path
) -> None:
    breaking = f"{postgres.BREAKS_OLDER}: they read what is gone\nSELECT 2"
    newer = write(tmp_path / "new", v0001_a="SELECT 1", v0002_b=breaking, v0003_c="SELECT 3")
    await postgres.migrate(connection, newer)
    older = write(tmp_path / "old", v0001_a="SELECT 1")
    with pytest.raises(StorageError, match=r"at schema version 3, .* version 2 breaks older"):
        await postgres.migrate(connection, older)
    knows = write(tmp_path / "knows", v0001_a="SELECT 1", v0002_b=breaking)
    assert await postgres.migrate(connection, knows) == []


async def test_a_later_version_without_an_earlier_one_is_refused(
    connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """Two lines of development, each with a migration 2, cannot hide behind a third."""
    folder = write(tmp_path, v0001_a="SELECT 1", v0002_b="SELECT 2", v0003_c="SELECT 3")
    await postgres.migrate(connection, folder)
    await connection.execute("DELETE FROM schema_version WHERE version = 2")
    with pytest.raises(StorageError, match=r"at schema version 3 without \[2\]"):
        await postgres.migrate(connection, folder)


async def test_the_record_of_an_earlier_program_is_completed(
    connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """Its table had no column for what breaks older programs, and it goes on writing its own."""
    folder = write(tmp_path, v0001_a="SELECT 1")
    await postgres.migrate(connection, folder)
    await connection.execute("ALTER TABLE schema_version DROP COLUMN breaks_older")
    assert await postgres.migrate(connection, folder) == []
    await connection.execute(
        "INSERT INTO schema_version (version, name, sha256) VALUES (2, 'b', 'x')"
    )
    assert await postgres.migrate(connection, folder) == []


async def test_a_migration_lets_writers_pass_while_a_reader_holds_its_table(
    connection: asyncpg.Connection, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try gives up, who waits behind it is served; it succeeds when the reader ends."""
    monkeypatch.setattr(postgres, "MIGRATION_LOCK_MS", 100)
    folder = write(tmp_path, v0001_a="CREATE TABLE a (x int)")
    await postgres.migrate(connection, folder)
    write(tmp_path, v0002_b="ALTER TABLE a ADD y int")
    reader, writer = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    tries = 0
    try:
        holding = reader.transaction()
        await holding.start()
        await reader.fetch("SELECT x FROM a")
        migrating = asyncio.ensure_future(postgres.migrate(connection, folder))
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'"
        for round_ in range(3):
            while not await writer.fetchval(waiting):
                assert not migrating.done()
                await asyncio.sleep(0.005)
            await writer.execute("INSERT INTO a (x) VALUES ($1)", round_)  # waits behind the try
            tries += 1
            assert not migrating.done()
            assert reader.is_in_transaction()
        await holding.rollback()
        assert await migrating == [2]
        assert tries == 3
        assert await writer.fetchval("SELECT count(*) FROM a WHERE y IS NULL") == 3
    finally:
        await reader.close()
        await writer.close()


async def test_a_table_that_is_held_for_too_long_is_told_and_nothing_is_half_done(
    connection: asyncpg.Connection, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "MIGRATION_LOCK_MS", 20)
    monkeypatch.setattr(postgres, "MIGRATION_TRIES_MAX", 2)
    folder = write(tmp_path, v0001_a="CREATE TABLE a (x int)")
    await postgres.migrate(connection, folder)
    write(tmp_path, v0002_b="CREATE TABLE b (x int); ALTER TABLE a ADD y int")
    reader = await asyncpg.connect(dsn)
    try:
        async with reader.transaction():
            await reader.fetch("SELECT x FROM a")
            with pytest.raises(StorageError, match=r"0002_b found its tables held .* in 2 tries"):
                await postgres.migrate(connection, folder)
        assert await connection.fetchval("SELECT to_regclass('b')") is None
        assert await postgres.migrate(connection, folder) == [2]
    finally:
        await reader.close()


def test_a_hole_in_the_numbers_of_migrations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"numbered \[1, 3\]"):
        postgres.migrations(write(tmp_path, v0001_a="SELECT 1", v0003_c="SELECT 3"))


async def test_two_programs_migrating_at_once_apply_each_file_once(
    dsn: str, tmp_path: Path
) -> None:
    """The second one waits for the lock and then finds nothing to do."""
    folder = write(tmp_path, v0001_a="CREATE TABLE a (x int); SELECT pg_sleep(0.2)")
    first, second = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    try:
        done = await asyncio.gather(
            postgres.migrate(first, folder), postgres.migrate(second, folder)
        )
        assert sorted(done) == [[], [1]]
    finally:
        await first.close()
        await second.close()


async def test_shipped_migrations_apply_to_an_empty_database(
    connection: asyncpg.Connection,
) -> None:
    for folder in ("gatherer_hot", "gatherer_meta"):
        await connection.execute("DROP TABLE IF EXISTS schema_version")
        assert await postgres.migrate(connection, folder)


async def test_backend_is_what_the_server_has_loaded(connection: asyncpg.Connection) -> None:
    loaded = "timescaledb" in await connection.fetchval("SHOW shared_preload_libraries")
    assert await postgres.backend(connection) == ("hypertable" if loaded else "native")


async def test_hypertables_are_not_chosen_by_one_who_may_not_make_the_extension(
    connection: asyncpg.Connection,
) -> None:
    await connection.execute("CREATE ROLE plain; SET ROLE plain")
    try:
        assert await postgres.backend(connection) == "native"
    finally:
        await connection.execute("RESET ROLE; DROP ROLE plain")


async def test_commit_whose_answer_is_lost_takes_effect_once(dsn: str) -> None:
    """The server committed and the connection broke before it could say so."""
    setup = await asyncpg.connect(dsn)
    await setup.execute("CREATE TABLE batch (uid uuid PRIMARY KEY, n int)")
    uid, tries = uuid.uuid4(), 0

    async def attempt() -> str:
        nonlocal tries
        tries += 1
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute("INSERT INTO batch VALUES ($1, $2)", uid, tries)
        finally:
            await connection.close()
        if tries == 1:
            raise ConnectionResetError("the answer never came")
        return "committed"

    async def already_done() -> str | None:
        found = await setup.fetchval("SELECT n FROM batch WHERE uid = $1", uid)
        return None if found is None else f"found {found}"

    assert await postgres.commit_once(attempt, already_done=already_done) == "found 1"
    assert await setup.fetchval("SELECT count(*) FROM batch") == 1

    async def never() -> str | None:
        return None

    with pytest.raises(asyncpg.UniqueViolationError):  # a key that is not ours is no success
        await postgres.commit_once(attempt, already_done=never)
    await setup.close()


async def test_commit_that_never_reaches_the_server_is_tried_until_the_limit() -> None:
    told: list[str] = []

    async def attempt() -> None:
        raise ConnectionRefusedError("nobody listens")

    async def already_done() -> None:
        return None

    with pytest.raises(StorageError, match="no commit after 3 tries"):
        await postgres.commit_once(
            attempt, already_done=already_done, on_retry=told.append, tries_max=3
        )
    assert len(told) == 3


async def test_two_clusters_have_different_identities(cluster: EmbeddedPostgres) -> None:
    """A replaced cluster must be noticed: its transaction ids mean something else."""
    async with EmbeddedPostgres() as other:
        a, b = await asyncpg.connect(cluster.dsn()), await asyncpg.connect(other.dsn())
        try:
            assert await postgres.server_identity(a) != await postgres.server_identity(b)
        finally:
            await a.close()
            await b.close()


class Stuck:
    """A server whose backend does not take what is written, and is then killed."""

    def __init__(self, server: EmbeddedPostgres, conn: asyncpg.Connection, pid: int) -> None:
        self.server, self.conn, self.pid = server, conn, pid

    async def die(self) -> None:
        """When the driver waits to be allowed to write on."""
        async with asyncio.timeout(10):
            while self.conn._protocol.writing_allowed.is_set():  # noqa: ASYNC110 (no event)
                await asyncio.sleep(0.02)
        os.kill(self.pid, signal.SIGKILL)


@asynccontextmanager
async def stuck() -> AsyncIterator[Stuck]:
    async with EmbeddedPostgres() as server:
        conn = await connect(server.dsn())
        await conn.execute("CREATE TABLE wide (body bytea)")
        pid = await conn.fetchval("SELECT pg_backend_pid()")
        os.kill(pid, signal.SIGSTOP)
        try:
            yield Stuck(server, conn, pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            conn.terminate()


def much(conn: asyncpg.Connection) -> Coroutine[Any, Any, Any]:
    """More than any buffer on the way holds."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(1 << 20)

    return conn.copy_to_table("wide", source=chunks(), format="binary")


async def test_a_copy_over_a_line_that_is_lost_ends() -> None:
    """A server killed while it did not take what was written."""
    async with stuck() as made:
        layout = CopyLayout("wide", [("body", "bytea")])
        copying = asyncio.ensure_future(copy_in(made.conn, layout, bytes(1 << 26)))
        await made.die()
        async with asyncio.timeout(10):
            with pytest.raises(TRANSIENT):
                await copying


async def test_whatever_writes_much_ends_with_its_connection() -> None:
    async with stuck() as made:
        writing = asyncio.ensure_future(or_lost(made.conn, much(made.conn)))
        await made.die()
        async with asyncio.timeout(10):
            with pytest.raises(TRANSIENT):
                await writing


async def test_the_driver_alone_waits_for_ever() -> None:
    """The control: without it the same does not end. If this fails, the driver was mended."""
    async with stuck() as made:
        writing = asyncio.ensure_future(much(made.conn))
        await made.die()
        done, _ = await asyncio.wait({writing}, timeout=4)
        assert not done
        assert made.conn.is_closed()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def test_what_ends_by_itself_is_left_alone(dsn: str) -> None:
    """The outcome, its own error, and no listener left behind."""
    conn = await connect(dsn)

    async def fails() -> None:
        raise ValueError("planted")

    assert await or_lost(conn, conn.fetchval("SELECT 7")) == 7
    with pytest.raises(ValueError, match="planted"):
        await or_lost(conn, fails())
    assert not conn._termination_listeners
    await conn.close()
