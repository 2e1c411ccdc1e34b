"""What happens at the exchange, in the order of the engine: the items a source hands to the venue.

Purpose: one vocabulary for recorded and made-up exchanges. A source is an iterator of items with
`at_us` never going back; the venue plays them.

Units: `at_us` and `exchange_us` int microseconds since 1970 UTC, price micro-dollars, size and
delta 1/100 contract. Levels: (price, size) pairs, ascending by price.

Does not do: file reading (replay), random draws (synthetic), the protocol (venue).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

YES: Final = 0
NO: Final = 1

TIME_BOTH: Final = 0  # `ts` and `ts_ms`
TIME_TS_ONLY: Final = 1
TIME_MS_ONLY: Final = 2  # the engine's microseconds are not on the wire

Levels = list[tuple[int, int]]


@dataclass(slots=True)
class MarketSpec:
    """A market as the exchange lists it. `ticker` is unique; `details` are extra REST fields."""

    ticker: str
    market_id: str
    event_ticker: str
    series_ticker: str
    title: str
    open_us: int
    close_us: int
    yes: Levels = field(default_factory=list)  # the book when the market appears
    no: Levels = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


class Item(msgspec.Struct, frozen=True, gc=False):
    """Base of all items: something at one instant of the engine's clock."""

    at_us: int


class DeltaItem(Item, frozen=True, gc=False):
    """One level changes by `delta`. `market` counts the markets in order of listing."""

    market: int
    side: int
    price: int
    delta: int
    exchange_us: int
    form: int = TIME_BOTH


class EmptySnapshotItem(Item, frozen=True, gc=False):
    """The exchange sends an empty snapshot to every subscriber: the close of a market."""

    market: int


class BookItem(Item, frozen=True, gc=False):
    """A market's book is known anew after a gap, or after a jump in time: every subscriber gets it
    as a snapshot, or is cut off (`closes`) and gets it when it comes back."""

    market: int
    yes: Levels
    no: Levels
    closes: bool = False


class TradeItem(Item, frozen=True):
    """A public trade. `msg` is the JSON text of the frame's `msg`; `rest` that of the REST form."""

    market: int
    msg: bytes
    rest: bytes
    exchange_us: int


class TickerItem(Item, frozen=True):
    """A ticker state. `msg` is the JSON text of the frame's `msg`."""

    market: int
    msg: bytes


class ListingItem(Item, frozen=True):
    """A market appears; it takes the next number."""

    spec: MarketSpec


class StatusItem(Item, frozen=True):
    """REST status of a market changes, e.g. to `closed`; `result` is told with `determined`."""

    market: int
    status: str


class HoleStartItem(Item, frozen=True):
    """The recorder lost its connection: from here to `until_us` nobody can be connected."""

    until_us: int


class HoleEndItem(Item, frozen=True):
    """The recorder was back. `books`: market number -> (yes, no) as its new snapshots said."""

    books: dict[int, tuple[Levels, Levels]]


class Source(Protocol):
    """A recorded or made-up exchange.

    `markets` are listed from the start; `start_us` to `end_us` spans the play; `events_expected`
    (deltas and resets) may be an estimate: fault plans scale with it.
    """

    markets: list[MarketSpec]
    start_us: int
    end_us: int
    events_expected: int

    def items(self) -> Iterator[Item]:
        """A fresh iterator over the whole play, `at_us` never going back."""
        ...
