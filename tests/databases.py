"""Real PostgreSQL for tests: one embedded server a session, a fresh database a test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import asyncpg
import pytest

from runtime.embedded import EmbeddedPostgres
from runtime.postgres import Connection, connect, migrate


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """One server for all tests of a session. It never loses power here: no waiting for the disk."""
    server = EmbeddedPostgres(settings={"fsync": "off", "full_page_writes": "off"})
    server.start_blocking()
    yield server
    server.close_blocking()


async def empty_database(server: EmbeddedPostgres, begin: str = "empty") -> str:
    """DSN of a new database with nothing in it, whose name begins so."""
    name = f"{begin}_{uuid.uuid4().hex[:10]}"
    conn = await asyncpg.connect(server.dsn())
    await conn.execute(f"CREATE DATABASE {name}")
    await conn.close()
    return server.dsn(name)


async def fresh_database(server: EmbeddedPostgres, folder: str) -> str:
    """DSN of a new database with the migrations of one folder."""
    dsn = await empty_database(server, folder)
    migrated: Connection = await connect(dsn)
    await migrate(migrated, folder)
    await migrated.close()
    return dsn


async def table_contents(dsn: str, *tables: str) -> dict[str, list[str]]:
    """Every row of the tables as text, sorted: two databases with equal contents are equal here."""
    conn = await asyncpg.connect(dsn)
    try:
        return {
            t: sorted(r[0] for r in await conn.fetch(f"SELECT x::text FROM {t} AS x"))
            for t in tables
        }
    finally:
        await conn.close()
