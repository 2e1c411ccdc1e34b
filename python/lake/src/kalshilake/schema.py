"""The lake's tables: columns, units, sort keys and encodings (docs/formats.md section 4).

Purpose: the one definition that the writer, the reader and the documents share. Prices are
DECIMAL(9,6) dollars held in an int32, sizes DECIMAL(18,2) contracts held in an int64, times
TIMESTAMP(us, UTC).

Invariants:
    L-1  the key of a table is total: two rows of one object never have equal keys.
    L-2  no column is nullable unless the format document says what null means.

Does not do: reading, writing, conversion of rows (tables).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from marketdata.errors import LakeError

SCHEMA_VERSION: Final = 1
ROW_GROUP_ROWS: Final = 131_072  # 65,536: 8.21 B a row; 262,144: twice the rows read per ticker
COMPRESSION: Final = "zstd"
COMPRESSION_LEVEL: Final = 3
DATA_PAGE_BYTES: Final = 1 << 20
CERTIFICATE: Final = "kalshi_tape"  # key of an object's own metadata

TIME: Final = pa.timestamp("us", tz="UTC")
PRICE: Final = pa.decimal128(9, 6)  # dollars; unscaled = micro-dollars
SIZE: Final = pa.decimal128(18, 2)  # contracts; unscaled = 1/100 contract
LEVELS: Final = pa.list_(
    pa.field(
        "element",
        pa.struct(
            [pa.field("price", PRICE, nullable=False), pa.field("size", SIZE, nullable=False)]
        ),
        nullable=False,
    )
)

KINDS: Final = ("delta", "reset")
SIDES: Final = ("yes", "no")
CHANNELS: Final = ("orderbook", "trade", "ticker")
STATUSES: Final = ("complete", "gap", "dark", "ambiguous", "disputed", "unproven")


@dataclass(frozen=True, slots=True)
class TableSpec:
    """One table of the lake.

    `key` sorts it and is unique in an object; `time` is the column whose UTC hour names the
    object; `channel` is the coverage channel that proves its rows (None: no proof applies).
    """

    name: str
    schema: pa.Schema
    key: tuple[str, ...]
    time: str
    channel: str | None
    dictionary: tuple[str, ...]
    delta_packed: tuple[str, ...]

    @property
    def subject(self) -> str:
        """The column that sorts first: whose rows these are, a market's or an event's."""
        return self.key[0]


def _columns(*fields: tuple[str, pa.DataType] | tuple[str, pa.DataType, bool]) -> pa.Schema:
    """A schema from (name, type[, nullable]); not nullable unless said."""
    return pa.schema([pa.field(f[0], f[1], nullable=len(f) == 3 and bool(f[2])) for f in fields])


_DELTAS = TableSpec(
    name="orderbook_deltas",
    schema=_columns(
        ("market_ticker", pa.string()),
        ("exchange_ts", TIME),
        ("received_at", TIME),
        ("epoch", pa.int32()),
        ("market_seq", pa.int64()),
        ("kind", pa.string()),
        ("side", pa.string(), True),  # null for a reset
        ("price", PRICE, True),
        ("delta", SIZE, True),
        ("sources", pa.int16()),
        ("flags", pa.int16()),
    ),
    key=("market_ticker", "exchange_ts", "epoch", "market_seq"),
    time="exchange_ts",
    channel="orderbook",
    dictionary=(
        "market_ticker",
        "epoch",
        "kind",
        "side",
        "price",
        "delta",
        "sources",
        "flags",
    ),
    delta_packed=("exchange_ts", "received_at", "market_seq"),
)

_SNAPSHOTS = TableSpec(
    name="orderbook_snapshots",
    schema=_columns(
        ("market_ticker", pa.string()),
        ("exchange_ts", TIME),
        ("received_at", TIME),
        ("epoch", pa.int32()),
        ("market_seq", pa.int64()),
        ("book_hash", pa.uint64()),
        ("yes", LEVELS),
        ("no", LEVELS),
        ("sources", pa.int16()),
    ),
    key=("market_ticker", "exchange_ts", "epoch", "market_seq", "book_hash"),
    time="exchange_ts",
    channel="orderbook",
    dictionary=("market_ticker", "epoch", "sources"),
    delta_packed=("exchange_ts", "received_at", "market_seq"),
)

_TRADES = TableSpec(
    name="trades",
    schema=_columns(
        ("market_ticker", pa.string()),
        ("exchange_ts", TIME),
        ("received_at", TIME),
        ("trade_id", pa.string()),  # 32 lower-case hex digits
        ("yes_price", PRICE),
        ("no_price", PRICE),
        ("count", SIZE),
        ("taker_side", pa.string(), True),  # null where the exchange did not tell
        ("is_block_trade", pa.bool_()),
        ("sources", pa.int16()),
    ),
    key=("market_ticker", "exchange_ts", "trade_id"),
    time="exchange_ts",
    channel="trade",
    dictionary=("market_ticker", "yes_price", "no_price", "count", "taker_side", "sources"),
    delta_packed=("exchange_ts", "received_at"),
)

_TICKERS = TableSpec(
    name="tickers",
    schema=_columns(
        ("market_ticker", pa.string()),
        ("exchange_ts", TIME),
        ("received_at", TIME),
        ("price", PRICE, True),
        ("yes_bid", PRICE, True),
        ("yes_ask", PRICE, True),
        ("volume", SIZE, True),
        ("open_interest", SIZE, True),
        ("yes_bid_size", SIZE, True),
        ("yes_ask_size", SIZE, True),
        ("last_trade_size", SIZE, True),
        ("dollar_volume", pa.int64(), True),
        ("dollar_open_interest", pa.int64(), True),
        ("payload_key", pa.uint64()),
        ("sources", pa.int16()),
    ),
    key=("market_ticker", "exchange_ts", "payload_key"),
    time="exchange_ts",
    channel="ticker",
    dictionary=(
        "market_ticker",
        "price",
        "yes_bid",
        "yes_ask",
        "yes_bid_size",
        "yes_ask_size",
        "last_trade_size",
        "sources",
    ),
    delta_packed=("exchange_ts", "received_at", "dollar_volume", "dollar_open_interest"),
)

_COVERAGE = TableSpec(
    name="coverage",
    schema=_columns(
        ("market_ticker", pa.string()),
        ("channel", pa.string()),
        ("from_ts", TIME),
        ("to_ts", TIME),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("sources", pa.int16()),
        ("audits", pa.int32()),
        ("epoch", pa.int32(), True),  # null where no epoch is open or the channel has none
    ),
    key=("market_ticker", "channel", "from_ts"),
    time="from_ts",
    channel=None,
    dictionary=("market_ticker", "channel", "status", "reason", "sources", "audits", "epoch"),
    delta_packed=("from_ts", "to_ts"),
)

_MARKETS = TableSpec(
    name="markets",
    schema=_columns(
        ("market_ticker", pa.string()),
        ("event_ticker", pa.string(), True),
        ("series_ticker", pa.string(), True),
        ("title", pa.string(), True),
        ("status", pa.string(), True),
        ("open_ts", TIME, True),
        ("close_ts", TIME, True),
        ("first_seen", TIME),
        ("body", pa.string(), True),  # JSON text as the exchange gave it
    ),
    key=("market_ticker", "first_seen"),
    time="first_seen",
    channel=None,
    dictionary=("event_ticker", "series_ticker", "status"),
    delta_packed=("open_ts", "close_ts", "first_seen"),
)

_EVENTS = TableSpec(
    name="events",
    schema=_columns(
        ("event_ticker", pa.string()),
        ("series_ticker", pa.string(), True),
        ("title", pa.string(), True),
        ("sub_title", pa.string(), True),
        ("category", pa.string(), True),
        ("mutually_exclusive", pa.bool_(), True),
        ("strike_ts", TIME, True),
        ("strike_period", pa.string(), True),
        ("first_seen", TIME),
        ("body", pa.string(), True),  # JSON text as the exchange gave it
    ),
    key=("event_ticker", "first_seen"),
    time="first_seen",
    channel=None,
    dictionary=("series_ticker", "category", "strike_period"),
    delta_packed=("strike_ts", "first_seen"),
)

TABLES: Final[dict[str, TableSpec]] = {
    spec.name: spec
    for spec in (_DELTAS, _SNAPSHOTS, _TRADES, _TICKERS, _COVERAGE, _MARKETS, _EVENTS)
}


def spec_of(table: str) -> TableSpec:
    """The definition of one table. Raises LakeError for a name the lake does not have."""
    spec = TABLES.get(table)
    if spec is None:
        raise LakeError(
            f"no table {table!r} in a lake", hint="the tables are " + ", ".join(sorted(TABLES))
        )
    return spec
