"""runtime.compression: on where the server offers it, and a said reason everywhere else.

The edition that compresses is in no package of Debian: what it does is not tested here, only that
it is asked for what the plan says. The Apache edition's refusals are tested where it is.
"""

from __future__ import annotations

import asyncpg
import pytest

from runtime import compression, postgres
from runtime.compression import PLANS, compress
from runtime.partitions import TIMESCALE_HOME


async def test_every_plan_is_of_a_row_table_and_sorts_by_its_unique_key(
    connection: asyncpg.Connection,
) -> None:
    """A unique key outside the order would make every late row unpack whole chunks."""
    for folder, plans in PLANS.items():
        text = "".join(m.sql for m in postgres.migrations(folder))
        partitioned = [line.split()[2] for line in text.splitlines() if "PARTITION OF" in line]
        assert {name.removesuffix("_default") for name in partitioned} == set(plans)
    await postgres.migrate(connection, "production")
    for table, plan in PLANS["production"].items():
        columns = await connection.fetch(
            "SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid"
            " AND attnum = ANY (indkey) WHERE indrelid = $1::text::regclass AND indisunique",
            table,
        )
        assert {c[0] for c in columns} == set(plan.orderby.split(", "))


async def test_without_the_edition_nothing_changes_and_the_reason_is_said(
    connection: asyncpg.Connection,
) -> None:
    await postgres.migrate(connection, "gatherer_hot")
    hypertables = await postgres.backend(connection) == "hypertable"
    said = await compress(connection, "gatherer_hot")
    assert said == (
        "the apache edition of timescaledb has no compression"
        if hypertables
        else "this database has no timescaledb"
    )
    assert "nothing to compress" in await compress(connection, "gatherer_meta")


@pytest.mark.parametrize("folder", ["gatherer_hot", "production"])
async def test_a_refusal_of_the_server_is_a_reason_and_no_error(
    connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """An edition that says it can and cannot: the real server's own refusal, 0A000."""
    if await postgres.backend(connection) != "hypertable":
        pytest.skip("this server has no timescaledb")
    monkeypatch.setattr(compression, "COMPLETE", "apache")
    await postgres.migrate(connection, folder)
    said = await compress(connection, folder)
    assert said.startswith("orderbook_delta: ")
    assert "not supported under the current" in said
    assert await connection.fetchval("SELECT count(*) FROM orderbook_delta") == 0


class _Complete:
    """A server of the full edition, as far as it is asked: it notes what it is told to do."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def fetchval(self, asked: str) -> str:
        return "public" if asked == TIMESCALE_HOME else compression.COMPLETE

    async def fetch(self, _: str, tables: list[str]) -> list[tuple[str]]:
        return [(table,) for table in tables]

    async def execute(self, sql: str, *values: str) -> None:
        self.told.append(" | ".join((sql, *values)))

    def transaction(self) -> _Complete:
        return self

    async def __aenter__(self) -> None:
        self.told.append("begin")

    async def __aexit__(self, *_: object) -> None:
        self.told.append("end")


async def test_the_full_edition_is_asked_for_settings_and_policy_of_each_table() -> None:
    server = _Complete()
    assert await compress(server, "gatherer_hot") == ""
    assert server.told == [
        "begin",
        (
            "ALTER TABLE orderbook_delta SET (timescaledb.compress,"
            " timescaledb.compress_orderby = 'batch_id, received_ns')"
        ),
        (
            "SELECT public.add_compression_policy($1::text::regclass,"
            " compress_after => INTERVAL '6 hours', if_not_exists => true) | orderbook_delta"
        ),
        "end",
    ]
