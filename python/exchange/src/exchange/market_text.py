"""Texts of made-up trade, ticker and lifecycle messages, and the REST form of a trade.

Purpose: exact JSON of integers in the exchange's present form. Does not do: recorded messages,
which keep their own text (replay), deltas and snapshots (frames), other REST bodies (rest).
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import orjson

from exchange.frames import SIZE_SCALE, price_text, size_text, time_text
from exchange.timeline import MarketSpec

PRICE_WHOLE: Final = 1_000_000
SECOND_US: Final = 1_000_000
EXCHANGE_INDEX: Final = 0
PRICE_LEVELS: Final[dict[str, Any]] = {
    "price_level_structure": "linear_cent",
    "price_ranges": [{"start": "0.0000", "end": "1.0000", "step": "0.0100"}],
}
SETTLEMENT_VALUES: Final = {"yes": "1.0000", "no": "0.0000"}


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


def made_up_result(ticker: str) -> str:
    """How a market ends, yes or no: from its name, so that every message says the same."""
    return "yes" if zlib.crc32(ticker.encode()) & 1 else "no"


def creation_details(spec: MarketSpec) -> dict[str, Any]:
    """What a `created` lifecycle message says besides ticker and event type."""
    return {
        "exchange_index": EXCHANGE_INDEX,
        "open_ts": spec.open_us // SECOND_US,
        "close_ts": spec.close_us // SECOND_US,
        **PRICE_LEVELS,
        "additional_metadata": {
            "name": spec.title,
            "title": spec.title,
            "yes_sub_title": spec.title,
            "no_sub_title": spec.title,
            "rules_primary": "",
            "rules_secondary": "",
            "can_close_early": True,
            "event_ticker": spec.event_ticker,
            "expected_expiration_ts": spec.close_us // SECOND_US,
        },
    }


def ending_details(ticker: str, event_type: str, now_us: int) -> dict[str, Any]:
    """What a `determined` or `settled` lifecycle message says besides ticker and event type."""
    if event_type == "settled":
        return {"settled_ts": now_us // SECOND_US}
    result = made_up_result(ticker)
    return {
        "determination_ts": now_us // SECOND_US,
        "result": result,
        "settlement_value": SETTLEMENT_VALUES[result],
    }
