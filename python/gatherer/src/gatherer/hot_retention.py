"""What may leave the hot database: what is old, merged, exported, and read back from the lake.

Purpose: every few minutes remove batches from the oldest on: those received before the time that is
kept, up to the batch that every reader has told to be verified in the lake. Rows of order books go
by whole partitions, the rest by batch.
Invariants:
- INV-93 nothing of a batch goes that a reader did not tell to be in the lake and read back; without
  a reader nothing goes.
- The newest batch row stays: batch ids go on from it.
- In the spool's first week nothing is removed; what would be is told (KT_HOT_RETAIN=auto).
Does not do: the spool (keeping), deciding what is verified (dedup.archive).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from marketdata.errors import StorageError
from runtime import logs
from runtime.clock import Clock
from runtime.config import GathererSettings
from runtime.partitions import TIMESCALE_HOME
from runtime.postgres import TRANSIENT, Connection, connect

LOOK_S: Final = 300
STEP_BATCHES: Final = 1_000
STEPS_MAX: Final = 50
"""Of one look: a long backlog goes in several."""
LOCK_WAIT: Final = "2s"
"""To drop a partition the table is locked for a moment; who waits longer tries at the next look."""
HOUR_NS: Final = 3_600_000_000_000
WEEK_NS: Final = 7 * 24 * HOUR_NS
BY_BATCH: Final = ("trade", "ticker", "orderbook_snapshot", "orderbook_delta_default")

log = logs.get("hot_retention")

_OLDEST: Final = """
SELECT batch_id, max_received_ns FROM ingest_batch
WHERE batch_id > $1 AND batch_id <= $2 ORDER BY batch_id LIMIT $3
"""
_PARTITIONS: Final = """
SELECT c.oid::regclass::text AS name, pg_get_expr(c.relpartbound, c.oid) AS bound
FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = 'orderbook_delta'::regclass
    AND pg_get_expr(c.relpartbound, c.oid) <> 'DEFAULT'
ORDER BY c.relname
"""
_CHUNKS: Final = """
SELECT format('%I.%I', chunk_schema, chunk_name) AS name, range_end
FROM timescaledb_information.chunks
WHERE hypertable_schema = current_schema() AND hypertable_name = 'orderbook_delta'
ORDER BY range_end
"""


@dataclass(slots=True)
class HotRemoval:
    """What the last look found. `batch`: everything up to it may go, or would."""

    batch: int = 0
    batches: int = 0
    partitions: int = 0
    dry: bool = False
    reason: str = ""  # what holds removal back; "" where nothing does


class HotKeeper:
    """See the module's text."""

    def __init__(self, settings: GathererSettings, created_ns: int, clock: Clock) -> None:
        self._settings = settings
        self._created_ns = created_ns
        self._clock = clock
        self.last = HotRemoval()
        self.removed_batches = 0
        self.removed_partitions = 0

    async def run(self) -> None:
        """Look now and then until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._settings.hot_retain_hours or self._settings.hot_retain == "off":
                continue
            try:
                await self.once()
            except (StorageError, asyncpg.PostgresError, *TRANSIENT) as error:
                self.last = HotRemoval(reason=f"{type(error).__name__}: {error}")
                log.warning("hot rows were not removed", error=str(error))

    @property
    def dry(self) -> bool:
        """Whether nothing is removed yet."""
        young = self._clock.wall_ns() - self._created_ns < WEEK_NS
        return self._settings.hot_retain == "dry" or (self._settings.hot_retain == "auto" and young)

    async def once(self) -> HotRemoval:
        """One look."""
        dsn = self._settings.timescale_dsn
        connection = await connect(dsn, tries_max=1, lock_timeout=LOCK_WAIT)
        try:
            self.last = await self._look(connection)
        finally:
            connection.terminate()
        found = self.last
        if found.batches and not found.dry:
            self.removed_batches += found.batches
            self.removed_partitions += found.partitions
        if found.batches:
            told = "hot rows would be removed" if found.dry else "hot rows removed"
            log.info(told, up_to_batch=found.batch, batches=found.batches, parts=found.partitions)
        return found

    async def _look(self, connection: Connection) -> HotRemoval:
        archived = await connection.fetchval("SELECT min(archived_batch) FROM reader_cursor")
        if not archived:
            return HotRemoval(reason="no deduplicator has told yet what is verified in the lake")
        limit_ns = self._clock.wall_ns() - self._settings.hot_retain_hours * HOUR_NS
        found = HotRemoval(dry=self.dry)
        for _ in range(STEPS_MAX):
            rows = await connection.fetch(_OLDEST, found.batch, archived, STEP_BATCHES)
            old = [r["batch_id"] for r in rows if r["max_received_ns"] < limit_ns]
            if not old:
                break
            found.batch, found.batches = old[-1], found.batches + len(old)
            if not found.dry:
                await self._remove(connection, found.batch)
            if len(old) < len(rows):
                break
        if found.batch:
            found.partitions = await self._partitions(connection, found.batch, dry=found.dry)
        return found

    async def _remove(self, connection: Connection, batch: int) -> None:
        """Everything of the batches up to this one that has no partition of its own."""
        async with connection.transaction():
            for table in BY_BATCH:
                if await connection.fetchval("SELECT to_regclass($1::text) IS NOT NULL", table):
                    await connection.execute(f"DELETE FROM {table} WHERE batch_id <= $1", batch)  # noqa: S608
            await connection.execute(
                "DELETE FROM ingest_batch WHERE batch_id <= $1"
                " AND batch_id < (SELECT max(batch_id) FROM ingest_batch)",
                batch,
            )

    async def _partitions(self, connection: Connection, batch: int, *, dry: bool) -> int:
        """Drop the oldest partitions that hold no row of a later batch; how many."""
        native = await connection.fetchval(
            "SELECT relkind = 'p' FROM pg_class WHERE oid = 'orderbook_delta'::regclass"
        )
        dropped = 0
        for part in await connection.fetch(_PARTITIONS if native else _CHUNKS):
            if await connection.fetchval(
                f"SELECT EXISTS (SELECT FROM {part['name']} WHERE batch_id > $1)",  # noqa: S608
                batch,
            ):
                break
            if not dry:
                await _drop(connection, part, native=native)
            dropped += 1
        return dropped


async def _drop(connection: Connection, part: asyncpg.Record, *, native: bool) -> None:
    if native:
        await connection.execute(f"DROP TABLE {part['name']}")
        return
    older: Any = part["range_end"]
    home = await connection.fetchval(TIMESCALE_HOME)
    # The cast is needed: the function takes any type, and the server would not guess ours.
    await connection.execute(
        f"SELECT {home}.drop_chunks('orderbook_delta', older_than => $1::timestamptz)",
        older,
    )
