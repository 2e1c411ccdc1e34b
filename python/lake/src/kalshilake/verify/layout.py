"""One object: its bytes, its certificate, its columns, the order of its rows; columns as values.

Does not do: what rows mean together (replay, claims).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from .lists import HOUR_US, Place
from .report import Report

_T, _P, _Q = "timestamp[us, tz=UTC]", "decimal128(9, 6)", "decimal128(18, 2)"
_L = f"list<element: struct<price: {_P} not null, size: {_Q} not null> not null>"
# table: (columns as name, type and, with "?", nullable; the key that sorts it; the time column)
FORMAT: Final[dict[str, tuple[list[tuple[str, str]], list[str], str]]] = {
    "orderbook_deltas": (
        [("market_ticker", "string"), ("exchange_ts", _T), ("received_at", _T), ("epoch", "int32"),
         ("market_seq", "int64"), ("kind", "string"), ("side", "string?"), ("price", _P + "?"),
         ("delta", _Q + "?"), ("sources", "int16"), ("flags", "int16")],
        ["market_ticker", "exchange_ts", "epoch", "market_seq"], "exchange_ts"),
    "orderbook_snapshots": (
        [("market_ticker", "string"), ("exchange_ts", _T), ("received_at", _T), ("epoch", "int32"),
         ("market_seq", "int64"), ("book_hash", "uint64"), ("yes", _L), ("no", _L),
         ("sources", "int16")],
        ["market_ticker", "exchange_ts", "epoch", "market_seq", "book_hash"], "exchange_ts"),
    "trades": (
        [("market_ticker", "string"), ("exchange_ts", _T), ("received_at", _T),
         ("trade_id", "string"), ("yes_price", _P), ("no_price", _P), ("count", _Q),
         ("taker_side", "string?"), ("is_block_trade", "bool"), ("sources", "int16")],
        ["market_ticker", "exchange_ts", "trade_id"], "exchange_ts"),
    "tickers": (
        [("market_ticker", "string"), ("exchange_ts", _T), ("received_at", _T), ("price", _P + "?"),
         ("yes_bid", _P + "?"), ("yes_ask", _P + "?"), ("volume", _Q + "?"),
         ("open_interest", _Q + "?"), ("yes_bid_size", _Q + "?"), ("yes_ask_size", _Q + "?"),
         ("last_trade_size", _Q + "?"), ("dollar_volume", "int64?"),
         ("dollar_open_interest", "int64?"), ("payload_key", "uint64"), ("sources", "int16")],
        ["market_ticker", "exchange_ts", "payload_key"], "exchange_ts"),
    "coverage": (
        [("market_ticker", "string"), ("channel", "string"), ("from_ts", _T), ("to_ts", _T),
         ("status", "string"), ("reason", "string"), ("sources", "int16"), ("audits", "int32"),
         ("epoch", "int32?")],
        ["market_ticker", "channel", "from_ts"], "from_ts"),
    "markets": (
        [("market_ticker", "string"), ("event_ticker", "string?"), ("series_ticker", "string?"),
         ("title", "string?"), ("status", "string?"), ("open_ts", _T + "?"),
         ("close_ts", _T + "?"), ("first_seen", _T), ("body", "string?")],
        ["market_ticker", "first_seen"], "first_seen"),
}  # fmt: skip


def load(place: Place, report: Report, entry: dict[str, Any] | None) -> tuple[str, pa.Table] | None:
    """(key, rows) of a listed object whose bytes and layout were checked; None if unusable."""
    if entry is None:
        return None
    key = str(entry["key"])
    if key not in place.sizes:
        report.found(key, "is listed and absent")
        return None
    raw = place.read(key)
    report.objects += 1
    report.bytes += len(raw)
    if len(raw) != entry["bytes"]:
        report.found(key, f"has {len(raw)} bytes where the list says {entry['bytes']}")
    if hashlib.sha256(raw).hexdigest() != entry["sha256"]:
        report.found(key, "its SHA-256 is not the one in the list")
    if hashlib.sha256(raw[-int(entry["footer_bytes"]) :]).hexdigest() != entry["footer_sha256"]:
        report.found(key, "the SHA-256 of its footer is not the one in the list")
    try:
        with pq.ParquetFile(pa.BufferReader(raw), page_checksum_verification=True) as parquet:
            meta = parquet.metadata
            _check_certificate(report, key, raw, meta, entry)
            rows = parquet.read().combine_chunks()
    except (OSError, pa.ArrowException) as e:
        report.found(key, f"cannot be read as Parquet ({str(e).splitlines()[0]})")
        return None
    report.rows += rows.num_rows
    if not _check_layout(report, key, rows, entry, meta.num_row_groups):
        return None
    return key, rows


def _check_certificate(
    report: Report, key: str, raw: bytes, meta: Any, entry: dict[str, Any]
) -> None:
    try:
        says = json.loads((meta.metadata or {})[b"kalshi_tape"])
        body = hashlib.sha256(raw[: says["body_bytes"]]).hexdigest()
        if body != says["body_sha256"]:
            report.found(key, "its body is not the one that it certifies")
        told = (says["table"], says["hour_us"], says["rows"], says["schema"])
    except (KeyError, ValueError, TypeError):
        report.found(key, "carries no certificate: it was not written by the tape's writer")
        return
    if told != (entry["table"], entry["hour_us"], entry["rows"], entry["schema"]):
        report.found(key, "certifies another table, hour, schema or number of rows than the list")


def _check_layout(
    report: Report, key: str, rows: pa.Table, entry: dict[str, Any], groups: int
) -> bool:
    columns, order, time = FORMAT[str(entry["table"])]
    seen = [(f.name, f"{f.type}{'?' if f.nullable else ''}") for f in rows.schema]
    if seen != columns:
        wrong = sorted({n for n, _ in set(seen) ^ set(columns)}) or ["their order"]
        report.found(key, f"columns are not those of the format: {', '.join(wrong)}")
        return False
    if rows.num_rows != entry["rows"] or groups != entry["row_groups"]:
        report.found(
            key,
            f"has {rows.num_rows} rows in {groups} row groups where the list says "
            f"{entry['rows']} in {entry['row_groups']}",
        )
    if not rows.num_rows:
        return True
    keys = list(zip(*(plain(rows.column(c)) for c in order), strict=True))
    for above, below in itertools.pairwise(keys):
        if not above < below:
            report.found(key, f"rows repeat a key or are out of order at {below[:2]}")
            break
    times = plain(rows.column(time))
    low, high, hour = min(times), max(times), int(entry["hour_us"])
    if low < hour or high >= hour + HOUR_US:
        report.found(key, "holds rows outside its hour")
    first, last = str(rows.column(0)[0]), str(rows.column(0)[-1])
    told = (entry["min_us"], entry["max_us"], entry["first_market"], entry["last_market"])
    if told != (low, high, first, last):
        report.found(key, "its times or markets are not those in the list")
    return True


def plain(column: Any) -> list[Any]:
    """A column as Python values; times as microseconds, decimals as unscaled integers."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        return []
    if pa.types.is_timestamp(array.type):
        return list(array.cast(pa.int64()).to_pylist())
    if not pa.types.is_decimal(array.type):
        return list(array.to_pylist())
    words = memoryview(array.buffers()[1] or b"").cast("q")[0::2].tolist()
    values: list[Any] = words[array.offset : array.offset + len(array)]
    if array.null_count:
        nulls = array.is_null().to_pylist()
        values = [None if null else v for v, null in zip(values, nulls, strict=True)]
    return values


def side_levels(column: Any) -> list[list[tuple[int, int]]]:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray) or not len(array):
        return []
    flat = array.flatten()
    both = list(zip(plain(flat.field("price")), plain(flat.field("size")), strict=True))
    lengths, made, at = array.value_lengths().to_pylist(), [], 0
    for n in lengths:
        made.append(both[at : at + n])
        at += n
    return made
