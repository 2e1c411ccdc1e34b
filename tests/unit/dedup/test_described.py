"""The markets of an hour and their events, from real databases."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dedup.described import described_at
from dedup.publication import HOUR_US
from marketdata.errors import StorageError
from runtime.embedded import EmbeddedPostgres, free_port
from runtime.postgres import Connection, connect
from tests.databases import fresh_database

HOUR = 485_000 * HOUR_US
KNOWN_NS = (HOUR + HOUR_US) * 1_000


@pytest.fixture
async def tape(production: str) -> AsyncIterator[Connection]:
    """Production that first saw A-1 and A-2 in the hour, and B-1 in the next one."""
    conn = await connect(production)
    await conn.executemany(
        "INSERT INTO market (market_id, ticker, first_us) VALUES ($1, $2, $3)",
        [(1, "A-2", HOUR + 5), (2, "A-1", HOUR + 9), (3, "C-1", HOUR + 2),
         (4, "B-1", HOUR + HOUR_US)],
    )  # fmt: skip
    yield conn
    await conn.close()


async def gatherer(server: EmbeddedPostgres, seen_ns: int, **events: dict[str, Any]) -> str:
    """A second database that knows A-1, A-2 and B-1, and these events."""
    dsn = await fresh_database(server, "gatherer_meta")
    conn = await connect(dsn)
    await conn.executemany(
        "INSERT INTO market_history VALUES ($1, $2, '', 'active', $3)",
        [(t, seen_ns, json.dumps({"event_ticker": t[0], "series_ticker": "S"}))
         for t in ("A-1", "A-2", "B-1")],
    )  # fmt: skip
    await conn.executemany(
        "INSERT INTO event_history VALUES ($1, $2, '', $3)",
        [(name, seen_ns, json.dumps(body)) for name, body in events.items()],
    )
    await conn.close()
    return dsn


async def test_an_event_is_there_once_with_the_first_of_its_markets(
    tape: Connection, postgres_server: EmbeddedPostgres
) -> None:
    """A market that nobody described has no event, and is there all the same."""
    dsn = await gatherer(postgres_server, 1, A={"title": "Rain"}, B={"title": "Snow"})
    found = await described_at(tape, [dsn], HOUR, KNOWN_NS)
    assert found.markets["market_ticker"].to_pylist() == ["A-1", "A-2", "C-1"]
    (event,) = found.events.to_pylist()
    assert (event["event_ticker"], event["title"], event["series_ticker"]) == ("A", "Rain", "S")
    assert found.events["first_seen"].cast("int64").to_pylist() == [HOUR + 5]
    later = await described_at(tape, [dsn], HOUR + HOUR_US, KNOWN_NS)
    assert later.events["title"].to_pylist() == ["Snow"]


async def test_the_newest_description_known_by_then_counts_whoever_is_asked_first(
    tape: Connection, postgres_server: EmbeddedPostgres
) -> None:
    old = await gatherer(postgres_server, 1, A={"title": "Rain"})
    new = await gatherer(postgres_server, 2, A={"title": "Rain in May"})
    late = await gatherer(postgres_server, KNOWN_NS + 1, A={"title": "Rain, settled"})
    for dsns in ([old, new, late], [late, new, old]):
        found = await described_at(tape, dsns, HOUR, KNOWN_NS)
        assert found.events["title"].to_pylist() == ["Rain in May"]


async def test_an_event_that_nobody_described_is_named(
    tape: Connection, postgres_server: EmbeddedPostgres
) -> None:
    dsn = await gatherer(postgres_server, 1)
    (event,) = (await described_at(tape, [dsn], HOUR, KNOWN_NS)).events.to_pylist()
    assert (event["event_ticker"], event["series_ticker"], event["body"]) == ("A", "S", None)


async def test_an_hour_without_new_markets_asks_nobody(tape: Connection) -> None:
    found = await described_at(tape, ["postgresql://nobody"], HOUR - HOUR_US, KNOWN_NS)
    assert (found.markets.num_rows, found.events.num_rows) == (0, 0)


async def test_a_database_that_is_away_is_an_error(
    tape: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a table today and another tomorrow would be two answers to one question."""
    monkeypatch.setattr("dedup.described.META_TRIES_MAX", 1)
    with pytest.raises(StorageError):
        await described_at(
            tape, [f"postgresql://postgres@127.0.0.1:{free_port()}/postgres"], HOUR, KNOWN_NS
        )
