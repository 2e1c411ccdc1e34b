"""A row that the database refuses: found by halving, kept aside, the rest stored.

Purpose: one row that cannot be stored must not hold up all that came after it. A batch that was
refused for what is in it is stored table by table, each in savepoints of ever fewer rows, until the
refused ones stand alone; they go to the table `refused_row` with their place in the spool and the
server's words.
Invariants:
- All in the transaction that moves the cursor: a row is stored or kept aside, never both or none.
- A claim that would reach over a refused row ends before it: `market_removed` for a change or a
  snapshot, `run_end` for a trade, in the same batch. Tickers carry no claim.
- Beyond REFUSED_ROWS_MAX rows of a batch nothing is kept aside: then it is not the rows.
Does not do: rows of `market` and `control`: without them the others mean nothing, so a server that
refuses those is an outage.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import numpy as np

from gatherer.intake import RowBatch
from gatherer.packing import PackedBatch, pack_controls, pack_markets, pack_snapshots, uid_of
from marketdata.errors import StorageError
from marketdata.rows import DELTA_ROW, TICKER_ROW, TRADE_ROW, ControlKind, ControlRow
from runtime.pgcopy import (
    CONTROL_COPY,
    DELTA_COPY,
    MARKET_COPY,
    SNAPSHOT_COPY,
    TICKER_COPY,
    TRADE_COPY,
    CopyLayout,
    pack_rows,
)
from runtime.postgres import copy_in

REFUSED_ROWS_MAX: Final = 1_000
"""Of one batch; more mean that the table is wrong, not the rows."""
REASON: Final = "refused_row"
ERROR_TEXT_MAX: Final = 300

REFUSALS: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.RaiseError,  # a trigger's own words
)
"""What a server says about the content of rows, whoever asks however often."""
UNPACKABLE: Final = (StorageError, struct.error, OverflowError)
"""What the packing says about a value that no column can hold."""

_INSERT: Final = (
    "INSERT INTO refused_row (batch_id, ord, table_name, segment, offset_bytes, end_segment,"
    " end_offset_bytes, received_ns, market_id, run_id, seq, reason, row_bytes)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
)


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that no table took. `row_bytes`: its native form (`marketdata.rows`), or its text."""

    table: str
    received_ns: int
    market_id: int
    run_id: int
    seq: int
    exchange_us: int
    row_bytes: bytes
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of one table: how to pack some of them, and what one of them is."""

    layout: CopyLayout
    count: int
    pack: Callable[[int, int], bytearray]
    about: Callable[[int], RefusedRow]


def _parts(batch: RowBatch, batch_id: int) -> list[_Part]:
    """The tables that may lose a row."""
    rows = batch.rows
    parts = [
        _fixed(layout, np.frombuffer(held, dtype), batch_id)
        for layout, held, dtype in (
            (DELTA_COPY, rows.deltas, DELTA_ROW),
            (TRADE_COPY, rows.trades, TRADE_ROW),
            (TICKER_COPY, rows.tickers, TICKER_ROW),
        )
    ]
    snapshots = rows.snapshots

    def about(at: int) -> RefusedRow:
        row = snapshots[at]
        return RefusedRow(
            SNAPSHOT_COPY.table, row.received_ns, row.market_id, row.run_id, row.seq,
            row.exchange_us, row.levels,
        )  # fmt: skip

    parts.insert(
        1,
        _Part(
            SNAPSHOT_COPY,
            len(snapshots),
            lambda begin, end: pack_snapshots(snapshots[begin:end], batch_id),
            about,
        ),
    )
    return parts


def _fixed(layout: CopyLayout, rows: np.ndarray[Any, Any], batch_id: int) -> _Part:
    names = rows.dtype.names or ()

    def about(at: int) -> RefusedRow:
        row = rows[at]
        return RefusedRow(
            layout.table, int(row["received_ns"]), int(row["market_id"]),
            int(row["run_id"]) if "run_id" in names else 0,
            int(row["seq"]) if "seq" in names else 0,
            int(row["exchange_us"]), row.tobytes(),
        )  # fmt: skip

    return _Part(
        layout,
        len(rows),
        lambda begin, end: pack_rows(layout, rows[begin:end], batch_id=batch_id),
        about,
    )


async def _store(
    connection: asyncpg.Connection[Any], part: _Part, refused: list[RefusedRow]
) -> int:
    """Store what can be stored of a table, in its order; how many rows that were."""
    stored = 0
    spans = [(0, part.count)] if part.count else []
    while spans:
        begin, end = spans.pop()
        try:
            body = part.pack(begin, end)
            async with connection.transaction():  # a savepoint
                await copy_in(connection, part.layout, body)
            stored += end - begin
            continue
        except (*REFUSALS, *UNPACKABLE) as error:
            told = f"{type(error).__name__}: {error}"[:ERROR_TEXT_MAX].replace("\x00", "\ufffd")
        if end - begin > 1:
            middle = (begin + end) // 2
            spans += [(middle, end), (begin, middle)]
            continue
        refused.append(_with_reason(part.about(begin), told))
        if len(refused) > REFUSED_ROWS_MAX:
            raise StorageError(
                f"the database refuses more than {REFUSED_ROWS_MAX} rows of a batch: {told}",
                hint="compare its tables with the migrations",
            )
    return stored


def _with_reason(row: RefusedRow, reason: str) -> RefusedRow:
    return RefusedRow(
        row.table, row.received_ns, row.market_id, row.run_id, row.seq, row.exchange_us,
        row.row_bytes, reason,
    )  # fmt: skip


def closing_controls(refused: list[RefusedRow]) -> list[ControlRow]:
    """What the readers have to know: each row that is not there, and the claims that end by it."""
    controls = []
    for row in refused:
        detail = {
            "table": row.table, "market_id": row.market_id, "run_id": row.run_id, "seq": row.seq,
            "error": row.reason,
        }  # fmt: skip
        controls.append(
            ControlRow(
                0, 0, row.received_ns, ControlKind.PROBLEM, 0, reason=REASON, detail=detail,
                exchange_us=row.exchange_us,
            )
        )  # fmt: skip
        if row.table == TRADE_COPY.table and row.run_id:
            controls.append(_ended(ControlKind.RUN_END, row, 0))
        elif row.table in (DELTA_COPY.table, SNAPSHOT_COPY.table):
            controls.append(_ended(ControlKind.MARKET_REMOVED, row, row.market_id))
    return controls


def _ended(kind: str, row: RefusedRow, market_id: int) -> ControlRow:
    """The claim ends with the number before the refused row's."""
    return ControlRow(
        0, 0, row.received_ns, kind, 0, run_id=row.run_id, seq=max(0, row.seq - 1),
        market_id=market_id, exchange_us=row.exchange_us, reason=REASON,
    )  # fmt: skip


