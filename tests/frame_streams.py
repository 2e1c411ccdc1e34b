"""Streams of frames of one connection, usual ones with oddities strewn in, from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, Final

from marketdata.book import Book
from marketdata.units import format_price, format_size, format_ts_us

START_US: Final = 1_786_085_188_000_000
BOOK_SID, TRADE_SID, TICKER_SID = 1, 2, 3


def _text(kind: str, msg: object, **envelope: object) -> bytes:
    return json.dumps({"type": kind, **envelope, "msg": msg}, separators=(",", ":")).encode()


class FrameStream:
    """`frames(n)` gives the next n. `odd`: one frame in so many is odd; 0: none."""

    def __init__(self, seed: int, odd: int = 0, markets: int = 4) -> None:
        self.rng = random.Random(seed)
        self.odd = odd
        self.names = [f"KXTEST-{n}" for n in range(markets)]
        self.books = {name: Book() for name in self.names}
        self.us = START_US
        self.seq = self.trade_seq = 0

    def opening(self) -> list[bytes]:
        """The replies to the subscriptions, and a snapshot of each market."""
        sids = ((BOOK_SID, "orderbook_delta"), (TRADE_SID, "trade"), (TICKER_SID, "ticker"))
        frames = [_text("subscribed", {"channel": c, "sid": sid}, id=1) for sid, c in sids]
        return frames + [self.snapshot(name) for name in self.names]

    def frames(self, n: int) -> list[bytes]:
        """The next n frames."""
        out: list[bytes] = []
        for _ in range(n):
            self.us += self.rng.choice((0, 1, 250, 999_999))
            if self.odd and not self.rng.randrange(self.odd):
                out.append(self.rng.choice(ODD)(self))
            else:
                out.append(self.usual())
        return out

    def usual(self) -> bytes:
        draw = self.rng.random()
        if draw < 0.1:
            return self.ticker()
        return self.trade() if draw < 0.2 else self.delta()

    def market(self) -> str:
        return self.rng.choice(self.names)

    def delta_msg(self, **changes: Any) -> dict[str, Any]:
        name, side = self.market(), self.rng.randrange(2)
        price = self.rng.choice((480_000, 490_000, 500_000))
        size = self.books[name].size(side, price)
        change = -size if size and self.rng.random() < 0.3 else self.rng.choice((100, 150, 5_000))
        self.books[name].apply(side, price, change)
        return {"market_ticker": name, "market_id": "x", "price_dollars": format_price(price),
                "delta_fp": format_size(change), "side": ("yes", "no")[side],
                "ts": format_ts_us(self.us), "ts_ms": self.us // 1_000} | changes  # fmt: skip

    def delta(self, *, skip: int = 0, sid: int = BOOK_SID, **changes: Any) -> bytes:
        self.seq += 1 + skip
        msg = {k: v for k, v in self.delta_msg(**changes).items() if v is not None}
        return _text("orderbook_delta", msg, sid=sid, seq=self.seq)

    def snapshot(self, name: str, *, empty: bool = False, shift: int = 0) -> bytes:
        self.seq += 1
        msg: dict[str, Any] = {"market_ticker": name, "market_id": "x"}
        if not empty:
            for side, key in enumerate(("yes_dollars_fp", "no_dollars_fp")):
                levels = [(p, s + shift) for p, s in self.books[name].levels(side) if s > 0]
                msg[key] = [[format_price(p), format_size(s)] for p, s in levels]
        return _text("orderbook_snapshot", msg, sid=BOOK_SID, seq=self.seq)

    def trade(self, *, skip: int = 0, **changes: Any) -> bytes:
        self.trade_seq += 1 + skip
        side = self.rng.choice(("yes", "no"))
        msg = {"trade_id": f"{self.rng.getrandbits(128):032x}", "market_ticker": self.market(),
               "yes_price_dollars": "0.4000", "no_price_dollars": "0.6000",
               "count_fp": format_size(self.rng.randrange(1, 999)), "taker_outcome_side": side,
               "taker_side": side, "is_block_trade": self.rng.random() < 0.1,
               "ts": self.us // 1_000_000, "ts_ms": self.us // 1_000} | changes  # fmt: skip
        return _text("trade", msg, sid=TRADE_SID, seq=self.trade_seq)

    def ticker(self, *, sid: int | None = TICKER_SID, **changes: Any) -> bytes:
        msg = {"market_id": "x", "market_ticker": self.market(), "price_dollars": "0.4800",
               "yes_bid_dollars": self.rng.choice(("0.4700", "")), "yes_ask_dollars": "0.4900",
               "volume_fp": format_size(self.us % 10**9), "open_interest_fp": "4.00",
               "dollar_volume": 4, "dollar_open_interest": 2, "yes_bid_size_fp": "1.00",
               "yes_ask_size_fp": "2.00", "last_trade_size_fp": "3.00",
               "ts": self.us // 1_000_000, "ts_ms": self.us // 1_000,
               "time": format_ts_us(self.us)} | changes  # fmt: skip
        return _text("ticker", msg, sid=sid)


ODD: Final[tuple[Callable[[FrameStream], bytes], ...]] = (
    lambda s: s.delta(skip=2),
    lambda s: s.delta(skip=-1),
    lambda s: s.delta(sid=9),
    lambda s: s.delta(market_ticker="KXTEST-NEW"),
    lambda s: s.delta(ts=format_ts_us(s.us - 5_000_000)),
    lambda s: s.delta(ts="2026-08-07T06:46:28Z"),
    lambda s: s.delta(ts="2026-08-07T06:46:28.1+00:00"),
    lambda s: s.delta(ts="2026-08-07T06:46:28.12345x"),
    lambda s: s.delta(ts="2026-08-07T06:46:28.12345xZ"),
    lambda s: s.delta(ts="2026-08-07T06:46:28.12345٣Z"),
    lambda s: s.delta(ts="2026-13-07T06:46:28.123456Z"),
    lambda s: s.delta(ts=None),
    lambda s: s.delta(ts="", ts_ms=None),
    lambda s: s.delta(delta_fp="-999999.00"),
    lambda s: s.delta(delta_fp="0.123"),
    lambda s: s.delta(price_dollars="0.123456"),
    lambda s: s.delta(price_dollars="1.5000"),
    lambda s: s.delta(side="maybe"),
    lambda s: s.snapshot(s.market()),
    lambda s: s.snapshot(s.market(), shift=100),
    lambda s: s.snapshot(s.market(), empty=True),
    lambda s: s.trade(skip=3),
    lambda s: s.trade(skip=-1),
    lambda s: s.trade(market_ticker="KXTEST-TRADED"),
    lambda s: s.trade(trade_id="not hex"),
    lambda s: s.trade(count_fp="-1.00"),
    lambda s: s.trade(ts_ms=2**52),
    lambda s: s.ticker(sid=4),
    lambda s: s.ticker(sid=None),
    lambda s: s.ticker(market_ticker="KXTEST-QUOTED"),
    lambda s: s.ticker(novelty=1),
    lambda s: s.ticker(time=""),
    lambda s: s.ticker(volume_fp="lots"),
    lambda s: b"{torn",
    lambda s: _text("novelty", {}, sid=BOOK_SID, seq=s.seq),
    lambda s: _text("ok", None, id=7, sid=BOOK_SID, seq=s.seq),
    lambda s: _text("error", {"code": 25, "msg": "overflow"}, id=8, sid=BOOK_SID, seq=s.seq),
    lambda s: _text("subscribed", {"channel": "orderbook_delta", "sid": 9}, id=3),
    lambda s: _text("market_lifecycle_v2", {"market_ticker": "M", "event_type": "created"}, sid=5),
)  # fmt: skip
