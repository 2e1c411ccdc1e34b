"""The peers that the recorder is measured against, in a process of their own.

`bare-websockets`, `bare-picows`: receive and decode with orjson, store nothing (the limit of a
client on that library). `receive-decode`: our transport (picows) and our typed decoding, nothing
kept. `usual`, `usual-no-index`: what public collectors do: websockets,
json.loads, executemany of 500 rows awaited in the loop, with and without an index; they
ask for no initial snapshots and so get none.
Reads one JSON object a line: mode, url, frames (expected on each connection), dsn, uvloop. Answers
each with one line: frames, rows, seconds, cpu_s (user and system of this process), server_cpu_s
(of the PostgreSQL server with the process id server_pid), from before the first connection to
after the last frame or commit.
"""

from __future__ import annotations

import asyncio
import json
import resource
import ssl
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
import orjson
import psutil
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect
from websockets.asyncio.client import connect

from gatherer.transport import connect as gatherer_connect
from marketdata import wire

SUBSCRIBE = b'{"id":1,"cmd":"subscribe","params":{"channels":["orderbook_delta","trade","ticker"]}}'
SUBSCRIBE_USUAL = SUBSCRIBE.replace(b"]}", b'],"send_initial_snapshot":false}')
USUAL_BATCH_ROWS = 500
USUAL_TABLES = """
DROP TABLE IF EXISTS usual_delta, usual_trade, usual_ticker;
CREATE TABLE usual_delta (
    received_at timestamptz, market_ticker text, side text, price numeric(9, 6),
    delta numeric(18, 2), ts timestamptz, sid int, seq bigint);
CREATE TABLE usual_trade (
    received_at timestamptz, market_ticker text, trade_id text, yes_price numeric(9, 6),
    count numeric(18, 2), taker_side text, ts timestamptz);
CREATE TABLE usual_ticker (
    received_at timestamptz, market_ticker text, price numeric(9, 6), yes_bid numeric(9, 6),
    yes_ask numeric(9, 6), volume numeric(18, 2), ts timestamptz);
"""
USUAL_INDEXES = """
CREATE INDEX ON usual_delta (market_ticker, ts);
CREATE INDEX ON usual_trade (market_ticker, ts);
CREATE INDEX ON usual_ticker (market_ticker, ts);
"""


@dataclass(frozen=True, slots=True)
class Task:
    """One line of the input."""

    mode: str
    url: str
    frames: list[int]
    dsn: str = ""
    server_pid: int = 0
    uvloop: bool = False


@dataclass(slots=True)
class Stopwatch:
    """Wall and CPU time of this process, and CPU of a PostgreSQL server, from `begin` on."""

    server_pid: int
    begun_s: float = 0.0
    used_s: float = 0.0
    server_used_s: float = 0.0

    def begin(self) -> None:
        """Everything is prepared: what comes now is measured."""
        self.server_used_s = server_cpu_s(self.server_pid)
        self.begun_s, self.used_s = time.perf_counter(), cpu_s()

    def read(self) -> dict[str, float]:
        """Seconds since `begin`."""
        seconds, used = time.perf_counter() - self.begun_s, cpu_s() - self.used_s
        server = server_cpu_s(self.server_pid) - self.server_used_s
        return {"seconds": seconds, "cpu_s": used, "server_cpu_s": server}


def server_cpu_s(postmaster_pid: int) -> float:
    """CPU of a PostgreSQL server so far: its parent, its living children and those that ended.

    0 for process id 0: nothing is stored.
    """
    if not postmaster_pid:
        return 0.0
    postmaster = psutil.Process(postmaster_pid)
    while True:
        before = postmaster.cpu_times()
        used = before.user + before.system + before.children_user + before.children_system
        for child in postmaster.children(recursive=True):
            try:
                mine = child.cpu_times()
            except psutil.NoSuchProcess:
                continue  # ended meanwhile: the parent's times change
            used += mine.user + mine.system
        after = postmaster.cpu_times()
        if (before.children_user, before.children_system) == (
            after.children_user,
            after.children_system,
        ):
            return float(used)  # no child ended between the two: none is missed or counted twice


def cpu_s() -> float:
    """User and system time of this process and its threads so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def tls_context() -> ssl.SSLContext:
    """A context that takes the benchmark's own certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def bare_websockets(url: str, frames: list[int], tls: ssl.SSLContext | None) -> None:
    async def one(expected: int) -> None:
        async with connect(url, ssl=tls, compression=None, max_size=None) as ws:
            await ws.send(SUBSCRIBE.decode())
            for _ in range(expected + 3):
                orjson.loads(await ws.recv(decode=False))

    await asyncio.gather(*(one(n) for n in frames))


class _Bare(WSListener):
    def __init__(self, expected: int) -> None:
        self.left, self.done = expected + 3, asyncio.Event()

    def on_ws_connected(self, transport: WSTransport) -> None:
        transport.send(WSMsgType.TEXT, SUBSCRIBE)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        orjson.loads(frame.get_payload_as_bytes())
        self.left -= 1
        if self.left == 0:
            self.done.set()
            transport.disconnect()


