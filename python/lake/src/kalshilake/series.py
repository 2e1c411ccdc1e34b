"""Books on a grid of time, quotes, and rows joined with the quote before them.

Purpose: what research asks of a tape, computed in whole columns from one pinned version. They are
as careful about gaps as the reads they are made of (on_gap as in `Lake.deltas`): "raise" refuses,
"column" gives rows without values where nothing is proven and says why, "ignore" gives what is best
known there.

Invariants:
    L-20 a row of `books` equals `Lake.book` at its moment.
    L-21 a quote is given for every change of the best bid or offer of a proven stretch, and for its
         first moment; between two stretches nothing is joined.

Does not do: reading objects (read), ladders (ladders). Prices of both sides are those of YES: the
offer of YES is one dollar less the best bid for NO.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kalshilake.bookview import EpochEvents, Keyframe, rebuild
from kalshilake.clocks import Clock, check_on_gap, column_of
from kalshilake.coverage import CoverageInterval
from kalshilake.ladders import Ladder, ladders
from kalshilake.moments import Every, Moment, grid, moment_us, step_us
from kalshilake.objects import MAX_US
from kalshilake.places import epochs_at, events_to, iso, keyframe_near
from kalshilake.reach import Reach, parts_of, reach
from kalshilake.schema import LEVELS, PRICE, SIZE, TIME
from kalshilake.tables import decimals, times_us
from marketdata.errors import LakeError
from marketdata.units import PRICE_SCALE

if TYPE_CHECKING:
    from kalshilake.read import Lake, Markets, OnGap

Ints = npt.NDArray[Any]

QUOTE_COLUMNS: Final = ("yes_bid", "yes_bid_size", "yes_ask", "yes_ask_size")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Moments of one epoch, and the book and events that tell of them."""

    keyframe: Keyframe  # the book at `from_us`
    events: EpochEvents  # after it
    ends: Ints  # how many of them each moment has


def named(lake: Lake, market: Markets) -> list[str]:
    """The markets that are asked for, in order."""
    if market is None:
        return lake.coverage_map().markets
    return [market] if isinstance(market, str) else sorted(set(market))


def spans_of(
    lake: Lake,
    market: str,
    start: Moment | None,
    end: Moment | None,
    on_gap: OnGap,
    clock: Clock = "exchange",
) -> list[CoverageInterval]:
    """What coverage says of [start, end), without a hole; refused where it must be proven."""
    check_on_gap(on_gap)
    cover = lake.coverage_map(market, start, end, clock=clock)
    span = cover.proven_span(market, "orderbook")
    if span is None and (start is None or end is None or on_gap == "raise"):
        raise lake.incomplete([lake.nothing(market, "orderbook")])
    low = -MAX_US if start is None else moment_us(start)
    high = MAX_US if end is None else moment_us(end)
    if span is not None:
        low = span[0] if start is None else low
        high = span[1] if end is None else high
    if low >= high:
        raise LakeError(f"the interval from {iso(low)} to {iso(high)} holds no moment")
    found = list(cover.filled(market, "orderbook", low, high))
    missing = [i for i in found if i.status != "complete"]
    if missing and on_gap == "raise":
        raise lake.incomplete(missing)
    return found


def _groups(
    lake: Lake, market: str, spans: Sequence[CoverageInterval], step: int, on_gap: OnGap
) -> Iterator[tuple[CoverageInterval, int | None, Ints]]:
    """(interval, epoch or None where no book is given, its moments on the grid)."""
    for span in spans:
        times = grid(span.from_us, span.to_us, step)
        if not len(times):
            continue
        if span.status == "complete" and span.epoch:
            yield span, span.epoch, times
        elif span.status == "complete" or on_gap == "ignore":
            for epoch, mine in epochs_at(lake, market, times):
                yield span, epoch, mine
        else:
            yield span, None, times


def stretch_of(lake: Lake, market: str, epoch: int, times: Ints) -> Stretch:
    """The books of one epoch at ascending moments."""
    keyframe = keyframe_near(lake, market, epoch, int(times[0]))
    events, last = events_to(lake, market, keyframe, int(times[0]))
    base = Keyframe(epoch, last, int(times[0]), rebuild(keyframe, events, last))
    events, last = events_to(lake, market, base, int(times[-1]))
    after = events.between(base.market_seq, last)
    reached = np.maximum.accumulate(after.exchange_us)
    return Stretch(base, after, np.searchsorted(reached, times, side="right"))


