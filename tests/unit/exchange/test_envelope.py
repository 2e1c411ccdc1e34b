"""Recorded frames under other numbers: everything but the numbers stays byte for byte."""

from __future__ import annotations

import json

import pytest

from exchange.envelope import Cut, Numbers, cut, cut_any, on_yes_scale
from tests.frame_streams import FrameStream

CURRENT = b'{"type":"orderbook_delta","sid":2,"seq":17,"msg":{"market_ticker":"M","odd":1.50}}'


@pytest.mark.parametrize(
    ("frame", "numbers"),
    [
        (CURRENT, Numbers.SID_SEQ),
        (b'{"type":"ticker","sid":2,"msg":{"a":[1,{"sid":9}]}}', Numbers.SID),
        (b' { "seq" : 17 , "msg":{"sid":5,"x":"}\\",\\"seq\\":"}, "sid":2 }', Numbers.SEQ_SID),
        (b'{"type":"t","msg":{},"seq":17}', Numbers.SEQ),
        (b'{"type":"t","msg":{"seq":1}}', Numbers.NONE),
        (b'{"sid":2,"type":"\\"sid\\":4","seq":17,"msg":null}', Numbers.SID_SEQ),
        ('{"type":"ü","sid":2,"seq":17,"msg":{"t":"é\\n"}}'.encode(), Numbers.SID_SEQ),
    ],
)  # fmt: skip
def test_with_its_own_numbers_a_frame_has_its_own_bytes(frame: bytes, numbers: Numbers) -> None:
    """EXCH-16."""
    for found in (cut(frame), cut_any(frame)):
        assert found is not None
        assert found.numbers == numbers
        assert found.frame(2, 17) == frame
        other = json.loads(found.frame(5, 6))
        assert other == json.loads(frame) | {
            k: v for k, v in (("sid", 5), ("seq", 6)) if k in other
        }
        assert json.loads(found.msg()) == json.loads(frame)["msg"]


def test_both_ways_of_cutting_agree_on_usual_and_odd_frames() -> None:
    stream = FrameStream(3, odd=3)
    seen = 0
    for frame in stream.frames(3_000):
        short, long = cut(frame), cut_any(frame)
        assert (short is None) == (long is None), frame
        if short is None or long is None:
            assert frame == b"{torn"
            continue
        assert short.frame(77, 88) == long.frame(77, 88)
        assert b'"id"' not in short.frame(77, 88)
        seen += 1
    assert seen > 2_500


@pytest.mark.parametrize(
    ("frame", "without"),
    [
        (b'{"id":7,"type":"t","sid":1,"seq":2,"msg":{}}', b'{"type":"t","sid":1,"seq":2,"msg":{}}'),
        (b'{"type":"t","id":7,"sid":1,"seq":2,"msg":{}}', b'{"type":"t","sid":1,"seq":2,"msg":{}}'),
        (b'{"type":"t","sid":1,"id":7,"seq":2,"msg":{}}', b'{"type":"t","sid":1,"seq":2,"msg":{}}'),
        (b'{"type":"t","sid":1,"seq":2,"msg":{},"id":7}', b'{"type":"t","sid":1,"seq":2,"msg":{}}'),
        (b'{"sid":1,"seq":2, "id" : 7 ,"msg":{"id":3}}', b'{"sid":1,"seq":2 ,"msg":{"id":3}}'),
    ],
)
def test_the_id_of_a_command_that_the_client_did_not_give_is_left_out(
    frame: bytes, without: bytes
) -> None:
    found = cut(frame)
    assert found is not None
    assert found.frame(1, 2) == without
    assert json.loads(found.answering(9).frame(1, 2)) == json.loads(without) | {"id": 9}


@pytest.mark.parametrize(
    "frame", [b"{torn", b"", b"[1]", b"7", b"\xff\xfe", b'{"sid":1,"sid":2}', CURRENT[:-1]]
)
def test_what_is_no_object_or_has_a_number_twice_cannot_be_sent(frame: bytes) -> None:
    assert cut_any(frame) is None


def test_an_answer_keeps_the_rest() -> None:
    found = cut(CURRENT)
    assert isinstance(found, Cut)
    assert found.has_seq
    assert found.answering(4).frame(2, 17) == CURRENT.replace(b'{"type"', b'{"id":4,"type"')


def test_prices_of_the_no_side_on_the_yes_scale() -> None:
    """Of a delta the price, of a snapshot the levels, ascending; nothing else changes."""
    delta = {"type": "d", "sid": 1, "msg": {"side": "no", "price_dollars": "0.300", "odd": "x"}}
    turned = json.loads(on_yes_scale(json.dumps(delta).encode()))
    assert turned["msg"] == {"side": "no", "price_dollars": "0.700", "odd": "x"}
    delta["msg"]["side"] = "yes"  # type: ignore[index]
    assert json.loads(on_yes_scale(json.dumps(delta).encode())) == delta
    snapshot = {
        "msg": {
            "yes_dollars_fp": [["0.1000", "1.00"]],
            "no_dollars_fp": [["0.0010", "5.00"], ["0.9990", "6.00"]],
            "no": [[30, 4]],
        }
    }
    assert json.loads(on_yes_scale(json.dumps(snapshot).encode()))["msg"] == {
        "yes_dollars_fp": [["0.1000", "1.00"]],
        "no_dollars_fp": [["0.0010", "6.00"], ["0.9990", "5.00"]],
        "no": [[70, 4]],
    }
