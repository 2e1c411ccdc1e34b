"""Decoded frames: one frozen type per message of the exchange, integers only.

Purpose: what `wire.Decoder.decode` returns and every later stage reads. Units: prices in
micro-dollars, sizes in 1/100 contract, `exchange_us` in Unix microseconds UTC or None where the
frame had no time. `sid`, `seq` and `id` are None where the frame had none.

Invariants:
- An event holds what the frame said and nothing else: no receive time, no market ids, no verdicts.
- Prices of the NO side stay on the NO scale (`use_yes_price` is always sent as false).

Does not do: parsing (wire), keeping unknown fields (`wire.extras` finds them when asked).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, TypeAlias

import msgspec

UNSET: Final = -1
"""A price or size that the frame did not have (optional fields only)."""


class TsPrecision(IntEnum):
    """What `exchange_us` was made of."""

    MICRO = 0  # RFC 3339 text: `ts` of a delta, `time` of a ticker, `created_time` in REST
    MILLI = 1  # `ts_ms` only: the last three digits are 000
    SECOND = 2  # integer `ts` only: the last six digits are 000000
    NONE = 3  # no time at all: exchange_us is None


class Delta(msgspec.Struct, frozen=True, gc=False):
    """`orderbook_delta`: a signed change of one level."""

    market: str
    side: int  # rows.Side
    price: int
    delta: int
    exchange_us: int | None
    ts_precision: TsPrecision
    sid: int | None
    seq: int | None


class Snapshot(msgspec.Struct, frozen=True):
    """`orderbook_snapshot`: the whole book. Levels ascend by price; an absent side is empty."""

    market: str
    yes: list[tuple[int, int]]  # (price, size)
    no: list[tuple[int, int]]
    sid: int | None
    seq: int | None
    id: int | None  # of the get_snapshot command it answers


class Trade(msgspec.Struct, frozen=True, gc=False):
    """`trade`, from the WebSocket or REST."""

    market: str
    trade_id: bytes | None  # 16 bytes; None only in frames of before 2026 that carry none
    yes_price: int
    no_price: int
    count: int
    taker_side: int  # rows.Side, UNSET where not told
    is_block_trade: bool
    exchange_us: int | None
    ts_precision: TsPrecision
    sid: int | None
    seq: int | None


class Ticker(msgspec.Struct, frozen=True, gc=False):
    """`ticker`: a state, throttled by the exchange, without seq."""

    market: str
    price: int  # last trade; UNSET if never traded
    yes_bid: int
    yes_ask: int
    volume: int
    open_interest: int
    dollar_volume: int  # whole dollars
    dollar_open_interest: int
    yes_bid_size: int  # UNSET where the frame had none, as the two below
    yes_ask_size: int
    last_trade_size: int
    payload_key: int  # 64-bit hash of every field of the message, in any key order
    exchange_us: int | None
    ts_precision: TsPrecision
    sid: int | None
    seq: int | None


class MarketLifecycle(msgspec.Struct, frozen=True):
    """`market_lifecycle_v2` or `multivariate_market_lifecycle`. It has no time of its own."""

    market: str
    event_type: str
    is_multivariate: bool
    body: dict[str, Any]  # the whole `msg`
    sid: int | None
    seq: int | None


class EventLifecycle(msgspec.Struct, frozen=True):
    """`event_lifecycle`."""

    event_ticker: str
    body: dict[str, Any]
    sid: int | None
    seq: int | None


class EventFeeUpdate(msgspec.Struct, frozen=True):
    """`event_fee_update`."""

    event_ticker: str
    body: dict[str, Any]
    sid: int | None
    seq: int | None


class Subscribed(msgspec.Struct, frozen=True):
    """`subscribed`: a channel began on `sid`. Without seq. The oldest form names neither."""

    id: int | None
    channel: str | None
    sid: int | None


class Ok(msgspec.Struct, frozen=True):
    """`ok`: a command was done. `markets` and `subscriptions` are None where the frame had none."""

    id: int | None
    sid: int | None
    seq: int | None  # consumes a number of its sid
    markets: list[str] | None  # the whole list of the subscription after the change
    subscriptions: list[tuple[str, int]] | None  # (channel, sid): the reply to list_subscriptions


class Unsubscribed(msgspec.Struct, frozen=True):
    """`unsubscribed`: this sid is over; consumes its last number."""

    id: int | None
    sid: int | None
    seq: int | None


class Error(msgspec.Struct, frozen=True):
    """`error`: a command failed, or (with sid) something happened to a subscription."""

    code: int
    message: str
    markets: list[str]  # those the exchange named
    id: int | None
    sid: int | None
    seq: int | None


class Unknown(msgspec.Struct, frozen=True):
    """A message type this version does not know. The raw frame is the caller's."""

    type: str
    sid: int | None
    seq: int | None
    id: int | None


Decoded: TypeAlias = (
    Delta
    | Snapshot
    | Trade
    | Ticker
    | MarketLifecycle
    | EventLifecycle
    | EventFeeUpdate
    | Subscribed
    | Ok
    | Unsubscribed
    | Error
    | Unknown
)
