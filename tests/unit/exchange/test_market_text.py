"""Texts of trades and tickers."""

from __future__ import annotations

import json

from exchange.market_text import (
    creation_details,
    ending_details,
    made_up_result,
    ticker_text,
    trade_texts,
)
from tests.exchange_worlds import START_US, spec


def test_a_trade_has_equal_values_in_both_forms() -> None:
    """REST back-fill and WebSocket must give one trade, by id."""
    msg_text, rest_text = trade_texts(
        ticker="T",
        trade_id="961535f3-d80f-5462-e91d-88d4fe6db285",
        yes_price=123_000,
        count=250,
        taker_yes=False,
        is_block=True,
        exchange_us=1_788_000_000_123_450,
    )
    msg, rest = json.loads(msg_text), json.loads(rest_text)
    assert (msg["market_ticker"], rest["ticker"]) == ("T", "T")
    for key in ("trade_id", "yes_price_dollars", "no_price_dollars", "count_fp", "taker_side"):
        assert msg[key] == rest[key]
    assert (msg["yes_price_dollars"], msg["no_price_dollars"]) == ("0.1230", "0.8770")
    assert (msg["taker_outcome_side"], msg["taker_book_side"]) == ("no", "ask")
    assert (msg["ts"], msg["ts_ms"]) == (1_788_000_000, 1_788_000_000_123)
    assert rest["created_time"].endswith(".12345Z")


def test_a_never_traded_market_without_bids_asks_one_dollar() -> None:
    """The exchange's own form of an empty book: bid 0, ask 1."""
    msg = json.loads(
        ticker_text(
            ticker="T",
            market_id="i",
            price=0,
            best_yes=(0, 0),
            best_no=(0, 0),
            volume=0,
            open_interest=0,
            last_size=0,
            exchange_us=1_788_000_000_000_000,
        )
    )
    assert (msg["yes_bid_dollars"], msg["yes_ask_dollars"]) == ("0.0000", "1.0000")
    assert msg["time"] == "2026-08-29T10:40:00Z"


def test_lifecycle_details_carry_what_their_event_type_promises() -> None:
    """`determined` tells the result REST shows; `settled` only its second."""
    created = creation_details(spec(0))
    assert created["open_ts"] == START_US // 1_000_000 - 1
    assert created["additional_metadata"]["event_ticker"] == "KXTEST-26"
    determined = ending_details("KXTEST-26-T0", "determined", START_US)
    result = made_up_result("KXTEST-26-T0")
    assert determined == {
        "determination_ts": START_US // 1_000_000,
        "result": result,
        "settlement_value": {"yes": "1.0000", "no": "0.0000"}[result],
    }
    assert ending_details("x", "settled", START_US) == {"settled_ts": START_US // 1_000_000}
    assert {made_up_result(f"KXTEST-26-T{n}") for n in range(20)} == {"yes", "no"}
