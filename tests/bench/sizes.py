"""Bytes per delta in the hot table, in production with its key, and in Parquet.

On recorded captures where they are on the machine: real markets, prices, sizes, times and times of
receipt, decoded by the gatherer's own code and written into three databases (the receipts of each
shifted by its own few milliseconds), merged and exported. Otherwise on the made-up frames.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import orjson

from exchange.capture import read_frames
from gatherer.intake import WAKE_ROWS, Decoding, RowBatch
from gatherer.packing import PackedBatch, pack
from marketdata.chain import Rows
from marketdata.continuity import Continuity
from marketdata.rows import DELTA_ROW
from runtime.partitions import Partitions
from runtime.postgres import Connection, connect, copy_in, migrate
from runtime.spool import Position
from tests.recorded import DATA

CAPTURES = 3
RECEIPT_SPREAD_NS = 8_000_000


def largest_captures(count: int = CAPTURES) -> list[Path]:
    """The recorded captures with the most frames; empty where the data are not on this machine."""
    found = [*DATA.glob("ws_btc15m/*.jsonl.gz")]
    return sorted(sorted(found, key=lambda p: -p.stat().st_size)[:count])


def decoded(captures: Sequence[Path]) -> Iterator[Rows]:
    """The captures' rows in batches of the sink's size, with the recorded times of receipt."""
    decoding = Decoding(Continuity(1))
    continuity = decoding.continuity
    for capture in captures:
        conn_id, recorded_conn, last_ns = 0, None, 0
        for frame in read_frames(capture):
            last_ns = frame.received_us * 1_000
            if frame.conn != recorded_conn:
                if recorded_conn is not None:
                    _close(decoding, conn_id, last_ns)
                recorded_conn, conn_id = frame.conn, continuity.next_conn_id
                continuity.control({"k": "connect", "conn": conn_id, "received_ns": last_ns})
            decoding.absorb(conn_id, 0, [orjson.dumps(frame.frame)], last_ns)
            if continuity.rows.n_rows() >= WAKE_ROWS:
                yield continuity.take()
        _close(decoding, conn_id, last_ns)
    yield continuity.take()


def _close(decoding: Decoding, conn_id: int, at_ns: int) -> None:
    decoding.continuity.control(
        {"k": "close", "conn": conn_id, "received_ns": at_ns, "reason": "closed_by_us"}
    )


async def write_gatherers(captures: Sequence[Path], hot: Sequence[str]) -> int:
    """Write the captures into fresh gatherer databases; returns the deltas of one of them."""
    conns = [await connect(dsn) for dsn in hot]
    made = [Partitions() for _ in hot]
    for conn in conns:
        await migrate(conn, "gatherer_hot")
    n_deltas = last_ns = 0
    for number, rows in enumerate(decoded(captures), 1):
        original = np.frombuffer(bytes(rows.deltas), DELTA_ROW)
        if not len(original):
            continue  # only of the end; the sizes are those of deltas
        n_deltas += len(original)
        for gatherer, conn in enumerate(conns):
            late = np.random.default_rng([number, gatherer]).integers(
                0, RECEIPT_SPREAD_NS, len(original)
            )
            shifted = original.copy()
            shifted["received_ns"] += late
            rows.deltas = bytearray(shifted.tobytes())
            last_ns = max(last_ns, int(shifted["received_ns"].max()))
            batch = RowBatch(rows, Position(1, number), Position(1, number + 1), 1, last_ns)
            packed = pack(batch, number, uuid.UUID(int=random.Random(gatherer).getrandbits(128)))
            await made[gatherer].ensure(
                conn, "orderbook_delta", packed.min_exchange_us, packed.max_exchange_us
            )
            await _commit(conn, packed)
    for conn in conns:
        await conn.close()
    return n_deltas


async def _commit(conn: Connection, packed: PackedBatch) -> None:
    async with conn.transaction():
        for layout, body in packed.tables:
            await copy_in(conn, layout, body)
        await conn.execute(
            "INSERT INTO ingest_batch (batch_id, batch_uid, n_deltas, n_rows, min_received_ns,"
            " max_received_ns) VALUES ($1, $2, $3, $4, $5, $6)",
            packed.batch_id, packed.batch_uid, packed.n_deltas, packed.n_rows,
            packed.min_received_ns, packed.max_received_ns,
        )  # fmt: skip
