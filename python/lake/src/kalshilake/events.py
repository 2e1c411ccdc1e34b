"""Everything that happened to some markets, in one order of time.

Purpose: changes of books, trades and, on request, ticker states as one Arrow table (EVENTS).

The order. `at` is the moment at which a row is in force: for a change of a book the moment from
which `Lake.book` has it (reach), for a trade or a ticker its own time. Rows ascend by `at`; within
one microsecond by market; within one market's microsecond
1. trades, by trade_id: an order that means nothing,
2. changes of the book, in market_seq order, which is the exchange's own,
3. tickers, by payload_key: an order that means nothing.
A tape cannot know how a trade stands to the changes of its own microsecond: they come over two
subscriptions, each with its own numbers. Trades stand first for two reasons. The exchange cuts the
time of a trade to the millisecond where a change has microseconds, so a trade's stamp is at or
before its true time and never after it: of equal stamps the trade's is the earlier or the same
instant. And what the book was just before a trade is what is asked, as in `Lake.asof`: a trade
whose own change stood before it would look as if it had traded against a book without the orders
it took. For the same reason a trade may stand up to a millisecond before changes that came first.
A ticker tells a state that holds already, so it stands last. Between markets nothing is known.

Invariants:
    L-40 of a proven interval [a, b) the changes, in the order given, lead from the book at a-1 to
         the book at b-1, and each is given once.

Does not do: books (steps).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kalshilake.checked import marked, statuses_of
from kalshilake.clocks import Clock, OnGap, column_of
from kalshilake.moments import Moment
from kalshilake.objects import ALWAYS, MAX_US
from kalshilake.reach import DELTAS, reach, rows_of
from kalshilake.schema import PRICE, SIZE, TABLES, TIME
from kalshilake.series import named, spans_of
from kalshilake.tables import times_us

if TYPE_CHECKING:
    from kalshilake.read import Lake, Markets

Ints = npt.NDArray[Any]

EVENT_KINDS: Final = ("delta", "reset", "trade", "ticker")
EVENTS: Final = pa.schema(
    [
        pa.field("market_ticker", pa.string(), nullable=False),
        pa.field("at", TIME, nullable=False),
        pa.field("exchange_ts", TIME, nullable=False),
        pa.field("received_at", TIME, nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # EVENT_KINDS
        ("epoch", pa.int32()),  # these two: of delta and reset
        ("market_seq", pa.int64()),
        ("side", pa.string()),  # these three: of delta; the price is that of its side
        ("price", PRICE),
        ("delta", SIZE),
        ("trade_id", pa.string()),  # the rest: of trade
        ("yes_price", PRICE),
        ("no_price", PRICE),
        ("count", SIZE),
        ("taker_side", pa.string()),
        ("is_block_trade", pa.bool_()),
        pa.field("sources", pa.int16(), nullable=False),
    ]
)
"""Times are UTC, prices dollars, sizes contracts; what a kind does not have is null."""

_TICKER: Final = TABLES["tickers"].schema
_OF_TICKER: Final = (
    _TICKER.field("price"),
    *(f for f in _TICKER if f.name not in {*EVENTS.names, "payload_key"}),
)
TICKER_FIELDS: Final = tuple(pa.field(f"ticker_{f.name}", f.type) for f in _OF_TICKER)
"""Columns that follow where tickers are asked for; `ticker_price` is the last trade's."""

_OF_DELTA: Final = (
    "market_ticker", "exchange_ts", "received_at", "kind", "epoch", "market_seq", "side", "price",
    "delta", "sources",
)  # fmt: skip
_OF_CHANGE: Final = pa.schema([EVENTS.field(c) for c in (*_OF_DELTA, "at")])


def events_between(
    lake: Lake,
    market: Markets,
    start: Moment | None,
    end: Moment | None,
    *,
    trades: bool,
    tickers: bool,
    on_gap: OnGap,
    clock: Clock,
) -> pa.Table:
    """See `Lake.events_between`."""
    schema = pa.schema([*EVENTS, *(TICKER_FIELDS if tickers else ())])
    others = [t for t, asked in (("trades", trades), ("tickers", tickers)) if asked]
    parts = []
    for name in named(lake, market):
        spans = spans_of(lake, name, start, end, on_gap, clock)
        span = (spans[0].from_us, spans[-1].to_us)
        found = [_changes(lake, name, span, on_gap, clock)]
        for table in others:
            rows = getattr(lake, table)(name, *span, on_gap=on_gap, clock=clock)
            rows = rows.append_column("at", rows.column(column_of(clock)))
            found.insert(0 if table == "trades" else 2, _renamed(rows, table))
        parts += [_fitted(rows, schema, on_gap) for rows in found]
    if not parts:
        return _fitted(EVENTS.empty_table(), schema, "raise")
    rows = pa.concat_tables(parts)
    # Stable: the order within a microsecond is that of the parts.
    return rows.take(pa.array(np.argsort(times_us(rows.column("at")), kind="stable")))


def _changes(
    lake: Lake, market: str, span: tuple[int, int], on_gap: OnGap, clock: Clock
) -> pa.Table:
    """Changes of the book in force in `span`, epoch by epoch, with `at`."""
    parts = [_OF_CHANGE.empty_table()]
    for epoch, first in _epochs(lake, market, span, clock):
        found = reach(lake, market, epoch, first - 1, span[1], clock)
        rows = rows_of(lake, market, epoch, found.events, _OF_DELTA)
        columns = [*rows.columns, pa.array(found.at).cast(TIME)]
        parts.append(pa.Table.from_arrays(columns, schema=_OF_CHANGE))
    rows = pa.concat_tables(parts)
    if on_gap != "column":
        return rows
    cover = lake.coverage_map(market, *span, clock=clock)
    return marked(rows, statuses_of(cover, "orderbook", rows, times_us(rows.column("at"))))


def _epochs(lake: Lake, market: str, span: tuple[int, int], clock: Clock) -> list[tuple[int, int]]:
    """(epoch, the first time of a change in it) for every epoch with a change whose own time lies
    in `span`: no other has one in force in it, and none of these before that time."""
    times, received = (span, ALWAYS) if clock == "exchange" else ((-MAX_US, MAX_US), span)
    time = column_of(clock)
    rows = lake.rows(DELTAS, [market], *times, ("epoch", time), received=received)
    first = rows.group_by("epoch").aggregate([(time, "min")]).sort_by("epoch")
    return list(
        zip(first.column("epoch").to_pylist(), times_us(first.column(f"{time}_min")).tolist(),
            strict=True)
    )  # fmt: skip


def _renamed(rows: pa.Table, table: str) -> pa.Table:
    kind = pa.array([table.removesuffix("s")] * rows.num_rows, pa.string())
    rows = rows.append_column("kind", kind)
    if table == "trades":
        return rows
    ours = {f.name for f in _OF_TICKER}
    return rows.rename_columns([f"ticker_{c}" if c in ours else c for c in rows.schema.names])


def _fitted(rows: pa.Table, schema: pa.Schema, on_gap: OnGap) -> pa.Table:
    """The columns of `schema`, null where `rows` has none."""
    fields = list(schema)
    if on_gap == "column":
        fields += [rows.schema.field("coverage"), rows.schema.field("complete")]
    columns = [
        rows.column(f.name) if f.name in rows.schema.names else pa.nulls(rows.num_rows, f.type)
        for f in fields
    ]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))
