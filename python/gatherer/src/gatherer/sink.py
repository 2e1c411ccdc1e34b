"""Commits rows to the hot database: from memory while it keeps up, from the spool when it does not.

Invariants:
- Only rows whose records are durable in the spool are committed.
- Batch ids ascend without a hole; `max_received_ns` never goes back (the readers' watermark).
- The database may be away for any time: frames go on into the spool and the rows are made again
  from there. Late, never lost. One that does not answer at all is told, and given up in the end.
- A row that the database refuses is kept aside and told (refusal); what came after it goes on.
- The transaction runs in a thread with an event loop of its own: a flood of frames must not delay
  it by a turn of the main loop at each of its steps. What costs the processor is done before.
- Nobody waits for the group commit: a batch that is due asks the spool to sync it now.
Does not do: making rows (intake), deciding what a row says (continuity), SQL (hot_database).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg

from gatherer.hot_database import HotDatabase
from gatherer.intake import Decoding, LiveIntake, RecordStream, RowBatch, apply_ready, begin
from gatherer.packing import PackedBatch
from gatherer.refusal import REASON, RefusedRow
from marketdata.errors import StorageError
from runtime.clock import Clock
from runtime.loop_thread import LoopThread
from runtime.postgres import TRANSIENT, backoff_s
from runtime.spool import START, Position, SpoolWriter, start_of
from runtime.spool_files import sealed_size

CATCH_UP_ROWS: Final = 20_000
"""Rows of one commit while rows come from the spool."""
CATCH_UP_READ_BYTES: Final = 256 * 1024
"""Taken from the spool between two turns of the event loop: about 10 ms of decoding."""
JOIN_BYTES: Final = 4 * 1024 * 1024
"""When no more than this is left to read, new rows are held in memory again."""
SILENT_S: Final = 3.0
"""A database that has not answered for so long is told to be away."""
GIVE_UP_S: Final = 120.0
"""After so long without an answer the connection is given up: its other end may be gone without a
word. Doubled each time in a row, so that a slow database gets its commit through."""
GIVE_UP_MAX_S: Final = 3_600.0
REFUSED_TOLD_NS: Final = 150_000_000_000
"""How long a refused row stays in the words about the database: two looks of who looks once a
minute."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SinkSettings:
    """Limits and intervals of the sink."""

    dsn: str
    flush_ms: int = 250
    flush_rows: int = 5_000
    heartbeat_ms: int = 1_000


@dataclass(slots=True)
class SinkStatus:
    """What the sink says about itself."""

    state: str = "starting"  # starting | live | catching_up | database_down | stopped
    reason: str = ""
    cursor: Position = START
    batch_id: int = 0
    batches: int = 0
    rows: int = 0
    retries: int = 0
    committed_ns: int = 0  # wall clock of the last commit
    watermark_ns: int = 0  # everything received up to here is committed
    commit_seconds: float = 0.0
    left_to_default: int = 0
    refused: int = 0  # rows kept aside since the start of this process
    refusal: str = ""  # the last of them in words, for a while


