"""What a picture of a market's depth shows, as whole numbers: read once, then drawn.

Purpose: `depth_cells` reads a lake into the matrix of a heat map (one row a price, one column a
moment), the best bid and offer, the trades and the coverage strip. Everything is integers:
micro-dollars, 1/100 contracts, microseconds.

Invariants:
    A cell holds all that stands at its price (nearest to it, if a row is wider than a tick) at its
    moment; where nothing is proven it is MISSING, which is not the same as an empty level.

Does not do: drawing (depth_figure).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kalshilake import Lake
from kalshilake.coverage import CoverageInterval
from kalshilake.moments import Every, Moment, moment_us, step_us
from kalshilake.read import OnGap
from kalshilake.tables import times_us, units_of
from marketdata.errors import TapeError
from marketdata.units import PRICE_SCALE

Ints = npt.NDArray[Any]

ALL_LEVELS: Final = 10_000  # a book has no more prices than ticks
MISSING: Final = -1
ROWS_MAX: Final = 200  # prices of a picture: a row is one pixel or more, or it is not seen
CENT: Final = PRICE_SCALE // 100
MOMENTS: Final = 600  # of a picture whose step is not given
_STEPS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600)  # seconds


@dataclass(frozen=True, slots=True)
class DepthCells:
    """A market's depth over time."""

    market: str
    from_us: int
    to_us: int
    step_us: int
    times: Ints  # the moments
    tick: int  # micro-dollars between two rows
    low: int  # the price of the first row
    bids: Ints  # [price, moment]: 1/100 contracts, 0 nothing stands there, MISSING nothing proven
    asks: Ints
    best_bid: Ints  # micro-dollars; MISSING: none, or nothing proven
    best_ask: Ints
    trades: tuple[Ints, Ints, Ints]  # microseconds, micro-dollars of YES, 0 yes 1 no MISSING taker
    coverage: tuple[CoverageInterval, ...]  # of the order book, without a hole


def depth_cells(
    lake: Lake,
    market: str,
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    every: Every | None = None,
    on_gap: OnGap = "raise",
) -> DepthCells:
    """Read [start, end) of one market. Raises IncompleteTape, LakeError, TapeError."""
    cover = lake.coverage_map(market, start, end)
    if every is None:
        every = fitting_step(lake, market, start, end)
    books = lake.books(market, start, end, every=every, depth=ALL_LEVELS, on_gap=on_gap)
    if not books.num_rows:
        raise TapeError("no moment of the grid is in the interval", hint="a smaller --every")
    times, step = times_us(books.column("at")), step_us(every)
    a, b = int(times[0]), int(times[-1]) + step
    trades = lake.trades(market, a, b, on_gap="ignore")  # the books above were judged
    absent = np.asarray(pc.is_null(books.column("epoch")))
    levels = [_levels(books.column(side), side == "no") for side in ("yes", "no")]
    tick, low, rows = _ladder(np.concatenate([price for _, price, _ in levels]))
    bids, asks = (_matrix(found, absent, (tick, low, rows)) for found in levels)
    taker = trades.column("taker_side").to_pylist()
    return DepthCells(
        market=market,
        from_us=a,
        to_us=b,
        step_us=step,
        times=times,
        tick=tick,
        low=low,
        bids=bids,
        asks=asks,
        best_bid=units_of(books.column("yes_bid"), MISSING),
        best_ask=units_of(books.column("yes_ask"), MISSING),
        trades=(
            times_us(trades.column("exchange_ts")),
            units_of(trades.column("yes_price")),
            np.array([{"yes": 0, "no": 1}.get(side, MISSING) for side in taker], np.int64),
        ),
        coverage=tuple(cover.filled(market, "orderbook", a, b)),
    )


def fitting_step(lake: Lake, market: str, start: Moment | None, end: Moment | None) -> int:
    """The smallest round step that gives at most MOMENTS columns."""
    span = lake.coverage_map(market, start, end).proven_span(market, "orderbook")
    a, b = span or (0, 0)  # nothing proven: the read that follows says so where it matters
    a = a if start is None else moment_us(start)
    b = b if end is None else moment_us(end)
    fits = [s for s in _STEPS if b - a <= MOMENTS * s * 10**6]
    return (fits[0] if fits else -(-(b - a) // (MOMENTS * 10**6))) * 10**6


def _levels(column: pa.ChunkedArray, offers: bool) -> tuple[Ints, Ints, Ints]:  # noqa: FBT001
    """(moment, price of YES, size) of every level of one side."""
    counts = np.asarray(pc.list_value_length(column).fill_null(0), np.int64)
    flat = pc.list_flatten(column)
    price = units_of(pc.struct_field(flat, "price"))
    moment = np.repeat(np.arange(len(counts)), counts)
    return moment, PRICE_SCALE - price if offers else price, units_of(pc.struct_field(flat, "size"))


def _ladder(prices: Ints) -> tuple[int, int, int]:
    """(tick, lowest row's price, number of rows) of a matrix that has a row for every price.

    Where that is finer than a picture can show, a row holds a cent, or more.
    """
    if not len(prices):
        return CENT, 0, 101
    low, high = int(prices.min()), int(prices.max())
    tick = int(np.gcd.reduce(np.append(prices - low, CENT)))
    if (high - low) // tick >= ROWS_MAX:
        tick = max(CENT, -(-(high - low) // ROWS_MAX))
        low = low // tick * tick
    return tick, low, (high - low + tick // 2) // tick + 1


def _matrix(found: tuple[Ints, Ints, Ints], absent: Ints, ladder: tuple[int, int, int]) -> Ints:
    moment, price, size = found
    tick, low, rows = ladder
    made = np.zeros((rows, len(absent)), np.int64)
    np.add.at(made, ((price - low + tick // 2) // tick, moment), size)
    made[:, absent] = MISSING
    return made
