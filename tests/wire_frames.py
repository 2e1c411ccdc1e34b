"""Frames as the exchange sends them, as bytes, for tests of the gatherer."""

from __future__ import annotations

import json


def subscribed(sid: int, channel: str = "orderbook_delta") -> bytes:
    return _text({"type": "subscribed", "id": 1, "msg": {"channel": channel, "sid": sid}})


def snapshot(seq: int, market: str = "M", sid: int = 1, size: str = "5.00") -> bytes:
    msg = {"market_ticker": market, "market_id": "x", "yes_dollars_fp": [["0.4000", size]]}
    return _text({"type": "orderbook_snapshot", "sid": sid, "seq": seq, "msg": msg})


def delta(seq: int, market: str = "M", sid: int = 1, size: str = "1.00") -> bytes:
    ts_ms = 1_786_085_188_000 + seq
    msg = {
        "market_ticker": market,
        "market_id": "x",
        "price_dollars": "0.4000",
        "delta_fp": size,
        "side": "yes",
        "ts": f"2026-08-07T06:46:{28 + seq // 1000 % 30:02d}.{seq % 1000:03d}Z",
        "ts_ms": ts_ms,
    }
    return _text({"type": "orderbook_delta", "sid": sid, "seq": seq, "msg": msg})


def trade(seq: int, sid: int = 2, market: str = "M") -> bytes:
    msg = {
        "trade_id": f"961535f3-d80f-5462-e91d-{seq:012x}",
        "market_ticker": market,
        "yes_price_dollars": "0.4000",
        "no_price_dollars": "0.6000",
        "count_fp": "3.00",
        "taker_side": "no",
        "ts": 1_786_085_188,
        "ts_ms": 1_786_085_188_500,
    }
    return _text({"type": "trade", "sid": sid, "seq": seq, "msg": msg})


def ticker(sid: int = 3, market: str = "M") -> bytes:
    msg = {
        "market_id": "x",
        "market_ticker": market,
        "price_dollars": "0.4000",
        "yes_bid_dollars": "0.3900",
        "yes_ask_dollars": "0.4100",
        "volume_fp": "10.00",
        "open_interest_fp": "4.00",
        "dollar_volume": 4,
        "dollar_open_interest": 2,
        "yes_bid_size_fp": "1.00",
        "yes_ask_size_fp": "2.00",
        "last_trade_size_fp": "3.00",
        "ts": 1_786_085_188,
        "ts_ms": 1_786_085_188_600,
    }
    return _text({"type": "ticker", "sid": sid, "msg": msg})


def _text(message: object) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()
