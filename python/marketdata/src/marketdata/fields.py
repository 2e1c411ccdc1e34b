"""Single fields of a JSON object of the exchange, read exactly or refused.

Purpose: the rules that WebSocket messages (wire) and REST bodies (rest_bodies) share: which
spelling of a price, size, time or side is meant, in each form the exchange has used.

Invariants:
- INV-22 an absent required field is `MissingField`, never 0. `null` counts as absent.
- A present field that is not exactly what it should be is `OffScale` (numbers, times) or
  `MalformedFrame` (kinds); it is never converted.

Does not do: deciding which fields a message needs, speed (wire's typed path does its own reading).
"""

from __future__ import annotations

import re
from typing import Any, Final, TypeAlias

from marketdata import units
from marketdata.errors import MalformedFrame, MissingField, OffScale
from marketdata.events import UNSET, TsPrecision

Message: TypeAlias = dict[str, Any]

MAX_TICKER_CHARS: Final = 256
"""The exchange documents 200."""
MAX_NUMBER: Final = 2**53
"""Of sid, seq, id, codes and counts of dollars: what every JSON implementation carries exactly."""

LEVEL_KEYS: Final = (
    ("yes_dollars_fp", "yes_dollars", "yes"),
    ("no_dollars_fp", "no_dollars", "no"),
)
"""Keys of the yes and the no side, newest form first. The last of each holds integer cents."""

_TICKER: Final = re.compile(rf"[!-~]{{1,{MAX_TICKER_CHARS}}}\Z")
_TRADE_ID: Final = re.compile(r"[0-9a-fA-F]{8}(-?)(?:[0-9a-fA-F]{4}\1){3}[0-9a-fA-F]{12}\Z")
_TAKERS: Final = {"yes": 0, "no": 1, "bid": 0, "ask": 1}


def require(msg: Message, name: str) -> Any:
    """The value of a required field. Raises MissingField where it is absent or null."""
    value = msg.get(name)
    if value is None:
        raise MissingField(f"field {name!r} is absent")
    return value


def text(msg: Message, name: str) -> str:
    """A required text."""
    value = require(msg, name)
    if not isinstance(value, str):
        raise MalformedFrame(f"field {name!r} is {value!r}, not a text")
    return value


def text_or(msg: Message, name: str, default: str = "") -> str:
    """An optional text."""
    return default if msg.get(name) is None else text(msg, name)


def integer(value: object, name: str) -> int:
    """A JSON integer from -MAX_NUMBER to MAX_NUMBER; `true` and 1.0 are not integers."""
    if type(value) is not int or not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise OffScale(f"field {name!r} is {value!r}, not an integer in range")
    return value


def number_or_none(msg: Message, name: str) -> int | None:
    """An optional integer of at least 0 (sid, seq, id)."""
    value = msg.get(name)
    if value is None:
        return None
    number = integer(value, name)
    if number < 0:
        raise OffScale(f"field {name!r} is {number}, below zero")
    return number


def ticker(value: object, name: str = "market_ticker") -> str:
    """A market, event or series ticker: 1 to 256 visible ASCII characters.

    Raises:
        MissingField: absent. MalformedFrame: not such a text (a blank or a NUL in it would be
            refused by every database later).
    """
    if value is None:
        raise MissingField(f"field {name!r} is absent")
    if not isinstance(value, str) or _TICKER.match(value) is None:
        raise MalformedFrame(f"field {name!r} is {value!r}, not a ticker")
    return value


def price(msg: Message, name: str, *, unset_allowed: bool = False) -> int:
    """Micro-dollars from `<name>_dollars` (text), else from `<name>` (integer cents).

    With `unset_allowed`, an empty text (a market that never traded) gives UNSET.
    """
    value = msg.get(f"{name}_dollars")
    if value is None:
        value = msg.get(name)
        if value is None:
            raise MissingField(f"field '{name}_dollars' is absent")
        return units.cents_to_micros(integer(value, name))
    if not isinstance(value, str):
        raise OffScale(f"field '{name}_dollars' is {value!r}, not a text")
    return UNSET if unset_allowed and value == "" else units.parse_price_micros(value)


def size(msg: Message, name: str) -> int:
    """1/100 contracts from `<name>_fp` (text), else from `<name>` (integer contracts)."""
    value = msg.get(f"{name}_fp")
    if value is None:
        value = msg.get(name)
        if value is None:
            raise MissingField(f"field '{name}_fp' is absent")
        return units.contracts_to_centi(integer(value, name))
    return size_value(value, f"{name}_fp")


