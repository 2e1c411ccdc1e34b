"""Deltas, trades, tickers and books as CSV (RFC 4180): exact text, no floats.

Purpose: `export_csv` writes one table of one market. Prices are dollars with six decimals, sizes
contracts with two, times ISO 8601 UTC with six decimals or integer microseconds since 1970; an
absent value is an empty field. Books are on a grid of time, one row a moment: `bid_1_price` is the
best bid for YES, `ask_1_price` the lowest offer of YES (one dollar less the best bid for NO).

Invariants:
    L-31 every value of the file is that of the lake; the file's bytes depend on nothing else.

Does not do: joining markets, compressing, refusing gaps (the reads it is made of do).
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Final, Literal, TextIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kalshilake.exports.target import known, new_file
from kalshilake.moments import Every, Moment
from kalshilake.read import Lake, OnGap
from kalshilake.schema import PRICE, SIZE
from kalshilake.tables import decimals, units_of
from marketdata.errors import LakeError
from marketdata.units import PRICE_SCALE

Table = Literal["deltas", "trades", "tickers", "books"]
Times = Literal["iso", "us"]

TABLES: Final = ("deltas", "trades", "tickers", "books")
TIMES: Final = ("iso", "us")
_ROWS: Final = 65_536  # of a block: memory does not grow with the file
_ISO: Final = "%Y-%m-%dT%H:%M:%SZ"  # Arrow's %S has the fraction of the column's unit


def export_csv(
    lake: Lake,
    market: str,
    path: Path,
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    table: str = "deltas",
    times: str = "iso",
    every: Every = "1s",
    depth: int = 10,
    on_gap: OnGap = "raise",
) -> int:
    """Write one table of `market` in [start, end) to a new file; gives the number of rows.

    `every` and `depth` shape the books and mean nothing else. on_gap="column" adds `coverage` and
    `complete`. Raises IncompleteTape, LakeError, and TapeError where the file cannot be made.
    """
    for given, choice in ((table, TABLES), (times, TIMES)):
        if given not in choice:
            raise LakeError(f"{given!r} is unknown", hint=", ".join(choice))
    with new_file(path) as part:
        known(lake, market)
        if table == "books":
            found = lake.books(market, start, end, every=every, depth=depth, on_gap=on_gap)
            found = flat_books(found, depth)
        else:
            found = getattr(lake, table)(market, start, end, on_gap=on_gap)
        with part.open("w", encoding="utf-8", newline="") as out:
            write_rows(found, out, cast(Times, times))
    return cast(int, found.num_rows)


def write_rows(found: pa.Table, out: TextIO, times: Times) -> None:
    """The header and every row of a table of plain columns."""
    writer = csv.writer(out)
    writer.writerow(found.schema.names)
    for block in found.to_batches(max_chunksize=_ROWS):
        writer.writerows(zip(*(_texts(column, times) for column in block.columns), strict=True))


def flat_books(found: pa.Table, depth: int) -> pa.Table:
    """series.BOOKS with the ladders of YES as columns; a level that is not there is null."""
    kept = found.select(["market_ticker", "at", "epoch", "market_seq"])
    for name, side in (("bid", "yes"), ("ask", "no")):
        prices, sizes, has = _grid(found.column(side), depth)
        shown = PRICE_SCALE - prices if side == "no" else prices
        for i in range(depth):
            kept = kept.append_column(
                f"{name}_{i + 1}_price", decimals(np.where(has[i], shown[i], 0), PRICE, has[i])
            )
            kept = kept.append_column(f"{name}_{i + 1}_size", decimals(sizes[i], SIZE, has[i]))
    for name in ("coverage", "complete"):
        kept = kept.append_column(name, found.column(name))
    return kept


def _grid(levels: pa.ChunkedArray, depth: int) -> tuple[Any, Any, Any]:
    """(prices, sizes, whether there is one) of a LEVELS column, [level, row]."""
    counts = np.asarray(pc.list_value_length(levels).fill_null(0), np.int64)
    flat = pc.list_flatten(levels)
    row = np.repeat(np.arange(len(counts)), counts)
    rank = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    made = [np.zeros((depth, len(counts)), np.int64) for _ in range(2)]
    for place, name in enumerate(("price", "size")):
        made[place][rank, row] = units_of(pc.struct_field(flat, name))
    return made[0], made[1], np.arange(depth)[:, None] < counts[None, :]


def _texts(column: pa.Array, times: Times) -> list[Any]:
    """A column's values as csv writes them: None is an empty field."""
    if pa.types.is_timestamp(column.type):
        if times == "us":
            return cast(list[Any], column.cast(pa.int64()).to_pylist())
        return cast(list[Any], pc.strftime(column.cast(pa.timestamp("us")), _ISO).to_pylist())
    if pa.types.is_decimal(column.type) or pa.types.is_boolean(column.type):
        return cast(list[Any], column.cast(pa.string()).to_pylist())
    return cast(list[Any], column.to_pylist())
