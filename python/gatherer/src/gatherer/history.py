"""The second database: what the exchange says of markets, events and series, with all history.

Purpose: one row for each distinct content, with the time it was first seen here.
Invariants:
- A row is written when the content differs from the newest one, prices and volumes left out; the
  statement itself compares, so that forgetting what was written costs nothing but the comparison.
- Rows of a name are written in the order in which they were seen, none left out; a database that is
  away delays them, it never stops the recording.
Does not do: asking the exchange (discovery, lifecycle), reading rows back.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import asyncpg

from marketdata import rest_bodies
from marketdata.errors import StorageError
from runtime.postgres import TRANSIENT, Connection, backoff_s, connect, migrate, or_lost

PENDING_ROWS_MAX: Final = 500_000
"""Rows waiting for the database; past it a round's rows are left to the next one."""
WRITE_ROWS: Final = 2_000
"""Of one transaction: what is written leaves memory."""
KINDS: Final = ("market", "event", "series")

VOLATILE: Final = frozenset(
    {
        "yes_bid", "yes_ask", "no_bid", "no_ask", "last_price", "previous_yes_bid",
        "previous_yes_ask", "previous_price", "volume", "volume_24h", "open_interest", "liquidity",
        "yes_bid_dollars", "yes_ask_dollars", "no_bid_dollars", "no_ask_dollars",
        "last_price_dollars", "previous_yes_bid_dollars", "previous_yes_ask_dollars",
        "previous_price_dollars", "volume_fp", "volume_24h_fp", "open_interest_fp",
        "liquidity_dollars", "yes_bid_size_fp", "yes_ask_size_fp", "markets", "dollar_volume",
        "dollar_open_interest",
    }
)  # fmt: skip
"""Fields that change with every trade: not part of what a market is."""

