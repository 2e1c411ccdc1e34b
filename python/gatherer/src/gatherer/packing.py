"""A batch of rows as PostgreSQL's binary COPY bytes, all tables of one transaction.

Purpose: what `intake` holds in native form becomes COPY rows in bulk, with the batch id that the
one writer gives at the commit. Fixed-width tables go through numpy; snapshots and control rows, few
and of variable width, through `pgcopy.pack_values`.
Does not do: talking to a database; changing a value (but for what PostgreSQL cannot hold: a zero
character in a control row's text, and a sid beyond 31 bits, both only in what was not understood).
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Final

import numpy as np
import orjson

from gatherer.intake import RowBatch
from marketdata.rows import DELTA_ROW, TICKER_ROW, TRADE_ROW, ControlRow, SnapshotRow
from runtime.pgcopy import (
    CONTROL_COPY,
    DELTA_COPY,
    MARKET_COPY,
    SNAPSHOT_COPY,
    TICKER_COPY,
    TRADE_COPY,
    CopyLayout,
    pack_rows,
    pack_values,
)

_INT32_MAX: Final = 2**31 - 1
_SIGN: Final = 1 << 63
_WRAP: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """COPY rows of each table, and what the batch row says."""

    batch_id: int
    batch_uid: uuid.UUID
    tables: tuple[tuple[CopyLayout, bytearray], ...]
    counts: dict[str, int]  # rows by table
    n_deltas: int
    n_rows: int
    min_exchange_us: int
    max_exchange_us: int
    min_received_ns: int
    max_received_ns: int


def pack(batch: RowBatch, batch_id: int, spool_uid: uuid.UUID) -> PackedBatch:
    """All rows of `batch` for one transaction.

    The batch's uid follows from the spool, the batch id and the place: again gives the same.
    """
    rows = batch.rows
    deltas = np.frombuffer(rows.deltas, DELTA_ROW)
    tables: list[tuple[CopyLayout, bytearray]] = []
    if rows.markets:
        tables.append((MARKET_COPY, pack_markets(rows.markets, batch_id)))
    if len(deltas):
        tables.append((DELTA_COPY, pack_rows(DELTA_COPY, deltas, batch_id=batch_id)))
    if rows.snapshots:
        tables.append((SNAPSHOT_COPY, pack_snapshots(rows.snapshots, batch_id)))
    if rows.trades:
        trades = np.frombuffer(rows.trades, TRADE_ROW)
        tables.append((TRADE_COPY, pack_rows(TRADE_COPY, trades, batch_id=batch_id)))
    if rows.tickers:
        tickers = np.frombuffer(rows.tickers, TICKER_ROW)
        tables.append((TICKER_COPY, pack_rows(TICKER_COPY, tickers, batch_id=batch_id)))
    if rows.controls:
        tables.append((CONTROL_COPY, pack_controls(rows.controls, batch_id)))
    return PackedBatch(
        batch_id=batch_id,
        batch_uid=uid_of(batch, batch_id, spool_uid),
        tables=tuple(tables),
        counts=rows.counts(),
        n_deltas=len(deltas),
        n_rows=rows.n_rows(),
        min_exchange_us=int(deltas["exchange_us"].min()) if len(deltas) else 0,
        max_exchange_us=int(deltas["exchange_us"].max()) if len(deltas) else 0,
        min_received_ns=batch.min_received_ns,
        max_received_ns=batch.max_received_ns,
    )


def uid_of(batch: RowBatch, batch_id: int, spool_uid: uuid.UUID) -> uuid.UUID:
    """Names a batch: refuses that it is stored twice."""
    return uuid.uuid5(spool_uid, f"{batch_id} {batch.start} {batch.end}")


def pack_markets(markets: list[tuple[int, str]], batch_id: int) -> bytearray:
    """COPY rows of new market ids."""
    return pack_values(MARKET_COPY, [(given, batch_id, ticker) for given, ticker in markets])


def _signed(bits: int) -> int:
    """An unsigned 64-bit value as the int64 with the same bits."""
    return bits - _WRAP if bits >= _SIGN else bits


def pack_snapshots(rows: list[SnapshotRow], batch_id: int) -> bytearray:
    """COPY rows of snapshots."""
    return pack_values(
        SNAPSHOT_COPY,
        [
            (
                row.exchange_us,
                row.received_ns,
                _signed(row.book_hash),
                _signed(row.running_hash),
                row.seq,
                row.market_id,
                row.run_id,
                batch_id,
                row.verdict,
                row.flags,
                row.levels,
            )
            for row in rows
        ],
    )


def pack_controls(rows: list[ControlRow], batch_id: int) -> bytearray:
    """COPY rows of control rows, numbered in their order."""
    return pack_values(
        CONTROL_COPY,
        [
            (
                batch_id,
                at,
                row.received_ns,
                row.seq,
                row.exchange_us,
                row.conn_id,
                row.run_id,
                min(row.sid, _INT32_MAX),
                row.market_id,
                row.kind,
                row.reason.replace("\x00", "\ufffd"),
                # jsonb has no zero character: one in a frame's text must not stop the tape.
                orjson.dumps(row.detail).replace(b"\\u0000", b"\\ufffd"),
            )
            for at, row in enumerate(rows)
        ],
    )
