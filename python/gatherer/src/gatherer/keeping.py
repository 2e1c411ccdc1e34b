"""Keeping the spool's house: what may be compressed, what may go, and what holds it back.

Purpose: every half minute compress sealed segments that the sink has passed, and remove the oldest
ones that are beyond the size or the age that is kept, never before a cursor.
Invariants:
- A segment is removed only when the sink has committed all of it and, unless the settings say that
  nobody reads this database, every reader has told that it stored what came out of it.
- A reader that never told, or a database that does not answer, holds everything: a disk that fills
  is told in time, data that was removed too early is not.
Does not do: files (runtime.spool_files), the reader's side (dedup.readers).
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final

import asyncpg

from gatherer.sink import SinkStatus
from marketdata.errors import StorageError, TapeError
from runtime import logs
from runtime.clock import Clock
from runtime.config import GathererSettings
from runtime.postgres import TRANSIENT, connect
from runtime.spool_files import Position, compress_sealed, retain
from runtime.spool_index import index_compressed

HOUSEKEEPING_S: Final = 30
MARKS_MAX: Final = 100_000
"""Segments remembered with their batches; at 64 MiB each more than any disk holds."""
HOUR_S: Final = 3600

log = logs.get("keeping")


class SegmentMarks:
    """Which batches came out of which segments, as far as was seen by looking now and then."""

    def __init__(self) -> None:
        self._marks: deque[tuple[int, int]] = deque(maxlen=MARKS_MAX)  # segment, batch

    def note(self, segment: int, batch_id: int) -> None:
        """The sink has just committed `batch_id` and stands in `segment`: later batches hold
        nothing of an earlier segment."""
        if not self._marks or segment > self._marks[-1][0]:
            self._marks.append((segment, batch_id))

    def passed(self, batch_id: int) -> int:
        """Everything before this segment came in batches up to `batch_id`; 0: nothing is known."""
        found = 0
        for segment, noted in self._marks:
            if noted > batch_id:
                break
            found = segment
        return found


@dataclass(frozen=True, slots=True)
class Readers:
    """What readers have told: the lowest batch, or why nothing may be concluded."""

    batch_id: int = 0
    reason: str = ""


async def readers_of(dsn: str) -> Readers:
    """The cursors of all readers of the hot database."""
    try:
        connection = await connect(dsn, tries_max=1)
    except StorageError as error:
        return Readers(reason=str(error))
    try:
        lowest = await connection.fetchval("SELECT min(batch_id) FROM reader_cursor")
    except (asyncpg.PostgresError, *TRANSIENT) as error:
        return Readers(reason=f"{type(error).__name__}: {error}")
    finally:
        connection.terminate()
    if lowest is None:
        return Readers(reason="no deduplicator has told yet how far it is")
    return Readers(int(lowest))


class Keeper:
    """See the module's text. `reason`: what holds removal back; empty where nothing does."""

    def __init__(self, settings: GathererSettings, sink: SinkStatus, clock: Clock) -> None:
        self._settings = settings
        self._sink = sink
        self._clock = clock
        self._marks = SegmentMarks()
        self.reason = ""
        self.removed = 0
        self.compressed = 0

    async def run(self) -> None:
        """Keep house until cancelled."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            try:
                await self.once()
            except (OSError, TapeError) as error:
                log.warning("spool housekeeping failed", error=str(error))

    async def once(self) -> None:
        """One look."""
        settings, cursor = self._settings, self._sink.cursor
        self._marks.note(cursor.segment, self._sink.batch_id)
        directory = settings.spool_dir
        done = await asyncio.to_thread(compress_sealed, directory, cursor)
        self.compressed += len(done)
        await asyncio.to_thread(index_compressed, directory, cursor)
        before = min(cursor, await self._read_until())
        oldest_ns = self._clock.wall_ns() - settings.spool_retain_hours * HOUR_S * 1_000_000_000
        removed = await asyncio.to_thread(
            retain, directory, before, settings.spool_retain_bytes, oldest_ns
        )
        self.removed += len(removed)
        if removed:
            log.info("segments removed", first=removed[0], count=len(removed))

    async def _read_until(self) -> Position:
        """Before which position every reader has stored what it read."""
        if not self._settings.spool_await_reader:
            self.reason = ""
            return self._sink.cursor
        readers = await readers_of(self._settings.timescale_dsn)
        self.reason = readers.reason
        return Position(self._marks.passed(readers.batch_id) if not readers.reason else 0, 0)
