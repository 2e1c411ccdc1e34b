"""One object: its bytes, its certificate, its columns, the order of its rows; columns as values.

Rows are read a row group at a time: a busy hour has many millions of them.

Does not do: what rows mean together (replay, claims).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from .lists import ENTRY, HOUR_US, Place, end_of, hours_in
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
    "events": (
        [("event_ticker", "string"), ("series_ticker", "string?"), ("title", "string?"),
         ("sub_title", "string?"), ("category", "string?"), ("mutually_exclusive", "bool?"),
         ("strike_ts", _T + "?"), ("strike_period", "string?"), ("first_seen", _T),
         ("body", "string?")],
        ["event_ticker", "first_seen"], "first_seen"),
}  # fmt: skip


@dataclass(slots=True)
class Loaded:
    """A listed object whose bytes and columns were checked."""

    report: Report
    key: str
    entry: dict[str, Any]
    raw: bytes
    schema: pa.Schema
    joins: dict[int, int] | None = None  # of several hours: rows of each hour's own object
    whole: bool = False  # all rows went by

    def groups(self) -> Iterator[pa.Table]:
        """Its rows, a row group at a time; what is wrong with them is told as they go by."""
        _, order, time = FORMAT[str(self.entry["table"])]
        seen = _Seen(self.report, self.key, self.entry, self.joins)
        try:
            source = pa.BufferReader(self.raw)
            with pq.ParquetFile(source, page_checksum_verification=True) as parquet:
                for number in range(parquet.num_row_groups):
                    rows = parquet.read_row_group(number).combine_chunks()
                    rows = rows.replace_schema_metadata(None)
                    seen.add(rows, order, time)
                    yield rows
        except (OSError, pa.ArrowException) as e:
            _unreadable(self.report, self.key, e)
            return
        self.whole = True
        seen.finish()

    def table(self) -> pa.Table | None:
        """All rows at once, of an object that has few; None where they cannot all be read."""
        groups = [self.schema.empty_table(), *self.groups()]
        return pa.concat_tables(groups).combine_chunks() if self.whole else None


def load(place: Place, report: Report, entry: dict[str, Any] | None) -> Loaded | None:
    """A listed object, its bytes and columns checked; None if unusable."""
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
        with pq.ParquetFile(pa.BufferReader(raw)) as parquet:
            meta, schema = parquet.metadata, parquet.schema_arrow
    except (OSError, pa.ArrowException) as e:
        _unreadable(report, key, e)
        return None
    joins = _check_certificate(place, report, raw, meta, entry)
    report.rows += meta.num_rows
    columns, _, _ = FORMAT[str(entry["table"])]
    seen = [(f.name, f"{f.type}{'?' if f.nullable else ''}") for f in schema]
    if seen != columns:
        wrong = sorted({n for n, _ in set(seen) ^ set(columns)}) or ["their order"]
        report.found(key, f"columns are not those of the format: {', '.join(wrong)}")
        return None
    if (meta.num_rows, meta.num_row_groups) != (entry["rows"], entry["row_groups"]):
        report.found(
            key,
            f"has {meta.num_rows} rows in {meta.num_row_groups} row groups where the list says "
            f"{entry['rows']} in {entry['row_groups']}",
        )
    return Loaded(report, key, entry, raw, schema.remove_metadata(), joins)


def _unreadable(report: Report, key: str, error: Exception) -> None:
    report.found(key, f"cannot be read as Parquet ({str(error).splitlines()[0]})")


class _Seen:
    """What is known of an object's rows once they went by."""

    def __init__(
        self, report: Report, key: str, entry: dict[str, Any], joins: dict[int, int] | None
    ) -> None:
        self._report, self._key, self._entry, self._joins = report, key, entry, joins
        self._by_hour: Counter[int] = Counter()
        self._last: tuple[Any, ...] | None = None
        self._told = False  # that rows are out of order
        self._times: tuple[int, int] | None = None
        self._first = self._final = ""

    def add(self, rows: pa.Table, order: list[str], time: str) -> None:
        """The next row group."""
        if not rows.num_rows:
            return
        keys = list(zip(*(plain(rows.column(c)) for c in order), strict=True))
        if not self._told:
            before = [] if self._last is None else [self._last]
            for above, below in itertools.pairwise(before + keys):
                if not above < below:
                    text = f"rows repeat a key or are out of order at {below[:2]}"
                    self._report.found(self._key, text)
                    self._told = True
                    break
        times = plain(rows.column(time))
        low, high = min(times), max(times)
        if self._joins is not None:
            self._by_hour.update(t - t % HOUR_US for t in times)
        if self._times is None:
            self._times, self._first = (low, high), str(rows.column(0)[0])
        self._times = min(self._times[0], low), max(self._times[1], high)
        self._last, self._final = keys[-1], str(rows.column(0)[-1])

    def finish(self) -> None:
        """No more rows."""
        for hour in sorted(set(self._joins or ()) | set(self._by_hour)):
            have, had = self._by_hour[hour], (self._joins or {}).get(hour, 0)
            if have != had:
                text = f"holds {have} rows of an hour ({hour} us) whose own object had {had}"
                self._report.found(self._key, text)
        if self._times is None:
            return
        (low, high), entry, hour = self._times, self._entry, int(self._entry["hour_us"])
        if low < hour or high >= end_of(entry):
            self._report.found(self._key, "holds rows outside its hour")
        told = (entry["min_us"], entry["max_us"], entry["first_market"], entry["last_market"])
        if told != (low, high, self._first, self._final):
            self._report.found(self._key, "its times or markets are not those in the list")


def _check_certificate(
    place: Place, report: Report, raw: bytes, meta: Any, entry: dict[str, Any]
) -> dict[int, int] | None:
    """Rows by hour of the objects that it joins; None for one hour's object."""
    key = str(entry["key"])
    try:
        says = json.loads((meta.metadata or {})[b"kalshi_tape"])
        body = hashlib.sha256(raw[: says["body_bytes"]]).hexdigest()
        if body != says["body_sha256"]:
            report.found(key, "its body is not the one that it certifies")
        told = (says["table"], says["hour_us"], says["rows"], says["schema"])
    except (KeyError, ValueError, TypeError):
        report.found(key, "carries no certificate: it was not written by the tape's writer")
        return None
    if told != (entry["table"], entry["hour_us"], entry["rows"], entry["schema"]):
        report.found(key, "certifies another table, hour, schema or number of rows than the list")
    return None if hours_in(entry) == 1 else _joins(place, report, key, says.get("joins"))


def _joins(place: Place, report: Report, key: str, parts: Any) -> dict[int, int] | None:
    """Rows by hour of the objects that one of several hours was made from, each still there."""
    try:
        odd = [p for p in parts if {n: type(v) for n, v in p.items()} != ENTRY]
    except (TypeError, AttributeError):
        odd = [parts]
    if odd or not parts:
        report.found(key, "does not say what objects it was joined from")
        return None
    for part in parts:
        kept = f"superseded/{part['sha256']}.parquet"
        if place.sizes.get(kept) != part["bytes"]:
            report.found(key, f"was joined from {part['key']}, whose bytes are not in {kept}")
        elif hashlib.sha256(place.read(kept)).hexdigest() != part["sha256"]:
            report.found(kept, "does not hold the bytes that its name says")
    return {int(part["hour_us"]): int(part["rows"]) for part in parts}


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
