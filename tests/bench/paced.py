"""An exchange that sends at a steady rate, each delta stamped with the moment it was sent.

The load of `tests.bench.sustained`: enough of the exchange for a whole gatherer (REST lists, the
three channels, snapshots on request), frames put together from parts that were made beforehand, so
that it is not what limits. It ticks every TICK_S and sends what is due: 85 % deltas, 10 % tickers,
5 % trades. A delta's `ts` is the wall clock of its tick, so its row tells how long it took.
`python -m tests.bench.paced --markets N --ready FILE [--tls-cert F --tls-key F]`; rate and time are
commands on standard input (`rate 20000`, `stop`, `facts`), each answered by a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import ssl
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from marketdata.units import format_size, format_ts_us
from tests.bench.generator import SIDS, client_texts, text_frame, ticker_name, upgrade_answer

TICK_S = 0.002
CYCLE = 1 << 16
"""Frames made beforehand; they are sent over and over with new numbers and times."""
BEHIND_MAX_S = 0.5
"""A tick that comes later than this sends no more than so much: the load is a rate, not a debt."""
PAGE = 1000
DELTA, TICKER, TRADE = 0, 1, 2
KINDS = ("orderbook_delta", "ticker", "trade")
LEVEL_CENTI = 9_000_000_000  # of every level: no walk of small changes empties it
LEVELS = range(30, 50)  # cents, on both sides
SIDES = ("yes", "no")
EVENT_MARKETS = 20


Parts = tuple[bytes, bytes, bytes]
"""Of a frame: before its number, between number and time, after the time."""


def _parts(kind: int, head: str, msg: dict[str, Any], timed: str) -> Parts:
    """`timed`: the last field of msg; its value and the times are put in when it is sent."""
    body = json.dumps(msg, separators=(",", ":"))[:-1]
    before = f'{{"type":"{KINDS[kind]}","sid":{SIDS[KINDS[kind]]},"{head}":'
    return before.encode(), f',"msg":{body},"{timed}":"'.encode(), b"}}"


def delta_parts(market: int, side: str, cents: int, centi: int) -> Parts:
    msg = {
        "market_ticker": ticker_name(market), "market_id": f"{market:032x}",
        "price_dollars": f"0.{cents:02d}00", "delta_fp": format_size(centi), "side": side,
    }  # fmt: skip
    return _parts(DELTA, "seq", msg, "ts")


def ticker_parts(market: int, rng: random.Random) -> Parts:
    """A ticker has no seq: its number stands where nobody looks, so that all are made alike."""
    msg = {
        "market_id": f"{market:032x}", "market_ticker": ticker_name(market),
        "price_dollars": f"0.{rng.randrange(30, 50)}00", "yes_bid_dollars": "0.4500",
        "yes_ask_dollars": "0.5300", "volume_fp": f"{rng.randrange(10**6)}.00",
        "open_interest_fp": "20422.00", "dollar_volume": 16948, "dollar_open_interest": 10211,
        "yes_bid_size_fp": "300.00", "yes_ask_size_fp": "150.00", "last_trade_size_fp": "25.00",
    }  # fmt: skip
    return _parts(TICKER, "number", msg, "time")


def trade_parts(market: int) -> Parts:
    msg = {
        "market_ticker": ticker_name(market), "yes_price_dollars": "0.3600",
        "no_price_dollars": "0.6400", "count_fp": "136.00", "taker_side": "no",
        "taker_outcome_side": "no", "taker_book_side": "ask", "is_block_trade": False,
    }  # fmt: skip
    return _parts(TRADE, "seq", msg, "trade_id")


def snapshot(market: int, seq: int, book: Counter[tuple[str, int]]) -> bytes:
    """`book`: what came to the first size of each (side, cents)."""
    levels = {
        f"{side}_dollars_fp": [
            [f"0.{cents:02d}00", format_size(LEVEL_CENTI + book[side, cents])] for cents in LEVELS
        ]
        for side in SIDES
    }
    msg = {"market_ticker": ticker_name(market), "market_id": f"{market:032x}", **levels}
    frame = {"type": "orderbook_snapshot", "sid": 1, "seq": seq, "msg": msg}
    return json.dumps(frame, separators=(",", ":")).encode()


class Streams:
    """What is sent, in a cycle, and to whom."""

    def __init__(self, markets: int) -> None:
        rng = random.Random(markets)
        weights = [1 / (n + 1) for n in range(markets)]
        rng.shuffle(weights)
        popular = rng.choices(range(markets), weights=weights, k=CYCLE)
        self.markets = markets
        self.changes: dict[
            int, list[tuple[int, str, int, int]]
        ] = {}  # market -> place in the cycle
        self.base: dict[int, tuple[int, int]] = {}  # market -> (rounds, at) of its subscription
        self.cycle: list[tuple[int, int, Parts]] = []
        for number, market in enumerate(popular):
            draw = rng.random()
            if draw < 0.05:
                self.cycle.append((TRADE, market, trade_parts(market)))
            elif draw < 0.15:
                self.cycle.append((TICKER, market, ticker_parts(market, rng)))
            else:
                side, cents = rng.choice(SIDES), rng.choice(LEVELS)
                centi = (-1) ** number * rng.choice((100, 200, 1_000, 5_035, 40_000))
                self.changes.setdefault(market, []).append((number, side, cents, centi))
                self.cycle.append((DELTA, market, delta_parts(market, side, cents, centi)))
        self.at = self.rounds = 0
        self.book_of: dict[int, Client] = {}  # market -> the connection that carries its book
        self.channel_of: dict[int, Client] = {}  # TICKER, TRADE -> its connection
        self.sent: Counter[str] = Counter()
        self.behind_s = 0.0

    def subscribed(self, market: int, client: Client) -> None:
        """The market's changes go to this connection from now on; its book begins anew."""
        self.book_of[market] = client
        self.base[market] = self.rounds, self.at

    def book(self, market: int) -> Counter[tuple[str, int]]:
        """What its changes since the subscription add up to, by (side, cents)."""
        rounds, at = self.base[market]
        sums: Counter[tuple[str, int]] = Counter()
        for place, side, cents, centi in self.changes.get(market, ()):
            times = self.rounds - rounds + (place < self.at) - (place < at)
            sums[side, cents] += times * centi
        return sums

    def send(self, count: int) -> None:
        """The next `count` frames, each to the connection that carries it."""
        us = time.time_ns() // 1_000
        text, ms = format_ts_us(us).encode(), b'","ts_ms":%d' % (us // 1_000)
        seconds = b',"ts":%d' % (us // 1_000_000)
        when = {DELTA: text + ms, TICKER: text + ms + seconds}
        out: dict[Client, list[bytes]] = {}
        sent = [0, 0, 0]
        for _ in range(count):
            kind, market, (head, middle, tail) = self.cycle[self.at]
            self.at += 1
            if self.at == CYCLE:
                self.at, self.rounds = 0, self.rounds + 1
            client = self.book_of.get(market) if kind == DELTA else self.channel_of.get(kind)
            if client is None or client.transport is None:
                continue
            seq = client.seqs[kind] = client.seqs[kind] + 1
            at = when.get(kind) or b"%032x" % ((us << 40) + seq) + ms + seconds
            body = b"".join((head, b"%d" % seq, middle, at, tail))
            size = len(body)
            out.setdefault(client, []).append(b"\x81\x7e" + size.to_bytes(2, "big") + body)
            sent[kind] += 1
        for client, frames in out.items():
            client.transport.write(b"".join(frames))  # type: ignore[union-attr]
        for kind, number in enumerate(sent):
            self.sent[KINDS[kind]] += number


class Client(asyncio.Protocol):
    """One connection of the gatherer."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.buffer, self.upgraded = b"", False
        self.transport: asyncio.Transport | None = None
        self.sids: dict[str, int] = {}
        self.seqs = [0, 0, 0]
        self.books: set[int] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop has its own class

    def connection_lost(self, _error: Exception | None) -> None:
        self.transport = None
        self.streams.sent["closed"] += 1
        for market in self.books:
            self.streams.book_of.pop(market, None)

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        self.buffer += data
        if not self.upgraded:
            if b"\r\n\r\n" not in self.buffer:
                return
            head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
            self.transport.write(upgrade_answer(head))
            self.upgraded = True
        texts, self.buffer, is_over = client_texts(self.buffer)
        for text in texts:
            self.command(json.loads(text))
        if is_over:
            self.transport.close()

    def tell(self, **message: Any) -> None:
        assert self.transport is not None
        self.transport.write(text_frame(json.dumps(message).encode()))

    def command(self, asked: dict[str, Any]) -> None:
        params = asked.get("params", {})
        named = params.get("market_tickers") or []
        if asked["cmd"] == "subscribe":
            for channel in params["channels"]:
                sid = self.sids[channel] = SIDS.get(channel, 9)
                self.tell(id=asked["id"], type="subscribed", msg={"channel": channel, "sid": sid})
                if channel in KINDS[1:]:
                    self.streams.channel_of[KINDS.index(channel)] = self
        elif asked["cmd"] == "list_subscriptions":
            listed = [{"channel": c, "sid": s} for c, s in self.sids.items()]
            self.tell(id=asked["id"], type="ok", msg=listed)
        elif params.get("action") == "add_markets":
            self.seqs[DELTA] += 1
            self.tell(id=asked["id"], type="ok", sid=1, seq=self.seqs[DELTA], msg={})
        if params.get("action") != "delete_markets":
            self.give(named, is_new=params.get("action") != "get_snapshot")

    def give(self, tickers: list[str], *, is_new: bool) -> None:
        """A snapshot of each. New ones have their deltas sent here from now on."""
        assert self.transport is not None
        for ticker in tickers:
            market = int(ticker[-5:])
            if is_new:
                self.streams.subscribed(market, self)
            self.seqs[DELTA] += 1
            self.streams.sent["snapshots"] += 1
            book = self.streams.book(market)
            self.transport.write(text_frame(snapshot(market, self.seqs[DELTA], book)))
            self.books.add(market)


def rest(streams: Streams) -> web.Application:
    """The lists that a gatherer asks for; every other question has an empty answer."""

    def market(number: int) -> dict[str, Any]:
        event = f"KXBENCH-E{number // EVENT_MARKETS:04d}"
        return {"ticker": ticker_name(number), "event_ticker": event, "status": "active"}

    def event(number: int) -> dict[str, Any]:
        first = number * EVENT_MARKETS
        markets = [market(n) for n in range(first, min(first + EVENT_MARKETS, streams.markets))]
        name = f"KXBENCH-E{number:04d}"
        return {"event_ticker": name, "series_ticker": "KXBENCH", "title": "", "markets": markets}

    def paged(request: web.Request, key: str, rows: list[dict[str, Any]]) -> web.Response:
        first, size = int(request.query.get("cursor") or 0), int(request.query.get("limit", PAGE))
        after = first + size
        cursor = str(after) if after < len(rows) else ""
        return web.json_response({key: rows[first:after], "cursor": cursor})

    async def answer(request: web.Request) -> web.Response:
        path = request.path.removeprefix("/trade-api/v2")
        if path == "/markets":
            return paged(request, "markets", [market(n) for n in range(streams.markets)])
        if path == "/events":
            count = -(-streams.markets // EVENT_MARKETS)
            return paged(request, "events", [event(n) for n in range(count)])
        if path == "/exchange/status":
            return web.json_response({"exchange_active": True, "trading_active": True})
        if path == "/exchange/schedule":
            return web.json_response({"schedule": {"maintenance_windows": []}})
        return web.json_response({"series": [], "trades": [], "orderbooks": [], "cursor": ""})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    return app


class Pace:
    """The rate, and what was sent by it."""

    def __init__(self, streams: Streams) -> None:
        self.streams, self.rate, self.behind_s = streams, 0, 0.0

    async def run(self) -> None:
        """Send what is due at every tick."""
        due, last = 0.0, time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            passed, last = now - last, now
            self.behind_s = max(self.behind_s, passed)
            due = min(due + passed * self.rate, self.rate * BEHIND_MAX_S)
            count, due = int(due), due - int(due)
            if count:
                self.streams.send(count)

    def facts(self) -> dict[str, Any]:
        """What was sent so far; `behind_s`: the longest tick since the last question."""
        behind_s, self.behind_s = self.behind_s, 0.0
        waiting = sum(
            client.transport.get_write_buffer_size()
            for client in {*self.streams.book_of.values(), *self.streams.channel_of.values()}
            if client.transport is not None
        )
        return {**self.streams.sent, "behind_s": behind_s, "unsent_bytes": waiting,
                "books": len(self.streams.book_of), "cpu_s": time.process_time()}  # fmt: skip


async def commands(pace: Pace) -> None:
    """Lines of standard input, until it ends."""
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := (await lines.readline()).decode().split():
        if line[0] == "rate":
            pace.rate = int(line[1])
        print(json.dumps(pace.facts()), flush=True)


async def serve(markets: int, ready: Path, tls: ssl.SSLContext | None) -> None:
    """Serve until standard input ends."""
    streams = Streams(markets)
    pace = Pace(streams)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Client(streams), "127.0.0.1", 0, ssl=tls)
    runner = web.AppRunner(rest(streams), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    facts = {"ws": server.sockets[0].getsockname()[1], "rest": runner.addresses[0][1]}
    partial = ready.with_suffix(".part")
    partial.write_text(json.dumps(facts))
    partial.rename(ready)
    sending = asyncio.create_task(pace.run())
    await commands(pace)
    sending.cancel()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markets", type=int, required=True)
    parser.add_argument("--ready", type=Path, required=True)
    parser.add_argument("--tls-cert")
    parser.add_argument("--tls-key")
    asked = parser.parse_args()
    tls = None
    if asked.tls_cert:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(asked.tls_cert, asked.tls_key)
    uvloop.run(serve(asked.markets, asked.ready, tls))


if __name__ == "__main__":
    main()
