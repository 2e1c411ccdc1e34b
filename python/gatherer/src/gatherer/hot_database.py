"""The hot database as its one writer sees it: the cursor, and one transaction for each batch.

Invariants:
- One transaction holds the rows of every table, one `ingest_batch` row and the spool cursor. The
  cursor is moved first, only from the place where it was read: a commit whose answer was lost, or a
  second writer, can never store the same rows twice.
- A batch that is refused for the content of a row is stored without that row (refusal).
Runs in the event loop of `runtime.loop_thread`, all of it but `pack`: the main loop belongs to the
sockets.
Does not do: deciding what is committed when (sink), making rows (intake), bytes of rows (packing).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from gatherer.intake import RowBatch
from gatherer.packing import PackedBatch, pack
from gatherer.refusal import REFUSALS, UNPACKABLE, RefusedRow, store_isolated
from marketdata.errors import StorageError
from runtime.partitions import Partitions
from runtime.postgres import TRANSIENT, connect, copy_in, migrate
from runtime.spool import Position

_MOVE_CURSOR: Final = (
    "UPDATE spool_cursor SET segment = $2, offset_bytes = $3, batch_id = $4"
    " WHERE spool_uid = $1 AND segment = $5 AND offset_bytes = $6 AND batch_id = $7"
)
_BATCH: Final = (
    "INSERT INTO ingest_batch (batch_id, batch_uid, n_deltas, n_rows, min_received_ns,"
    " max_received_ns) VALUES ($1, $2, $3, $4, $5, $6)"
)


_HIGHEST_ID: Final = """
SELECT greatest((SELECT max(market_id) FROM market), (SELECT max(run_id) FROM control),
    (SELECT max(conn_id) FROM control))
