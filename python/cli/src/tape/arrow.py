"""Arrow tables as commands show them: a table, JSON lines, CSV, or a Parquet file.

Prices, sizes and times are exact text everywhere but in Parquet, which keeps their types.

Does not do: reading lakes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from kalshilake.schema import LEVELS, PRICE, SIZE
from kalshilake.tables import times_us, units_of
from marketdata.errors import TapeError
from marketdata.units import format_price, format_size, format_ts_us
from tape.output import print_rows, terminal, witnesses

SHOWN_LEVELS: Final = 3


def show(
    found: pa.Table, *, as_json: bool, as_csv: bool, parquet: Path | None, limit: int, noun: str
) -> None:
    """Print a table as it was asked for; a limit that hides rows is told. `limit` 0: all rows."""
    if parquet is not None:
        if as_json or as_csv:
            raise TapeError("--parquet writes a file", hint="without --json and --csv")
        pq.write_table(found, parquet, compression="zstd")
        terminal().print(f"{found.num_rows} {noun} in {parquet}")
        return
    shown = found.slice(0, limit) if limit else found
    rows = plain_rows(shown)
    if not as_json:
        rows = [{k: _cell(v, whole=as_csv) for k, v in row.items()} for row in rows]
    print_rows(rows, as_json=as_json, as_csv=as_csv)
    if not (as_json or as_csv) and shown.num_rows < found.num_rows:
        terminal().print(f"and {found.num_rows - shown.num_rows} more {noun} (--limit)")


def plain_rows(found: pa.Table) -> list[dict[str, Any]]:
    """Rows of plain values: exact text for prices, sizes and times, [price, size] for levels."""
    columns = {field.name: _plain(field, found.column(i)) for i, field in enumerate(found.schema)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _plain(field: pa.Field, column: pa.ChunkedArray) -> list[Any]:
    kind = field.type
    if field.name == "sources" and pa.types.is_integer(kind):
        return [witnesses(mask) for mask in column.to_pylist()]
    if kind == LEVELS:
        return [None if value is None else _levels(value) for value in column.to_pylist()]
    has = column.is_valid().to_pylist()
    if kind in (PRICE, SIZE):
        told = format_price if kind == PRICE else format_size
        return _where(has, map(told, units_of(column).tolist()))
    if pa.types.is_timestamp(kind):
        return _where(has, map(format_ts_us, times_us(column.fill_null(0)).tolist()))
    return [_value(value) for value in column.to_pylist()]


def _where(has: list[bool], values: Iterable[str]) -> list[str | None]:
    return [value if there else None for there, value in zip(has, values, strict=True)]


def _levels(value: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [format_price(int(level["price"].scaleb(6))), format_size(int(level["size"].scaleb(2)))]
        for level in value
    ]


def _value(value: Any) -> Any:
    """Whatever SQL may give, as JSON can hold it."""
    if isinstance(value, Decimal):
        text = f"{value:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, bytes):
        return value.hex()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [_value(each) for each in value]
    if isinstance(value, dict):
        return {key: _value(each) for key, each in value.items()}
    return str(value)


def _cell(value: Any, *, whole: bool) -> Any:
    """A value in one cell; a ladder in a table shows its best levels."""
    if not isinstance(value, (list, dict)):
        return value
    if whole or not (value and isinstance(value, list) and isinstance(value[0], list)):
        return json.dumps(value)
    text = " ".join(f"{price}x{size}" for price, size in value[:SHOWN_LEVELS])
    return text + (" ..." if len(value) > SHOWN_LEVELS else "")
