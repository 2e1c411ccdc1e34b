"""A server that floods WebSocket frames as fast as they are taken: the load of the benchmarks.

It speaks just enough of the exchange's protocol (upgrade, subscribe, then frames in sequence) and
sends frames made beforehand, so that it is not what limits. Runs as a process of its own:
`python -m tests.bench.generator --frames N --ready FILE [--tls-cert F --tls-key F]`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import itertools
import json
import random
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from marketdata.units import format_size, format_ts_us

CONNECTIONS = 8
MARKETS_EACH = 100
"""Markets of one connection: each connection carries its own, as a gatherer's plan deals them."""
CHUNK_BYTES = 64 << 10
WRITE_HIGH_BYTES = 1 << 20
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
START_US = 1_780_000_000_000_000
EVENT_GAP_US = 2_000
TRADE_SHARE, TICKER_SHARE = 0.05, 0.10
SIDS = {"orderbook_delta": 1, "trade": 2, "ticker": 3}


def ticker_name(number: int) -> str:
    return f"KXBENCH-26NOV22-T{number:05d}"


def markets_of(stream: int) -> list[str]:
    """The markets that one connection's stream is about."""
    first = stream * MARKETS_EACH
    return [ticker_name(number) for number in range(first, first + MARKETS_EACH)]


def text_frame(body: bytes) -> bytes:
    if len(body) < 126:
        return bytes([0x81, len(body)]) + body
    if len(body) < 1 << 16:
        return b"\x81\x7e" + struct.pack(">H", len(body)) + body
    return b"\x81\x7f" + struct.pack(">Q", len(body)) + body


def _snapshot(market: int, seq: int) -> dict[str, object]:
    levels = [[f"0.{p:02d}00", "1000000.00"] for p in range(30, 50)]
    msg = {"market_ticker": ticker_name(market), "market_id": f"{market:032x}",
           "yes_dollars_fp": levels, "no_dollars_fp": levels}  # fmt: skip
    return {"type": "orderbook_snapshot", "sid": 1, "seq": seq, "msg": msg}


