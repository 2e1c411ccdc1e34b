"""Reads one gatherer's hot database: whole committed batches, each exactly once, in a fixed order.

How nothing is lost: a batch row carries the id of the transaction that committed it. In one
REPEATABLE READ transaction `hi = pg_snapshot_xmin(pg_current_snapshot())` is taken; every
transaction below `hi` is decided for good, so the batches with `lo <= xid < hi` are all there
will ever be in that window, and the next window begins at `hi`. A serial id does not have this
property: it is taken at insert and becomes visible at commit (measured with 4 writers: paging by
id lost 1,453 of 6,022 rows, the window lost none).

How the order is fixed: rows come out of a heap in the order of its free pages, not of their
arrival (partitions, free space after vacuum, scans that start in the middle). Delta rows are
therefore put in the order (batch_id, run_id, seq), which is total: a run has one event per seq.

If the cluster was replaced (another system identifier) transaction ids mean nothing any more. A
copy of the former one is read on by batch id, and only what follows without a hole, which the
gatherer's one writer guarantees. One that began empty is another life (dedup.lives).

After a restart the batches that follow may not be there any more. Where the next one is not the
one that follows, the read says so (`Pull.gone`), and ends before the hole or begins behind it.

Does not do: deciding when to read, retrying, merging.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import asyncpg
import numpy as np
import numpy.typing as npt

from dedup.columns import picked
from dedup.lost import Gone
from marketdata.errors import StorageError
from marketdata.rows import (
    BATCH_TICKER,
    BATCH_TRADE,
    DELTA_ROW,
    ControlKind,
    ControlRow,
    DeltaRows,
    GathererBatch,
    SnapshotRow,
)
from runtime import logs, pgcopy
from runtime.postgres import Connection, copy_out, server_identity

# A read takes whole batches until this many rows; one batch is taken whatever its size.
MAX_ROWS_PER_PULL: Final = 50_000
MAX_BATCHES_PER_PULL: Final = 5_000

log = logs.get("pull")

# SQL text is put together from our own names and from integers only (noqa S608 below).

_SNAPSHOT_COLUMNS: Final = (
    "(extract(epoch FROM exchange_ts) * 1000000)::bigint, received_ns, book_hash, running_hash, "
    "market_id, run_id, seq, batch_id, verdict, flags, levels"
)
_CONTROL_COLUMNS: Final = (
    "batch_id, ord, received_ns, kind, conn_id, run_id, sid, seq, market_id, exchange_us, reason, "
    "detail"
)
_U64: Final = (1 << 64) - 1


_TICKER_ORDER: Final = ("batch_id", "received_ns", "market_id", "exchange_us", "payload_key")


@dataclass(frozen=True, slots=True)
class Position:
    """Where the reading of one gatherer stands; everything before it was read.

    `system_identifier` 0 means that nothing was ever read. `by_batch` is set for good once the
    cluster was found replaced by a copy. `received_ns`: the latest receipt that was read; 0: not
    known. `replaced` counts how often the cluster was replaced by an empty one.
    `holes` are batches that are gone, as (first, first after them);
    after a restart they are not `checked` until something is read.
    """

    system_identifier: int = 0
    next_xid: int = 0
    last_batch_id: int = 0
    by_batch: bool = False
    markets_known: bool = False
    checked: bool = True
    received_ns: int = 0
    replaced: int = 0
    holes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Pull:
    """The outcome of one read. `batch` is None when nothing new was committed.

    `backlog` counts batches that were already committed, as far as ids tell, and not yet read.
    `gone`: what is missing before the batch.
    """

    batch: GathererBatch | None
    position: Position
    rows: int
    backlog: int
    gone: Gone | None = None


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The batches of one read, in the order of their transaction ids."""

    ids: tuple[int, ...]
    xid_after: int
    n_deltas: int
    n_rows: int
    max_received_ns: int

    @property
    def first(self) -> int:
        """The smallest batch id."""
        return min(self.ids)

    @property
    def last(self) -> int:
        """The largest batch id."""
        return max(self.ids)

    def condition(self, first: int | str = "$1", last: int | str = "$2") -> str:
        """SQL over the first and the last id that is true for exactly these batches."""
        within = f"batch_id BETWEEN {first} AND {last}"
        if self.last - self.first + 1 == len(self.ids):
            return within
        return f"{within} AND batch_id = ANY('{{{','.join(map(str, self.ids))}}}'::integer[])"


