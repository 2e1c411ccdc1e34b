"""Fixed-point integers of the tape and the exact parsing of the exchange's number and time strings.

Purpose: the one place that knows the scales. Price: micro-dollars (1e-6 dollar, 0 to 1,000,000),
because the exchange's schema allows up to six decimals. Size: 1/100 contract, signed. Time:
microseconds since 1970 UTC.

Invariants:
- A string is turned into the integer it means, or refused with `OffScale`. Nothing is rounded, but
  the digits of a time below one microsecond, which are cut as the exchange cuts `ts` to `ts_ms`.
- `parse_x(format_x(n)) == n` for every n in range.

Does not do: floats, time zones other than UTC, memo tables of the hot path (wire.Decoder).
"""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta
from typing import Final

from marketdata.errors import OffScale

PRICE_SCALE: Final = 1_000_000
"""Micro-dollars in a dollar."""
SIZE_SCALE: Final = 100
"""Hundredths in a contract."""
MAX_PRICE_MICROS: Final = PRICE_SCALE
MAX_SIZE_CENTI: Final = 10**15
"""Ten trillion contracts: far above any book, far below what a sum of int64 can hold."""
US_PER_S: Final = 1_000_000
US_PER_MS: Final = 1_000
MAX_TS_S: Final = 253_402_300_799
"""9999-12-31T23:59:59Z, the last second an RFC 3339 text can name."""
UNSET_TIME: Final = "0001-01-01T00:00:00Z"
"""What the exchange's REST bodies print for a time that was never set."""

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - naive on purpose: every text is UTC
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
_MICROCENT: Final = 10_000
_SAFE_SIZE_CHARS: Final = 16
"""A size of the usual form of so few characters is in range."""

# \Z and not $: a trailing newline is not a digit. [0-9] and not \d: only ASCII digits are digits.
_PRICE: Final = re.compile(r"([01])(?:\.([0-9]{1,6}))?\Z")
_SIZE: Final = re.compile(r"(-?)([0-9]{1,16})(?:\.([0-9]{1,2})0{0,12})?\Z")
_TIME: Final = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})"
    r"(?:\.([0-9]{1,9}))?(?:Z|\+00:00)\Z"
)


def format_price(micros: int) -> str:
    """Dollars with at least four decimals, as the exchange prints them: 960000 -> "0.9600"."""
    whole, fraction = divmod(micros, PRICE_SCALE)
    digits = f"{fraction:06d}"
    return f"{whole}.{digits[:4]}{digits[4:].rstrip('0')}"


PRICES: Final = {format_price(micros): micros for micros in range(0, PRICE_SCALE + 1, 100)}
"""Every price of four decimals, the form in use; other forms take the checked way."""


def parse_price_micros(text: str) -> int:
    """A decimal dollar price of 0 to 1 with at most six decimals, as micro-dollars.

    Raises:
        OffScale: a sign, exponent, blank, seventh decimal, or a value above one dollar.
    """
    known = PRICES.get(text)
    if known is not None:
        return known
    match = _PRICE.match(text)
    if match is None:
        raise OffScale(f"price {text!r} is not a decimal of 0 to 1 with at most six decimals")
    whole, fraction = match.groups(default="")
    micros = int(whole) * PRICE_SCALE + int(fraction.ljust(6, "0"))
    if micros > MAX_PRICE_MICROS:
        raise OffScale(f"price {text!r} is above one dollar")
    return micros


def parse_size_centi(text: str) -> int:
    """A signed decimal contract count with at most two significant decimals, as 1/100 contracts.

    Raises:
        OffScale: finer than 1/100 contract, a plus sign, exponent or blank, or out of range.
    """
    if text[-3:-2] == "." and 3 < len(text) <= _SAFE_SIZE_CHARS:
        digits = text.replace(".", "", 1)
        if digits.isdigit() and digits.isascii():
            return int(digits)
    match = _SIZE.match(text)
    if match is None:
        raise OffScale(f"size {text!r} is not a decimal with at most two decimals")
    sign, whole, fraction = match.groups(default="")
    centi = int(whole) * SIZE_SCALE + int(fraction.ljust(2, "0"))
    if centi > MAX_SIZE_CENTI:
        raise OffScale(f"size {text!r} is out of range")
    return -centi if sign else centi


def cents_to_micros(cents: int) -> int:
    """Integer cents of the form before March 2026, as micro-dollars. OffScale outside 0..100."""
    if not 0 <= cents <= MAX_PRICE_MICROS // _MICROCENT:
        raise OffScale(f"price of {cents} cents is outside 0 to 100")
    return cents * _MICROCENT


def contracts_to_centi(contracts: int) -> int:
    """A signed count of whole contracts, as 1/100 contracts. Raises OffScale out of range."""
    if not -MAX_SIZE_CENTI <= contracts * SIZE_SCALE <= MAX_SIZE_CENTI:
        raise OffScale(f"size of {contracts} contracts is out of range")
    return contracts * SIZE_SCALE


def parse_ts_us(text: str) -> int:
    """An RFC 3339 UTC time with 0 to 9 fraction digits, as microseconds; finer digits are cut.

    Raises:
        OffScale: another zone, another form, or a date that does not exist.
    """
    match = _TIME.match(text)
    if match is None:
        raise OffScale(f"time {text!r} is not RFC 3339 in UTC")
    year, month, day, hour, minute, second, fraction = match.groups(default="")
    if hour > "23" or minute > "59" or second > "59":
        raise OffScale(f"time {text!r} has an hour, minute or second that does not exist")
    try:
        days = date(int(year), int(month), int(day)).toordinal() - _EPOCH_DAY
    except ValueError:
        raise OffScale(f"time {text!r} has a date that does not exist") from None
    seconds = ((days * 24 + int(hour)) * 60 + int(minute)) * 60 + int(second)
    return seconds * US_PER_S + int(fraction.ljust(6, "0")[:6])


def parse_time_or_unset(text: str) -> int | None:
    """As `parse_ts_us`; the exchange's way to write "never set" gives None."""
    return None if text == UNSET_TIME else parse_ts_us(text)


def ms_to_us(ms: int) -> int:
    """Unix milliseconds (`ts_ms`) as microseconds. Raises OffScale outside 1970 to 9999."""
    if not 0 <= ms <= MAX_TS_S * 1_000 + 999:
        raise OffScale(f"time of {ms} ms is outside the years 1970 to 9999")
    return ms * US_PER_MS


def seconds_to_us(seconds: int) -> int:
    """Unix seconds as microseconds. Raises OffScale outside 1970 to 9999."""
    if not 0 <= seconds <= MAX_TS_S:
        raise OffScale(f"time of {seconds} s is outside the years 1970 to 9999")
    return seconds * US_PER_S


def format_size(centi: int) -> str:
    """Contracts with two decimals: -5400 -> "-54.00"."""
    whole, fraction = divmod(abs(centi), SIZE_SCALE)
    return f"{'-' if centi < 0 else ''}{whole}.{fraction:02d}"


def format_ts_us(us: int) -> str:
    """RFC 3339 UTC with the trailing zeros of the fraction cut, as the exchange prints `ts`."""
    text = (_EPOCH + timedelta(microseconds=us)).isoformat()
    return f"{text.rstrip('0') if '.' in text else text}Z"
