"""Rows of evidence for the second database: patient, bounded, removed when they are old.

Purpose: what REST and the clock told is kept beside the recording; its database may be away.
Invariants: rows are written in the order of `put`; while ROWS_MAX wait, `room` does not return, so
that whoever makes them waits; nothing of the recording does.
Does not do: what a row says (rest_audit, clock_offset), market history (discovery).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import asyncpg

from marketdata.errors import StorageError
from runtime.clock import Clock
from runtime.postgres import TRANSIENT, Connection, backoff_s, connect, migrate

ROWS_MAX: Final = 10_000
KEPT_NS: Final = 14 * 24 * 3600 * 1_000_000_000
REMOVE_S: Final = 3600
PAUSE_S: Final = 1.0

TROUBLE: Final[tuple[type[BaseException], ...]] = (
    StorageError,
    asyncpg.PostgresError,
    *TRANSIENT,
)
"""Of a database: told and tried again."""

_REMOVED: Final = (
    "DELETE FROM rest_audit WHERE sent_ns < $1",
    "DELETE FROM clock_offsets WHERE at_ns < $1",
)


class SideRows:
    """One writer. `on_state` hears why the database is not written; "" when it is."""

    def __init__(
        self, dsn: str, clock: Clock, *, on_state: Callable[[str], None] = lambda _: None
    ) -> None:
        self._dsn = dsn
        self._clock = clock
        self._on_state = on_state
        self._rows: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._remove_due_ns = 0
        self.written = 0

    @property
    def pending(self) -> int:
        """Rows that wait."""
        return len(self._rows)

    @property
    def is_full(self) -> bool:
        """Whether whoever makes rows has to wait."""
        return len(self._rows) >= ROWS_MAX

    def put(self, insert: str, *values: Any) -> None:
        """Have one row written by this statement."""
        self._rows.append((insert, values))

    async def room(self) -> None:
        """Return when there is room for more rows."""
        while self.is_full:  # noqa: ASYNC110 - seldom, and nobody is in a hurry
            await asyncio.sleep(PAUSE_S)

    async def run(self) -> None:
        """Write until cancelled; every trouble of the database is told and tried again."""
        attempt = 0
        while True:
            try:
                connection = await connect(self._dsn, on_retry=self._on_state)
                try:
                    await migrate(connection, "gatherer_meta")
                    attempt = 0
                    await self._write_on(connection)
                finally:
                    connection.terminate()
            except TROUBLE as error:
                self._on_state(f"{type(error).__name__}: {error}")
            await asyncio.sleep(backoff_s(attempt))
            attempt += 1

    async def _write_on(self, connection: Connection) -> None:
        while True:
            self._on_state("")
            while self._rows:
                insert, values = self._rows[0]
                await connection.execute(insert, *values)
                self._rows.popleft()
                self.written += 1
            if self._clock.monotonic_ns() >= self._remove_due_ns:
                for statement in _REMOVED:
                    await connection.execute(statement, self._clock.wall_ns() - KEPT_NS)
                self._remove_due_ns = self._clock.monotonic_ns() + REMOVE_S * 1_000_000_000
            await asyncio.sleep(PAUSE_S)
