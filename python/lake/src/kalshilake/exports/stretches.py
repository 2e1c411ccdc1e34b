"""One market's order book as stretches: what is proven without a break, as whole columns.

Purpose: formats that hold a book as updates of levels need three things that a delta does not
tell: the book at the beginning of each proven stretch, the size of a level after each change, and
when each change was received. `stretches` gives them from one pinned version.

Invariants:
    L-32 base book and events of a stretch give, at every moment in it, the book of `Lake.book`.
    L-33 `size` is what stands at the level after the event, never below zero.
    L-34 times ascend within a stretch: an event that the exchange stamped before its predecessor
         has its predecessor's time, as in L-13.

Does not do: floats, formats, trades.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kalshilake.bookview import EpochEvents
from kalshilake.coverage import of_one_epoch
from kalshilake.moments import Moment
from kalshilake.places import iso
from kalshilake.read import Lake, OnGap
from kalshilake.series import edges_of, spans_of, stretch_of
from kalshilake.tables import times_us
from marketdata.book import Book
from marketdata.errors import LakeError
from marketdata.units import PRICE_SCALE

Ints = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class ProvenStretch:
    """[from_us, to_us) of one epoch: the book at `from_us`, and every event after it in order."""

    from_us: int
    to_us: int
    base: Book
    exchange_us: Ints
    received_us: Ints
    reset: Ints  # bool: the event emptied the book
    side: Ints  # 0 bids for YES, 1 bids for NO
    price: Ints
    size: Ints  # at the level after the event


@dataclass(frozen=True, slots=True)
class Stretches:
    """The proven stretches of [from_us, to_us), in time order."""

    from_us: int
    to_us: int
    stretches: tuple[ProvenStretch, ...]


def stretches(
    lake: Lake,
    market: str,
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    on_gap: OnGap = "raise",
) -> Stretches:
    """What is proven of `market` in [start, end).

    Unless on_gap="raise", what is not proven is left out between two stretches.
    """
    spans = spans_of(lake, market, start, end, on_gap)
    made = []
    for span in of_one_epoch(spans):
        if span.status == "complete":
            edges = edges_of(lake, market, span)
            if len(edges) > 1:
                raise LakeError(
                    f"{market}: coverage from {iso(span.from_us)} to {iso(span.to_us)} names no "
                    "epoch, and there are several"
                )
            made += [_proven(lake, market, epoch, ends, span.to_us) for epoch, ends in edges]
    return Stretches(spans[0].from_us, spans[-1].to_us, tuple(made))


def _proven(lake: Lake, market: str, epoch: int, ends: Ints, until: int) -> ProvenStretch:
    found = stretch_of(lake, market, epoch, ends)
    base, n = found.keyframe, int(found.ends[-1])
    events = found.events.between(base.market_seq, base.market_seq + n)
    times = np.maximum.accumulate(np.maximum(events.exchange_us, ends[0]))
    return ProvenStretch(
        from_us=int(ends[0]),
        to_us=until,
        base=base.book,
        exchange_us=times,
        received_us=_received(lake, market, epoch, events),
        reset=events.reset,
        side=events.side,
        price=events.price,
        size=sizes_after(base.book, events),
    )


def sizes_after(base: Book, events: EpochEvents) -> Ints:
    """The size of each event's level after it; 0 for a reset. `base`: before the first event."""
    if not len(events.market_seq):
        return np.zeros(0, np.int64)
    key = np.where(events.reset, -1, (events.side.astype(np.int64) << 32) | events.price)
    life = np.cumsum(events.reset)  # a reset begins every level anew
    held = {side << 32 | price: size for side in (0, 1) for price, size in base.levels(side)}
    order = np.lexsort((key, life))  # stable: the events of a level keep their order
    delta = np.where(events.reset, 0, events.delta)[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = (key[order][1:] != key[order][:-1]) | (life[order][1:] != life[order][:-1])
    begun = [
        held.get(k, 0) if alive == 0 else 0
        for k, alive in zip(key[order][first].tolist(), life[order][first].tolist(), strict=True)
    ]
    total = np.cumsum(delta)
    before = (total - delta)[first]  # the sum of everything sorted before the level
    group = np.cumsum(first) - 1
    size = np.empty(len(order), np.int64)
    size[order] = total - before[group] + np.array(begun, np.int64)[group]
    if (size < 0).any():
        raise LakeError("a book has a level below zero", hint="tape verify tells where")
    return size


def of_yes(side: Ints, price: Ints) -> Ints:
    """Prices as those of YES: a bid for NO is an offer of YES at one dollar less its price."""
    return np.where(side == 1, PRICE_SCALE - price, price)


def _received(lake: Lake, market: str, epoch: int, events: EpochEvents) -> Ints:
    """When each event was received."""
    if not len(events.market_seq):
        return np.zeros(0, np.int64)
    a, b = int(events.exchange_us.min()), int(events.exchange_us.max()) + 1
    columns = ("epoch", "market_seq", "received_at")
    rows = lake.rows("orderbook_deltas", [market], a, b, columns)
    rows = rows.filter(pc.equal(rows.column("epoch"), pa.scalar(epoch, pa.int32())))
    seqs = np.asarray(rows.column("market_seq"), np.int64)
    order = np.argsort(seqs, kind="stable")
    place = np.searchsorted(seqs[order], events.market_seq)
    return times_us(rows.column("received_at"))[order][place]
