"""Fixtures of the deduplicator's tests: fresh databases on one real server."""

from __future__ import annotations

import pytest

from runtime.embedded import EmbeddedPostgres
from tests.databases import fresh_database, postgres_server

__all__ = ["postgres_server"]


@pytest.fixture
async def production(postgres_server: EmbeddedPostgres) -> str:
    """DSN of a fresh production database."""
    return await fresh_database(postgres_server, "production")