def books(
    lake: Lake,
    market: Markets,
    start: Moment | None,
    end: Moment | None,
    *,
    every: Every,
    depth: int,
    on_gap: OnGap,
) -> pa.Table:
    """See `Lake.books`."""
    if depth < 1:
        raise LakeError(f"a depth of {depth} shows nothing", hint="1 is the best level only")
    step, parts = step_us(every), []
    for name in named(lake, market):
        spans = spans_of(lake, name, start, end, on_gap)
        for span, epoch, times in _groups(lake, name, spans, step, on_gap):
            if epoch is None:
                parts.append(_nothing(name, times, span))
                continue
            found = stretch_of(lake, name, epoch, times)
            sides = ladders(found.keyframe.book, found.events, found.ends, depth)
            seq = found.keyframe.market_seq + found.ends
            parts.append(_book_rows(name, times, span, (epoch, seq), sides))
    return pa.concat_tables([BOOKS.empty_table(), *parts])


BOOKS: Final = pa.schema(
    [
        pa.field("market_ticker", pa.string(), nullable=False),
        pa.field("at", TIME, nullable=False),
        ("epoch", pa.int32()),
        ("market_seq", pa.int64()),
        ("yes_bid", PRICE),
        ("yes_bid_size", SIZE),
        ("yes_ask", PRICE),
        ("yes_ask_size", SIZE),
        ("yes", LEVELS),
        ("no", LEVELS),
        pa.field("coverage", pa.string(), nullable=False),
        pa.field("complete", pa.bool_(), nullable=False),
    ]
)


def _book_rows(
    market: str,
    times: Ints,
    span: CoverageInterval,
    place: tuple[int, Ints],
    sides: tuple[Ladder, Ladder],
) -> pa.Table:
    n = len(times)
    columns = [
        pa.array([market] * n, pa.string()),
        pa.array(times).cast(TIME),
        pa.array(np.full(n, place[0], np.int32)),
        pa.array(place[1].astype(np.int64)),
        *_quote_columns(*sides),
        *(_levels(side) for side in sides),
        pa.array([span.status] * n, pa.string()),
        pa.array(np.full(n, span.status == "complete")),
    ]
    return pa.Table.from_arrays(columns, schema=BOOKS)


def _nothing(market: str, times: Ints, span: CoverageInterval) -> pa.Table:
    n = len(times)
    given = {
        "market_ticker": pa.array([market] * n, pa.string()),
        "at": pa.array(times).cast(TIME),
        "coverage": pa.array([span.status] * n, pa.string()),
        "complete": pa.array(np.zeros(n, np.bool_)),
    }
    columns = [given.get(f.name, pa.nulls(n, f.type)) for f in BOOKS]
    return pa.Table.from_arrays(columns, schema=BOOKS)


def _quote_columns(yes: Ladder, no: Ladder) -> list[pa.Array]:
    """yes_bid, yes_bid_size, yes_ask, yes_ask_size; null where a side is empty."""
    return _best_columns([yes.best(), no.best()])


def _best_columns(sides: Sequence[tuple[Ints, Ints]]) -> list[pa.Array]:
    """The same of the best bids for YES and for NO; a price of -1 where there is none."""
    made = []
    for (price, size), offer in zip(sides, (False, True), strict=True):
        has = price >= 0
        shown = np.where(has, PRICE_SCALE - price if offer else price, 0)
        made += [decimals(shown, PRICE, has), decimals(size, SIZE, has)]
    return made


def _levels(side: Ladder) -> pa.Array:
    offsets = np.concatenate(([0], np.cumsum(side.counts))).astype(np.int32)
    values = pa.StructArray.from_arrays(
        [decimals(side.prices, PRICE), decimals(side.sizes, SIZE)],
        fields=list(LEVELS.value_type),
    )
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=LEVELS)


# -- quotes ----------------------------------------------------------------------------------------

