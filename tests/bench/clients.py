"""The peers that the recorder is measured against, each as a process of its own.

`bare`: receive and decode, store nothing (the limit of a client on that library).
`usual`: what public collectors do: websockets, json.loads, executemany of 500 rows awaited in the loop.
Each prints one JSON line: frames, seconds, cpu_s (user and system of this process, first to last frame).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import ssl
import time
from datetime import UTC, datetime

import asyncpg
import orjson
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect
from websockets.asyncio.client import connect

SUBSCRIBE = b'{"id":1,"cmd":"subscribe","params":{"channels":["orderbook_delta","trade","ticker"]}}'
USUAL_BATCH_ROWS = 500
USUAL_TABLES = """
DROP TABLE IF EXISTS usual_delta, usual_trade, usual_ticker;
CREATE TABLE usual_delta (received_at timestamptz, market_ticker text, side text, price numeric(9, 6),
                          delta numeric(18, 2), ts timestamptz, sid int, seq bigint);
CREATE TABLE usual_trade (received_at timestamptz, market_ticker text, trade_id text, yes_price numeric(9, 6),
                          count numeric(18, 2), taker_side text, ts timestamptz);
CREATE TABLE usual_ticker (received_at timestamptz, market_ticker text, price numeric(9, 6),
                           yes_bid numeric(9, 6), yes_ask numeric(9, 6), volume numeric(18, 2), ts timestamptz);
"""
USUAL_INDEXES = """
CREATE INDEX ON usual_delta (market_ticker, ts);
CREATE INDEX ON usual_trade (market_ticker, ts);
CREATE INDEX ON usual_ticker (market_ticker, ts);
"""


def cpu_s() -> float:
    """User and system time of this process so far."""
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


class _Bare(WSListener):  # type: ignore[misc]
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
        _, listener = await ws_connect(lambda: _Bare(expected), url, ssl_context=tls)
        await listener.done.wait()

    await asyncio.gather(*(one(n) for n in frames))


def _when(msg: dict[str, object]) -> datetime:
    if isinstance(msg.get("ts"), str):
        return datetime.fromisoformat(str(msg["ts"]))
    return datetime.fromtimestamp(float(str(msg["ts"])), UTC)


def _usual_row(
    frame: dict[str, object], msg: dict[str, str]
) -> tuple[str, tuple[object, ...]] | None:
    now = datetime.now(UTC)
    if frame["type"] == "orderbook_delta":
        return "usual_delta", (now, msg["market_ticker"], msg["side"], msg["price_dollars"],
                               msg["delta_fp"], _when(msg), frame["sid"], frame["seq"])  # fmt: skip
    if frame["type"] == "trade":
        return "usual_trade", (now, msg["market_ticker"], msg["trade_id"], msg["yes_price_dollars"],
                               msg["count_fp"], msg["taker_side"], _when(msg))  # fmt: skip
    if frame["type"] == "ticker":
        return "usual_ticker", (now, msg["market_ticker"], msg["price_dollars"], msg["yes_bid_dollars"],
                                msg["yes_ask_dollars"], msg["volume_fp"], _when(msg))  # fmt: skip
    return None


async def usual(
    url: str, frames: list[int], tls: ssl.SSLContext | None, dsn: str, *, index: bool
) -> int:
    """Returns the rows committed."""
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=2)
    await pool.execute(USUAL_TABLES + (USUAL_INDEXES if index else ""))
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
        async with connect(url, ssl=tls, compression=None, max_size=None) as ws:
            await ws.send(SUBSCRIBE.decode())
            for _ in range(expected + 3):
                frame = json.loads(await ws.recv())
                made = _usual_row(frame, frame.get("msg", {}))
                if made is not None:
                    rows[made[0]].append(made[1])
                    if len(rows[made[0]]) >= USUAL_BATCH_ROWS:
                        await flush(made[0])

    await asyncio.gather(*(one(n) for n in frames))
    for name in rows:
        await flush(name)
    await pool.close()
    return committed


async def run(asked: argparse.Namespace) -> dict[str, float]:
    """Carry out one mode. Returns what it measured."""
    frames = json.loads(asked.frames)
    tls = tls_context() if asked.url.startswith("wss") else None
    begun, used = time.perf_counter(), cpu_s()
    rows = 0
    if asked.mode == "bare-websockets":
        await bare_websockets(asked.url, frames, tls)
    elif asked.mode == "bare-picows":
        await bare_picows(asked.url, frames, tls)
    else:
        rows = await usual(asked.url, frames, tls, asked.dsn, index=asked.mode == "usual")
    return {"frames": sum(frames), "rows": rows, "seconds": time.perf_counter() - begun,
            "cpu_s": cpu_s() - used}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    modes = ["bare-websockets", "bare-picows", "usual", "usual-no-index"]
    parser.add_argument("mode", choices=modes)
    parser.add_argument("--url", required=True)
    parser.add_argument("--frames", required=True, help="JSON list: frames expected per connection")
    parser.add_argument("--dsn", default="")
    parser.add_argument("--uvloop", action="store_true")
    asked = parser.parse_args()
    measured = uvloop.run(run(asked)) if asked.uvloop else asyncio.run(run(asked))
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
