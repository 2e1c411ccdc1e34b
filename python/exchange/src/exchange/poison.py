"""Frames that no exchange should send, and that a recorder has to survive.

Purpose: texts by name, in two kinds. `stray` frames come besides the play and use no number of a
subscription. `mangled` frames are a sequenced frame of the play, altered: all but those in HARMLESS
have lost their change, and the truth log says that it was never told.

Does not do: choose when or where (switches, connection).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson

LARGE_BYTES: Final = 16 << 20
NESTING: Final = 50_000
FAR_SEQ: Final = 1 << 52
HARMLESS: Final = frozenset({"large_change"})
"""Mangled frames that still tell their change."""


def _stray_large(sid: int) -> bytes:
    return b'{"type":"bulletin","sid":%d,"msg":{"text":"%b"}}' % (sid, b"x" * LARGE_BYTES)


_STRAYS: Final[dict[str, Callable[[int], bytes]]] = {
    "empty": lambda _sid: b"",
    "not_json": lambda _sid: b'{"type":"orderbook_delta","sid":',
    "not_utf8": lambda _sid: b'{"type":"orderbook_delta","msg":{"market_ticker":"\xff\xfe\x80"}}',
    "no_object": lambda _sid: b'["orderbook_delta"]',
    "no_type": lambda _sid: b'{"msg":{}}',
    "type_is_number": lambda _sid: b'{"type":7,"msg":{}}',
    "unknown_type": lambda sid: b'{"type":"weather_notice","sid":%d,"msg":{"sky":"grey"}}' % sid,
    "zero_character": lambda sid: b'{"type":"a\\u0000b","sid":%d,"msg":{}}' % sid,
    "nested": lambda _sid: b"[" * NESTING,
    "huge_number": lambda sid: b'{"type":"ticker","sid":%d,"seq":1e400,"msg":{}}' % sid,
    "far_sid": lambda _sid: b'{"type":"orderbook_delta","sid":%d,"seq":1,"msg":{}}' % FAR_SEQ,
    "large": _stray_large,
}


def _with(frame: bytes, **fields: Any) -> bytes:
    """The frame with fields of its `msg` set, or taken out where the value is None."""
    row = orjson.loads(frame)
    for name, value in fields.items():
        row["msg"].pop(name, None)
        if value is not None:
            row["msg"][name] = value
    return orjson.dumps(row)


def _with_raw_market(frame: bytes) -> bytes:
    """The market's name is bytes that are no UTF-8."""
    row = orjson.loads(frame)
    name = str(row["msg"]["market_ticker"]).encode()
    return frame.replace(name, b"\xff" * len(name), 1)


_MANGLED: Final[dict[str, Callable[[bytes], bytes]]] = {
    "cut_short": lambda frame: frame[: len(frame) // 2],
    "bad_utf8": _with_raw_market,
    "no_price": lambda frame: _with(frame, price_dollars=None),
    "no_size": lambda frame: _with(frame, delta_fp=None),
    "no_market": lambda frame: _with(frame, market_ticker=None),
    "absurd_size": lambda frame: _with(frame, delta_fp="123456789012345678901234567890.00"),
    "absurd_price": lambda frame: _with(frame, price_dollars="-7.0000"),
    "third_side": lambda frame: _with(frame, side="maybe"),
    "other_type": lambda frame: frame.replace(b'"orderbook_delta"', b'"orderbook_omega"', 1),
    "large_change": lambda frame: _with(frame, note="x" * LARGE_BYTES),
}

STRAYS: Final = tuple(_STRAYS)
MANGLED: Final = tuple(_MANGLED)


def stray(name: str, sid: int) -> bytes:
    """A frame besides the play; `sid` is of a living subscription."""
    return _STRAYS[name](sid)


def mangled(name: str, frame: bytes) -> bytes:
    """A sequenced frame of the play, altered."""
    return _MANGLED[name](frame)
