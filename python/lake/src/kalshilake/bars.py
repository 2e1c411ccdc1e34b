"""Bars: open, high, low and close of trades, bids or offers, for every bar with a value in it.

What holds: prices and sums are exact; a bar of quotes opens with the quote that is in force at its
start; no bar is made of two stretches of proof without saying so: `Lake.bars` refuses a gap or is
told to ignore it.

Does not do: finding quotes (series), reading trades (read).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kalshilake.moments import GRID_MAX, Every, Moment, step_us
from kalshilake.schema import PRICE, SIZE, TIME
from kalshilake.series import QUOTES, quotes
from kalshilake.tables import decimals, times_us, units_of
from marketdata.errors import LakeError

if TYPE_CHECKING:
    from kalshilake.read import Lake, Markets, OnGap

Ints = npt.NDArray[Any]
NOTIONAL: Final = pa.decimal128(38, 8)

BARS: Final = pa.schema(
    [
        pa.field("market_ticker", pa.string(), nullable=False),
        pa.field("from_ts", TIME, nullable=False),
        pa.field("open", PRICE, nullable=False),
        pa.field("high", PRICE, nullable=False),
        pa.field("low", PRICE, nullable=False),
        pa.field("close", PRICE, nullable=False),
        pa.field("volume", SIZE, nullable=False),
        pa.field("notional", NOTIONAL, nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
    ]
)

Source = Literal["trades", "bid", "ask"]


def bars(
    lake: Lake,
    market: Markets,
    start: Moment | None,
    end: Moment | None,
    *,
    every: Every,
    source: Source,
    on_gap: OnGap,
) -> pa.Table:
    """See `Lake.bars`."""
    step = step_us(every)
    if source == "trades":
        rows = lake.trades(market, start, end, on_gap=on_gap)
        price, size = units_of(rows.column("yes_price")), units_of(rows.column("count"))
        return _bars(rows, times_us(rows.column("exchange_ts")), price, size, step)
    if source not in ("bid", "ask"):
        raise LakeError(f"source {source!r} is unknown", hint="trades, bid or ask")
    rows = quotes(lake, market, start, end, on_gap=on_gap)
    rows = _carried(rows.filter(rows.column(f"yes_{source}").is_valid()), step)
    price = units_of(rows.column(f"yes_{source}"))
    moments = times_us(rows.column("exchange_ts"))
    return _bars(rows, moments, price, np.zeros(len(price), np.int64), step)


def _carried(rows: pa.Table, step: int) -> pa.Table:
    """Each quote once more at the start of every later bar that it is in force in."""
    given, until = times_us(rows.column("exchange_ts")), times_us(rows.column("until"))
    first, last = given // step + 1, (until - 1) // step
    more = np.maximum(0, last - first + 1)
    if more.sum() > GRID_MAX:
        raise LakeError(f"{more.sum()} bars are more than {GRID_MAX} in one answer")
    index = np.repeat(np.arange(len(given)), more)
    within = np.arange(len(index)) - np.repeat(np.cumsum(more) - more, more)
    moments = np.concatenate((given, (first[index] + within) * step))
    source = np.concatenate((np.arange(len(given)), index))
    names = rows.column("market_ticker").combine_chunks().dictionary_encode()
    code = np.asarray(names.indices, np.int64) if rows.num_rows else np.zeros(0, np.int64)
    # A quote that is carried into a bar stands before those given in it.
    order = np.lexsort((source, moments, code[source]))
    carried = rows.take(pa.array(source[order]))
    at = carried.schema.get_field_index("exchange_ts")
    return carried.set_column(at, QUOTES.field("exchange_ts"), pa.array(moments[order]).cast(TIME))


def _bars(rows: pa.Table, times: Ints, price: Ints, size: Ints, step: int) -> pa.Table:
    """Rows in the order of (market, time) as one row for each market and bar that has any."""
    if not rows.num_rows:
        return BARS.empty_table()
    names = rows.column("market_ticker").combine_chunks().dictionary_encode()
    code = np.asarray(names.indices, np.int64)
    bar = times // step
    starts = np.flatnonzero(
        np.concatenate(([True], (bar[1:] != bar[:-1]) | (code[1:] != code[:-1])))
    )
    stops = np.append(starts[1:], len(bar)) - 1
    counts = stops - starts + 1
    columns = [
        names.dictionary.take(pa.array(code[starts])).cast(pa.string()),
        pa.array(bar[starts] * step).cast(TIME),
        decimals(price[starts], PRICE),
        decimals(np.maximum.reduceat(price, starts), PRICE),
        decimals(np.minimum.reduceat(price, starts), PRICE),
        decimals(price[stops], PRICE),
        decimals(np.add.reduceat(size, starts), SIZE),
        _notional(price, size, starts),
        pa.array(counts.astype(np.int64)),
    ]
    return pa.Table.from_arrays(columns, schema=BARS)


def _notional(price: Ints, size: Ints, starts: Ints) -> pa.Array:
    """Sum of price times size of each bar, exactly: micro-dollars times 1/100 contract."""
    low = price * (size & 0xFFFF_FFFF)
    high = price * (size >> 32)
    sums = zip(
        np.add.reduceat(high, starts).tolist(), np.add.reduceat(low, starts).tolist(), strict=True
    )
    words = np.array(
        [((total := (h << 32) + x) & (1 << 64) - 1, total >> 64) for h, x in sums], object
    )
    packed = b"".join(int(a).to_bytes(8, "little") + int(b).to_bytes(8, "little", signed=True)
                      for a, b in words)  # fmt: skip
    return pa.Array.from_buffers(NOTIONAL, len(starts), [None, pa.py_buffer(packed)])
