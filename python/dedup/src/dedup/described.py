"""The markets of an hour and their events, as tables of the lake.

Purpose: which markets first appeared in an hour (production), and what the gatherers learned of
them and of their events (their second databases).

What holds: an event is there in each hour in which one of its markets first appeared, as it was
known then; in the lake the newest row of a market or an event counts.

Does not do: choosing among descriptions (metadata), writing objects (export).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import pyarrow as pa

from dedup import metadata
from dedup.publication import HOUR_US
from kalshilake.tables import records_table
from marketdata.errors import StorageError
from runtime.postgres import TRANSIENT, Connection, connect

META_TRIES_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class DescribedHour:
    """Tables `markets` and `events` of an hour."""

    markets: pa.Table
    events: pa.Table


async def described_at(
    conn: Connection, meta_dsns: Sequence[str], hour_us: int, known_ns: int
) -> DescribedHour:
    """The markets that first appeared in this hour and their events, as known at `known_ns`.

    Raises:
        StorageError: a second database did not answer.
    """
    found = await conn.fetch(
        "SELECT ticker, first_us FROM market WHERE first_us >= $1 AND first_us < $2"
        " ORDER BY ticker",
        hour_us,
        hour_us + HOUR_US,
    )
    rows: list[metadata.Described] = []
    event_rows: list[metadata.Described] = []
    for dsn in meta_dsns if found else ():
        mine, theirs = await _asked(dsn, [r["ticker"] for r in found])
        rows += mine
        event_rows += theirs
    described = metadata.choose(rows, known_ns)
    events = metadata.choose(event_rows, known_ns)
    markets = [
        metadata.market_record(r["ticker"], r["first_us"], described.get(r["ticker"]), events)
        for r in found
    ]
    return DescribedHour(
        records_table("markets", markets), records_table("events", _events(markets, events))
    )


async def _asked(
    dsn: str, tickers: list[str]
) -> tuple[list[metadata.Described], list[metadata.Described]]:
    """What one gatherer knows of these markets and of their events."""
    meta = await connect(dsn, tries_max=META_TRIES_MAX)
    try:
        mine = await metadata.read_markets(meta, tickers)
        wanted = sorted({e for d in mine if (e := metadata.event_of(d)) is not None})
        return mine, await metadata.read_events(meta, wanted)
    except (*TRANSIENT, asyncpg.PostgresError) as error:
        raise StorageError(f"market metadata cannot be read: {error}") from error
    finally:
        meta.terminate()


def _events(
    markets: Sequence[dict[str, Any]], events: dict[str, metadata.Described]
) -> list[dict[str, Any]]:
    """A record for each event of these markets, also of one that nobody described."""
    first: dict[str, dict[str, Any]] = {}
    for market in markets:
        name = market.get("event_ticker")
        if name is None:
            continue
        held = first.get(name)
        if held is None or market["first_seen"] < held["first_seen"]:
            first[name] = market
    return [
        metadata.event_record(name, market["first_seen"], market["series_ticker"], events.get(name))
        for name, market in sorted(first.items())
    ]
