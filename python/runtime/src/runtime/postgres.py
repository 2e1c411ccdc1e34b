"""Talking to PostgreSQL: connect, migrate, COPY, commit when the answer may be lost.

Purpose: the few things every service needs from a database, over asyncpg.

What holds:
- `connect` retries with capped full jitter, for ever unless told otherwise; what it cannot repair
  (wrong password, no such database) it says at once.
- Migrations go forward only, each in its own transaction, under one advisory lock; an applied file
  whose bytes changed is refused. One that cannot have its lock within `MIGRATION_LOCK_MS` lets go
  and tries again, so that nobody who writes waits behind it for longer.
- A program goes on with a database of a later version, as long as every migration that it does not
  know left what it uses as it was: one that did not says so itself (`BREAKS_OLDER`).
- What writes much ends soon after its connection is lost (`or_lost`).
- `commit_once` repeats a transaction whose outcome is unknown; the caller's unique key makes the
  repetition harmless.

Does not do: start servers (runtime.embedded), pack rows (runtime.pgcopy), make partitions
(runtime.partitions).
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Final, Literal, TypeAlias, TypeVar

import asyncpg

from marketdata.errors import StorageError
from runtime.compression import compress
from runtime.partitions import TIMESCALE_HOME, as_hypertables
from runtime.pgcopy import HEADER, TRAILER, CopyLayout

RETRY_BASE_S: Final = 0.1
RETRY_CAP_S: Final = 5.0
CONNECT_TIMEOUT_S: Final = 10.0
COPY_CHUNK_BYTES: Final = 1024 * 1024
LOST_S: Final = 1.0  # in which the driver tells of a lost connection by itself
MIGRATION_LOCK: Final = 0x4B54_4D49  # "KTMI"
MIGRATION_LOCK_MS: Final = 1_000  # for which those who come after a migration may wait behind it
MIGRATION_TRIES_MAX: Final = 20  # of one migration; the services then begin again by themselves
BREAKS_OLDER: Final = "-- breaks older programs"
"""First words of a line of a migration after which earlier programs must not go on."""
CHUNK_INTERVALS: Final = {"gatherer_hot": "1 hour"}  # of hypertables; else a day
STATEMENT_CACHE: Final = 100

Connection: TypeAlias = asyncpg.Connection
T = TypeVar("T")

# A server that is starting, stopping, restarting or full: worth another try.
TRANSIENT: Final[tuple[type[BaseException], ...]] = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InsufficientResourcesError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    # The driver's word, now and then, for a line that was cut under it: it lost its place in the
    # conversation and asks for what comes next. Only a new connection helps, which all here take.
    asyncpg.InternalClientError,
)


def backoff_s(attempt: int, base_s: float = RETRY_BASE_S, cap_s: float = RETRY_CAP_S) -> float:
    """Capped full jitter: uniform between 0 and min(cap, base * 2^attempt), seconds."""
    return random.SystemRandom().uniform(0, min(cap_s, base_s * 2 ** min(attempt, 30)))


def plainly(dsn: str) -> str:
    """A connection string without its password, for messages."""
    return re.sub(r":[^:@/]+@", ":***@", dsn)


async def connect(
    dsn: str,
    *,
    tries_max: int | None = None,
    on_retry: Callable[[str], None] | None = None,
    **settings: str,
) -> Connection:
    """An open connection. `on_retry` hears why it is not there yet (for /health).

    Raises:
        StorageError: `tries_max` tries failed, or the server refuses us for good.
    """
    attempt = 0
    while True:
        try:
            return await asyncpg.connect(
                dsn,
                timeout=CONNECT_TIMEOUT_S,
                statement_cache_size=STATEMENT_CACHE,
                server_settings={"application_name": "kalshi-tape", **settings},
            )
        except TRANSIENT as error:
            attempt += 1
            told = f"{plainly(dsn)}: {type(error).__name__}: {error}"
            if on_retry is not None:
                on_retry(told)
            if tries_max is not None and attempt >= tries_max:
                raise StorageError(f"no connection after {attempt} tries: {told}") from error
            await asyncio.sleep(backoff_s(attempt))
        except (asyncpg.PostgresError, ValueError) as error:
            raise StorageError(
                f"{plainly(dsn)} refuses us: {error}", hint="check the connection string"
            ) from error


async def server_identity(connection: Connection) -> int:
    """The cluster's system identifier: another number means another cluster, whose transaction
    ids and batch ids have nothing to do with the former's."""
    return int(await connection.fetchval("SELECT system_identifier FROM pg_control_system()"))