class Sink:
    """The one writer of a gatherer's hot database."""

    def __init__(
        self,
        settings: SinkSettings,
        spool: SpoolWriter,
        intake: LiveIntake,
        clock: Clock,
        *,
        on_commit: Callable[[PackedBatch, float], None] | None = None,
        on_retry: Callable[[str], None] | None = None,
        on_refused: Callable[[list[RefusedRow]], None] | None = None,
    ) -> None:
        self.status = SinkStatus()
        self._settings = settings
        self._spool = spool
        self._intake = intake
        self._clock = clock
        self._on_commit = on_commit
        self._on_retry = on_retry
        self._on_refused = on_refused
        self._refused_at_ns = 0
        self._give_up_s = GIVE_UP_S
        self._draining = False
        self._committed_at_ns = 0
        self._sealed: dict[int, int] = {}  # sizes of segments that are not committed whole
        self._thread = LoopThread("sink")
        self._database = HotDatabase(settings.dsn, spool.meta.spool_uid, self._note_retry)

    async def run(self) -> None:
        """Commit until `drain` is over; once. Comes back from every trouble of the database."""
        self._thread.start()
        try:
            await self._run()
        finally:
            await self._thread.stop()

    async def _run(self) -> None:
        attempt = 0
        while True:
            try:
                await self._open()
                attempt = 0
                await self._catch_up()
                await self._live()
            except (StorageError, *TRANSIENT, asyncpg.PostgresError) as error:
                self._down(error)
            else:
                self.status.state, self.status.reason = "stopped", ""
                return
            finally:
                await self._thread.run(self._database.close())
            await asyncio.sleep(backoff_s(attempt))
            attempt += 1

    def drain(self) -> None:
        """Ask `run` to commit everything that is in the spool and return."""
        self._draining = True

    def lag_bytes(self) -> int:
        """Bytes of the spool not yet committed, all of them: an alert compares them with 1e9, which
        is many segments. Before the database was reached the whole spool counts."""
        cursor, end = self.status.cursor, self._spool.end
        self._sealed = {n: size for n, size in self._sealed.items() if n >= cursor.segment}
        for number in range(cursor.segment, end.segment):
            if number not in self._sealed:
                self._sealed[number] = sealed_size(Path(self._spool.directory), number)
        return max(0, sum(self._sealed.values()) + end.offset - cursor.offset)

    # --- where the database stands

    async def _open(self) -> None:
        """Connect and read where the database stands."""
        found = await self._thread.run(self._database.open())
        if found.cursor > self._spool.end:
            raise StorageError(
                f"the database has rows up to {found.cursor} of a spool that ends at"
                f" {self._spool.end}",
                hint="the spool was set back to an older copy; begin a new spool directory",
            )
        self.status.cursor, self.status.batch_id = found.cursor, found.batch_id
        self.status.watermark_ns = found.told_ns
        self._intake.claim(found.told_ns)

    def _down(self, error: Exception) -> None:
        told = f"{type(error).__name__}: {error}"
        self.status.state, self.status.reason = "database_down", told
        self._note_retry(told)

    def _note_retry(self, told: str) -> None:
        self.status.retries += 1
        self.status.reason = told
        if self.status.state != "database_down":
            self.status.state = "database_down"
        if self._on_retry is not None:
            self._on_retry(told)

    # --- from the spool

    async def _catch_up(self) -> None:
        """Commit what the spool has beyond the cursor, until the rows held in memory join on."""
        cursor = self.status.cursor
        if self._intake.holds_from == cursor:
            return
        self.status.state, self.status.reason = "catching_up", ""
        self._intake.let_go()
        reader = self._spool.reader(start_of(cursor))
        try:
            stream = RecordStream(reader)
            decoding = begin(stream, self._spool.meta.id_base)
            while not apply_ready(stream, decoding, cursor):
                if not stream.fill(CATCH_UP_READ_BYTES):
                    break
                await asyncio.sleep(0)
            decoding.forget()
            await self._follow(stream, decoding)
        finally:
            reader.close()

    async def _follow(self, stream: RecordStream, decoding: Decoding) -> None:
        """Read on from the cursor and commit, until the position where memory takes over."""
        rows_of, intake = decoding.continuity, self._intake
        read = _Read(self.status.cursor)
        join: Position | None = None
        while True:
            if join is not None and intake.holds_from is None:
                join = None  # too many rows came meanwhile: tried again when nearer
            if join is None and self._distance(read.end) <= JOIN_BYTES:
                join = intake.hold()
            if join is not None and read.end >= join:
                break
            if not stream.fill(CATCH_UP_READ_BYTES):
                await self._spool.wait_beyond(read.end)
                continue
            while stream.n_ready and (join is None or stream.peek().at < join):
                record = stream.pop()
                decoding.apply(record)
                read.end = record.end
                read.first_ns = read.first_ns or rows_of.last_received_ns
            if rows_of.rows.n_rows() >= CATCH_UP_ROWS:
                await self._commit(self._batch_of(read, decoding))
            await asyncio.sleep(0)
        if read.end > self.status.cursor:
            await self._commit(self._batch_of(read, decoding))

    def _batch_of(self, read: _Read, decoding: Decoding) -> RowBatch:
        """The rows read since the cursor. The reader gives out only what is durable."""
        decoding.continuity.take_effects()
        decoding.continuity.take_fresh_markets()
        last_ns = max(decoding.continuity.last_received_ns, self.status.watermark_ns)
        first_ns, read.first_ns = read.first_ns or last_ns, 0
        return RowBatch(decoding.continuity.take(), self.status.cursor, read.end, first_ns, last_ns)

    def _distance(self, position: Position) -> int:
        """Bytes between a position and the end of the spool; many if segments lie between."""
        end = self._spool.end
        if position.segment == end.segment:
            return end.offset - position.offset
        return end.offset if position.segment + 1 == end.segment else JOIN_BYTES + 1

    # --- from memory

    async def _live(self) -> None:
        """Commit what is held in memory, at the settled size or interval; heartbeats when quiet."""
        settings, intake = self._settings, self._intake
        while True:
            await intake.wait_rows(0 if self._draining else settings.flush_ms / 1000)
            idle_ns = self._clock.monotonic_ns() - self._committed_at_ns
            is_due = idle_ns >= settings.heartbeat_ms * 1_000_000 or self._draining
            if not (is_due or intake.held_rows or intake.holds_from is None):
                continue
            batch = intake.take(self._clock.wall_ns())
            if batch is None:
                await self._catch_up()
                continue
            await self._spool.sync()
            await self._commit(batch)
            self.status.state, self.status.reason = "live", ""
            if self._draining and self.status.cursor == self._spool.end:
                return

    # --- the transaction

    async def _commit(self, batch: RowBatch) -> None:
        status = self.status
        began_ns = self._clock.monotonic_ns()
        ready = self._database.pack(batch, status.batch_id)
        packed = await self._answer(self._database.commit(batch, status.batch_id, ready))
        self._give_up_s = GIVE_UP_S
        status.cursor, status.batch_id = batch.end, packed.batch_id
        status.batches += 1
        status.rows += packed.n_rows
        status.committed_ns = self._clock.wall_ns()
        status.watermark_ns = packed.max_received_ns
        status.left_to_default = self._database.left_to_default
        self._committed_at_ns = self._clock.monotonic_ns()
        status.commit_seconds = (self._committed_at_ns - began_ns) / 1e9
        self._tell_refused(self._database.refused)
        if self._on_commit is not None:
            self._on_commit(packed, status.commit_seconds)

    async def _answer(self, work: Coroutine[Any, Any, T]) -> T:
        """What the database answers. While it is silent that is its state; TimeoutError in the
        end: whether the transaction went through, the cursor tells the next connection."""
        state, reason = self.status.state, self.status.reason
        answer = asyncio.ensure_future(self._thread.run(work))
        waited_s = 0.0
        try:
            while not (await asyncio.wait({answer}, timeout=SILENT_S))[0]:
                waited_s += SILENT_S
                told = f"no answer to a commit for {waited_s:.0f} s"
                self.status.state, self.status.reason = "database_down", told
                if waited_s >= self._give_up_s:
                    self._give_up_s = min(2 * self._give_up_s, GIVE_UP_MAX_S)
                    raise TimeoutError(told)
        finally:
            if not answer.done():
                answer.cancel()
                await asyncio.wait({answer})
        if waited_s:
            self.status.state, self.status.reason = state, reason
        return answer.result()

    def _tell_refused(self, refused: list[RefusedRow]) -> None:
        """Count and say what was kept aside; forget the words when it was long ago."""
        status, now_ns = self.status, self._clock.monotonic_ns()
        if refused:
            self._refused_at_ns = now_ns
            status.refused += len(refused)
            self._intake.counts[f"problem_{REASON}"] += len(refused)
            last = refused[-1]
            status.refusal = (
                f"{status.refused} rows refused and kept in refused_row, the last one of"
                f" {last.table}: {last.reason}"
            )
            if self._on_refused is not None:
                self._on_refused(refused)
        elif status.refusal and now_ns - self._refused_at_ns > REFUSED_TOLD_NS:
            status.refusal = ""


@dataclass(slots=True)
class _Read:
    """How far the spool was read, and the stamp of the first record not yet committed."""

    end: Position
    first_ns: int = 0
