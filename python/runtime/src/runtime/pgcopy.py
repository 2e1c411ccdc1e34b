"""PostgreSQL's binary COPY form: packing rows for COPY FROM, unpacking COPY TO.

Purpose: rows go to and from the databases as bytes that numpy builds and reads in bulk. No Python
object is made per value, no datetime ever.

What holds:
- A fixed-width layout (every column NOT NULL and of fixed width) is one numpy dtype with a fixed
  stride, so a column of any number of rows is one assignment.
- `unpack_rows` proves the form before it believes a byte: header, stride, field count and every
  length word of every row, trailer. Anything else is a StorageError, never a wrong row.
- `timestamptz` is int64 microseconds since 2000-01-01; everywhere else times are microseconds since
  1970-01-01. The two sentinels "infinity" and "-infinity" are refused.

Does not do: talk to a server (runtime.postgres), know what the columns mean (marketdata.rows).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from marketdata.errors import StorageError

HEADER: Final = b"PGCOPY\n\xff\r\n\x00" + struct.pack(">II", 0, 0)
TRAILER: Final = struct.pack(">h", -1)
PG_EPOCH_US: Final = 946_684_800_000_000  # 2000-01-01 in microseconds since 1970-01-01

# Every time that timestamptz and int64 microseconds since 1970 can both hold, sentinels left out.
TS_US_MIN: Final = -210_866_803_200_000_000 + PG_EPOCH_US  # 4714 BC, PostgreSQL's first
TS_US_MAX: Final = 2**63 - 1 - PG_EPOCH_US

Rows = npt.NDArray[np.void]

_FIXED: Final[dict[str, tuple[str, int, str]]] = {  # kind -> (numpy, bytes, struct)
    "smallint": (">i2", 2, "h"),
    "integer": (">i4", 4, "i"),
    "bigint": (">i8", 8, "q"),
    "timestamptz": (">i8", 8, "q"),
    "uuid": ("V16", 16, "16s"),
}
_VARIABLE: Final = ("bytea", "text", "jsonb")


class CopyLayout:
    """The columns of one table in COPY order.

    `columns`: (name, kind) with kind one of smallint, integer, bigint, timestamptz, uuid (fixed
    width), bytea, text, jsonb. A layout of only fixed kinds has `dtype` (the wire row: a field
    `name` per column, a length word before each), `row_bytes` and `row_struct`.
    """

    __slots__ = ("_template", "columns", "dtype", "names", "row_bytes", "row_struct", "table")

    def __init__(self, table: str, columns: Sequence[tuple[str, str]]) -> None:
        unknown = [kind for _, kind in columns if kind not in _FIXED and kind not in _VARIABLE]
        assert not unknown, f"column kinds of {table} not known here: {unknown}"
        self.table = table
        self.columns = tuple(columns)
        self.names = tuple(name for name, _ in columns)
        self.dtype: np.dtype[np.void] | None = None
        self.row_bytes = 0
        self.row_struct: struct.Struct | None = None
        self._template = b""
        if all(kind in _FIXED for _, kind in columns):
            self._fix()

    def _fix(self) -> None:
        """Build the wire row: field count, then per column its length and its value."""
        fields: list[tuple[str, str]] = [("#", ">i2")]
        codes = [">h"]
        for name, kind in self.columns:
            numpy_form, _, code = _FIXED[kind]
            fields += [(f"#{name}", ">i4"), (name, numpy_form)]
            codes += ["i", code]
        self.dtype = np.dtype(cast("Any", fields))
        self.row_struct = struct.Struct("".join(codes))
        self.row_bytes = self.dtype.itemsize
        template = np.zeros(1, self.dtype)
        template["#"] = len(self.columns)
        for name, kind in self.columns:
            template[f"#{name}"] = _FIXED[kind][1]
        self._template = template.tobytes()

    def blank_bytes(self, count: int) -> bytearray:
        """`count` packed rows with all lengths set and all values zero."""
        assert self.dtype is not None, f"{self.table} has columns of variable width"
        return bytearray(self._template * count)


def _gatherer(table: str, text: str) -> CopyLayout:
    pairs = [line.split() for line in text.split(",")]
    return CopyLayout(table, [(name, kind) for name, kind in pairs])


# The tables of migrations/gatherer_hot; a test compares them with a real server.
DELTA_COPY: Final = _gatherer(
    "orderbook_delta",
    "exchange_ts timestamptz, received_ns bigint, delta bigint, book_hash bigint,"
    "market_id integer, run_id integer, seq integer, batch_id integer, price integer,"
    "side smallint, flags smallint",
)
SNAPSHOT_COPY: Final = _gatherer(
    "orderbook_snapshot",
    "exchange_ts timestamptz, received_ns bigint, book_hash bigint, running_hash bigint,"
    "seq bigint, market_id integer, run_id integer, batch_id integer, verdict smallint,"
    "flags smallint, levels bytea",
)
TRADE_COPY: Final = _gatherer(
    "trade",
    "exchange_ts timestamptz, received_ns bigint, trade_id uuid, count bigint, seq bigint,"
    "market_id integer, run_id integer, batch_id integer, yes_price integer, no_price integer,"
    "taker_side smallint, flags smallint",
)
TICKER_COPY: Final = _gatherer(
    "ticker",
    "exchange_ts timestamptz, received_ns bigint, payload_key bigint, volume bigint,"
    "open_interest bigint, dollar_volume bigint, dollar_open_interest bigint,"
    "yes_bid_size bigint, yes_ask_size bigint, last_trade_size bigint, market_id integer,"
    "batch_id integer, price integer, yes_bid integer, yes_ask integer",
)
CONTROL_COPY: Final = _gatherer(
    "control",
    "batch_id integer, ord integer, received_ns bigint, seq bigint, exchange_us bigint,"
    "conn_id integer, run_id integer, sid integer, market_id integer, kind text, reason text,"
    "detail jsonb",
)
MARKET_COPY: Final = _gatherer("market", "market_id integer, batch_id integer, ticker text")


def to_pg_us(exchange_us: int) -> int:
    """Microseconds since 1970 -> the wire value of timestamptz."""
    if not TS_US_MIN <= exchange_us <= TS_US_MAX:
        raise StorageError(f"time {exchange_us} us is outside what timestamptz holds")
    return exchange_us - PG_EPOCH_US


def from_pg_us(wire_us: int) -> int:
    """The wire value of timestamptz -> microseconds since 1970."""
    if not TS_US_MIN - PG_EPOCH_US <= wire_us <= TS_US_MAX - PG_EPOCH_US:
        raise StorageError(f"timestamptz {wire_us} is infinity or out of range")
    return wire_us + PG_EPOCH_US


def _source_name(name: str, fields: Sequence[str] | None) -> str:
    """A `..._ts` column is called `..._us` in native rows: there it is an integer since 1970."""
    if fields is not None and name not in fields and name.endswith("_ts"):
        return name[:-3] + "_us"
    return name


def pack_rows(layout: CopyLayout, rows: Rows, **constants: int) -> bytearray:
    """Native structured rows -> COPY rows (no header, no trailer).

    `rows` has a field per column (exchange_us for a timestamptz exchange_ts); `constants` gives
    columns that are the same in every row, such as batch_id. Unsigned fields keep their bits.
    """
    packed = layout.blank_bytes(len(rows))
    wire = view_rows(layout, packed)
    fields = rows.dtype.names or ()
    for name, kind in layout.columns:
        source = _source_name(name, fields)
        if name in constants:
            wire[name] = to_pg_us(constants[name]) if kind == "timestamptz" else constants[name]
            continue
        values = rows[source]
        if kind == "timestamptz":
            _check_times(values)
            values = values - PG_EPOCH_US
        wire[name] = _fitting(layout, name, values, wire.dtype[name])
    return packed


def _fitting(
    layout: CopyLayout, name: str, values: npt.NDArray[Any], wire: np.dtype[Any]
) -> npt.NDArray[Any]:
    """The values in a form whose assignment to the wire column loses nothing."""
    given = values.dtype
    if given.kind == "u" and given.itemsize == wire.itemsize:
        return values.view(f"i{given.itemsize}")  # PostgreSQL has no unsigned: the bits are kept
    if not np.can_cast(given, wire) and len(values):
        limits = np.iinfo(wire)
        if values.min() < limits.min or values.max() > limits.max:
            raise StorageError(f"{layout.table}.{name}: a value does not fit {wire.itemsize} bytes")
    return values


def _check_times(times_us: npt.NDArray[np.int64]) -> None:
    if len(times_us) and (times_us.max() > TS_US_MAX or times_us.min() < TS_US_MIN):
        raise StorageError("a time is outside what timestamptz holds")


def patch_column(layout: CopyLayout, packed: bytearray | memoryview, name: str, value: int) -> None:
    """Set one column of all packed rows (no header) in place, such as batch_id at the commit."""
    rows = view_rows(layout, packed)
    kind = dict(layout.columns)[name]
    rows[name] = to_pg_us(value) if kind == "timestamptz" else value


def view_rows(layout: CopyLayout, packed: bytearray | memoryview) -> Rows:
    """Packed rows (no header, no trailer) as a writable array of the wire dtype."""
    assert layout.dtype is not None, f"{layout.table} has columns of variable width"
    assert len(packed) % layout.row_bytes == 0, "packed rows are cut"
    return np.frombuffer(packed, layout.dtype)


def unpack_rows(
    layout: CopyLayout,
    body: bytes | bytearray | memoryview,
    dtype: np.dtype[np.void],
    **constants: int,
) -> Rows:
    """The whole answer of COPY ... TO (binary) of a fixed-width table -> native structured rows.

    `dtype` names the columns as the layout does (exchange_us for exchange_ts). Columns of the
    layout that `dtype` lacks are left out; fields that the layout lacks come from `constants`.
    """
    wire = checked_rows(layout, body)
    native = np.empty(len(wire), dtype)
    taken: set[str] = set()
    for name, kind in layout.columns:
        target = _source_name(name, dtype.names)
        if target not in (dtype.names or ()):
            continue
        taken.add(target)
        values = wire[name]
        if kind == "timestamptz":
            native[target] = values
            _check_wire_times(native[target])
            native[target] += PG_EPOCH_US
        elif native.dtype[target].kind == "u":
            native[target] = values.astype(f"i{values.dtype.itemsize}").view(native.dtype[target])
        else:
            native[target] = values
    for name in dtype.names or ():
        if name not in taken:
            native[name] = constants[name]
    return native


def _check_wire_times(wire_us: npt.NDArray[np.int64]) -> None:
    low, high = TS_US_MIN - PG_EPOCH_US, TS_US_MAX - PG_EPOCH_US
    if len(wire_us) and (wire_us.max() > high or wire_us.min() < low):
        raise StorageError("a timestamptz column holds infinity or a time out of range")


def checked_rows(layout: CopyLayout, body: bytes | bytearray | memoryview) -> Rows:
    """The rows of a COPY answer as the wire dtype, after every length word has been checked."""
    assert layout.dtype is not None, f"{layout.table} has columns of variable width"
    if len(body) == 0:
        raise StorageError(f"copy of {layout.table} gave no bytes, not even a header")
    if bytes(body[: len(HEADER)]) != HEADER:
        raise StorageError(f"copy of {layout.table} has a header we do not know")
    if bytes(body[-len(TRAILER) :]) != TRAILER or len(body) < len(HEADER) + len(TRAILER):
        raise StorageError(f"copy of {layout.table} is cut: no trailer after {len(body)} bytes")
    inner = len(body) - len(HEADER) - len(TRAILER)
    if inner % layout.row_bytes:
        raise StorageError(
            f"copy of {layout.table}: {inner} bytes are no multiple of {layout.row_bytes}",
            hint="a column was added, is null, or has another type",
        )
    count = inner // layout.row_bytes
    rows = np.frombuffer(body, layout.dtype, count=count, offset=len(HEADER))
    if not (rows["#"] == len(layout.columns)).all():
        raise StorageError(f"copy of {layout.table}: a row has not {len(layout.columns)} fields")
    for name, kind in layout.columns:
        if not (rows[f"#{name}"] == _FIXED[kind][1]).all():
            raise StorageError(f"copy of {layout.table}: column {name} is null or not {kind}")
    return rows


def _pack_fixed(code: str, size: int) -> Callable[[Any], bytes]:
    pack = struct.Struct(f">i{code}").pack
    return lambda value: pack(size, value)


def _pack_timestamp(value: int) -> bytes:
    return struct.pack(">iq", 8, to_pg_us(value))


def _pack_bytes(value: bytes) -> bytes:
    return struct.pack(">i", len(value)) + value


def _pack_text(value: str) -> bytes:
    encoded = value.encode("utf-8")
    if b"\x00" in encoded:
        raise StorageError("text with a zero character cannot be stored in postgresql")
    return struct.pack(">i", len(encoded)) + encoded


def _pack_jsonb(value: str | bytes) -> bytes:
    encoded = value.encode("utf-8") if isinstance(value, str) else value
    return struct.pack(">iB", len(encoded) + 1, 1) + encoded  # 1: the version of jsonb's wire form


_PACKERS: Final[dict[str, Callable[[Any], bytes]]] = {
    **{kind: _pack_fixed(code, size) for kind, (_, size, code) in _FIXED.items()},
    "timestamptz": _pack_timestamp,
    "bytea": _pack_bytes,
    "text": _pack_text,
    "jsonb": _pack_jsonb,
}
_NULL: Final = struct.pack(">i", -1)


def pack_values(layout: CopyLayout, rows: Iterable[Sequence[Any]]) -> bytearray:
    """Rows of Python values -> COPY rows (no header, no trailer); for tables of any width.

    Values: int (timestamptz: microseconds since 1970), bytes for uuid (16) and bytea, str for text,
    JSON text (str or UTF-8 bytes) for jsonb, None for NULL.
    """
    packers = [_PACKERS[kind] for _, kind in layout.columns]
    count = struct.pack(">h", len(packers))
    out = bytearray()
    for row in rows:
        assert len(row) == len(packers), f"{layout.table} has {len(packers)} columns: {row!r}"
        out += count
        for pack, value in zip(packers, row, strict=True):
            out += _NULL if value is None else pack(value)
    return out
