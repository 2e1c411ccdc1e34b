"""Commits rows to the hot database: from memory while it keeps up, from the spool when it does not.

Invariants:
- One transaction holds the rows of every table, one `ingest_batch` row and the spool cursor. The
  cursor is moved first, only from the place where it was read: a commit whose answer was lost, or a
  second writer, can never store the same rows twice.
- Only rows whose records are durable in the spool are committed.
- Batch ids ascend without a hole; `max_received_ns` never goes back (the readers' watermark).
- The database may be away for any time: frames go on into the spool and the rows are made again
  from there. Late, never lost.
Does not do: making rows (intake), deciding what a row says (continuity), starting servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from gatherer.intake import Decoding, LiveIntake, RecordStream, RowBatch, apply_ready, begin
from gatherer.packing import PackedBatch, pack
from marketdata.errors import StorageError
from runtime.clock import Clock
from runtime.partitions import Partitions
from runtime.postgres import TRANSIENT, backoff_s, connect, copy_in, migrate
from runtime.spool import START, Position, SpoolWriter, start_of

CATCH_UP_ROWS: Final = 20_000
"""Rows of one commit while rows come from the spool."""
CATCH_UP_READ_BYTES: Final = 256 * 1024
"""Taken from the spool between two turns of the event loop: about 10 ms of decoding."""
JOIN_BYTES: Final = 4 * 1024 * 1024
"""When no more than this is left to read, new rows are held in memory again."""

_MOVE_CURSOR: Final = (
    "UPDATE spool_cursor SET segment = $2, offset_bytes = $3, batch_id = $4"
    " WHERE spool_uid = $1 AND segment = $5 AND offset_bytes = $6 AND batch_id = $7"
)
_BATCH: Final = (
    "INSERT INTO ingest_batch (batch_id, batch_uid, n_deltas, n_rows, min_received_ns,"
    " max_received_ns) VALUES ($1, $2, $3, $4, $5, $6)"
)


class CursorMovedError(StorageError):
    """The cursor is not where this writer left it: an earlier commit went through after all, or
    somebody else writes. It is read again."""

    reason = "cursor_moved"


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
    ) -> None:
        self.status = SinkStatus()
        self._settings = settings
        self._spool = spool
        self._intake = intake
        self._clock = clock
        self._on_commit = on_commit
        self._on_retry = on_retry
        self._partitions = Partitions()
        self._draining = False
        self._committed_at_ns = 0
        self._connection: asyncpg.Connection[Any] | None = None

    async def run(self) -> None:
        """Commit until `drain` is over. Comes back from every trouble of the database."""
        attempt = 0
        while True:
            try:
                await self._connect()
                attempt = 0
                await self._catch_up()
                await self._live()
            except (StorageError, *TRANSIENT, asyncpg.PostgresError) as error:
                self._down(error)
            else:
                self.status.state, self.status.reason = "stopped", ""
                return
            finally:
                await self._disconnect()
            await asyncio.sleep(backoff_s(attempt))
            attempt += 1

    def drain(self) -> None:
        """Ask `run` to commit everything that is in the spool and return."""
        self._draining = True

    def lag_bytes(self) -> int:
        """Bytes of the spool not yet committed; a lower bound if segments lie between."""
        return self._distance(self.status.cursor)

    # --- connection and cursor

    async def _connect(self) -> None:
        connection = await connect(
            self._settings.dsn, on_retry=self._note_retry, synchronous_commit="on"
        )
        self._connection = connection
        await migrate(connection, "gatherer_hot")
        self._partitions.forget()
        await self._read_cursor(connection)

    async def _read_cursor(self, connection: asyncpg.Connection[Any]) -> None:
        uid = self._spool.meta.spool_uid
        await connection.execute(
            "INSERT INTO spool_cursor (spool_uid, segment, offset_bytes, batch_id)"
            " SELECT $1, 0, 0, coalesce(max(batch_id), 0) FROM ingest_batch"
            " ON CONFLICT (spool_uid) DO NOTHING",
            uid,
        )
        row = await connection.fetchrow(
            "SELECT segment, offset_bytes, batch_id,"
            " coalesce((SELECT max(max_received_ns) FROM ingest_batch), 0) AS told_ns"
            " FROM spool_cursor WHERE spool_uid = $1",
            uid,
        )
        assert row is not None, "the cursor was just made"
        cursor = Position(row["segment"], row["offset_bytes"])
        if cursor > self._spool.end:
            raise StorageError(
                f"the database has rows up to {cursor} of a spool that ends at {self._spool.end}",
                hint="the spool was set back to an older copy; begin a new spool directory",
            )
        self.status.cursor, self.status.batch_id = cursor, row["batch_id"]
        self.status.watermark_ns = row["told_ns"]
        self._intake.claim(row["told_ns"])

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

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
            await self._spool.wait_durable(batch.end)
            await self._commit(batch)
            self.status.state, self.status.reason = "live", ""
            if self._draining and self.status.cursor == self._spool.end:
                return

    # --- the transaction

    async def _commit(self, batch: RowBatch) -> None:
        """One transaction: cursor, rows, batch row. The cursor goes first: it is the lock."""
        connection, status = self._connection, self.status
        assert connection is not None, "a commit needs a connection"
        packed = pack(batch, status.batch_id + 1, self._spool.meta.spool_uid)
        began_ns = self._clock.monotonic_ns()
        if packed.n_deltas:
            await self._partitions.ensure(
                connection, "orderbook_delta", packed.min_exchange_us, packed.max_exchange_us
            )
        async with connection.transaction():
            moved = await connection.execute(
                _MOVE_CURSOR,
                self._spool.meta.spool_uid,
                *batch.end,
                packed.batch_id,
                *batch.start,
                status.batch_id,
            )
            if moved != "UPDATE 1":
                raise CursorMovedError(f"the cursor is not at {batch.start} any more")
            for layout, body in packed.tables:
                await copy_in(connection, layout, body)
            await connection.execute(
                _BATCH,
                packed.batch_id,
                packed.batch_uid,
                packed.n_deltas,
                packed.n_rows,
                packed.min_received_ns,
                packed.max_received_ns,
            )
        status.cursor, status.batch_id = batch.end, packed.batch_id
        status.batches += 1
        status.rows += packed.n_rows
        status.committed_ns = self._clock.wall_ns()
        status.watermark_ns = packed.max_received_ns
        status.left_to_default = self._partitions.left_to_default
        self._committed_at_ns = self._clock.monotonic_ns()
        status.commit_seconds = (self._committed_at_ns - began_ns) / 1e9
        if self._on_commit is not None:
            self._on_commit(packed, status.commit_seconds)


@dataclass(slots=True)
class _Read:
    """How far the spool was read, and the stamp of the first record not yet committed."""

    end: Position
    first_ns: int = 0
