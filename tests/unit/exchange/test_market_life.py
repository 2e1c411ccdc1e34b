"""Recorded messages in the words of REST."""

from __future__ import annotations

import orjson

from exchange.market_life import rest_form, rest_trades, told_by_lifecycle
from tests.recording_worlds import spec


def test_a_lifecycle_message_tells_names_times_status_and_result() -> None:
    market = spec("A")
    created = {"event_type": "created", "open_ts": 10, "close_ts": 20, "additional_metadata": {
        "title": "Will it?", "event_ticker": "KXE-1", "rules_primary": "so", "odd": 1}}  # fmt: skip
    assert told_by_lifecycle(market, "active", created) == "active"
    assert (market.open_us, market.close_us) == (10_000_000, 20_000_000)
    assert market.event_ticker == "KXE-1"
    assert market.details == {"title": "Will it?", "rules_primary": "so"}
    assert told_by_lifecycle(market, "active", {"event_type": "deactivated"}) == "inactive"
    ended = {"event_type": "determined", "result": "no", "settlement_value": "0.0000"}
    assert told_by_lifecycle(market, "active", ended) == "determined"
    assert market.details["result"] == "no"
    assert market.details["settlement_value_dollars"] == "0.0000"
    assert told_by_lifecycle(market, "determined", {"event_type": "settled"}) == "finalized"


def test_values_of_a_wrong_kind_are_left_out() -> None:
    market = spec("A")
    odd = {"event_type": 7, "open_ts": "soon", "result": None, "additional_metadata": [1]}
    assert told_by_lifecycle(market, "active", odd) == "active"
    assert market == spec("A")


def test_a_trade_message_in_the_form_of_rest() -> None:
    msg = b'{"trade_id":"t","market_ticker":"A","count_fp":"1.00","ts":1,"ts_ms":1500,"odd":[1]}'
    assert orjson.loads(rest_form(msg, 1_500_000)) == {
        "trade_id": "t", "ticker": "A", "count_fp": "1.00", "odd": [1],
        "created_time": "1970-01-01T00:00:01.5Z",
    }  # fmt: skip


def test_trades_that_rest_told_are_given_as_it_told_them() -> None:
    body = {"trade_id": "961535f3-d80f-5462-e91d-00000000beef", "ticker": "A", "odd": {"x": 1},
            "yes_price_dollars": "0.4000", "no_price_dollars": "0.6000", "count_fp": "1.00",
            "taker_side": "no", "created_time": "1970-01-01T00:00:01.5Z"}  # fmt: skip
    ((us, ticker, text),) = rest_trades({"trades": ["no trade", body]})
    assert (us, ticker) == (1_500_000, "A")
    assert orjson.loads(text) == body
    assert list(rest_trades({})) == []
