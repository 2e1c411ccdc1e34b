"""One real PostgreSQL for the unit tests that need one, a fresh database for each test."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from runtime.embedded import EmbeddedPostgres

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres()
    try:
        server.start_blocking()
        yield server
    finally:
        server.close_blocking()


@pytest.fixture
async def dsn(cluster: EmbeddedPostgres) -> str:
    """Connection string of a fresh, empty database."""
    name = f"unit{next(_numbers)}"
    connection = await asyncpg.connect(cluster.dsn())
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
    return cluster.dsn(name)


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a fresh, empty database."""
    opened = await asyncpg.connect(dsn)
    try:
        yield opened
    finally:
        await opened.close()