async def store_isolated(
    connection: asyncpg.Connection[Any], batch: RowBatch, batch_id: int, spool_uid: Any
) -> tuple[PackedBatch, list[RefusedRow]]:
    """Store all rows of a batch but the refused ones, within the transaction that is open. The
    caller moves the cursor before and writes the batch row after."""
    rows, refused = batch.rows, list[RefusedRow]()
    counts: dict[str, int] = {}
    if rows.markets:
        await copy_in(connection, MARKET_COPY, pack_markets(rows.markets, batch_id))
        counts[MARKET_COPY.table] = len(rows.markets)
    for part in _parts(batch, batch_id):
        counts[part.layout.table] = await _store(connection, part, refused)
    controls = [*rows.controls, *closing_controls(refused)]
    if controls:
        await copy_in(connection, CONTROL_COPY, pack_controls(controls, batch_id))
        counts[CONTROL_COPY.table] = len(controls)
    await connection.executemany(
        _INSERT,
        [
            (
                batch_id, at, row.table, *batch.start, *batch.end, row.received_ns, row.market_id,
                row.run_id, row.seq, row.reason, row.row_bytes,
            )
            for at, row in enumerate(refused)
        ],
    )  # fmt: skip
    counts = {table: count for table, count in counts.items() if count}
    packed = PackedBatch(
        batch_id=batch_id,
        batch_uid=uid_of(batch, batch_id, spool_uid),
        tables=(),
        counts=counts,
        n_deltas=counts.get(DELTA_COPY.table, 0),
        n_rows=sum(counts.values()),
        min_exchange_us=0,
        max_exchange_us=0,
        min_received_ns=batch.min_received_ns,
        max_received_ns=batch.max_received_ns,
    )
    return packed, refused
