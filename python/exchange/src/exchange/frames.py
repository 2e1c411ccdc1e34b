"""Texts of the exchange's frames.

Purpose: exact text of prices, sizes and times, and the parts of a frame that are equal on every
connection. A frame on the wire is HEAD(sid) seq TAIL: only sid and seq differ between connections,
so the tail is made once per event.

Invariants: EXCH-1 every text parses back to the very integer it was made from; EXCH-2 the fraction
of `ts` has its trailing zeros cut and `ts_ms` is `ts` cut to the millisecond, as recorded.

Written apart from marketdata.units on purpose: the checked code and the checker share no parser.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Final

import orjson

from exchange.timeline import TIME_MS_ONLY, TIME_TS_ONLY, YES, Levels
from marketdata.errors import OffScale

PRICE_SCALE: Final = 1_000_000
SIZE_SCALE: Final = 100
_MEMO: Final = 1 << 16
SECOND_DIGITS: Final = 19  # 2026-05-11T05:31:13
FRACTION_DIGITS: Final = 6


@lru_cache(maxsize=_MEMO)
def price_text(price: int) -> str:
    """Dollars with at least four decimals, more only where the value needs them."""
    whole, rest = divmod(price, PRICE_SCALE)
    digits = f"{rest:06d}"
    return f"{whole}.{digits[:4]}{digits[4:].rstrip('0')}"


@lru_cache(maxsize=_MEMO)
def size_text(size: int) -> str:
    """Contracts with two decimals; the sign stands before the whole part."""
    whole, rest = divmod(abs(size), SIZE_SCALE)
    return f"{'-' if size < 0 else ''}{whole}.{rest:02d}"


@lru_cache(maxsize=1024)
def _second_text(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def time_text(us: int) -> str:
    """RFC 3339 in UTC with the fraction's trailing zeros cut; no fraction at a whole second."""
    second, fraction = divmod(us, 1_000_000)
    if not fraction:
        return f"{_second_text(second)}Z"
    return f"{_second_text(second)}.{f'{fraction:06d}'.rstrip('0')}Z"


@lru_cache(maxsize=_MEMO)
def scaled(text: str, scale: int) -> int:
    """The integer behind a decimal text; OffScale if it has none at this scale."""
    try:
        value = Decimal(text) * scale
    except InvalidOperation:
        raise OffScale(f"{text!r} is not a decimal number") from None
    whole = int(value)
    if whole != value:
        raise OffScale(f"{text!r} has no exact integer form at 1/{scale}")
    return whole


@lru_cache(maxsize=1024)
def _second_us(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise OffScale(f"{text!r} is not an RFC 3339 time") from None
    if moment.tzinfo is not None:
        raise OffScale(f"{text!r} is not a time in UTC")
    return int(moment.replace(tzinfo=UTC).timestamp()) * 1_000_000


def time_us(text: str) -> int:
    """Microseconds since 1970 of an RFC 3339 text ending in Z with 0 to 6 fraction digits."""
    fraction = text[20:-1]
    if len(text) < SECOND_DIGITS + 1 or text[-1] != "Z" or text[19] not in ".Z":
        raise OffScale(f"{text!r} is not an RFC 3339 time in UTC")
    if not fraction:
        return _second_us(text[:SECOND_DIGITS])
    if not fraction.isdecimal() or len(fraction) > FRACTION_DIGITS:
        raise OffScale(f"{text!r} has no exact microsecond")
    return _second_us(text[:SECOND_DIGITS]) + int(fraction.ljust(FRACTION_DIGITS, "0"))


def delta_head(ticker: str, market_id: str) -> bytes:
    """The part of every delta's tail that one market shares."""
    names = orjson.dumps({"market_ticker": ticker, "market_id": market_id})[:-1]
    return b',"msg":%s,"price_dollars":"' % names


def delta_tail(
    head: bytes, side: int, price: int, delta: int, exchange_us: int, form: int
) -> bytes:
    """Everything after `seq` of an orderbook_delta frame."""
    side_text = "yes" if side == YES else "no"
    change = f'{price_text(price)}","delta_fp":"{size_text(delta)}","side":"{side_text}"'
    if form == TIME_TS_ONLY:
        return head + f'{change},"ts":"{time_text(exchange_us)}"}}}}'.encode()
    if form == TIME_MS_ONLY:
        return head + f'{change},"ts_ms":{exchange_us // 1000}}}}}'.encode()
    when = f'"ts":"{time_text(exchange_us)}","ts_ms":{exchange_us // 1000}'
    return head + f"{change},{when}}}}}".encode()


def _levels_text(levels: Levels) -> str:
    return ",".join(f'["{price_text(p)}","{size_text(s)}"]' for p, s in levels)


def levels_json(yes: Levels, no: Levels, keys: tuple[str, str]) -> str:
    """Members of an object: one array per side under the given keys, both present."""
    return f'"{keys[0]}":[{_levels_text(yes)}],"{keys[1]}":[{_levels_text(no)}]'


def snapshot_tail(ticker: str, market_id: str, yes: Levels, no: Levels) -> bytes:
    """Everything after `seq` of an orderbook_snapshot frame; an empty side's key is left out."""
    names = orjson.dumps({"market_ticker": ticker, "market_id": market_id})[:-1].decode()
    sides = "".join(
        f',"{key}":[{_levels_text(levels)}]'
        for key, levels in (("yes_dollars_fp", yes), ("no_dollars_fp", no))
        if levels
    )
    return f',"msg":{names}{sides}}}}}'.encode()


def frame_head(kind: str, sid: int, *, command_id: int = 0, sequenced: bool = True) -> bytes:
    """Everything before the seq digits; for a channel without seq, everything before `,"msg"`."""
    number = f'"id":{command_id},' if command_id else ""
    seq = ',"seq":' if sequenced else ""
    return f'{{"type":"{kind}",{number}"sid":{sid}{seq}'.encode()
