"""Every earlier version of every schema comes to the newest one with its data, whoever migrates.

A database is brought to version N, a few rows are put into every table of it, and then the program
of today migrates it. What is asked: the tables are those of a fresh database, to the last column,
index and function, and every value that was there is there. The same with three processes at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path

import asyncpg
import pytest

from runtime import postgres
from runtime.embedded import EmbeddedPostgres
from runtime.postgres import Connection, connect, migrate, migrations
from tests.databases import fresh_database

ROWS = 3
FIRST_S = 1_750_000_000
# What a migration takes away on purpose: the value says nothing that the column beside does not.
REMOVED = {("merge_state", "only_row")}
EARLIER = [
    pytest.param(folder, version, id=f"{folder}-{version}")
    for folder in ("gatherer_hot", "gatherer_meta", "production")
    for version in range(1, len(migrations(folder)))
]
Contents = dict[str, tuple[list[str], Counter[str]]]
"""By table: its columns, and its rows as text with their number."""

_COLUMNS = """
SELECT c.relname::text AS table_name, a.attname::text AS name,
    format_type(a.atttypid, a.atttypmod) AS kind
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    AND c.relname <> 'schema_version'
ORDER BY c.relname, a.attname
"""
# Column order is left out: a column that was added later stands at the end.
_SHAPE = """
SELECT format('%s %s %s null=%s default=%s', c.relname, a.attname,
        format_type(a.atttypid, a.atttypmod), NOT a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v')
UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT format('%s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
UNION ALL SELECT format('%s %s', relname, relkind) FROM pg_class
    WHERE relnamespace = 'public'::regnamespace
UNION ALL SELECT pg_get_functiondef(p.oid) FROM pg_proc p
    WHERE p.pronamespace = 'public'::regnamespace AND p.prokind = 'f'
    AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.objid = p.oid AND e.deptype = 'e')
UNION ALL SELECT format('version %s %s', version, sha256) FROM schema_version
"""


async def columns(connection: Connection) -> dict[str, dict[str, str]]:
    """Of every table: its columns and their types."""
    found: dict[str, dict[str, str]] = {}
    for row in await connection.fetch(_COLUMNS):
        found.setdefault(row["table_name"], {})[row["name"]] = row["kind"]
    return found


def value(kind: str, number: int) -> str:
    """A value of a type, another one for each number, as SQL."""
    if kind.endswith("[]"):
        return f"ARRAY[{value(kind[:-2], number)}]::{kind}"
    if kind == "timestamp with time zone":
        return f"to_timestamp({FIRST_S + number * 90_000})"  # more than a day apart
    return {
        "uuid": f"lpad('{number}', 32, '0')::uuid",
        "bytea": f"'\\x{number:04x}'::bytea",
        "text": f"'text {number}'",
        "jsonb": f"'{{\"number\": {number}}}'::jsonb",
        "boolean": "true",
        "xid8": f"'{number}'::xid8",
    }.get(kind, str(number))


async def fill(connection: Connection) -> None:
    """A few rows in every table; one in those that take only one."""
    for table, kinds in (await columns(connection)).items():
        for number in range(1, 2 if "only_row" in kinds else ROWS + 1):
            values = ", ".join(value(kind, number) for kind in kinds.values())
            await connection.execute(f"INSERT INTO {table} ({', '.join(kinds)}) VALUES ({values})")


async def contents(connection: Connection, of: Contents | None = None) -> Contents:
    """Every table's rows, in the columns of `of` where that is given."""
    found: Contents = {}
    wanted = {t: list(kinds) for t, kinds in (await columns(connection)).items()}
    if of is not None:
        wanted = {t: [c for c in cols if (t, c) not in REMOVED] for t, (cols, _) in of.items()}
    for table, names in wanted.items():
        rows = await connection.fetch(
            f"SELECT row_to_json(x)::text FROM (SELECT {', '.join(names)} FROM {table}) x"
        )
        found[table] = names, Counter(r[0] for r in rows)
    return found


def without_removed(held: Contents) -> Contents:
    """What must be there afterwards."""
    kept: Contents = {}
    for table, (names, rows) in held.items():
        drop = {c for t, c in REMOVED if t == table}
        lines = Counter[str]()
        for text, count in rows.items():
            body = {k: v for k, v in json.loads(text).items() if k not in drop}
            lines[json.dumps(body, sort_keys=True)] += count
        kept[table] = [n for n in names if n not in drop], lines
    return kept


async def shape(connection: Connection) -> list[str]:
    """Everything that makes the schema, as sorted lines."""
    return sorted(r[0] for r in await connection.fetch(_SHAPE))


_fresh: dict[str, list[str]] = {}


async def fresh_shape(server: EmbeddedPostgres, folder: str) -> list[str]:
    """What the program of today makes out of nothing; made once for each folder."""
    if folder not in _fresh:
        connection = await connect(await fresh_database(server, folder))
        _fresh[folder] = await shape(connection)
        await connection.close()
    return _fresh[folder]


async def at_version(
    server: EmbeddedPostgres, folder: str, version: int, patch: pytest.MonkeyPatch
) -> str:
    """A database of that version, as the program of that time made it."""
    old = migrations(folder)[:version]
    with patch.context() as patched:
        patched.setattr(postgres, "migrations", lambda _: old)
        dsn = await fresh_database(server, folder)
    connection = await connect(dsn)
    assert await connection.fetchval("SELECT max(version) FROM schema_version") == version
    await fill(connection)
    await connection.close()
    return dsn


@pytest.mark.parametrize(("folder", "version"), EARLIER)
async def test_each_earlier_version_comes_up_with_its_data(
    postgres_server: EmbeddedPostgres, folder: str, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = await at_version(postgres_server, folder, version, monkeypatch)
    connection = await connect(dsn)
    try:
        held = await contents(connection)
        assert all(rows for _, rows in held.values())
        newest = len(migrations(folder))
        assert await migrate(connection, folder) == list(range(version + 1, newest + 1))
        assert without_removed(await contents(connection, held)) == without_removed(held)
        assert await shape(connection) == await fresh_shape(postgres_server, folder)
        assert await migrate(connection, folder) == []
    finally:
        await connection.close()


async def test_a_migration_that_loses_a_row_or_differs_is_seen(
    postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: it can fail, in contents and in shape."""
    dsn = await at_version(postgres_server, "production", 1, monkeypatch)
    connection = await connect(dsn)
    try:
        held = await contents(connection)
        await migrate(connection, "production")
        await connection.execute("DELETE FROM gap WHERE epoch = 1")
        assert without_removed(await contents(connection, held)) != without_removed(held)
        await connection.execute("INSERT INTO gap SELECT * FROM gap LIMIT 0")
        await connection.execute("DROP INDEX mark_time")
        assert await shape(connection) != await fresh_shape(postgres_server, "production")
    finally:
        await connection.close()


_MIGRATE = """
import asyncio, sys
from runtime.postgres import connect, migrate
async def main():
    connection = await connect(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    print(await migrate(connection, sys.argv[2]), flush=True)
    await connection.close()
asyncio.run(main())
"""


@pytest.mark.parametrize("folder", ["gatherer_hot", "production"])
async def test_three_processes_migrate_at_once_and_each_file_is_applied_once(
    postgres_server: EmbeddedPostgres, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They all wait for a lock that we hold, so that none can come late; then one does the work."""
    dsn = await at_version(postgres_server, folder, 1, monkeypatch)
    held_by_us = await asyncpg.connect(dsn)
    held = await contents(held_by_us)
    await held_by_us.execute("SELECT pg_advisory_lock($1)", postgres.MIGRATION_LOCK)
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _MIGRATE, dsn, folder),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=Path.cwd(),
        )
        for _ in range(3)
    ]
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        async with asyncio.timeout(60):
            while await held_by_us.fetchval(waiting) < 3:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)
        await held_by_us.execute("SELECT pg_advisory_unlock($1)", postgres.MIGRATION_LOCK)
        said = [await process.communicate() for process in processes]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
    assert [error.decode() for _, error in said] == ["", "", ""]
    done = sorted(out.decode().splitlines()[-1] for out, _ in said)
    wanted = list(range(2, len(migrations(folder)) + 1))
    assert done == sorted([str(wanted), "[]", "[]"])
    assert without_removed(await contents(held_by_us, held)) == without_removed(held)
    await held_by_us.close()