_TIMESCALE: Final = """
SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')
    OR (EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb')
        AND EXISTS (SELECT FROM pg_settings WHERE name LIKE 'timescaledb.%'
                    OR (name = 'shared_preload_libraries' AND setting LIKE '%timescaledb%'))
        AND (SELECT rolsuper FROM pg_roles WHERE rolname = current_user))
"""


async def backend(connection: Connection) -> Literal["hypertable", "native"]:
    """Which partitioning this server can do: asked of the server, never of the settings.

    Hypertables where the extension is in the database, or is loaded and we may make it. One that is
    installed and not loaded, or that only somebody else may make, would fail every migration.
    """
    return "hypertable" if await connection.fetchval(_TIMESCALE) else "native"


@dataclass(frozen=True, slots=True)
class Migration:
    """One SQL file `NNNN_name.sql`."""

    version: int
    name: str
    sql: str

    @property
    def breaks_older(self) -> bool:
        """Whether programs that do not know this migration must not use the database after it."""
        return any(line.startswith(BREAKS_OLDER) for line in self.sql.splitlines())

    @property
    def checksum(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.sql.encode("utf-8")).hexdigest()


def migrations(folder: str | Traversable) -> list[Migration]:
    """The files of a folder in order; a name means a folder of this package."""
    root = (
        resources.files("runtime").joinpath("migrations", folder)
        if isinstance(folder, str)
        else folder
    )
    found: list[Migration] = []
    for entry in root.iterdir():
        match = re.match(r"^(\d{4})_(\w+)\.sql$", entry.name)
        if match is not None:
            found.append(Migration(int(match[1]), match[2], entry.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.version)
    versions = [migration.version for migration in found]
    if not found or versions != list(range(1, len(found) + 1)):
        raise StorageError(f"migrations {folder} are numbered {versions}, not 1, 2, 3, ...")
    return found


async def migrate(connection: Connection, folder: str | Traversable) -> list[int]:
    """Bring the database to the newest version; the versions that were applied now.

    A database that is newer than this program is left as it is.

    Raises:
        StorageError: an applied file has changed; the database is newer than this program, and a
            program this old must not use it; or somebody held a table for too long.
    """
    wanted = migrations(folder)
    await connection.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
    try:
        await _own_schema(connection)
        await _own_record(connection)
        applied = await connection.fetch("SELECT version, sha256, breaks_older FROM schema_version")
        _check_applied(applied, wanted)
        known = {row["version"] for row in applied}
        done = [migration for migration in wanted if migration.version not in known]
        for migration in done:
            sql = migration.sql
            if await backend(connection) == "hypertable":
                home = await connection.fetchval(TIMESCALE_HOME)
                sql = as_hypertables(sql, CHUNK_INTERVALS.get(str(folder), "1 day"), home)
            await _apply(connection, migration, sql)
        await compress(connection, str(folder))
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", MIGRATION_LOCK)
    if done:
        await connection.reload_schema_state()
    return [migration.version for migration in done]


async def _own_record(connection: Connection) -> None:
    """The table of what was applied. Its last column came later; programs from before it name
    their columns."""
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_version (version integer PRIMARY KEY,"
        " name text NOT NULL, sha256 text NOT NULL,"
        " applied_at timestamptz NOT NULL DEFAULT now(),"
        " breaks_older boolean NOT NULL DEFAULT false)"
    )
    if not await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'schema_version'::regclass"
        " AND attname = 'breaks_older')"
    ):
        more = "ALTER TABLE schema_version ADD COLUMN breaks_older boolean NOT NULL DEFAULT false"
        await _patiently(connection, "the record of migrations", [(more, ())])


async def _apply(connection: Connection, migration: Migration, sql: str) -> None:
    noted = (
        "INSERT INTO schema_version (version, name, sha256, breaks_older) VALUES ($1, $2, $3, $4)"
    )
    what = (migration.version, migration.name, migration.checksum, migration.breaks_older)
    name = f"migration {migration.version:04d}_{migration.name}"
    await _patiently(connection, name, [(sql, ()), (noted, what)])


async def _patiently(
    connection: Connection, name: str, statements: Sequence[tuple[str, tuple[Any, ...]]]
) -> None:
    """One transaction, tried again while somebody holds a table that it needs.

    Who waits for a table's exclusive lock makes everybody wait who comes after: a long reader would
    stop the writers. So a try gives up soon, and they pass between two tries.
    """
    for attempt in range(MIGRATION_TRIES_MAX):
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {MIGRATION_LOCK_MS}")
                for sql, values in statements:
                    await connection.execute(sql, *values)
        except asyncpg.LockNotAvailableError as error:
            last = error
            await asyncio.sleep(backoff_s(attempt))
        else:
            return
    raise StorageError(
        f"{name} found its tables held by others in {MIGRATION_TRIES_MAX} tries: {last}",
        hint="pg_stat_activity shows who has been in a transaction for long",
    ) from last


