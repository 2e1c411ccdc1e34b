"""Gatherers' spools of one known stream, written frame by frame, and their databases made of them.

`write_spool` puts what the exchange sends a gatherer into a real spool; lost frames leave a hole in
`seq`, times away end the connection. The database is made by the project's own rebuild.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gatherer.intake import Decoding, LiveIntake, recover
from gatherer.sink import SinkSettings
from gatherer.spool_rebuild import rebuild
from marketdata.units import format_price, format_size, format_ts_us
from runtime.clock import Clock
from runtime.postgres import connect
from runtime.spool import SpoolWriter
from tests.gatherer_rows import START_US, Happening, Stream, write_markets_meta

Away = tuple[int, int]  # places in the stream: not connected from, connected again at
BOOK_SID, TRADE_SID, TICKER_SID = 1, 2, 3
SEGMENT_BYTES = 48 * 1024
BATCH_ROWS = 60
LATENCY_NS = 20_000_000


def _text(kind: str, msg: object, **envelope: object) -> bytes:
    return json.dumps({"type": kind, **envelope, "msg": msg}, separators=(",", ":")).encode()


class _Sender:
    """The exchange, as one connection after the other shows it to one gatherer."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.books = [dict(book) for book in stream.opening]
        self.seq = self.trade_seq = 0

    def opening(self) -> list[bytes]:
        """A new connection: replies to the subscriptions and a snapshot of every market."""
        self.seq = self.trade_seq = 0
        sids = ((BOOK_SID, "orderbook_delta"), (TRADE_SID, "trade"), (TICKER_SID, "ticker"))
        frames = [_text("subscribed", {"channel": c, "sid": sid}, id=1) for sid, c in sids]
        return frames + [self._snapshot(m) for m in range(len(self.books))]

    def _snapshot(self, market: int) -> bytes:
        self.seq += 1
        msg: dict[str, Any] = {"market_ticker": self.stream.tickers[market], "market_id": "x"}
        for side, key in enumerate(("yes_dollars_fp", "no_dollars_fp")):
            levels = sorted((p, s) for (of, p), s in self.books[market].items() if of == side)
            msg[key] = [[format_price(p), format_size(s)] for p, s in levels]
        return _text("orderbook_snapshot", msg, sid=BOOK_SID, seq=self.seq)

    def follow(self, h: Happening) -> None:
        """It happened, whoever sees it."""
        if h.kind == "delta":
            book, level = self.books[h.market], (h.side, h.price)
            book[level] = book.get(level, 0) + h.delta
            if not book[level]:
                del book[level]

    def frame(self, h: Happening) -> bytes:
        ticker = self.stream.tickers[h.market]
        if h.kind == "delta":
            self.seq += 1
            msg = {
                "market_ticker": ticker, "market_id": "x", "price_dollars": format_price(h.price),
                "delta_fp": format_size(h.delta), "side": ("yes", "no")[h.side],
                "ts": format_ts_us(h.us), "ts_ms": h.us // 1_000,
            }  # fmt: skip
            return _text("orderbook_delta", msg, sid=BOOK_SID, seq=self.seq)
        if h.kind == "trade":
            self.trade_seq += 1
            return _text("trade", {**trade_body(self.stream, h), "market_ticker": ticker},
                         sid=TRADE_SID, seq=self.trade_seq)  # fmt: skip
        msg = {
            "market_id": "x", "market_ticker": ticker, "price_dollars": format_price(h.price),
            "yes_bid_dollars": "0.4700", "yes_ask_dollars": "0.4900",
            "volume_fp": format_size(h.key), "open_interest_fp": "4.00", "dollar_volume": 4,
            "dollar_open_interest": 2, "yes_bid_size_fp": "1.00", "yes_ask_size_fp": "2.00",
            "last_trade_size_fp": "3.00", "ts": h.us // 1_000_000, "ts_ms": h.us // 1_000,
            "time": format_ts_us(h.us),
        }  # fmt: skip
        return _text("ticker", msg, sid=TICKER_SID)


def trade_body(stream: Stream, h: Happening) -> dict[str, Any]:
    """A trade as the exchange shows it, also by REST."""
    side = ("yes", "no")[h.key % 2]
    return {
        "trade_id": f"{h.key + 1:032x}", "ticker": stream.tickers[h.market],
        "yes_price_dollars": format_price(h.price),
        "no_price_dollars": format_price(1_000_000 - h.price),
        "count_fp": format_size(100 * (h.key % 7 + 1)), "taker_outcome_side": side,
        "taker_side": side, "is_block_trade": False, "ts": h.us // 1_000_000,
        "ts_ms": h.us // 1_000, "created_time": format_ts_us(h.us // 1_000 * 1_000),
    }  # fmt: skip


async def write_spool(
    folder: Path, stream: Stream, *, id_base: int, away: Sequence[Away] = (),
    unheard: Sequence[int] = (),
) -> None:  # fmt: skip
    """The spool of one gatherer; the trades at the places `unheard` were never sent to anybody."""
    holder: list[Decoding] = []
    spool = SpoolWriter.open(
        folder,
        state=lambda: holder[0].state(),  # noqa: PLW0108 - it is made below
        created_ns=id_base,
        id_base=id_base,
        segment_bytes=SEGMENT_BYTES,
        group_commit_ms=1,
    )
    holder.append(recover(spool))
    live = LiveIntake(spool, holder[0])
    writing = asyncio.create_task(spool.run())
    sender = _Sender(stream)
    conn, ns = 0, START_US * 1_000

    def open_connection() -> int:
        conn = live.next_conn_id()
        live.control(
            {"k": "connect", "conn": conn, "conn_uid": f"u{id_base}-{conn}", "handshake": "h",
             "local": "l", "url": "w"}, ns,
        )  # fmt: skip
        live.absorb(conn, sender.opening(), ns)
        return conn

    conn = open_connection()
    for n, h in enumerate(stream.happenings):
        ns = max(ns + 1, h.us * 1_000 + LATENCY_NS + id_base * 1_000)
        is_away = any(a <= n < b for a, b in away)
        if is_away and conn:
            live.control({"k": "close", "conn": conn, "reason": "reset"}, ns)
            conn = 0
        if not is_away and not conn:
            conn = open_connection()
        sender.follow(h)
        if conn and n not in unheard:
            live.absorb(conn, [sender.frame(h)], ns)
        if n % 50 == 0:
            await asyncio.sleep(0)
    if conn:
        live.control({"k": "close", "conn": conn, "reason": "end"}, ns)
    live.end()
    await spool.sync()
    writing.cancel()
    await asyncio.wait([writing])
    await spool.close(clean=False)


async def database_of(spool: Path, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hot database that this spool gives, in small batches."""
    copy = spool.parent / f"{spool.name}-copy"
    shutil.copytree(spool, copy)
    with monkeypatch.context() as patch:
        small = partial(SinkSettings, flush_rows=BATCH_ROWS)
        patch.setattr("gatherer.spool_rebuild.SinkSettings", small)
        await rebuild(copy, dsn, Clock(0))
    shutil.rmtree(copy)


async def describe_markets(dsn: str, stream: Stream) -> None:
    """What the second database knows of the stream's markets."""
    conn = await connect(dsn)
    await conn.executemany(
        "INSERT INTO market_history VALUES ($1, $2, $3, $4, $5)", write_markets_meta(stream)
    )
    await conn.close()
