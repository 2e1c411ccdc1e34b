"""The short way of decoding: what it takes, what it leaves to the general way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from marketdata import events, typed, units
from marketdata.errors import OffScale
from tests.frame_streams import FrameStream

SECOND = "2026-08-07T06:46:28"


def _levels(*pairs: Any) -> list[tuple[int, int]] | None:
    """The yes levels of a snapshot; None where it has to go the general way."""
    msg = {"market_ticker": "M", "yes_dollars_fp": list(pairs)}
    read = typed.Typed()
    try:
        frame = read.frame(json.dumps({"type": "orderbook_snapshot", "msg": msg}).encode())
    except ValueError:
        return None
    event = read.event(frame)
    return event.yes if isinstance(event, events.Snapshot) else None


def test_levels_of_the_usual_form_are_taken_and_all_others_left() -> None:
    """A level below a cent, unsorted levels, an empty level: rare, and right in the long way."""
    assert _levels(["0.0800", "300.00"], ["0.2200", "333.25"]) == [
        (80_000, 30_000),
        (220_000, 33_325),
    ]
    for pairs in (
        [["0.0800"]],
        [[0.08, "300.00"]],
        [["0.0800", 300]],
        [["0.08", "300.00"]],
        [["0.0800", "0.00"]],
        [["0.0800", "-1.00"]],
        [["0.2200", "1.00"], ["0.0800", "1.00"]],
        [["0.0800", "1.00"], ["0.0800", "1.00"]],
    ):
        assert _levels(*pairs) is None


def test_fractions_of_every_length_are_looked_up() -> None:
    """The exchange cuts trailing zeros; a fraction of one or two digits is read the slow way."""
    read = typed.Typed()
    for text in ("1Z", "12Z", "123Z", "1234Z", "12345Z", "123456Z", "000001Z", "100200Z"):
        whole = f"{SECOND}.{text}"
        assert read.ts_us(whole) == read.ts_us(whole) == units.parse_ts_us(whole)
    assert list(read.seconds) == [f"{SECOND}."]
    assert read.ts_us(f"{SECOND}Z") == units.parse_ts_us(f"{SECOND}Z")


def test_full_tables_start_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over months every table fills; one that stays full would leave the hot path slow for good."""
    monkeypatch.setattr(typed, "MAX_MEMO_SIZES", 2)
    monkeypatch.setattr(typed, "MAX_MEMO_SECONDS", 1)
    read = typed.Typed()
    assert [read.size(f"{n}.00") for n in (1, 2, 3)] == [100, 200, 300]
    assert read.sizes == {"3.00": 300}
    for second in (28, 29):
        read.ts_us(f"2026-08-07T06:46:{second}.123456Z")
    assert list(read.seconds) == ["2026-08-07T06:46:29."]


def test_a_text_without_time_or_a_wrong_number_is_not_taken() -> None:
    """The general way knows what to say of them."""
    stream, read = FrameStream(1), typed.Typed()
    for raw in (stream.delta(ts=""), stream.ticker(time="")):
        assert read.event(read.frame(raw)) is None
    with pytest.raises(OffScale):
        read.event(read.frame(stream.trade(count_fp="-1.00")))


def test_the_key_of_a_ticker_is_of_its_numbers_or_of_its_text() -> None:
    """What the short way reads is keyed by value; a field it does not know changes the key."""
    current = json.loads(FrameStream(2).ticker())["msg"]
    assert typed.is_current_ticker(current)
    assert not typed.is_current_ticker(current | {"time": ""})
    assert not typed.is_current_ticker(current | {"novelty": 1})
    assert typed.payload_key(b"a") != typed.payload_key(b"b")
    assert 0 <= typed.payload_key(b"") < 2**64