async def _own_schema(connection: Connection) -> None:
    """Make the schema that the connection string names (`search_path=feed1`), if it is not there:
    feed processes share a database, and each has its tables to itself."""
    if await connection.fetchval("SELECT current_schema() IS NOT NULL"):
        return
    name = str(await connection.fetchval("SELECT current_setting('search_path')"))
    if re.fullmatch(r"[a-z][a-z0-9_]{0,40}", name) is None:
        raise StorageError(f"no schema of search_path {name!r} is there, and it is none to make")
    await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {name}")


def _check_applied(applied: Sequence[Mapping[str, Any]], wanted: list[Migration]) -> None:
    known = {migration.version: migration for migration in wanted}
    newest = max((row["version"] for row in applied), default=0)
    missing = sorted(set(range(1, newest + 1)) - {row["version"] for row in applied})
    if missing:
        raise StorageError(
            f"the database is at schema version {newest} without {missing}",
            hint="two lines of development met in it; run the program that knows both",
        )
    for row in sorted(applied, key=lambda row: row["version"]):
        version = row["version"]
        if version not in known:
            if row["breaks_older"]:
                raise StorageError(
                    f"the database is at schema version {newest}, this program knows"
                    f" {len(wanted)}, and version {version} breaks older programs",
                    hint="run the newer program",
                )
        elif known[version].checksum != row["sha256"]:
            raise StorageError(
                f"migration {version:04d}_{known[version].name} was applied with other contents",
                hint="never edit an applied migration; add a new one",
            )


async def copy_in(connection: Connection, layout: CopyLayout, *parts: bytes | bytearray) -> int:
    """COPY packed rows (parts without header and trailer, whole rows each) into a table.

    Returns the number of rows the server counted.
    """

    async def chunks() -> AsyncIterator[bytes | memoryview]:
        yield HEADER
        for part in parts:
            view = memoryview(part)
            for begin in range(0, len(view), COPY_CHUNK_BYTES):
                yield view[begin : begin + COPY_CHUNK_BYTES]
        yield TRAILER

    status = await or_lost(
        connection,
        connection.copy_to_table(
            layout.table, source=chunks(), columns=layout.names, format="binary"
        ),
    )
    return int(status.split()[-1])


async def or_lost(connection: Connection, work: Coroutine[Any, Any, T]) -> T:
    """The outcome of something that writes much over a connection.

    A server that was killed while it did not take what we wrote leaves the driver waiting for ever:
    it waits to be allowed to write on, and nobody allows that on a line that is gone (asyncpg 0.32,
    `copy_in` and `executemany`; `connection_lost` tells only who waits for an answer).

    Raises:
        ConnectionResetError: the connection was lost, and the driver did not say so by itself.
    """
    lost = asyncio.Event()

    def gone(_: Connection) -> None:
        lost.set()

    connection.add_termination_listener(gone)
    doing, watching = asyncio.ensure_future(work), asyncio.ensure_future(lost.wait())
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            await asyncio.wait({doing}, timeout=LOST_S)
        if not doing.done():
            raise ConnectionResetError("the connection was lost while much was written over it")
        return doing.result()
    finally:
        connection.remove_termination_listener(gone)
        for each in (doing, watching):
            each.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


async def copy_out(connection: Connection, query: str, *args: Any) -> bytearray:
    """The whole binary COPY answer of a query, header and trailer included."""
    body = bytearray()

    async def take(chunk: bytes) -> None:
        body.extend(chunk)

    await connection.copy_from_query(query, *args, output=take, format="binary")
    return body


async def commit_once(
    attempt: Callable[[], Awaitable[T]],
    *,
    already_done: Callable[[], Awaitable[T | None]],
    on_retry: Callable[[str], None] | None = None,
    tries_max: int | None = None,
) -> T:
    """Run a transaction until its effect is there exactly once.

    `attempt` does the whole transaction, including its own reconnecting, and writes a unique key.
    When its outcome is unknown (the connection broke) it is tried again; `already_done` is asked
    first, and also when the unique key refuses: its answer, if not None, is the result.

    Raises:
        StorageError: `tries_max` tries failed.
    """
    tries = 0
    while True:
        try:
            if tries:
                result = await already_done()
                if result is not None:
                    return result
            return await attempt()
        except asyncpg.UniqueViolationError:
            result = await already_done()
            if result is None:
                raise
            return result
        except TRANSIENT as error:
            tries += 1
            if on_retry is not None:
                on_retry(f"{type(error).__name__}: {error}")
            if tries_max is not None and tries >= tries_max:
                raise StorageError(f"no commit after {tries} tries: {error}") from error
            await asyncio.sleep(backoff_s(tries))
