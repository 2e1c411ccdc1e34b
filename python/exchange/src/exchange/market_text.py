"""Texts of made-up trade and ticker messages (the `msg` of a frame, and the REST form of a trade).

Purpose: exact JSON of integers in the exchange's present form. Does not do: recorded messages,
which keep their own text (replay), deltas and snapshots (frames).
"""

from __future__ import annotations

from typing import Final

import orjson

from exchange.frames import SIZE_SCALE, price_text, size_text, time_text

PRICE_WHOLE: Final = 1_000_000
SECOND_US: Final = 1_000_000


def trade_texts(
    *,
    ticker: str,
    trade_id: str,
    yes_price: int,
    count: int,
    taker_yes: bool,
    is_block: bool,
    exchange_us: int,
) -> tuple[bytes, bytes]:
    """(WebSocket msg, REST object) of one trade; prices in micro-dollars, count in 1/100."""
    side = "yes" if taker_yes else "no"
    common = {
        "trade_id": trade_id,
        "yes_price_dollars": price_text(yes_price),
        "no_price_dollars": price_text(PRICE_WHOLE - yes_price),
        "count_fp": size_text(count),
        "taker_side": side,
        "taker_outcome_side": side,
        "taker_book_side": "bid" if taker_yes else "ask",
        "is_block_trade": is_block,
    }
    msg = {
        **common,
        "market_ticker": ticker,
        "ts": exchange_us // SECOND_US,
        "ts_ms": exchange_us // 1000,
    }
    rest = {**common, "ticker": ticker, "created_time": time_text(exchange_us)}
    return orjson.dumps(msg), orjson.dumps(rest)


def ticker_text(
    *,
    ticker: str,
    market_id: str,
    price: int,
    best_yes: tuple[int, int],
    best_no: tuple[int, int],
    volume: int,
    open_interest: int,
    last_size: int,
    exchange_us: int,
) -> bytes:
    """The msg of one ticker state; `best_*` are (price, size) of the best bid, (0, 0) for none."""
    return orjson.dumps(
        {
            "market_ticker": ticker,
            "market_id": market_id,
            "price_dollars": price_text(price),
            "yes_bid_dollars": price_text(best_yes[0]),
            "yes_ask_dollars": price_text(PRICE_WHOLE - best_no[0]),
            "yes_bid_size_fp": size_text(best_yes[1]),
            "yes_ask_size_fp": size_text(best_no[1]),
            "last_trade_size_fp": size_text(last_size),
            "volume_fp": size_text(volume),
            "open_interest_fp": size_text(open_interest),
            "dollar_volume": volume // SIZE_SCALE,
            "dollar_open_interest": open_interest // SIZE_SCALE,
            "ts": exchange_us // SECOND_US,
            "ts_ms": exchange_us // 1000,
            "time": time_text(exchange_us),
        }
    )