async def resume(
    conn: Connection, system_identifier: int, from_batch: int, received_ns: int = 0
) -> Position:
    """The position from which `from_batch` and everything after it is read (again).

    `system_identifier` is that of the cluster in which `from_batch` was counted, `received_ns` the
    latest receipt among all that was read of it (0: not known).
    """
    before = Position(
        system_identifier, 0, from_batch - 1, checked=from_batch <= 1, received_ns=received_ns
    )
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        here = await server_identity(conn)
        if here != system_identifier:
            return await _moved(conn, here, before) or before
        row = await conn.fetchrow(
            "SELECT (SELECT min(xid::text::numeric) FROM ingest_batch WHERE batch_id >= $1) AS at,"
            " (SELECT max(xid::text::numeric) FROM ingest_batch WHERE batch_id < $1) AS before",
            from_batch,
        )
    assert row is not None
    if row["at"] is not None:
        next_xid = int(row["at"])
    else:
        next_xid = 0 if row["before"] is None else int(row["before"]) + 1
    return replace(before, next_xid=next_xid)


async def pull(
    conn: Connection,
    gatherer: int,
    position: Position,
    *,
    max_rows: int = MAX_ROWS_PER_PULL,
) -> Pull:
    """Read the next committed batches after `position`, at most about `max_rows` rows."""
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        here = await server_identity(conn)
        if position.system_identifier == 0:
            position = replace(position, system_identifier=here)
        elif position.system_identifier != here:
            moved = await _moved(conn, here, position)
            if moved is None:
                return Pull(None, position, 0, 0)
            position = moved
        newest = await conn.fetchval("SELECT coalesce(max(batch_id), 0) FROM ingest_batch")
        if not position.checked and newest > position.last_batch_id:
            holes = await _holes(conn, position.last_batch_id + 1)
            position = replace(position, checked=True, holes=holes)
        chosen = await _choose(conn, position, max_rows)
        if not chosen.ids:
            after = replace(position, next_xid=chosen.xid_after)
            return Pull(None, after, 0, max(0, newest - position.last_batch_id))
        batch = await _read(conn, gatherer, position, chosen)
        gone = None
        if position.holes and chosen.first >= position.holes[0][1]:
            gone = await _gone(conn, *position.holes[0])
            position = replace(position, holes=position.holes[1:])
    rows = len(batch.deltas) + len(batch.snapshots) + len(batch.trades) + len(batch.tickers)
    after = replace(
        position,
        next_xid=chosen.xid_after,
        last_batch_id=max(position.last_batch_id, batch.last_batch_id),
        markets_known=True,
        received_ns=max(position.received_ns, batch.max_received_ns),
    )
    backlog = max(0, newest - after.last_batch_id)
    return Pull(batch, after, rows + len(batch.controls), backlog, gone)


async def _holes(conn: Connection, expected: int) -> tuple[tuple[int, int], ...]:
    """Batches from `expected` on that are not there although later ones are."""
    found = await conn.fetch(
        "SELECT before + 1 AS first, batch_id FROM (SELECT batch_id,"
        " lag(batch_id, 1, $1 - 1) OVER (ORDER BY batch_id) AS before"
        " FROM ingest_batch WHERE batch_id >= $1) AS read WHERE batch_id > before + 1"
        " ORDER BY batch_id",
        expected,
    )
    return tuple((r["first"], r["batch_id"]) for r in found)


async def _gone(conn: Connection, from_batch: int, to_batch: int) -> Gone:
    rows = await conn.fetch(
        "SELECT run_id FROM control WHERE kind = $1 AND batch_id >= $2",
        ControlKind.RUN_START,
        to_batch,
    )
    return Gone(from_batch, to_batch, frozenset(r["run_id"] for r in rows))


async def ended(conn: Connection, position: Position) -> bool:
    """Whether the gatherer said that nothing more comes, and everything up to that was read."""
    last = await conn.fetchrow(
        "SELECT batch_id, kind FROM control WHERE kind = ANY($1::text[])"
        " ORDER BY batch_id DESC, ord DESC LIMIT 1",
        [ControlKind.GATHERER_END, ControlKind.CONN_OPEN],
    )
    if last is None or last["kind"] != ControlKind.GATHERER_END:
        return False
    return bool(last["batch_id"] <= position.last_batch_id)


async def tell(conn: Connection, batch_id: int) -> None:
    """Tell the gatherer that everything up to this batch is stored here: its only use is that the
    gatherer keeps its spool until then, so one that does not know the function is no trouble."""
    await _tell(conn, "SELECT tell_reader_cursor($1)", batch_id)