"""


async def highest_id(dsn: str) -> int:
    """The highest id that an earlier spool gave to a row of this database; 0: there is none, or it
    does not answer now. For a spool that is made where another one was lost."""
    try:
        connection = await connect(dsn, tries_max=1)
    except StorageError:
        return 0
    try:
        return int(await connection.fetchval(_HIGHEST_ID) or 0)
    except (asyncpg.PostgresError, *TRANSIENT):
        return 0
    finally:
        connection.terminate()


class CursorMovedError(StorageError):
    """The cursor is not where this writer left it: an earlier commit went through after all, or
    somebody else writes. It is read again."""

    reason = "cursor_moved"


@dataclass(frozen=True, slots=True)
class Standing:
    """What the database has of a spool."""

    cursor: Position
    batch_id: int
    told_ns: int  # the watermark told to its readers


class HotDatabase:
    """One connection to the hot database, and what it knows of one spool."""

    def __init__(self, dsn: str, spool_uid: uuid.UUID, on_retry: Callable[[str], None]) -> None:
        self._dsn = dsn
        self._uid = spool_uid
        self._on_retry = on_retry
        self._partitions = Partitions()
        self._connection: asyncpg.Connection[Any] | None = None
        self.refused: list[RefusedRow] = []
        """Rows of the last commit that no table took."""

    @property
    def left_to_default(self) -> int:
        """Partitions that were not made because the time range was absurd."""
        return self._partitions.left_to_default

    async def open(self) -> Standing:
        """Connect, however long it takes; bring the schema up to date; read the cursor.

        The cursor's batch id follows the batches: of a spool that was lost before this one, a
        commit may have gone through after this one's cursor was made.
        """
        connection = await connect(self._dsn, on_retry=self._on_retry, synchronous_commit="on")
        self._connection = connection
        await migrate(connection, "gatherer_hot")
        self._partitions.forget()
        await connection.execute(
            "INSERT INTO spool_cursor (spool_uid, segment, offset_bytes, batch_id)"
            " SELECT $1, 0, 0, coalesce(max(batch_id), 0) FROM ingest_batch"
            " ON CONFLICT (spool_uid) DO UPDATE"
            " SET batch_id = greatest(spool_cursor.batch_id, excluded.batch_id)",
            self._uid,
        )
        row = await connection.fetchrow(
            "SELECT segment, offset_bytes, batch_id,"
            " coalesce((SELECT max(max_received_ns) FROM ingest_batch), 0) AS told_ns"
            " FROM spool_cursor WHERE spool_uid = $1",
            self._uid,
        )
        assert row is not None, "the cursor was just made"
        cursor = Position(row["segment"], row["offset_bytes"])
        return Standing(cursor, row["batch_id"], row["told_ns"])

    def pack(self, batch: RowBatch, last_batch_id: int) -> PackedBatch | None:
        """The batch as `commit` wants it; None: a row of it has no form of bytes.

        For the main thread. It is a few milliseconds of many short calls that let the interpreter
        go and want it back; beside a busy main thread they took up to 220 ms of waiting.
        """
        try:
            return pack(batch, last_batch_id + 1, self._uid)
        except UNPACKABLE as error:
            self._on_retry(f"{type(error).__name__}: {error}")
            return None

    async def commit(
        self, batch: RowBatch, last_batch_id: int, packed: PackedBatch | None
    ) -> PackedBatch:
        """One transaction: cursor, rows, batch row. The cursor goes first: it is the lock."""
        self.refused = []
        if packed is None:
            return await self._commit_isolated(batch, last_batch_id)
        try:
            await self._ensure_partitions(packed)
            await self._transact(batch, last_batch_id, packed)
        except CursorMovedError:
            raise
        except (*REFUSALS, *UNPACKABLE) as error:
            self._on_retry(f"{type(error).__name__}: {error}")
            packed = await self._commit_isolated(batch, last_batch_id)
        return packed

    async def _ensure_partitions(self, packed: PackedBatch) -> None:
        connection = self._connection
        assert connection is not None, "a commit needs a connection"
        if packed.n_deltas:
            await self._partitions.ensure(
                connection, "orderbook_delta", packed.min_exchange_us, packed.max_exchange_us
            )

    async def _transact(self, batch: RowBatch, last_batch_id: int, packed: PackedBatch) -> None:
        connection = self._connection
        assert connection is not None, "a commit needs a connection"
        async with connection.transaction():
            await self._move_cursor(batch, last_batch_id)
            for layout, body in packed.tables:
                await copy_in(connection, layout, body)
            await self._note_batch(packed)

    async def _commit_isolated(self, batch: RowBatch, last_batch_id: int) -> PackedBatch:
        """The same without the rows that the database refuses."""
        connection = self._connection
        assert connection is not None, "a commit needs a connection"
        async with connection.transaction():
            await self._move_cursor(batch, last_batch_id)
            packed, refused = await store_isolated(connection, batch, last_batch_id + 1, self._uid)
            await self._note_batch(packed)
        self.refused = refused
        return packed

    async def _move_cursor(self, batch: RowBatch, last_batch_id: int) -> None:
        connection = self._connection
        assert connection is not None, "a commit needs a connection"
        moved = await connection.execute(
            _MOVE_CURSOR, self._uid, *batch.end, last_batch_id + 1, *batch.start, last_batch_id
        )
        if moved != "UPDATE 1":
            raise CursorMovedError(f"the cursor is not at {batch.start} any more")

    async def _note_batch(self, packed: PackedBatch) -> None:
        connection = self._connection
        assert connection is not None, "a commit needs a connection"
        try:
            await connection.execute(
                _BATCH,
                packed.batch_id,
                packed.batch_uid,
                packed.n_deltas,
                packed.n_rows,
                packed.min_received_ns,
                packed.max_received_ns,
            )
        except asyncpg.UniqueViolationError as error:  # no row of ours is at fault
            raise CursorMovedError(
                f"batch {packed.batch_id} is there already, from another spool or writer"
            ) from error

    async def close(self) -> None:
        """Let the connection go at once, whatever it is doing."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