def _trade(market: int, seq: int, us: int, rng: random.Random) -> dict[str, object]:
    trade_id = f"{rng.getrandbits(128):032x}"
    groups = (trade_id[:8], trade_id[8:12], trade_id[12:16], trade_id[16:20], trade_id[20:])
    return {"type": "trade", "sid": 2, "seq": seq, "msg": {
        "trade_id": "-".join(groups), "market_ticker": ticker_name(market),
        "yes_price_dollars": "0.3600", "no_price_dollars": "0.6400", "count_fp": "136.00",
        "taker_side": "no", "taker_outcome_side": "no", "taker_book_side": "ask",
        "is_block_trade": False, "ts": us // 1_000_000, "ts_ms": us // 1_000}}  # fmt: skip


def _ticker(market: int, number: int, us: int) -> dict[str, object]:
    return {"type": "ticker", "sid": 3, "msg": {
        "market_id": f"{market:032x}", "market_ticker": ticker_name(market),
        "price_dollars": "0.4800", "yes_bid_dollars": "0.4500", "yes_ask_dollars": "0.5300",
        "volume_fp": f"{number}.00", "open_interest_fp": "20422.00", "dollar_volume": 16948,
        "dollar_open_interest": 10211, "yes_bid_size_fp": "300.00", "yes_ask_size_fp": "150.00",
        "last_trade_size_fp": "25.00", "ts": us // 1_000_000, "ts_ms": us // 1_000,
        "time": format_ts_us(us)}}  # fmt: skip


def _delta(market: int, seq: int, us: int, rng: random.Random) -> dict[str, object]:
    centi = rng.choice((-1, 1)) * rng.choice((1, 2, 10, 50, 400)) * 100 + rng.choice((0, 35))
    return {"type": "orderbook_delta", "sid": 1, "seq": seq, "msg": {
        "market_ticker": ticker_name(market), "market_id": f"{market:032x}",
        "price_dollars": f"0.{rng.randrange(30, 50):02d}00", "delta_fp": format_size(centi),
        "side": rng.choice(("yes", "no")), "ts": format_ts_us(us),
        "ts_ms": us // 1_000}}  # fmt: skip


def make_frames(count: int, stream: int) -> list[bytes]:
    """Bodies of exactly `count` frames of one connection.

    A snapshot of each of its markets comes first, so that every delta stands in an anchored run;
    then 85 % deltas, 10 % tickers, 5 % trades. Book frames have sid 1 and a seq of their own,
    trades sid 2 and theirs, tickers sid 3 without seq. Exchange time goes forward by about
    EVENT_GAP_US a frame. A function of its arguments.
    """
    rng = random.Random(stream)
    first = stream * MARKETS_EACH
    made = [_snapshot(first + n, n + 1) for n in range(MARKETS_EACH)][:count]
    weights = [1 / (n + 1) for n in range(MARKETS_EACH)]
    popular = rng.choices(range(first, first + MARKETS_EACH), weights=weights, k=count)
    seq, trade_seq, us = MARKETS_EACH, 0, START_US
    for number, market in enumerate(popular[: count - len(made)]):
        us += rng.randrange(2 * EVENT_GAP_US)
        draw = rng.random()
        if draw < TRADE_SHARE:
            trade_seq += 1
            made.append(_trade(market, trade_seq, us, rng))
        elif draw < TRADE_SHARE + TICKER_SHARE:
            made.append(_ticker(market, number, us))
        else:
            seq += 1
            made.append(_delta(market, seq, us, rng))
    return [json.dumps(frame, separators=(",", ":")).encode() for frame in made]


def data_rows(bodies: list[bytes]) -> int:
    """Changes, trades and tickers among the frames: each is one row to everybody who stores."""
    return sum(b'"orderbook_snapshot"' not in body[:40] for body in bodies)


def client_texts(buffer: bytes) -> tuple[list[bytes], bytes, bool]:
    """Whole masked text frames of a client's bytes; the rest; whether it said goodbye."""
    texts: list[bytes] = []
    while len(buffer) >= 6:
        size, head = buffer[1] & 0x7F, 2
        if size >= 126:
            wide = 2 if size == 126 else 8
            size, head = int.from_bytes(buffer[2 : 2 + wide], "big"), 2 + wide
        end = head + 4 + size
        if len(buffer) < end:
            break
        mask, body = buffer[head : head + 4], buffer[head + 4 : end]
        kind = buffer[0] & 0x0F
        buffer = buffer[end:]
        if kind == 8:
            return texts, b"", True
        if kind == 1:
            texts.append(bytes(b ^ mask[n & 3] for n, b in enumerate(body)))
    return texts, buffer, False


def upgrade_answer(head: bytes) -> bytes:
    """The answer to an upgrade request whose head this is."""
    key = next(
        line.split(b":", 1)[1].strip()
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"sec-websocket-key:")
    )
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


class Flood(asyncio.Protocol):
    """One client: upgrade, answers to its subscribes, then the whole stream of its markets.

    The stream begins once all three channels are subscribed. A client that names no markets gets
    the next stream in turn; one that wants no initial snapshots gets the stream without them.
    """

    def __init__(self, wires: list[bytes], books: list[int], turn: Iterator[int]) -> None:
        self.wires, self.books, self.turn = wires, books, turn
        self.wants_books = True
        self.wire, self.sent, self.begun = memoryview(b""), 0, False
        self.buffer, self.upgraded, self.channels = b"", False, set[str]()
        self.stream: int | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop has its own class
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        self.buffer += data
        if not self.upgraded:
            if b"\r\n\r\n" not in self.buffer:
                return
            self.upgrade()
        texts, self.buffer, is_over = client_texts(self.buffer)
        for text in texts:
            self.command(json.loads(text))
        if is_over:
            self.transport.close()

    def upgrade(self) -> None:
        assert self.transport is not None
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        self.transport.write(upgrade_answer(head))
        self.upgraded = True

    def command(self, asked: dict[str, Any]) -> None:
        assert self.transport is not None
        if asked["cmd"] != "subscribe":
            return
        for channel in asked["params"]["channels"]:
            self.channels.add(channel)
            msg = {"channel": channel, "sid": SIDS[channel]}
            answer = {"id": asked["id"], "type": "subscribed", "msg": msg}
            self.transport.write(text_frame(json.dumps(answer).encode()))
        self.wants_books &= asked["params"].get("send_initial_snapshot") is not False
        named = asked["params"].get("market_tickers")
        if named:
            self.stream = int(named[0][-5:]) // MARKETS_EACH
        if self.channels == SIDS.keys() and not self.begun:
            self.begun = True
            stream = next(self.turn) if self.stream is None else self.stream
            stream %= len(self.wires)
            first = 0 if self.wants_books else self.books[stream]
            self.wire = memoryview(self.wires[stream])[first:]
            self.pump()

    def pump(self) -> None:
        assert self.transport is not None
        while self.sent < len(self.wire):
            if self.transport.get_write_buffer_size() > WRITE_HIGH_BYTES:
                return
            self.transport.write(self.wire[self.sent : self.sent + CHUNK_BYTES])
            self.sent += CHUNK_BYTES

    def resume_writing(self) -> None:
        if self.begun:
            self.pump()


async def serve(frames: int, connections: int, ready: Path, tls: ssl.SSLContext | None) -> None:
    """Serve until killed. `frames` is per connection; each connection gets its own stream."""
    streams = [make_frames(frames, n) for n in range(connections)]
    wires = [b"".join(text_frame(b) for b in bodies) for bodies in streams]
    books = [sum(len(text_frame(b)) for b in bodies[:MARKETS_EACH]) for bodies in streams]
    turn = itertools.count()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Flood(wires, books, turn), "127.0.0.1", 0, ssl=tls)
    facts = {"port": server.sockets[0].getsockname()[1], "bytes": [len(w) for w in wires],
             "rows": [data_rows(bodies) for bodies in streams]}  # fmt: skip
    partial = ready.with_suffix(".part")
    partial.write_text(json.dumps(facts))
    partial.rename(ready)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, required=True)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--ready", type=Path, required=True)
    parser.add_argument("--tls-cert")
    parser.add_argument("--tls-key")
    asked = parser.parse_args()
    tls = None
    if asked.tls_cert:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(asked.tls_cert, asked.tls_key)
    uvloop.run(serve(asked.frames, asked.connections, asked.ready, tls))


if __name__ == "__main__":
    main()