# Written only where the newest row says something else.
_INSERT: Final = {
    "market": (
        "INSERT INTO market_history (ticker, valid_from_ns, content_hash, status, body)"
        " SELECT $1::text, $2::bigint, $3::bytea, $4::text, $5::jsonb"
        " WHERE $3 IS DISTINCT FROM (SELECT content_hash FROM market_history"
        " WHERE ticker = $1 ORDER BY valid_from_ns DESC LIMIT 1) ON CONFLICT DO NOTHING"
    ),
    "event": (
        "INSERT INTO event_history (event_ticker, valid_from_ns, content_hash, body)"
        " SELECT $1::text, $2::bigint, $3::bytea, $4::jsonb"
        " WHERE $3 IS DISTINCT FROM (SELECT content_hash FROM event_history"
        " WHERE event_ticker = $1 ORDER BY valid_from_ns DESC LIMIT 1) ON CONFLICT DO NOTHING"
    ),
    "series": (
        "INSERT INTO series_history (series_ticker, valid_from_ns, content_hash, body)"
        " SELECT $1::text, $2::bigint, $3::bytea, $4::jsonb"
        " WHERE $3 IS DISTINCT FROM (SELECT content_hash FROM series_history"
        " WHERE series_ticker = $1 ORDER BY valid_from_ns DESC LIMIT 1) ON CONFLICT DO NOTHING"
    ),
}
# What may still change: settled markets are left in the database.
_NEWEST: Final = {
    "market": "SELECT ticker, content_hash FROM (SELECT DISTINCT ON (ticker) ticker, content_hash,"
    " status FROM market_history ORDER BY ticker, valid_from_ns DESC) newest"
    " WHERE status <> 'finalized'",
    "event": "SELECT DISTINCT ON (event_ticker) event_ticker, content_hash FROM event_history"
    " ORDER BY event_ticker, valid_from_ns DESC",
    "series": "SELECT DISTINCT ON (series_ticker) series_ticker, content_hash FROM series_history"
    " ORDER BY series_ticker, valid_from_ns DESC",
}


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One distinct content of a market, event or series."""

    kind: str
    name: str
    seen_ns: int
    content_hash: bytes
    status: str
    body: str


def history_row(
    kind: str, name: str, status: str, body: dict[str, Any], seen_ns: int
) -> HistoryRow:
    """The row of a REST body without its volatile fields."""
    kept = {key: value for key, value in body.items() if key not in VOLATILE}
    text = rest_bodies.canonical_json(kept)
    return HistoryRow(kind, name, seen_ns, hashlib.sha256(text).digest(), status, text.decode())


class History:
    """Writes what is new, remembers what is there. Patient."""

    def __init__(self, dsn: str, *, on_state: Callable[[str], None] | None = None) -> None:
        self._dsn = dsn
        self._on_state = on_state
        self._newest: dict[str, dict[str, bytes]] = {kind: {} for kind in KINDS}
        self._pending: dict[tuple[str, str], list[HistoryRow]] = {}  # in order of sight
        self.pending = 0  # rows not yet in the database
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self.rows_written = 0
        self.rows_left_out = 0

    def offer(self, row: HistoryRow) -> None:
        """Have a row written if its content differs from the one before."""
        key = (row.kind, row.name)
        waiting = self._pending.get(key)
        before = waiting[-1].content_hash if waiting else self._newest[row.kind].get(row.name)
        if before == row.content_hash:
            return
        if self.pending >= PENDING_ROWS_MAX:
            self.rows_left_out += 1  # the next round offers it again
            return
        self._pending.setdefault(key, []).append(row)
        self.pending += 1
        self._wake.set()

    def forget(self, kind: str, name: str) -> None:
        """It will hardly change any more: not worth its memory."""
        self._newest[kind].pop(name, None)

    async def run(self) -> None:
        """Write pending rows until `stop`. A database that refuses is told and tried again: it must
        never end the recording."""
        attempt = 0
        while not self._stopping.is_set():
            try:
                await self._write_on()
            except (StorageError, asyncpg.PostgresError, *TRANSIENT) as error:
                self._note(f"{type(error).__name__}: {error}")
            else:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s(attempt)):
                    await self._stopping.wait()
            attempt += 1

    async def _write_on(self) -> None:
        """One connection, as long as it lasts or until `stop`."""
        connection = await connect(self._dsn, on_retry=self._note)
        try:
            await migrate(connection, "gatherer_meta")
            await self._remember(connection)
            self._note("")
            while not self._stopping.is_set():
                await self._write(connection)
                if not self._stopping.is_set():  # a stop may have come while it wrote
                    await self._wake.wait()
            while self._pending:
                await self._write(connection)
        finally:
            connection.terminate()

    async def stop(self) -> None:
        """Have `run` write what is pending and return; not if the database is away."""
        self._stopping.set()
        self._wake.set()

    async def _remember(self, connection: Connection) -> None:
        for kind, query in _NEWEST.items():
            for name, content_hash in await connection.fetch(query):
                self._newest[kind][name] = content_hash

    async def _write(self, connection: Connection) -> None:
        waiting_rows = (row for waiting in self._pending.values() for row in waiting)
        rows = list(islice(waiting_rows, WRITE_ROWS))
        async with connection.transaction():
            for kind, insert in _INSERT.items():
                values = [_values(row) for row in rows if row.kind == kind]
                if values:
                    await or_lost(connection, connection.executemany(insert, values))
        for row in rows:
            self._newest[row.kind][row.name] = row.content_hash
            waiting = self._pending[(row.kind, row.name)]
            del waiting[0]  # others may have come behind it meanwhile
            if not waiting:
                del self._pending[(row.kind, row.name)]
        self.pending -= len(rows)
        if not self._pending:
            self._wake.clear()
        self.rows_written += len(rows)

    def _note(self, told: str) -> None:
        if self._on_state is not None:
            self._on_state(told)


def _values(row: HistoryRow) -> tuple[Any, ...]:
    status = [row.status] if row.kind == "market" else []
    return (row.name, row.seen_ns, row.content_hash, *status, row.body)
