"""Rows of the merge as Arrow tables of the lake, and back.

Purpose: the only place where micro-dollars become DECIMAL(9,6), 1/100 contracts DECIMAL(18,2),
nanoseconds microseconds. Exact both ways; no float is ever made.

Invariants:
    L-7  `units_of(decimals(v)) == v` for every value in range.

Does not do: sorting, encoding (write), I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kalshilake.schema import KINDS, LEVELS, PRICE, SIDES, SIZE, TABLES, TIME, TableSpec, spec_of
from marketdata.book import LEVEL
from marketdata.errors import LakeError
from marketdata.rows import DeltaFlag

Ints = npt.NDArray[Any]

_PRICE_MAX: Final = 10**9
_SIZE_MAX: Final = 10**18


def decimals(
    values: Ints, kind: pa.Decimal128Type, valid: npt.NDArray[np.bool_] | None = None
) -> pa.Array:
    """Unscaled integers as a decimal array. LakeError if one has more digits than the column."""
    unscaled = np.ascontiguousarray(values, np.int64)
    limit = _PRICE_MAX if kind.precision == PRICE.precision else _SIZE_MAX
    checked = unscaled if valid is None else unscaled[valid]
    if checked.size and not (-limit < int(checked.min()) <= int(checked.max()) < limit):
        raise LakeError(f"{checked.min()} to {checked.max()} does not fit {kind}")
    words = np.empty((len(unscaled), 2), "<i8")
    words[:, 0] = unscaled
    words[:, 1] = unscaled >> 63  # sign extension
    return pa.Array.from_buffers(
        kind, len(unscaled), [_bitmap(valid), pa.py_buffer(words.tobytes())]
    )


def units_of(column: pa.Array | pa.ChunkedArray, absent: int = 0) -> npt.NDArray[np.int64]:
    """Unscaled integers of a decimal column: micro-dollars or 1/100 contracts."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # combine_chunks of no chunks
        return np.zeros(0, np.int64)
    if not pa.types.is_decimal128(array.type):
        array = array.cast(PRICE if array.type.scale == PRICE.scale else SIZE)
    words = np.frombuffer(array.buffers()[1] or b"", "<i8")
    values = words[2 * array.offset : 2 * (array.offset + len(array)) : 2].copy()
    if array.null_count:
        values[np.asarray(array.is_null())] = absent
    return values