async def bare_picows(url: str, frames: list[int], tls: ssl.SSLContext | None) -> None:
    async def one(expected: int) -> None:
        listener = _Bare(expected)
        await ws_connect(lambda: listener, url, ssl_context=tls)
        await listener.done.wait()

    await asyncio.gather(*(one(n) for n in frames))


async def receive_decode(url: str, frames: list[int], tls: ssl.SSLContext | None) -> None:
    """Our own first two steps: a frame becomes a typed value, as on the way to a row."""
    decoder = wire.Decoder()
    typed = decoder.typed.frame

    async def one(expected: int) -> None:
        left, done = expected + 3, asyncio.Event()

        def take(batch: list[bytes], _stamp_ns: int) -> None:
            nonlocal left
            for payload in batch:
                try:
                    typed(payload)
                except ValueError:  # no form of the hot path: as there, the long way
                    decoder.decode(payload)
            left -= len(batch)
            if left <= 0:
                done.set()

        connection = await gatherer_connect("picows", url, {}, take, time.time_ns, ssl_context=tls)
        connection.send(SUBSCRIBE)
        await done.wait()
        connection.abort()
        await connection.closed()

    await asyncio.gather(*(one(n) for n in frames))


def _when(msg: dict[str, Any]) -> datetime:
    if isinstance(msg.get("ts"), str):
        return datetime.fromisoformat(str(msg["ts"]))
    return datetime.fromtimestamp(float(str(msg["ts"])), UTC)


def _usual_row(frame: dict[str, Any], msg: dict[str, Any]) -> tuple[str, tuple[object, ...]] | None:
    now = datetime.now(UTC)
    if frame["type"] == "orderbook_delta":
        return "usual_delta", (now, msg["market_ticker"], msg["side"], msg["price_dollars"],
                               msg["delta_fp"], _when(msg), frame["sid"], frame["seq"])  # fmt: skip
    if frame["type"] == "trade":
        return "usual_trade", (now, msg["market_ticker"], msg["trade_id"], msg["yes_price_dollars"],
                               msg["count_fp"], msg["taker_side"], _when(msg))  # fmt: skip
    if frame["type"] == "ticker":
        return "usual_ticker", (now, msg["market_ticker"], msg["price_dollars"],
                                msg["yes_bid_dollars"], msg["yes_ask_dollars"],
                                msg["volume_fp"], _when(msg))  # fmt: skip
    return None


async def usual(asked: Task, tls: ssl.SSLContext | None, watch: Stopwatch) -> dict[str, float]:
    """Rows are those committed."""
    pool = await asyncpg.create_pool(asked.dsn, min_size=2, max_size=2)
    await pool.execute(USUAL_TABLES + (USUAL_INDEXES if asked.mode == "usual" else ""))
    columns = {"usual_delta": 8, "usual_trade": 7, "usual_ticker": 7}
    statements = {
        name: f"INSERT INTO {name} VALUES ({', '.join(f'${i + 1}' for i in range(n))})"
        for name, n in columns.items()
    }
    rows: dict[str, list[tuple[object, ...]]] = {name: [] for name in columns}
    committed = 0

    async def flush(name: str) -> None:
        nonlocal committed
        batch, rows[name] = rows[name], []
        await pool.executemany(statements[name], batch)
        committed += len(batch)

    async def one(expected: int) -> None:
        async with connect(asked.url, ssl=tls, compression=None, max_size=None) as ws:
            await ws.send(SUBSCRIBE_USUAL.decode())
            for _ in range(expected + 3):
                frame = json.loads(await ws.recv())
                made = _usual_row(frame, frame.get("msg", {}))
                if made is not None:
                    rows[made[0]].append(made[1])
                    if len(rows[made[0]]) >= USUAL_BATCH_ROWS:
                        await flush(made[0])
            ws.transport.abort()  # more frames are on their way: no goodbye could come through

    watch.begin()
    await asyncio.gather(*(one(n) for n in asked.frames))
    for name in rows:
        await flush(name)
    measured = watch.read()
    await pool.close()
    return {**measured, "rows": committed}


async def run(asked: Task) -> dict[str, float]:
    """Carry out one task. Returns what it measured."""
    tls = tls_context() if asked.url.startswith("wss") else None
    watch = Stopwatch(asked.server_pid)
    if asked.mode.startswith("usual"):
        measured = await usual(asked, tls, watch)
    else:
        bare = {
            "bare-websockets": bare_websockets,
            "bare-picows": bare_picows,
            "receive-decode": receive_decode,
        }[asked.mode]
        watch.begin()
        await bare(asked.url, asked.frames, tls)
        measured = {**watch.read(), "rows": 0}
    return {**measured, "frames": sum(asked.frames)}


def main() -> None:
    """Answer tasks until the input ends."""
    for line in sys.stdin:
        asked = Task(**json.loads(line))
        measured = uvloop.run(run(asked)) if asked.uvloop else asyncio.run(run(asked))
        print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