async def tell_archived(conn: Connection, batch_id: int) -> None:
    """Tell the gatherer that everything up to this batch was read back from the lake: its database
    keeps the rows until then."""
    await _tell(conn, "SELECT tell_reader_archive($1)", batch_id)


async def _tell(conn: Connection, word: str, batch_id: int) -> None:
    try:
        await conn.execute("BEGIN READ WRITE")
        await conn.execute(word, batch_id)
        await conn.execute("COMMIT")
    except (asyncpg.UndefinedFunctionError, asyncpg.InsufficientPrivilegeError) as error:
        await conn.execute("ROLLBACK")
        log.warning("a gatherer takes no word of how far we are", error=str(error))


async def _moved(conn: Connection, here: int, position: Position) -> Position | None:
    """The position in a cluster that replaced the one it was counted in; None: nothing can be said
    as long as nothing is in it.

    A copy goes on by batch id. One whose first batch was received after all that was read began
    empty: it is read from its beginning, and what was not read of the former one is lost. So did
    one that has received nothing yet: the batches of such a gatherer bear the stamp 0.
    """
    newest = await conn.fetchval("SELECT coalesce(max(batch_id), 0) FROM ingest_batch")
    first_ns = await conn.fetchval(
        "SELECT min(max_received_ns) FROM ingest_batch WHERE max_received_ns > 0"
    )
    if not newest:
        return None
    if position.received_ns and (first_ns is None or first_ns > position.received_ns):
        return Position(here, replaced=position.replaced + 1)
    last = position.last_batch_id
    if newest < last:
        raise StorageError(
            f"the gatherer's cluster was replaced (system identifier is now {here}) and ends at "
            f"batch {newest}, before batch {last} that was already read",
            hint="it holds rows from before: restore it to its latest state, or empty it",
        )
    return replace(position, system_identifier=here, next_xid=0, by_batch=True, checked=last < 1)


async def _choose(conn: Connection, position: Position, max_rows: int) -> _Chosen:
    """The batches of the next read: a prefix of the window, in the order of transaction ids."""
    columns = "batch_id, xid::text AS xid, n_deltas, n_rows, max_received_ns"
    hi = int(await conn.fetchval("SELECT pg_snapshot_xmin(pg_current_snapshot())::text"))
    if position.by_batch:
        found = await conn.fetch(
            f"SELECT {columns} FROM ingest_batch WHERE batch_id > $1 ORDER BY batch_id LIMIT $2",  # noqa: S608
            position.last_batch_id,
            MAX_BATCHES_PER_PULL,
        )
        first = position.last_batch_id + 1
        if position.holes and position.holes[0][0] == first:
            first = position.holes[0][1]
        found = [r for i, r in enumerate(found) if r["batch_id"] == first + i]
    else:
        window = "xid >= $1::text::xid8 AND xid < $2::text::xid8 ORDER BY ingest_batch.xid"
        found = await conn.fetch(
            f"SELECT {columns} FROM ingest_batch WHERE {window} LIMIT $3",  # noqa: S608
            str(position.next_xid),
            str(hi),
            MAX_BATCHES_PER_PULL,
        )
    taken, rows = 0, 0
    ahead = [h for h, _ in position.holes if found and h > found[0]["batch_id"]]
    for row in found:
        if ahead and row["batch_id"] > ahead[0]:
            break
        rows += row["n_rows"]
        if taken and rows > max_rows:
            break
        taken += 1
    whole = taken == len(found) and taken < MAX_BATCHES_PER_PULL
    some = found[:taken]
    return _Chosen(
        ids=tuple(r["batch_id"] for r in some),
        xid_after=max(hi, position.next_xid) if whole else int(some[-1]["xid"]) + 1,
        n_deltas=sum(r["n_deltas"] for r in some),
        n_rows=sum(r["n_rows"] for r in some),
        max_received_ns=max((r["max_received_ns"] for r in some), default=0),
    )


