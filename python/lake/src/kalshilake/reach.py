"""How far a market's book has got at moments of either clock.

Purpose: the events of one epoch that come in force in an interval, and the book before them, for
the exchange's clock and for that of receipt. What `Lake.book`, `events_between`, `replay` and the
quotes of `asof` share.

An event is in force from the first moment at which it and every event before it in its epoch are
there (L-13): the clock's times, in market_seq order, as a running maximum. By the exchange's clock
that mends times that step back. By receipt it is what a reader could know: the earliest receipt of
an event that one gatherer saw may come before that of its predecessor, which only a slower one saw,
and a book without the predecessor would be no book.

Invariants:
    L-38 the events of (a, b) and of (b-1, c) in force are those of (a, c), each once.
    L-39 by receipt no event is missed or taken early, however far the clocks lie apart: receipts
         outside the exchange times that were read are searched in every object's statistics.

Does not do: judging coverage (read, series).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kalshilake.bookview import BookView, EpochEvents, Keyframe, best_first, rebuild
from kalshilake.clocks import CLOCKS_APART_US, Clock, column_of
from kalshilake.coverage import CoverageInterval
from kalshilake.moments import Moment, moment_us
from kalshilake.objects import MAX_US
from kalshilake.places import epoch_at, epochs_at, events_to, iso, keyframe_near
from kalshilake.tables import times_us
from marketdata.book import Book
from marketdata.errors import LakeError

if TYPE_CHECKING:
    from kalshilake.read import Lake, OnGap

Ints = npt.NDArray[Any]
DELTAS: Final = "orderbook_deltas"


@dataclass(frozen=True, slots=True)
class Reach:
    """What one epoch brings in an interval. `keyframe` and `known` tell of the book before it."""

    keyframe: Keyframe
    known: EpochEvents  # every event between the keyframe and `before`
    before: int  # how many events of the epoch are in force when the interval begins
    events: EpochEvents  # those that come in force in it
    at: Ints  # when each does, ascending

    def book(self) -> Book:
        """The book before the interval. Raises LakeError where nothing kept tells it."""
        return rebuild(self.keyframe, self.known, self.before)


def reach(
    lake: Lake, market: str, epoch: int, after: int, to: int, clock: Clock = "exchange"
) -> Reach:
    """The events in force from after `after` to before `to` (microseconds of the clock)."""
    if clock == "exchange":
        keyframe = keyframe_near(lake, market, epoch, after)
        known, before = events_to(lake, market, keyframe, after)
        events = _following(lake, market, epoch, (before, after), to - 1)
        return Reach(keyframe, known, before, events, np.maximum.accumulate(events.exchange_us))
    low, high = _searched(lake, market, epoch, after, to)
    keyframe = keyframe_near(lake, market, epoch, low)
    known, start = events_to(lake, market, keyframe, low)
    events = _following(lake, market, epoch, (start, low), high)
    receipts = rows_of(lake, market, epoch, events, ("received_at",))
    at = np.maximum.accumulate(times_us(receipts.column("received_at")))
    first = int(np.searchsorted(at, after, "right"))
    stop = int(np.searchsorted(at, to, "left"))
    before = start + first
    return Reach(
        keyframe,
        _joined(known, events),
        before,
        events.between(before, start + stop),
        at[first:stop],
    )


def _following(
    lake: Lake, market: str, epoch: int, begun: tuple[int, int], last_us: int
) -> EpochEvents:
    """Events after the first `begun[0]`, which are those in force at `begun[1]`, to `last_us`."""
    if begun[1] >= last_us:
        return _NONE
    mark = Keyframe(epoch, *begun, Book())
    events, last = events_to(lake, market, mark, last_us)
    return events.between(begun[0], last)


def _searched(lake: Lake, market: str, epoch: int, after: int, to: int) -> tuple[int, int]:
    """(low, high): everything in force by exchange time at `low` was received at or before `after`,
    and nothing that is not yet in force at `high` was received before `to`."""
    low, high = after - CLOCKS_APART_US, to + CLOCKS_APART_US
    for received, span in (
        ((after + 1, MAX_US), (-MAX_US, low + 1)),
        ((-MAX_US, to), (high, MAX_US)),
    ):
        columns = ("epoch", "exchange_ts")
        rows = lake.rows(DELTAS, [market], *span, columns, received=received)
        times = times_us(rows.filter(pc.equal(rows.column("epoch"), epoch)).column("exchange_ts"))
        if len(times):
            low = min(low, int(times.min()) - 1)
            high = max(high, int(times.max()))
    return low, high


def rows_of(
    lake: Lake, market: str, epoch: int, events: EpochEvents, columns: Sequence[str]
) -> pa.Table:
    """Columns of orderbook_deltas for these events, in their order."""
    if not len(events.market_seq):
        return lake.rows(DELTAS, [market], 0, 0, columns)
    a, b = int(events.exchange_us.min()), int(events.exchange_us.max()) + 1
    wanted = list(dict.fromkeys([*columns, "epoch", "market_seq"]))
    rows = lake.rows(DELTAS, [market], a, b, wanted)
    rows = rows.filter(pc.equal(rows.column("epoch"), pa.scalar(epoch, pa.int32())))
    seqs = np.asarray(rows.column("market_seq"), np.int64)
    order = np.argsort(seqs, kind="stable")
    place = order[np.searchsorted(seqs[order], events.market_seq)]
    return rows.select(list(columns)).take(pa.array(place))


def parts_of(
    lake: Lake, market: str, span: CoverageInterval, clock: Clock
) -> list[tuple[int, int, int]]:
    """(epoch, from, to) of a proven stretch. Raises LakeError if the received clock cannot tell
    its epochs apart."""
    if span.epoch:
        return [(span.epoch, span.from_us, span.to_us)]
    apart = CLOCKS_APART_US if clock == "received" else 0
    ends = np.array([span.from_us - apart, span.to_us - 1 + apart])
    found = [(e, mine) for e, mine in epochs_at(lake, market, ends) if e is not None]
    if clock == "received":
        if len({epoch for epoch, _ in found}) > 1:
            raise LakeError(
                f"{market}: coverage from {iso(span.from_us)} to {iso(span.to_us)} names no epoch, "
                "and by receipt nothing tells them apart"
            )
        return [(epoch, span.from_us, span.to_us) for epoch, _ in found[:1]]
    return [(epoch, int(mine[0]), int(mine[-1]) + 1) for epoch, mine in found]


def book_at(lake: Lake, market: str, at: Moment | None, on_gap: OnGap, clock: Clock) -> BookView:
    """See `Lake.book`."""
    column_of(clock)
    if at is None:
        span = lake.coverage_map(market, clock=clock).proven_span(market, "orderbook")
        if span is None:
            raise lake.incomplete([lake.nothing(market, "orderbook")])
        at_us = span[1] - 1
    else:
        at_us = moment_us(at)
    held = lake.coverage_map(market, at_us, at_us + 1, clock=clock).at(market, "orderbook", at_us)
    if held.status != "complete" and (on_gap == "raise" or clock == "received"):
        raise lake.incomplete([held])
    if held.status == "complete" and (held.epoch or clock == "received"):
        # Whoever asks by receipt is told by exchange time nearby which epoch it is.
        epoch = parts_of(lake, market, replace(held, from_us=at_us, to_us=at_us + 1), clock)[0][0]
    else:
        epoch = epoch_at(lake, market, at_us)
    found = reach(lake, market, epoch, at_us, at_us + 1, clock)
    book = found.book()
    if book.is_negative():
        raise LakeError(f"{market}: the book at {iso(at_us)} has a level below zero")
    return BookView(
        market=market,
        at_us=at_us,
        epoch=epoch,
        market_seq=found.before,
        yes_bids=best_first(book.levels(0)),
        no_bids=best_first(book.levels(1)),
        book_hash=book.hash,
        status=held.status,
        sources=held.sources,
        keyframe_us=found.keyframe.exchange_us,
        events=abs(found.before - found.keyframe.market_seq),
        clock=clock,
    )


_NO: Final = np.zeros(0, np.int64)
_NONE: Final = EpochEvents(_NO, _NO, _NO.astype(np.bool_), _NO, _NO, _NO)


def _joined(one: EpochEvents, two: EpochEvents) -> EpochEvents:
    """Both, each number once."""
    seqs = np.concatenate((one.market_seq, two.market_seq))
    _, place = np.unique(seqs, return_index=True)
    columns = (
        np.concatenate((getattr(one, name), getattr(two, name)))[place]
        for name in EpochEvents.__slots__
    )
    return EpochEvents(*columns)
