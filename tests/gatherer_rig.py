"""A gatherer process on real sockets and a real PostgreSQL, its rows compared with the truth log.

The comparison is by connection: a row names (connection, sid, seq), and the exchange's log says
what it sent under exactly that name. So nothing is matched by content, and a lost, doubled, altered
or misplaced change cannot hide behind an equal one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
from cryptography.hazmat.primitives import serialization

from exchange.truth import Truth
from marketdata.book import Book
from marketdata.rows import DELTA_ROW, DeltaFlag
from runtime.pgcopy import DELTA_COPY, unpack_rows
from runtime.postgres import copy_out
from tests.exchange_client import Running

SENT_DELTA, SENT_SNAPSHOT = 0, 1
NOT_DELIVERED = 1
RESET, HOLE = 1, 2


@dataclass
class GathererProcess:
    """`python -m gatherer.main` with its environment; may be killed and started again."""

    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    exits: list[int] = field(default_factory=list)

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "gatherer.main"],
                env={**os.environ, **self.environment},
                stderr=out,
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.exits.append(self.process.wait(timeout=20))

    async def stop(self) -> int:
        """SIGTERM and the exit code; waiting does not hold the event loop."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(self.process.wait, 40)
        self.exits.append(code)
        return code


@asynccontextmanager
async def gatherer(
    folder: Path, running: Running, hot: str, meta: str, **settings: str
) -> AsyncIterator[GathererProcess]:
    """A started gatherer for a started exchange."""
    key_file = folder / "private.pem"
    key_file.write_bytes(
        running.keys.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    port = running.ready["port"]
    environment = {
        "KT_WS_URL": f"ws://127.0.0.1:{port}/trade-api/ws/v2",
        "KT_REST_URL": f"http://127.0.0.1:{port}/trade-api/v2",
        "KT_KEY_ID": "7f9b0c4e-0000-4000-8000-000000000001",
        "KT_PRIVATE_KEY_FILE": str(key_file),
        "KT_SPOOL_DIR": str(folder / "spool"),
        "KT_TIMESCALE_DSN": hot,
        "KT_POSTGRES_DSN": meta,
        "KT_HEALTH_PORT": "0",
        "KT_METRICS_PORT": "0",
        "KT_RECONNECT_BASE_MS": "20",
        "KT_RECONNECT_CAP_MS": "300",
        "KT_REST_RATE_PER_S": "200",
        "KT_DATA_TIMEOUT_S": "5",
        **{f"KT_{name.upper()}": value for name, value in settings.items()},
    }
    made = GathererProcess(environment, folder / "gatherer.log")
    made.start()
    try:
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.process.kill()
            made.process.wait(timeout=20)


@dataclass
class Recording:
    """What a gatherer stored, with every row's name on the wire."""

    deltas: np.ndarray[Any, Any]
    tickers: dict[int, str]
    runs: dict[int, tuple[int, int]]  # run_id -> (conn_id, sid)
    handshakes: dict[int, str]  # conn_id -> handshake
    snapshots: list[asyncpg.Record]
    trades: list[asyncpg.Record]
    controls: list[asyncpg.Record]
    batches: list[asyncpg.Record]


async def read_recording(dsn: str) -> Recording:
    """Everything of one hot database."""
    connection = await asyncpg.connect(dsn)
    try:
        body = await copy_out(
            connection, f"SELECT {', '.join(DELTA_COPY.names)} FROM orderbook_delta"
        )
        controls = await connection.fetch("SELECT * FROM control ORDER BY batch_id, ord")
        details = await connection.fetch(
            "SELECT conn_id, detail->>'handshake' AS handshake FROM control WHERE kind='conn_open'"
        )
        return Recording(
            deltas=unpack_rows(DELTA_COPY, body, DELTA_ROW),
            tickers=dict(await connection.fetch("SELECT market_id, ticker FROM market")),
            runs={
                r["run_id"]: (r["conn_id"], r["sid"]) for r in controls if r["kind"] == "run_start"
            },
            handshakes={r["conn_id"]: r["handshake"] for r in details},
            snapshots=await connection.fetch("SELECT * FROM orderbook_snapshot"),
            trades=await connection.fetch("SELECT * FROM trade"),
            controls=controls,
            batches=await connection.fetch("SELECT * FROM ingest_batch ORDER BY batch_id"),
        )
    finally:
        await connection.close()


@dataclass
class Findings:
    """The comparison's result. Everything but the first three should be 0."""

    sent: int = 0  # changes the exchange sent on this gatherer's connections
    compared: int = 0
    floating: int = 0
    unnamed: int = 0  # rows under a name the exchange never sent
    doubled: int = 0  # two rows under one name
    altered: int = 0  # content differs from what was sent
    wrong_hash: int = 0  # anchored, and not the exchange's book
    lost: int = 0  # sent, later frames of the sid were stored, this one was not


def true_hashes(truth: Truth) -> list[int]:
    """The book hash of an event's market after each event (0 where it has no market)."""
    books: dict[int, Book] = {}
    given: dict[int, list[dict[str, Any]]] = {}
    for row in truth.books:
        given.setdefault(row["at"], []).append(row)
    hashes: list[int] = []
    for at, event in enumerate(truth.events.tolist()):
        for row in given.get(at, ()):
            books[row["market"]] = Book(map(tuple, row["yes"]), map(tuple, row["no"]))
        market, kind, side, price, delta, _ = event
        if kind == HOLE:
            hashes.append(0)
            continue
        book = books.setdefault(market, Book())
        if kind == RESET:
            book.clear()
        else:
            book.apply(side, price, delta)
        hashes.append(book.hash)
    return hashes


def _is_change(truth: Truth, at: int) -> bool:
    """Whether an event makes a row: every change, and a reset wherever it empties a book."""
    return bool(truth.events[at]["kind"] == 0)


def compare(recording: Recording, truth: Truth) -> Findings:
    """Every stored change against what was sent under its name, and the reverse."""
    found = Findings()
    numbers = {ticker: n for n, ticker in enumerate(truth.markets)}
    market_of = {i: numbers[ticker] for i, ticker in recording.tickers.items() if ticker in numbers}
    conn_of = {c: truth.conn_of(h) for c, h in recording.handshakes.items()}
    hashes = true_hashes(truth)
    events = truth.events.tolist()
    sent: dict[tuple[int, int, int], int] = {}
    for conn, sid, seq, _, event, kind, fault in truth.sends.tolist():
        if fault != NOT_DELIVERED and event >= 0 and kind in (SENT_DELTA, SENT_SNAPSHOT):
            sent[(conn, sid, seq)] = event
    ours = set(conn_of.values())
    found.sent = sum(name[0] in ours and _is_change(truth, at) for name, at in sent.items())
    newest: dict[tuple[int, int], int] = {}
    stored: set[tuple[int, int, int]] = set()
    for row in recording.deltas.tolist():
        us, _, delta, book_hash, market_id, run_id, seq, _, price, side, flags = row
        conn_id, sid = recording.runs[run_id]
        name = (conn_of[conn_id], sid, seq)
        found.doubled += name in stored
        stored.add(name)
        newest[name[:2]] = max(newest.get(name[:2], 0), seq)
        at = sent.get(name)
        if at is None:
            found.unnamed += 1
            continue
        found.compared += 1
        market, kind, true_side, true_price, true_delta, true_us = events[at]
        is_reset = bool(flags & DeltaFlag.RESET)
        same = market_of.get(market_id) == market and (kind == RESET) == is_reset
        if not is_reset:
            same &= (side, price, delta) == (true_side, true_price, true_delta)
        if not flags & (DeltaFlag.TS_INFERRED | DeltaFlag.TS_MS_ONLY):
            same &= us == true_us
        found.altered += not same
        if flags & DeltaFlag.FLOATING:
            found.floating += 1
        else:
            found.wrong_hash += book_hash != hashes[at]
    for name in set(sent) - stored:
        at = sent[name]
        if events[at][1] == 0 and name[2] < newest.get(name[:2], 0):
            found.lost += 1
    return found
