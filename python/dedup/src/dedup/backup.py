"""A dump of production in the bucket, and back: `python -m dedup.backup` (nightly), `tape restore`.

Purpose: pg_dump of one moment, streamed into parts under `backups/rds/NAME/`, read back and checked
before it counts.
What holds:
- A backup exists when its manifest does, and the manifest is written last: a dump that broke off
  is no backup, whatever parts it left.
- Every part is read back from the bucket, compared with its SHA-256, and the whole is taken apart
  by pg_restore. With `KT_VERIFY_DSN` (an empty database) it is restored there and the rows of every
  table are counted against those of the moment of the dump.
- Memory is one part, disk is not used. Rights used: put, get, list, as the deduplicator's role has
  them; nothing is ever deleted (the bucket's lifecycle moves old ones to Glacier).
- No password is on a command line.
Does not do: write-ahead archiving (RDS keeps 7 days), the lake (it is its own copy).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
import urllib.parse
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from kalshilake.store import Store, open_store
from marketdata.errors import ConfigError, LakeError, StorageError
from runtime import logs
from runtime.clock import Clock
from runtime.config import BackupSettings, load
from runtime.postgres import Connection, connect, plainly

PART_BYTES: Final = 32 * 1024 * 1024
PARTS_MAX: Final = 100_000  # 3 TiB
READ_BYTES: Final = 1 << 20
ERROR_CHARS_MAX: Final = 2_000
CONNECT_TRIES: Final = 10
FORMAT: Final = 1
NS_PER_S: Final = 1_000_000_000
MANIFEST: Final = "manifest.json"

log = logs.get("backup")


@dataclass(frozen=True, slots=True)
class Part:
    """One object of a dump."""

    key: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Backup:
    """What a manifest says. `rows`: of each table at the moment of the dump, empty if not counted;
    `windows`: how many windows of the merge it holds."""

    name: str
    server_version: str
    windows: int
    rows: Mapping[str, int]
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole dump."""
        return sum(part.bytes for part in self.parts)

    def json(self) -> bytes:
        """The manifest."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()


def read_manifest(store: Store, prefix: str, name: str) -> Backup:
    """The backup of that name. Raises LakeError if there is none or its manifest is of no use."""
    key = f"{prefix}{name}/{MANIFEST}"
    try:
        form = json.loads(store.get(key))
        if form["format"] != FORMAT:
            raise LakeError(f"{key} has format {form['format']}, this version reads {FORMAT}")
        parts = tuple(Part(p["key"], p["bytes"], p["sha256"]) for p in form["parts"])
        return Backup(form["name"], form["server_version"], form["windows"], form["rows"], parts)
    except (ValueError, KeyError, TypeError) as error:
        raise LakeError(f"{key} is no manifest: {type(error).__name__}: {error}") from error


def names(store: Store, prefix: str) -> list[str]:
    """The backups that exist, oldest first."""
    ends = f"/{MANIFEST}"
    return [o.key[len(prefix) : -len(ends)] for o in store.list(prefix) if o.key.endswith(ends)]


# --- the PostgreSQL programs


def _without_password(dsn: str) -> tuple[str, dict[str, str]]:
    """The connection string without its password, and the environment that carries it."""
    url = urllib.parse.urlsplit(dsn)
    if url.password is None:
        return dsn, {}
    place = f"{url.username}@" if url.username else ""
    bare = url._replace(netloc=place + url.netloc.rpartition("@")[2])
    return bare.geturl(), {"PGPASSWORD": urllib.parse.unquote(url.password)}


@asynccontextmanager
async def _program(
    program: Path, *arguments: str, environ: Mapping[str, str] | None = None, reads: bool = False
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A running program, killed when left early; StorageError with its words when it fails."""
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            stdin=asyncio.subprocess.PIPE if reads else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL if reads else asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=READ_BYTES,
            env={**os.environ, **(environ or {}), "LC_ALL": "C"},
        )
    except OSError as error:
        raise StorageError(
            f"{program} cannot be run: {error.strerror}", hint="set KT_PG_BIN"
        ) from error
    assert process.stderr is not None
    words = asyncio.create_task(process.stderr.read())
    try:
        # One that ends before it has read everything says why in its own words.
        with suppress(BrokenPipeError, ConnectionResetError):
            yield process
        if process.stdin is not None:
            process.stdin.close()
        code = await process.wait()
        told = (await words).decode("utf-8", "replace").strip()
        if code != 0:
            raise StorageError(f"{program.name} failed ({code}): {told[-ERROR_CHARS_MAX:]}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await asyncio.wait([words])


async def _read_part(stream: asyncio.StreamReader) -> bytes:
    """The next PART_BYTES, fewer at the end."""
    pieces: list[bytes] = []
    size = 0
    while size < PART_BYTES and (piece := await stream.read(min(READ_BYTES, PART_BYTES - size))):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


# --- there


async def back_up(settings: BackupSettings, store: Store, clock: Clock) -> Backup:
    """Dump production as it is now, store it, read it back; only then it has a manifest.

    Raises:
        StorageError: production, the bucket or a program refused.
        LakeError: what was read back is not what was written.
    """
    name = datetime.fromtimestamp(clock.wall_ns() // NS_PER_S, UTC).strftime("%Y-%m-%dT%H%M%SZ")
    folder = f"{settings.backup_prefix}{name}/"
    connection = await connect(settings.production_dsn, tries_max=CONNECT_TRIES)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            snapshot = await connection.fetchval("SELECT pg_export_snapshot()")
            version = await connection.fetchval("SHOW server_version")
            windows = await _windows(connection)
            rows = await count_rows(connection) if settings.verify_dsn else {}
            parts = await _dump(settings, str(snapshot), store, folder)
    finally:
        connection.terminate()
    backup = Backup(name, str(version), windows, rows, parts)
    await verify(backup, store, settings.pg_bin)
    if settings.verify_dsn:
        await restore(backup, store, settings.pg_bin, settings.verify_dsn)
    if not store.put_if_absent(folder + MANIFEST, backup.json()):
        raise LakeError(f"a backup {name} is there already")
    return backup


async def _windows(connection: Connection) -> int:
    if await connection.fetchval("SELECT to_regclass('merge_state')") is None:
        raise StorageError(
            "production has no tape: there is nothing to back up", hint="check KT_PRODUCTION_DSN"
        )
    return int(await connection.fetchval("SELECT coalesce(sum(windows), 0) FROM merge_state"))


async def count_rows(connection: Connection) -> dict[str, int]:
    """Rows of every table, a partitioned one as one."""
    tables = await connection.fetch(
        "SELECT c.oid::regclass::text AS name FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname = 'public'"
        " ORDER BY 1"
    )
    return {
        row["name"]: int(await connection.fetchval(f"SELECT count(*) FROM {row['name']}"))  # noqa: S608
        for row in tables
    }


async def _dump(
    settings: BackupSettings, snapshot: str, store: Store, folder: str
) -> tuple[Part, ...]:
    dsn, environ = _without_password(settings.production_dsn)
    flags = ("--format=custom", "--no-owner", "--no-acl")
    arguments = (*flags, f"--snapshot={snapshot}", f"--dbname={dsn}")
    parts: list[Part] = []
    async with _program(settings.pg_bin / "pg_dump", *arguments, environ=environ) as process:
        assert process.stdout is not None
        while body := await _read_part(process.stdout):
            if len(parts) >= PARTS_MAX:
                raise StorageError(f"the dump has over {PARTS_MAX} parts of {PART_BYTES} bytes")
            key = f"{folder}{len(parts):05d}.part"
            if not await asyncio.to_thread(store.put_if_absent, key, body):
                raise LakeError(f"{key} is there already: another backup began in this second")
            parts.append(Part(key, len(body), hashlib.sha256(body).hexdigest()))
            log.info("part stored", part=len(parts), bytes=sum(p.bytes for p in parts))
    return tuple(parts)


# --- and back


async def _feed(backup: Backup, store: Store, into: asyncio.StreamWriter) -> None:
    """Every part, checked, to a program."""
    for part in backup.parts:
        body = await asyncio.to_thread(store.get, part.key)
        if len(body) != part.bytes or hashlib.sha256(body).hexdigest() != part.sha256:
            raise LakeError(f"{part.key} is not what was stored: {len(body)} bytes, another hash")
        into.write(body)
        await into.drain()


async def verify(backup: Backup, store: Store, pg_bin: Path) -> None:
    """Read the whole backup back and take it apart. Raises LakeError or StorageError."""
    if not backup.parts:
        raise LakeError(f"backup {backup.name} has no parts")
    async with _program(pg_bin / "pg_restore", "--file=/dev/null", reads=True) as process:
        assert process.stdin is not None
        await _feed(backup, store, process.stdin)


async def restore(backup: Backup, store: Store, pg_bin: Path, dsn: str) -> dict[str, int]:
    """Restore into an empty database; the rows of every table.

    Raises:
        StorageError: the database is not empty, or refused; or rows are missing afterwards.
        LakeError: a part is not what was stored.
    """
    connection = await connect(dsn, tries_max=CONNECT_TRIES)
    try:
        held = await count_rows(connection)
        if held:
            raise StorageError(
                f"{plainly(dsn)} is not empty: it has {', '.join(sorted(held)[:5])}",
                hint="a backup is restored into a database that was just made",
            )
        bare, environ = _without_password(dsn)
        flags = ("--exit-on-error", "--single-transaction", "--no-owner", "--no-acl")
        program = pg_bin / "pg_restore"
        async with _program(
            program, *flags, f"--dbname={bare}", environ=environ, reads=True
        ) as process:
            assert process.stdin is not None
            await _feed(backup, store, process.stdin)
        found = await count_rows(connection)
        windows = await _windows(connection)
    finally:
        connection.terminate()
    wrong = {t: (n, found.get(t)) for t, n in backup.rows.items() if found.get(t) != n}
    if wrong or windows != backup.windows:
        raise StorageError(
            f"backup {backup.name} restored {windows} of {backup.windows} windows;"
            f" tables that differ: {wrong}"
        )
    return found


async def _restore(settings: BackupSettings, name: str | None) -> None:
    """On a host: from its bucket into its production database, which has to be empty."""
    store = open_store(settings.lake_uri)
    backup = await asyncio.to_thread(found_backup, store, settings.backup_prefix, name)
    rows = await restore(backup, store, settings.pg_bin, settings.production_dsn)
    log.info(
        "backup restored", name=backup.name, windows=backup.windows, rows=sum(rows.values())
    )  # fmt: skip


async def _main(settings: BackupSettings) -> None:
    backup = await back_up(settings, open_store(settings.lake_uri), Clock(settings.clock_offset_ms))
    checked = "restored and counted" if settings.verify_dsn else "read back"
    log.info(
        "backup stored", name=backup.name, parts=len(backup.parts), bytes=backup.size,
        windows=backup.windows, checked=checked,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0, 1 if there is no backup or nothing was restored, 2 for wrong settings."""
    parser = argparse.ArgumentParser(prog="kalshi-backup", description="a dump of production")
    parser.add_argument(
        "--restore", nargs="?", const="", metavar="NAME",
        help="bring this backup, or the newest, into production, which has to be empty",
    )  # fmt: skip
    asked = parser.parse_args(arguments)
    try:
        settings = load(BackupSettings)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    logs.setup("backup", settings.log_level)
    log.info("starting", settings=settings.described())
    try:
        if asked.restore is None:
            asyncio.run(_main(settings))
        else:
            asyncio.run(_restore(settings, asked.restore or None))
    except (StorageError, LakeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def found_backup(store: Store, prefix: str, name: str | None) -> Backup:
    """The backup of that name, the newest without one. Raises LakeError with what there is."""
    there = names(store, prefix)
    if name is None and there:
        return read_manifest(store, prefix, there[-1])
    if name is None or name not in there:
        what = f"no backup {name}" if name else "no backup"
        listed = f"; there are: {', '.join(there[-10:])}" if there else ""
        raise LakeError(f"{what} in {store.location} under {prefix}{listed}")
    return read_manifest(store, prefix, name)


def facts(backup: Backup) -> dict[str, Any]:
    """What a person or a program wants to know of a backup."""
    return {
        "name": backup.name, "bytes": backup.size, "parts": len(backup.parts),
        "windows": backup.windows, "server_version": backup.server_version,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