def not_negative(count: int) -> int:
    """The count of a trade. Raises OffScale below zero."""
    if count < 0:
        raise OffScale(f"count {count} of a trade is below zero")
    return count


def size_or_unset(msg: Message, name: str) -> int:
    """As `size`; UNSET where neither spelling is there."""
    if msg.get(f"{name}_fp") is None and msg.get(name) is None:
        return UNSET
    return size(msg, name)


def size_value(value: object, name: str) -> int:
    """1/100 contracts from a text, or from an integer count of contracts."""
    if isinstance(value, str):
        return units.parse_size_centi(value)
    return units.contracts_to_centi(integer(value, name))


def exchange_time(msg: Message) -> tuple[int | None, TsPrecision]:
    """(microseconds, what of): the finest of `ts`, `time`, `created_time`, `ts_ms`."""
    for name in ("ts", "time", "created_time"):
        value = msg.get(name)
        if isinstance(value, str) and value:
            return units.parse_ts_us(value), TsPrecision.MICRO
    value = msg.get("ts_ms")
    if value is not None:
        return units.ms_to_us(integer(value, "ts_ms")), TsPrecision.MILLI
    value = msg.get("ts")
    if value is not None and value != "":
        return units.seconds_to_us(integer(value, "ts")), TsPrecision.SECOND
    return None, TsPrecision.NONE


def time_or_none(msg: Message, name: str) -> int | None:
    """Microseconds of an optional RFC 3339 text; None where absent, empty or "never set"."""
    value = text_or(msg, name)
    return units.parse_time_or_unset(value) if value else None


def taker_side(msg: Message) -> int:
    """0 yes, 1 no, UNSET where no field tells. The deprecated field comes last."""
    for name in ("taker_outcome_side", "taker_book_side", "taker_side"):
        value = msg.get(name)
        if isinstance(value, str) and value in _TAKERS:
            return _TAKERS[value]
    return UNSET


def trade_id_or_none(msg: Message) -> bytes | None:
    """16 bytes of a trade id: any 128-bit hex, with or without dashes; None where absent."""
    value = text_or(msg, "trade_id")
    return trade_id(value) if value else None


def trade_id(value: str) -> bytes:
    """16 bytes of a trade id. Raises OffScale where it is not 128 bits in hex."""
    if _TRADE_ID.match(value) is None:
        raise OffScale(f"trade_id {value!r} is not 128 bits in hex")
    return bytes.fromhex(value.replace("-", ""))


def levels(msg: Message) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(yes, no) levels of a book, ascending by price; an absent or null side is empty.

    Raises:
        MissingField: a list stands under a key that is not known: the levels may have been renamed,
            and an empty book would be a lie.
    """
    known = {key for keys in LEVEL_KEYS for key in keys}
    for key, value in msg.items():
        if isinstance(value, list) and value and key not in known:
            raise MissingField(f"levels of the book: unknown key {key!r} holds a list")
    yes, no = (_side_levels(msg, keys) for keys in LEVEL_KEYS)
    return yes, no


def _side_levels(msg: Message, keys: tuple[str, str, str]) -> list[tuple[int, int]]:
    for key in keys:
        pairs = msg.get(key)
        if pairs is not None:
            break
    else:
        return []
    if not isinstance(pairs, list):
        raise MalformedFrame(f"field {key!r} is {pairs!r}, not a list of levels")
    return _any_levels(pairs, key, is_cents=key == keys[-1])


def _any_levels(pairs: list[Any], key: str, *, is_cents: bool) -> list[tuple[int, int]]:
    out: dict[int, int] = {}
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise MalformedFrame(f"level {pair!r} of {key!r} is not a pair")
        at = _level_price(pair[0], key, is_cents=is_cents)
        quantity = size_value(pair[1], key)
        if quantity < 0 or at in out:
            raise OffScale(f"level {pair!r} of {key!r} is below zero or stands twice")
        if quantity:
            out[at] = quantity
    return sorted(out.items())


def _level_price(value: object, key: str, *, is_cents: bool) -> int:
    if is_cents:
        return units.cents_to_micros(integer(value, key))
    if not isinstance(value, str):
        raise OffScale(f"price {value!r} of {key!r} is not a text")
    return units.parse_price_micros(value)