def times_us(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """A TIMESTAMP(us) column as int64 microseconds; it must have no null."""
    return np.asarray(column.cast(pa.int64()), np.int64)


def deltas_table(rows: npt.NDArray[np.void], tickers: Mapping[int, str]) -> pa.Table:
    """orderbook_deltas from MERGED_ROW rows; `tickers` names each `market_id` in them."""
    reset = (rows["flags"] & int(DeltaFlag.RESET)) != 0
    return _table(
        TABLES["orderbook_deltas"],
        market_ticker=_named(rows["market_id"], tickers),
        exchange_ts=_us(rows["exchange_us"]),
        received_at=_us(rows["received_ns"] // 1000),
        epoch=rows["epoch"],
        market_seq=rows["market_seq"],
        kind=_coded(reset.astype(np.int8), KINDS),
        side=_coded(rows["side"], SIDES, ~reset),
        price=decimals(rows["price"], PRICE, ~reset),
        delta=decimals(rows["delta"], SIZE, ~reset),
        sources=rows["sources"],
        flags=rows["flags"],
    )


def snapshots_table(
    market_ticker: Sequence[str],
    exchange_us: Ints,
    received_ns: Ints,
    epoch: Ints,
    market_seq: Ints,
    book_hash: Ints,
    levels: Sequence[bytes],
    sources: Ints,
) -> pa.Table:
    """orderbook_snapshots; `levels` in the packed form, `book_hash` uint64."""
    yes, no = unpack_columns(levels)
    return _table(
        TABLES["orderbook_snapshots"],
        market_ticker=pa.array(market_ticker, pa.string()),
        exchange_ts=_us(exchange_us),
        received_at=_us(np.asarray(received_ns) // 1000),
        epoch=epoch,
        market_seq=market_seq,
        book_hash=np.asarray(book_hash).astype(np.uint64),
        yes=yes,
        no=no,
        sources=sources,
    )


def trades_table(
    market_ticker: Sequence[str],
    exchange_us: Ints,
    received_ns: Ints,
    trade_id: Sequence[bytes],
    yes_price: Ints,
    no_price: Ints,
    count: Ints,
    taker_side: Ints,
    is_block_trade: Ints,
    sources: Ints,
) -> pa.Table:
    """trades; `trade_id` 16 bytes each, `taker_side` 0 yes, 1 no, -1 not told."""
    taker = np.asarray(taker_side)
    return _table(
        TABLES["trades"],
        market_ticker=pa.array(market_ticker, pa.string()),
        exchange_ts=_us(exchange_us),
        received_at=_us(np.asarray(received_ns) // 1000),
        trade_id=pa.array([bytes(t).hex() for t in trade_id], pa.string()),
        yes_price=decimals(yes_price, PRICE),
        no_price=decimals(no_price, PRICE),
        count=decimals(count, SIZE),
        taker_side=_coded(taker, SIDES, taker >= 0),
        is_block_trade=pa.array(np.asarray(is_block_trade, np.bool_)),
        sources=sources,
    )


def tickers_table(
    market_ticker: Sequence[str],
    exchange_us: Ints,
    received_ns: Ints,
    payload_key: Ints,
    sources: Ints,
    values: Mapping[str, Ints],
) -> pa.Table:
    """tickers; `values`: the integer columns by marketdata.rows.TickerRow's names, -1 = absent."""
    spec = TABLES["tickers"]
    columns: dict[str, Any] = {}
    for field in spec.schema:
        if field.nullable:
            units = np.asarray(values[field.name], np.int64)
            columns[field.name] = _optional(units, field.type)
    return _table(
        spec,
        market_ticker=pa.array(market_ticker, pa.string()),
        exchange_ts=_us(exchange_us),
        received_at=_us(np.asarray(received_ns) // 1000),
        payload_key=np.asarray(payload_key).astype(np.uint64),
        sources=sources,
        **columns,
    )


def records_table(table: str, records: Iterable[Mapping[str, Any]]) -> pa.Table:
    """coverage, markets or events from plain rows; times are int us, absent keys are null."""
    spec = spec_of(table)
    rows = list(records)
    columns = {}
    for field in spec.schema:
        try:
            columns[field.name] = pa.array([r.get(field.name) for r in rows], field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as e:
            raise LakeError(f"column {field.name} of {table}: {e}") from None
    return _table(spec, **columns)


def unpack_columns(levels: Sequence[bytes]) -> tuple[pa.ListArray, pa.ListArray]:
    """Packed books as two LEVELS columns (yes, no)."""
    sides: tuple[list[Ints], list[Ints]] = ([], [])
    for packed in levels:
        counts = np.frombuffer(packed, "<u4", 2) if len(packed) >= 8 else np.zeros(2, "<u4")
        n_yes, n_no = (int(c) for c in counts)
        if len(packed) != 8 + LEVEL.itemsize * (n_yes + n_no):
            raise LakeError(f"a packed book of {len(packed)} bytes claims {n_yes} + {n_no} levels")
        both = np.frombuffer(packed, LEVEL, n_yes + n_no, 8)
        sides[0].append(both[:n_yes])
        sides[1].append(both[n_yes:])
    return _lists(sides[0]), _lists(sides[1])


def levels_at(column: pa.Array | pa.ChunkedArray, row: int) -> Ints:
    """The levels of one row of a LEVELS column as a LEVEL array, ascending by price."""
    entry = column[row].values
    made = np.empty(0 if entry is None else len(entry), LEVEL)
    if len(made):
        made["price"] = units_of(entry.field("price"))
        made["size"] = units_of(entry.field("size"))
    return made


def _lists(books: list[Ints]) -> pa.ListArray:
    flat = np.concatenate(books) if books else np.empty(0, LEVEL)
    offsets = np.zeros(len(books) + 1, np.int32)
    np.cumsum([len(b) for b in books], out=offsets[1:])
    fields = list(LEVELS.value_type)
    levels = pa.StructArray.from_arrays(
        [decimals(flat["price"], PRICE), decimals(flat["size"], SIZE)], fields=fields
    )
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), levels, type=LEVELS)


def _table(spec: TableSpec, **columns: Any) -> pa.Table:
    arrays = []
    for field in spec.schema:
        column = columns[field.name]
        array = column if isinstance(column, pa.Array) else pa.array(np.asarray(column))
        if array.type != field.type:
            array = array.cast(field.type)
        if array.null_count and not field.nullable:
            raise LakeError(f"column {field.name} of {spec.name} has {array.null_count} nulls")
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=spec.schema)


def _us(values: Ints) -> pa.Array:
    return pa.array(np.ascontiguousarray(values, np.int64)).cast(TIME)


def _coded(
    codes: Ints, names: tuple[str, ...], valid: npt.NDArray[np.bool_] | None = None
) -> pa.Array:
    """Small integers as their names; rows that are not `valid` become null."""
    if valid is not None:
        codes = np.where(valid, codes, 0)
    if len(codes) and not (0 <= int(codes.min()) <= int(codes.max()) < len(names)):
        raise LakeError(f"codes {codes.min()} to {codes.max()} where {names} are known")
    indices = pa.array(codes.astype(np.int8), mask=None if valid is None else ~valid)
    return pa.DictionaryArray.from_arrays(indices, pa.array(names)).cast(pa.string())


def _named(ids: Ints, names: Mapping[int, str]) -> pa.Array:
    present, codes = np.unique(ids, return_inverse=True)
    unknown = [int(i) for i in present if int(i) not in names]
    if unknown:
        raise LakeError(f"market ids without a ticker: {unknown[:5]}")
    dictionary = pa.array([names[int(i)] for i in present], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), dictionary).cast(
        pa.string()
    )


def _optional(units: Ints, kind: pa.DataType) -> pa.Array:
    valid = units >= 0
    if pa.types.is_decimal(kind):
        return decimals(np.where(valid, units, 0), kind, valid)
    return pa.array(units, mask=~valid)


def _bitmap(valid: npt.NDArray[np.bool_] | None) -> pa.Buffer | None:
    if valid is None or bool(valid.all()):
        return None
    return pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())


def sort_order(table: pa.Table, key: tuple[str, ...]) -> npt.NDArray[np.intp]:
    """Row order by `key`: text by its UTF-8 bytes, times and numbers by value.

    Raises LakeError if two rows have equal keys: an order that depends on the input is no order.
    """
    columns = [_ranks(table.column(name)) for name in key]
    if _ascend(columns):
        return np.arange(table.num_rows)
    order = np.lexsort(columns[::-1])
    if len(order) > 1:
        same = np.ones(len(order) - 1, np.bool_)
        for column in columns:
            ordered = column[order]
            same &= ordered[1:] == ordered[:-1]
        if same.any():
            first = int(order[int(np.flatnonzero(same)[0])])
            seen = {name: str(table.column(name)[first]) for name in key}
            raise LakeError(f"{int(same.sum())} rows repeat a key, the first is {seen}")
    return order


def _ascend(columns: list[Ints]) -> bool:
    """Whether each row comes after the one before it, by the first column that differs."""
    after = np.zeros(max(len(columns[0]) - 1, 0), np.bool_)
    for column in reversed(columns):
        after = (column[1:] > column[:-1]) | ((column[1:] == column[:-1]) & after)
    return bool(after.all())


def _ranks(column: pa.ChunkedArray) -> Ints:
    if column.null_count:
        raise LakeError(f"{column.null_count} nulls in a key column")
    if pa.types.is_timestamp(column.type):
        return times_us(column)
    if not pa.types.is_string(column.type):
        return np.asarray(column)
    plain = column.combine_chunks()
    if isinstance(plain, pa.ChunkedArray):  # without a chunk
        return np.zeros(0, np.int32)
    begins = run_starts(plain)  # mostly it is sorted: few values to look up
    coded = pc.dictionary_encode(plain.take(pa.array(begins)))
    names = [str(n).encode() for n in coded.dictionary]
    rank: Ints = np.empty(len(names), np.int32)
    rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names), dtype=np.int32)
    of_run = rank[np.asarray(coded.indices)]
    return np.asarray(np.repeat(of_run, np.diff(np.append(begins, len(plain)))))


def run_starts(column: pa.Array) -> Ints:
    """Where each run of equal values begins; the column has no nulls."""
    if not len(column):
        return np.zeros(0, np.int64)
    other = pc.not_equal(column.slice(1), column.slice(0, len(column) - 1))
    return np.append(0, np.flatnonzero(np.asarray(other)) + 1)