async def _read(
    conn: Connection, gatherer: int, position: Position, chosen: _Chosen
) -> GathererBatch:
    """All rows of the chosen batches; the number of deltas is compared with the batch rows."""
    span = (chosen.first, chosen.last)
    where = chosen.condition()
    deltas = await _copy_out(conn, pgcopy.DELTA_COPY, chosen, DELTA_ROW)
    if len(deltas) != chosen.n_deltas:
        raise StorageError(
            f"batches {chosen.first} to {chosen.last} tell of {chosen.n_deltas} delta rows, "
            f"{len(deltas)} are there",
            hint="rows were deleted, or copied without their batch row; restore the database",
        )
    order = "ORDER BY batch_id, run_id, seq, market_id"
    snapshots = await conn.fetch(
        f"SELECT {_SNAPSHOT_COLUMNS} FROM orderbook_snapshot WHERE {where} {order}",  # noqa: S608
        *span,
    )
    trades = await _copy_out(conn, pgcopy.TRADE_COPY, chosen, BATCH_TRADE)
    tickers = await _copy_out(conn, pgcopy.TICKER_COPY, chosen, BATCH_TICKER)
    controls = await conn.fetch(
        f"SELECT {_CONTROL_COLUMNS} FROM control WHERE {where} ORDER BY batch_id, ord",  # noqa: S608
        *span,
    )
    known_from = chosen.first if position.markets_known else 0
    markets = await conn.fetch(
        "SELECT market_id, ticker FROM market WHERE batch_id BETWEEN $1 AND $2 ORDER BY market_id",
        known_from,
        chosen.last,
    )
    return GathererBatch(
        gatherer=gatherer,
        first_batch_id=chosen.first,
        last_batch_id=chosen.last,
        max_received_ns=chosen.max_received_ns,
        deltas=in_order(deltas, "batch_id", "run_id", "seq"),
        snapshots=[_snapshot(r) for r in snapshots],
        trades=in_order(trades, "batch_id", "run_id", "seq"),
        tickers=in_order(tickers, *_TICKER_ORDER),
        controls=[_control(r) for r in controls],
        markets={r["market_id"]: r["ticker"] for r in markets},
    )


async def _copy_out(
    conn: Connection,
    layout: pgcopy.CopyLayout,
    chosen: _Chosen,
    dtype: np.dtype[np.void],
) -> DeltaRows:
    """The chosen batches' rows of one fixed-width table through binary COPY, in heap order.

    The ids stand in the text: COPY takes no parameters, and asyncpg would have the server write
    them out in two queries more for each table (4 % of a merge).
    """
    columns = ", ".join(layout.names)
    where = chosen.condition(chosen.first, chosen.last)
    body = await copy_out(conn, f"SELECT {columns} FROM {layout.table} WHERE {where}")  # noqa: S608
    return pgcopy.unpack_rows(layout, body, dtype)


def in_order(rows: DeltaRows, *columns: str) -> DeltaRows:
    """The rows sorted by these columns: the same whatever order the heap gave."""
    if len(rows) < 2 or _ascends([rows[name] for name in columns]):
        return rows
    keys = [rows[name] for name in columns]
    packed = _packed(keys)
    order = np.lexsort(keys[::-1]) if packed is None else np.argsort(packed, kind="stable")
    return picked(rows, order)


def _packed(columns: list[np.ndarray[tuple[int], np.dtype[Any]]]) -> npt.NDArray[np.int64] | None:
    """One number a row that orders as the columns do; None where 63 bits do not hold them."""
    packed, bits = np.zeros(len(columns[0]), np.int64), 0
    for column in columns:
        low = int(column.min())
        width = (int(column.max()) - low).bit_length()
        bits += width
        if bits > 63:
            return None
        packed = (packed << width) | (column.astype(np.int64) - low)
    return packed


def _ascends(columns: list[np.ndarray[tuple[int], np.dtype[Any]]]) -> bool:
    """Whether the rows stand in the order of the columns already: a heap often is."""
    tied = np.ones(len(columns[0]) - 1, np.bool_)  # rows equal to the one before, so far
    for column in columns:
        before, after = column[:-1], column[1:]
        if (tied & (after < before)).any():
            return False
        tied &= after == before
    return True


def _snapshot(row: Sequence[Any]) -> SnapshotRow:
    us, received_ns, book_hash, running, market, run, seq, batch, verdict, flags, levels = row
    return SnapshotRow(
        us,
        received_ns,
        book_hash & _U64,
        running & _U64,
        market,
        run,
        seq,
        batch,
        verdict,
        flags,
        levels,
    )


def _control(row: Sequence[Any]) -> ControlRow:
    batch_id, ord_, received_ns, kind, conn, run, sid, seq, market, us, reason, detail = row
    return ControlRow(
        batch_id,
        ord_,
        received_ns,
        kind,
        conn,
        run,
        sid,
        seq,
        market,
        us,
        reason,
        json.loads(detail),
    )
