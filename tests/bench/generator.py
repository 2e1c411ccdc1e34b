"""A server that floods WebSocket frames as fast as they are taken: the load of the benchmarks.

It speaks just enough of the exchange's protocol (upgrade, subscribe, then frames in sequence) and sends
frames made beforehand, so that it is not what limits. Runs as a process of its own:
`python -m tests.bench.generator --frames N --connections C --ready FILE [--tls-cert F --tls-key F]`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import random
import ssl
import struct
from pathlib import Path

import uvloop

MARKETS = 2000
CHUNK_BYTES = 64 << 10
WRITE_HIGH_BYTES = 1 << 20
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
START_MS = 1_780_000_000_000
TRADE_SHARE, TICKER_SHARE = 0.05, 0.10


def ticker_name(number: int) -> str:
    return f"KXBENCH-26NOV22-T{number:05d}"


def _text_frame(body: bytes) -> bytes:
    if len(body) < 126:
        return bytes([0x81, len(body)]) + body
    if len(body) < 1 << 16:
        return b"\x81\x7e" + struct.pack(">H", len(body)) + body
    return b"\x81\x7f" + struct.pack(">Q", len(body)) + body


def make_frames(count: int, rng: random.Random) -> list[bytes]:
    """Bodies of `count` frames of one connection: 85 % deltas, 10 % tickers, 5 % trades.

    Book frames have sid 1 and a seq of their own, trades sid 2, tickers sid 3 without seq; a snapshot of
    each market comes first, so that every delta stands in an anchored run.
    """
    bodies: list[bytes] = []
    seq = trade_seq = 0
    weights = [1 / (n + 1) for n in range(MARKETS)]
    popular = rng.choices(range(MARKETS), weights=weights, k=count)
    for market in sorted(set(popular)):
        seq += 1
        msg = {"market_ticker": ticker_name(market), "market_id": f"{market:032x}",
               "yes_dollars_fp": [[f"0.{p:02d}00", "1000000.00"] for p in range(30, 50)],
               "no_dollars_fp": [[f"0.{p:02d}00", "1000000.00"] for p in range(30, 50)]}  # fmt: skip
        frame = {"type": "orderbook_snapshot", "sid": 1, "seq": seq, "msg": msg}
        bodies.append(json.dumps(frame, separators=(",", ":")).encode())
    for number, market in enumerate(popular):
        name, draw = ticker_name(market), rng.random()
        us = number * 137 % 1_000_000
        ms = START_MS + number // 50
        second = f"2026-05-28T20:{ms // 60000 % 60:02d}:{ms // 1000 % 60:02d}"
        if draw < TRADE_SHARE:
            trade_seq += 1
            frame = {"type": "trade", "sid": 2, "seq": trade_seq, "msg": {
                "trade_id": f"{rng.getrandbits(128):032x}", "market_ticker": name,
                "yes_price_dollars": "0.3600", "no_price_dollars": "0.6400", "count_fp": "136.00",
                "taker_side": "no", "taker_outcome_side": "no", "taker_book_side": "ask",
                "is_block_trade": False, "ts": ms // 1000, "ts_ms": ms}}  # fmt: skip
        elif draw < TRADE_SHARE + TICKER_SHARE:
            frame = {"type": "ticker", "sid": 3, "msg": {
                "market_id": f"{market:032x}", "market_ticker": name, "price_dollars": "0.4800",
                "yes_bid_dollars": "0.4500", "yes_ask_dollars": "0.5300", "volume_fp": f"{number}.00",
                "open_interest_fp": "20422.00", "dollar_volume": 16948, "dollar_open_interest": 10211,
                "yes_bid_size_fp": "300.00", "yes_ask_size_fp": "150.00", "last_trade_size_fp": "25.00",
                "ts": ms // 1000, "ts_ms": ms, "time": f"{second}Z"}}  # fmt: skip
        else:
            seq += 1
            size = rng.choice((-1, 1)) * rng.choice((1, 2, 10, 50, 400)) + rng.choice((0.0, 0.35))
            frame = {"type": "orderbook_delta", "sid": 1, "seq": seq, "msg": {
                "market_ticker": name, "market_id": f"{market:032x}",
                "price_dollars": f"0.{rng.randrange(30, 50):02d}00", "delta_fp": f"{size:.2f}",
                "side": rng.choice(("yes", "no")), "ts": f"{second}.{us:06d}Z", "ts_ms": ms}}  # fmt: skip
        bodies.append(json.dumps(frame, separators=(",", ":")).encode())
    return bodies


class Flood(asyncio.Protocol):
    """One client: upgrade, answer its first subscribe, then everything."""

    def __init__(self, wire: bytes) -> None:
        self.wire, self.sent, self.begun = memoryview(wire), 0, False
        self.buffer, self.upgraded, self.commands = b"", False, 0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop has its own class
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        if not self.upgraded:
            self.buffer += data
            if b"\r\n\r\n" not in self.buffer:
                return
            head = self.buffer.split(b"\r\n\r\n")[0]
            key = next(
                line.split(b":", 1)[1].strip()
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"sec-websocket-key:")
            )
            accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
            self.transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            self.upgraded = True
        elif not self.begun:
            self.begun = True  # any command starts the flood
            for sid, channel in ((1, "orderbook_delta"), (2, "trade"), (3, "ticker")):
                answer = {"id": 1, "type": "subscribed", "msg": {"channel": channel, "sid": sid}}
                self.transport.write(_text_frame(json.dumps(answer).encode()))
            self.pump()
        elif data[0] & 0x0F == 8:  # the client closes
            self.transport.close()

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
    streams = [make_frames(frames, random.Random(n)) for n in range(connections)]
    wires = [b"".join(_text_frame(b) for b in bodies) for bodies in streams]
    turn = iter(range(1 << 30))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Flood(wires[next(turn) % connections]), "127.0.0.1", 0, ssl=tls
    )
    facts = {"port": server.sockets[0].getsockname()[1], "frames": [len(b) for b in streams],
             "deltas": [sum(b"book_delta" in x for x in b) for b in streams],
             "bytes": [len(w) for w in wires]}  # fmt: skip
    ready.write_text(json.dumps(facts))
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, required=True)
    parser.add_argument("--connections", type=int, default=8)
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