QUOTES: Final = pa.schema(
    [
        pa.field("market_ticker", pa.string(), nullable=False),
        pa.field("exchange_ts", TIME, nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("market_seq", pa.int64(), nullable=False),
        ("yes_bid", PRICE),
        ("yes_bid_size", SIZE),
        ("yes_ask", PRICE),
        ("yes_ask_size", SIZE),
        pa.field("opens", pa.bool_(), nullable=False),
        pa.field("until", TIME, nullable=False),
    ]
)


def quotes(
    lake: Lake,
    market: Markets,
    start: Moment | None,
    end: Moment | None,
    *,
    on_gap: OnGap,
    clock: Clock = "exchange",
) -> pa.Table:
    """See `Lake.quotes`; `exchange_ts` and `until` are moments of `clock`."""
    parts = [QUOTES.empty_table()]
    for name in named(lake, market):
        spans = spans_of(lake, name, start, end, "column" if on_gap == "ignore" else on_gap, clock)
        for span in spans:
            if span.status == "complete":
                for epoch, a, b in parts_of(lake, name, span, clock):
                    found = reach(lake, name, epoch, a, b, clock)
                    parts.append(_quote_rows(name, epoch, found, (a, b)))
    return pa.concat_tables(parts)


def edges_of(lake: Lake, market: str, span: CoverageInterval) -> list[tuple[int, Ints]]:
    """(epoch, its first and last moment) of a proven stretch."""
    ends = np.array([span.from_us, span.to_us - 1])
    if span.epoch:
        return [(span.epoch, ends)]
    found = epochs_at(lake, market, ends)
    return [(epoch, mine[[0, -1]]) for epoch, mine in found if epoch is not None]


def _quote_rows(market: str, epoch: int, found: Reach, span: tuple[int, int]) -> pa.Table:
    n = len(found.at)
    yes, no = ladders(found.book(), found.events, np.arange(n + 1), 1)
    best = np.column_stack([*yes.best(), *no.best()])
    changed = np.concatenate(([True], (best[1:] != best[:-1]).any(axis=1)))
    times = np.concatenate(([span[0]], found.at))
    # Of changes in one microsecond the last one is in force; the others are kept, in their order.
    at = np.flatnonzero(changed)
    until = np.append(times[at][1:], span[1])
    rows = len(at)
    sides = [best[at, :2], best[at, 2:]]
    picked = _best_columns([(side[:, 0], side[:, 1]) for side in sides])
    columns = [
        pa.array([market] * rows, pa.string()),
        pa.array(times[at]).cast(TIME),
        pa.array(np.full(rows, epoch, np.int32)),
        pa.array((found.before + at).astype(np.int64)),
        *picked,
        pa.array(at == 0),
        pa.array(until).cast(TIME),
    ]
    return pa.Table.from_arrays(columns, schema=QUOTES)


def asof(
    lake: Lake, rows: pa.Table, *, time: str | None, on_gap: OnGap, exact: bool, clock: Clock
) -> pa.Table:
    """See `Lake.asof`."""
    time = column_of(clock) if time is None else time
    for needed in ("market_ticker", time):
        if needed not in rows.schema.names:
            raise LakeError(
                f"the rows have no column {needed!r}", hint=", ".join(rows.schema.names)
            )
    names = rows.column("market_ticker").to_pylist()
    at = times_us(rows.column(time))
    picked = np.full(len(names), -1, np.int64)
    parts: list[pa.Table] = []
    offset = 0
    by_market: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        by_market.setdefault(name, []).append(place)
    for name, places in by_market.items():
        mine = np.array(places)
        moments = at[mine]
        first, last = int(moments.min()) - (not exact), int(moments.max())
        found = quotes(lake, name, first, last + 1, on_gap=on_gap, clock=clock)
        given, until = times_us(found.column("exchange_ts")), times_us(found.column("until"))
        where = np.searchsorted(given, moments, side="right" if exact else "left") - 1
        looked = moments if exact else moments - 1
        good = (where >= 0) & (looked < until[np.maximum(where, 0)])
        picked[mine[good]] = where[good] + offset
        parts.append(found)
        offset += found.num_rows
    joined = pa.concat_tables([QUOTES.empty_table(), *parts])
    index = pa.array(picked, mask=picked < 0)
    for column in QUOTE_COLUMNS:
        rows = rows.append_column(column, joined.column(column).take(index))
    return rows
