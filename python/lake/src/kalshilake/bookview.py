"""A market's order book at one moment, rebuilt from a keyframe and deltas.

Purpose: the value that `Lake.book` gives, and the pure step from (keyframe, events of its epoch) to
it, forwards or backwards.

Invariants:
    L-13 the book at `at` is the book after the longest prefix of the epoch's events, in market_seq
         order, of which every event has exchange_ts <= at; it does not depend on the keyframe.

Does not do: finding keyframe and events (read), judging coverage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from marketdata.book import Book, Level, apply_many
from marketdata.errors import LakeError
from marketdata.units import PRICE_SCALE

Ints = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class BookView:
    """The book of `market` after all events with exchange_ts <= `at_us` (`clock` "received": after
    all that had been received by `at_us`).

    Levels are (price in micro-dollars, size in 1/100 contract), best first. Both sides are bids;
    an ask on one side is a bid on the other at one dollar less its price. `complete` False: read
    over a gap on request, `status` tells which. `events` is how many were applied to the keyframe.
    """

    market: str
    at_us: int
    epoch: int
    market_seq: int
    yes_bids: tuple[Level, ...]
    no_bids: tuple[Level, ...]
    book_hash: int
    status: str
    sources: int
    keyframe_us: int
    events: int
    clock: str = "exchange"

    @property
    def complete(self) -> bool:
        """Whether coverage proves this moment."""
        return self.status == "complete"

    @property
    def yes_asks(self) -> tuple[Level, ...]:
        """Offers of YES, lowest first."""
        return tuple((PRICE_SCALE - price, size) for price, size in self.no_bids)

    @property
    def no_asks(self) -> tuple[Level, ...]:
        """Offers of NO, lowest first."""
        return tuple((PRICE_SCALE - price, size) for price, size in self.yes_bids)

    @property
    def best_yes_bid(self) -> Level | None:
        """Highest bid for YES."""
        return self.yes_bids[0] if self.yes_bids else None

    @property
    def best_yes_ask(self) -> Level | None:
        """Lowest offer of YES: one dollar less the best NO bid."""
        return self.yes_asks[0] if self.no_bids else None

    @property
    def best_no_bid(self) -> Level | None:
        """Highest bid for NO."""
        return self.no_bids[0] if self.no_bids else None

    @property
    def best_no_ask(self) -> Level | None:
        """Lowest offer of NO: one dollar less the best YES bid."""
        return self.no_asks[0] if self.yes_bids else None


@dataclass(frozen=True, slots=True)
class Keyframe:
    """The book after the first `market_seq` events of `epoch`."""

    epoch: int
    market_seq: int
    exchange_us: int
    book: Book


@dataclass(frozen=True, slots=True)
class EpochEvents:
    """Events of one market and epoch, ascending by `market_seq`; columns of equal length."""

    market_seq: Ints
    exchange_us: Ints
    reset: Ints  # bool: the event emptied the book; its side, price and delta mean nothing
    side: Ints
    price: Ints
    delta: Ints

    def between(self, after: int, last: int) -> EpochEvents:
        """Events with after < market_seq <= last."""
        a, b = np.searchsorted(self.market_seq, [after, last], side="right")
        return EpochEvents(*(getattr(self, name)[a:b] for name in self.__slots__))


def prefix_end(keyframe: Keyframe, events: EpochEvents, at_us: int) -> int:
    """market_seq of the last event of the prefix for `at_us`, given these events of the epoch."""
    late = events.exchange_us > at_us
    if late.any():
        return int(events.market_seq[late][0]) - 1
    last = int(events.market_seq[-1]) if len(events.market_seq) else 0
    return max(keyframe.market_seq, last)


def first_missing(keyframe: Keyframe, events: EpochEvents, last: int) -> int | None:
    """The first market_seq between keyframe and `last` that `events` lack, or None."""
    a, b = sorted((keyframe.market_seq, last))
    found = events.between(a, b).market_seq
    if len(found) == b - a:
        return None
    wanted = np.arange(a + 1, b + 1)
    return int(wanted[~np.isin(wanted, found)][0])


def rebuild(keyframe: Keyframe, events: EpochEvents, last: int) -> Book:
    """The book after the epoch's first `last` events; every event between must be in `events`.

    Raises LakeError where it cannot be known: before a reset, from a keyframe after it.
    """
    if last >= keyframe.market_seq:
        span, book = events.between(keyframe.market_seq, last), keyframe.book
        resets = np.flatnonzero(span.reset)
        if len(resets):
            book, span = Book(), span.between(int(span.market_seq[resets[-1]]), last)
        return apply_many(book, span.side, span.price, span.delta)
    span = events.between(last, keyframe.market_seq)
    if span.reset.any():
        raise LakeError(
            f"no keyframe before the reset at market_seq {int(span.market_seq[span.reset][0])} "
            f"of epoch {keyframe.epoch}: the book before it cannot be known"
        )
    return apply_many(keyframe.book, span.side, span.price, -span.delta)


def best_first(levels: list[Level]) -> tuple[Level, ...]:
    """Ascending levels as a ladder, the best bid first."""
    return tuple(reversed(levels))
