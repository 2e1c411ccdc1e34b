"""Texts of frames: exact, and in the forms that were recorded."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.frames import (
    delta_head,
    delta_tail,
    frame_head,
    levels_json,
    price_text,
    scaled,
    size_text,
    snapshot_tail,
    time_text,
    time_us,
)
from exchange.timeline import NO, TIME_BOTH, TIME_MS_ONLY, TIME_TS_ONLY
from marketdata.errors import OffScale


@given(st.integers(0, 1_000_000))
def test_a_price_text_parses_back_to_its_integer(price: int) -> None:
    """A text that rounds would put a false price into the truth."""
    assert scaled(price_text(price), 1_000_000) == price
    assert len(price_text(price).split(".")[1]) >= 4


@given(st.integers(-(10**15), 10**15))
def test_a_size_text_parses_back_to_its_integer(size: int) -> None:
    """Also between -1 and 0, where the sign of the whole part is lost."""
    assert scaled(size_text(size), 100) == size


@given(st.integers(0, 2_000_000_000_000_000))
def test_a_time_text_parses_back_and_has_no_trailing_zero(us: int) -> None:
    """9 % of recorded stamps have fewer than six digits; whole seconds have no fraction."""
    text = time_text(us)
    assert time_us(text) == us
    assert not (text[:-1].endswith("0") and "." in text)


@pytest.mark.parametrize(
    "text",
    [
        "2026-05-11T05:31:13",
        "2026-05-11 05:31:13,5Z",
        "2026-05-11T05:31:13.1234567Z",
        "2026-05-11T05:31:13.+1Z",
        "2026-13-11T05:31:13Z",
        "Z",
    ],
)
def test_a_time_without_exact_microseconds_is_refused(text: str) -> None:
    """A guessed time would shift an event in the truth."""
    with pytest.raises(OffScale):
        time_us(text)


@pytest.mark.parametrize(("text", "scale"), [("0.0000001", 1_000_000), ("1.005", 100), ("x", 100)])
def test_a_number_finer_than_the_scale_is_refused(text: str, scale: int) -> None:
    """Rounding is never the answer."""
    with pytest.raises(OffScale):
        scaled(text, scale)


@pytest.mark.parametrize(
    ("form", "keys"),
    [
        (TIME_BOTH, {"ts", "ts_ms"}),
        (TIME_TS_ONLY, {"ts"}),
        (TIME_MS_ONLY, {"ts_ms"}),
    ],
)
def test_a_delta_frame_is_json_in_each_time_form(form: int, keys: set[str]) -> None:
    """ts_ms is ts cut to the millisecond, not rounded."""
    us = 1_778_477_473_881_959
    head = delta_head('K"X', "id-1")
    frame = json.loads(
        frame_head("orderbook_delta", 4) + b"17" + delta_tail(head, NO, 370_000, -450, us, form)
    )
    assert (frame["type"], frame["sid"], frame["seq"]) == ("orderbook_delta", 4, 17)
    msg = frame["msg"]
    assert msg["market_ticker"] == 'K"X'
    assert (msg["price_dollars"], msg["delta_fp"], msg["side"]) == ("0.3700", "-4.50", "no")
    assert {key for key in msg if key.startswith("ts")} == keys
    assert msg.get("ts", "2026-05-11T05:31:13.881959Z") == "2026-05-11T05:31:13.881959Z"
    assert msg.get("ts_ms", 1_778_477_473_881) == 1_778_477_473_881


def test_an_empty_side_of_a_snapshot_has_no_key() -> None:
    """As the exchange does; REST has both keys always."""
    both = json.loads(frame_head("orderbook_snapshot", 1) + b"1" + snapshot_tail("T", "i", [], []))
    assert set(both["msg"]) == {"market_ticker", "market_id"}
    one = snapshot_tail("T", "i", [(10_000, 500)], [])
    assert b"no_dollars_fp" not in one
    rest = json.loads("{" + levels_json([(10_000, 500)], [], ("yes_dollars", "no_dollars")) + "}")
    assert rest == {"yes_dollars": [["0.0100", "5.00"]], "no_dollars": []}


def test_the_command_id_stands_in_the_head_and_seq_only_where_there_is_one() -> None:
    """A get_snapshot answer carries the id; a ticker has no seq."""
    assert json.loads(frame_head("ok", 2, command_id=9) + b"3}") == {
        "type": "ok",
        "id": 9,
        "sid": 2,
        "seq": 3,
    }
    assert json.loads(frame_head("ticker", 2, sequenced=False) + b"}") == {
        "type": "ticker",
        "sid": 2,
    }
