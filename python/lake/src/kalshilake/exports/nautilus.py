"""A catalog of nautilus_trader: one market as a binary option, its book of YES and its trades.

Purpose: `export_nautilus` adds a market to a folder that ParquetDataCatalog (1.221, high precision)
opens as it is: the instrument, its order_book_delta and its trade_tick. A bid for NO is shown as an
offer of YES at one dollar less its price.

    what happened                        deltas
    a proven stretch begins              CLEAR, then the whole book as ADD, flagged as a snapshot
    a level changed                      UPDATE with the size that now stands there, or DELETE
    the exchange emptied the book,       CLEAR
    or a gap begins

`ts_event` is the exchange's time and `ts_init` the time of receipt, nanoseconds. A catalog ascends
by `ts_init`: the order of the tape is kept, and a row that was received before its predecessor has
the predecessor's time.

What holds: prices and sizes are exact, as integers of 16 decimals; the decimals of the instrument
are as many as the market's prices need, at least two.

Does not do: fees (0: they depend on the account), the exchange's tick rules, floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kalshilake.exports.stretches import ProvenStretch, of_yes, stretches
from kalshilake.exports.target import known, new_file
from kalshilake.moments import Moment
from kalshilake.read import Lake, OnGap
from kalshilake.tables import times_us, units_of
from marketdata.errors import LakeError, TapeError
from marketdata.units import PRICE_SCALE, SIZE_SCALE, format_price

Ints = npt.NDArray[Any]

VENUE: Final = "KALSHI"
RAW_SCALE: Final = 10**16
SIZE_DECIMALS: Final = 2
ADD, UPDATE, DELETE, CLEAR = 1, 2, 3, 4  # BookAction
NO_SIDE, BUY, SELL = 0, 1, 2  # OrderSide, and AggressorSide of a taker of YES or NO
LAST: Final = 128  # RecordFlag: no more rows of this event
SNAPSHOT: Final = 32
ROW_GROUP_ROWS: Final = 50_000
_RAW: Final = pa.binary(16)


def _schema(*fields: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


DELTA: Final = _schema(
    ("action", pa.uint8()), ("side", pa.uint8()), ("price", _RAW), ("size", _RAW),
    ("order_id", pa.uint64()), ("flags", pa.uint8()), ("sequence", pa.uint64()),
    ("ts_event", pa.uint64()), ("ts_init", pa.uint64()),
)  # fmt: skip
TRADE: Final = _schema(
    ("price", _RAW), ("size", _RAW), ("aggressor_side", pa.uint8()), ("trade_id", pa.string()),
    ("ts_event", pa.uint64()), ("ts_init", pa.uint64()),
)  # fmt: skip
INSTRUMENT: Final = pa.schema(
    [
        ("id", pa.dictionary(pa.int64(), pa.string())),
        ("raw_symbol", pa.string()),
        ("asset_class", pa.dictionary(pa.int8(), pa.string())),
        ("currency", pa.dictionary(pa.int16(), pa.string())),
        ("price_precision", pa.uint8()),
        ("size_precision", pa.uint8()),
        ("price_increment", pa.dictionary(pa.int16(), pa.string())),
        ("size_increment", pa.dictionary(pa.int16(), pa.string())),
        ("activation_ns", pa.uint64()),
        ("expiration_ns", pa.uint64()),
        ("maker_fee", pa.string()),
        ("taker_fee", pa.string()),
        ("max_quantity", pa.dictionary(pa.int16(), pa.string())),
        ("min_quantity", pa.dictionary(pa.int16(), pa.string())),
        ("outcome", pa.string()),
        ("description", pa.string()),
        ("info", pa.binary()),
        ("ts_event", pa.uint64()),
        ("ts_init", pa.uint64()),
    ]
)


def export_nautilus(
    lake: Lake,
    market: str,
    catalog: Path,
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    on_gap: OnGap = "raise",
) -> int:
    """Add `market` in [start, end) to a catalog, a folder; gives the number of deltas and trades.

    on_gap="ignore" leaves out what is not proven, with the book cleared meanwhile. Raises
    IncompleteTape, LakeError, and TapeError where the catalog has the market or cannot be written.
    """
    if on_gap == "column":
        raise LakeError(
            "a catalog has no column for coverage",
            hint='on_gap="ignore" leaves out what is not proven, with an empty book meanwhile',
        )
    known(lake, market)
    found = stretches(lake, market, start, end, on_gap=on_gap)
    parts: list[dict[str, Ints]] = []
    for i, stretch in enumerate(found.stretches):
        parts += _book(stretch)
        after = found.stretches[i + 1].from_us if i + 1 < len(found.stretches) else found.to_us
        if stretch.to_us < after:
            parts.append(_rows(CLEAR, NO_SIDE, 0, 0, LAST, stretch.to_us, stretch.to_us))
    changes = _joined(parts)
    trades = lake.trades(market, found.from_us, found.to_us, on_gap=on_gap)
    decimals = _decimals(changes["price"], units_of(trades.column("yes_price")))
    tables = {
        "order_book_delta": _deltas(changes),
        "trade_tick": _trades(trades),
        "binary_option": _instrument(lake, market, decimals, found.from_us),
    }
    _write(catalog, f"{market}.{VENUE}", decimals, tables)
    return sum(t.num_rows for name, t in tables.items() if name != "binary_option")


# -- rows ------------------------------------------------------------------------------------------


def _rows(*columns: Any) -> dict[str, Ints]:
    names = ("action", "side", "price", "size", "flags", "exchange_us", "received_us")
    each = [np.array(c, np.int64, ndmin=1) for c in np.broadcast_arrays(*columns)]
    return dict(zip(names, each, strict=True))


def _joined(parts: list[dict[str, Ints]]) -> dict[str, Ints]:
    empty = _rows(*([np.zeros(0, np.int64)] * 7))
    return {name: np.concatenate([p[name] for p in (empty, *parts)]) for name in empty}


def _book(found: ProvenStretch) -> list[dict[str, Ints]]:
    """The book at the beginning of a stretch, and its changes."""
    at = found.from_us
    levels = [(side, price, size) for side in (0, 1) for price, size in found.base.levels(side)]
    side, price, size = np.array(levels, np.int64).reshape(-1, 3).T
    flags = np.full(len(levels), SNAPSHOT)
    flags[-1:] |= LAST
    clear = SNAPSHOT if levels else SNAPSHOT | LAST
    gone = found.size == 0
    action = np.where(found.reset, CLEAR, np.where(gone, DELETE, UPDATE))
    return [
        _rows(CLEAR, NO_SIDE, 0, 0, clear, at, at),
        _rows(ADD, _side_of_yes(side), of_yes(side, price), size, flags, at, at),
        _rows(
            action,
            np.where(found.reset, NO_SIDE, _side_of_yes(found.side)),
            np.where(found.reset, 0, of_yes(found.side, found.price)),
            found.size,
            LAST,
            found.exchange_us,
            found.received_us,
        ),
    ]


def _side_of_yes(side: Ints) -> Ints:
    return np.where(side == 1, SELL, BUY)


def _decimals(*prices: Ints) -> int:
    """So many decimals of a dollar as the prices need; at least two."""
    together = np.concatenate(prices)
    return next(n for n in range(2, 7) if not (together % (PRICE_SCALE // 10**n)).any())


def _deltas(rows: Mapping[str, Ints]) -> pa.Table:
    count = len(rows["action"])
    columns = [
        rows["action"], rows["side"], _raw(rows["price"], PRICE_SCALE),
        _raw(rows["size"], SIZE_SCALE), np.zeros(count), rows["flags"], np.arange(count),
        _ns(rows["exchange_us"]), _ns(np.maximum.accumulate(rows["received_us"])),
    ]  # fmt: skip
    return _table(columns, DELTA)


def _trades(found: pa.Table) -> pa.Table:
    taker = found.column("taker_side")
    yes, no = (
        np.asarray(pc.equal(taker, pa.scalar(side)).fill_null(fill_value=False))
        for side in ("yes", "no")
    )
    received = times_us(found.column("received_at"))
    columns = [
        _raw(units_of(found.column("yes_price")), PRICE_SCALE),
        _raw(units_of(found.column("count")), SIZE_SCALE),
        np.select([yes, no], [BUY, SELL], NO_SIDE),
        found.column("trade_id").combine_chunks(),
        _ns(times_us(found.column("exchange_ts"))),
        _ns(np.maximum.accumulate(received) if len(received) else received),
    ]
    return _table(columns, TRADE)


def _raw(units: Ints, scale: int) -> pa.Array:
    """Integers of `scale` as 16-byte little-endian integers of RAW_SCALE."""
    whole = units.astype(object) * (RAW_SCALE // scale)  # some need more than 64 bits
    words = np.empty((len(units), 2), np.uint64)
    words[:, 0] = (whole & (2**64 - 1)).astype(np.uint64)
    words[:, 1] = (whole >> 64).astype(np.uint64)
    return pa.FixedSizeBinaryArray.from_buffers(_RAW, len(units), [None, pa.py_buffer(words)])


def _ns(us: Ints) -> Ints:
    return us.astype(np.int64) * 1000


def _table(columns: list[Any], schema: pa.Schema) -> pa.Table:
    arrays = [
        c if isinstance(c, pa.Array) else pa.array(c.astype(np.uint64)).cast(f.type)
        for c, f in zip(columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _instrument(lake: Lake, market: str, decimals: int, from_us: int) -> pa.Table:
    """What is known of the market; times that are not known are 0."""
    every = lake.markets()
    mine = every.filter(pc.equal(every.column("market_ticker"), market)).to_pylist()
    told: dict[str, Any] = mine[0] if mine else {}
    row = {
        "id": f"{market}.{VENUE}", "raw_symbol": market, "asset_class": "ALTERNATIVE",
        "currency": "USD", "price_precision": decimals, "size_precision": SIZE_DECIMALS,
        "price_increment": format_price(PRICE_SCALE // 10**decimals)[: decimals + 2],
        "size_increment": "0.01", "activation_ns": _moment_ns(told.get("open_ts")),
        "expiration_ns": _moment_ns(told.get("close_ts")), "maker_fee": "0", "taker_fee": "0",
        "max_quantity": None, "min_quantity": "0.01", "outcome": "Yes",
        "description": told.get("title") or market, "info": b"null",
        "ts_event": from_us * 1000, "ts_init": from_us * 1000,
    }  # fmt: skip
    return pa.Table.from_pylist([row], schema=INSTRUMENT)


def _moment_ns(moment: datetime | None) -> int:
    if moment is None:
        return 0
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since.days * 86_400 + since.seconds) * 10**6 + since.microseconds) * 1000


# -- files -----------------------------------------------------------------------------------------


def _write(catalog: Path, name: str, decimals: int, tables: Mapping[str, pa.Table]) -> None:
    """One file a kind, the instrument last; what was made is gone if one cannot be."""
    for kind in tables:
        folder = catalog / "data" / kind / name
        if folder.is_dir() and any(folder.iterdir()):
            raise TapeError(f"{folder} has files", hint="a catalog has a market once")
    made: list[Path] = []
    try:
        for kind, rows in tables.items():
            if rows.num_rows:
                made.append(_placed(catalog / "data" / kind / name, name, decimals, rows))
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise


def _placed(folder: Path, name: str, decimals: int, rows: pa.Table) -> Path:
    """The file of one kind of data, named by its first and last time."""
    times = np.asarray(rows.column("ts_init"))
    path = folder / f"{_stamp(int(times[0]))}_{_stamp(int(times[-1]))}.parquet"
    metadata = {"class": "BinaryOption"}
    if rows.schema != INSTRUMENT:
        metadata = {
            "instrument_id": name,
            "price_precision": str(decimals),
            "size_precision": str(SIZE_DECIMALS),
        }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise TapeError(f"{folder} cannot be made: {e.strerror}") from None
    with new_file(path) as part:
        pq.write_table(
            rows.replace_schema_metadata(metadata), part, compression="snappy",
            row_group_size=ROW_GROUP_ROWS,
        )  # fmt: skip
    return path


def _stamp(ns: int) -> str:
    """A moment as catalogs name their files."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=ns // 10**9)
    return f"{moment:%Y-%m-%dT%H-%M-%S}-{ns % 10**9:09}Z"
