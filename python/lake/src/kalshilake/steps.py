"""A tape played to a program: one step for each event, with the book after it.

Purpose: `Lake.replay`. The interval is read in slices of SLICE_US, the steps of a slice are made
STEPS_AT_ONCE at a time: memory is that of one slice of the markets asked for, however long the
interval is.

The order is that of `events_between`. Before the events of a market comes `Opened`: the book at the
beginning, with the events of that very microsecond in it (as `Lake.book` has it). Where the tape is
not proven nothing is played: `Missing` says so where it begins (with on_gap="column"), and the next
proven stretch begins with `Opened` again. In between the book that a step shows is the last one
known, and its `status` says that it is not proven.

Invariants:
    L-42 after the last step of a moment the book of each market is `Lake.book` at that moment,
         wherever it is proven.
    L-43 where one slice ends and the next goes on, the book that was played is the book that the
         lake gives there from its keyframes: LakeError if they differ.

Does not do: waiting, speed (`tape replay` serves a tape as the exchange did).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kalshilake import paths
from kalshilake.checked import checked
from kalshilake.clocks import Clock, OnGap, column_of
from kalshilake.coverage import CoverageInterval, of_one_epoch
from kalshilake.livebook import LiveBook
from kalshilake.moments import Moment
from kalshilake.places import iso
from kalshilake.reach import DELTAS, Reach, parts_of, reach, rows_of
from kalshilake.schema import TABLES
from kalshilake.series import named, spans_of
from kalshilake.tables import times_us, units_of
from marketdata.errors import LakeError

if TYPE_CHECKING:
    from kalshilake.read import Lake, Markets

Ints = npt.NDArray[Any]

SLICE_US: Final = paths.US_PER_HOUR
STEPS_AT_ONCE: Final = 65_536
SIDES: Final = ("yes", "no")


class Opened(NamedTuple):
    """A proven stretch of a market begins: `book` is the book at `at_us`."""

    market: str
    at_us: int
    book: LiveBook

    @property
    def kind(self) -> str:
        return "opened"


class Changed(NamedTuple):
    """One level changed. `price` micro-dollars of `side`, `delta` 1/100 contract."""

    market: str
    at_us: int
    book: LiveBook  # after it, as in every step
    exchange_us: int
    received_us: int
    market_seq: int
    side: str
    price: int
    delta: int

    @property
    def kind(self) -> str:
        return "delta"


class Emptied(NamedTuple):
    """A reset: the book is empty."""

    market: str
    at_us: int
    book: LiveBook
    exchange_us: int
    received_us: int
    market_seq: int

    @property
    def kind(self) -> str:
        return "reset"


class Traded(NamedTuple):
    """A trade. `book` is the book before the changes of its microsecond (events)."""

    market: str
    at_us: int
    book: LiveBook
    exchange_us: int
    received_us: int
    trade_id: str
    yes_price: int
    no_price: int
    size: int  # 1/100 contract, the column `count`
    taker_side: str | None
    is_block_trade: bool

    @property
    def kind(self) -> str:
        return "trade"


class Told(NamedTuple):
    """A ticker. `values`: its columns as the lake has them (docs/formats.md section 4), prices in
    micro-dollars, sizes in 1/100 contract, None where the frame had none."""

    market: str
    at_us: int
    book: LiveBook
    exchange_us: int
    received_us: int
    values: dict[str, int | None]

    @property
    def kind(self) -> str:
        return "ticker"


class Missing(NamedTuple):
    """From `at_us` to `until_us` a channel is not proven: `status` and `reason` say why."""

    market: str
    at_us: int
    book: LiveBook
    until_us: int
    channel: str
    status: str
    reason: str

    @property
    def kind(self) -> str:
        return "missing"


Step: TypeAlias = Opened | Changed | Emptied | Traded | Told | Missing

# The order of what has one time, within a market.
_MISSING, _OPENED, _TRADED, _CHANGED, _TOLD = range(5)
_CHANNELS: Final = {"trades": "trade", "tickers": "ticker"}
_COLUMNS: Final = 6  # of whole numbers in a row; which ones depends on what it is


def replay(
    lake: Lake,
    market: Markets,
    start: Moment | None,
    end: Moment | None,
    *,
    trades: bool,
    tickers: bool,
    on_gap: OnGap,
    clock: Clock,
) -> Iterator[Step]:
    """See `Lake.replay`."""
    tables = [t for t, asked in (("trades", trades), ("tickers", tickers)) if asked]
    made = []
    for name in named(lake, market):
        spans = of_one_epoch(spans_of(lake, name, start, end, on_gap, clock))
        low, high = spans[0].from_us, spans[-1].to_us
        told = [span for span in spans if span.status != "complete"]
        cover = lake.coverage_map(name, low, high, clock=clock)
        for table in tables:
            told += cover.unproven(name, _CHANNELS[table], low, high)
        if told and on_gap == "raise":
            raise lake.incomplete(told)
        parts = [
            _Part(epoch, a, b, span.sources)
            for span in spans
            if span.status == "complete"
            for epoch, a, b in parts_of(lake, name, span, clock)
        ]
        made.append(_Market(LiveBook(name, clock), low, high, parts, told))
    return _Player(lake, made, tables, on_gap, clock).steps()


class _Part(NamedTuple):
    """A proven stretch of one epoch."""

    epoch: int
    from_us: int
    to_us: int
    sources: int


@dataclass(slots=True)
class _Market:
    book: LiveBook
    from_us: int
    to_us: int
    parts: list[_Part]
    told: list[CoverageInterval]  # what is not proven


@dataclass(slots=True)
class _Rows:
    """Steps to be, of one market and kind: whole numbers, or one value for each."""

    what: int
    market: int
    at: Ints
    columns: tuple[Ints, ...] = ()
    values: Sequence[Any] = ()


@dataclass(slots=True)
class _Player:
    lake: Lake
    markets: list[_Market]
    tables: Sequence[str]
    on_gap: OnGap
    clock: Clock

    def steps(self) -> Iterator[Step]:
        for low, high in self._slices():
            rows: list[_Rows] = []
            for number, market in enumerate(self.markets):
                a, b = max(low, market.from_us), min(high, market.to_us)
                if a < b:
                    rows += self._market_rows(number, market, a, b)
            yield from self._played([r for r in rows if len(r.at)])

    def _slices(self) -> Iterator[tuple[int, int]]:
        """The interval in hours; what lies before the first row and after the last one at once."""
        low = min((m.from_us for m in self.markets), default=0)
        high = max((m.to_us for m in self.markets), default=0)
        records = [o for t in (DELTAS, *self.tables) for o in self.lake.records(t) if o.rows]
        if self.clock == "exchange":
            held = [(o.min_us, o.max_us) for o in records]
        else:
            held = self.lake.reader.receipts(records)
        first = min((h[0] for h in held), default=high)
        last = max((h[1] for h in held), default=low)
        at = low
        while at < high:
            until = at - at % SLICE_US + SLICE_US
            if at < first:
                until = first
            elif at > last:
                until = high
            until = min(until, high)
            yield at, until
            at = until

    def _market_rows(self, number: int, market: _Market, a: int, b: int) -> Iterator[_Rows]:
        missing = [i for i in market.told if a <= i.from_us < b]
        yield _Rows(_MISSING, number, np.array([i.from_us for i in missing], np.int64), (), missing)
        for part in market.parts:
            if part.from_us < b and part.to_us > a:
                yield from self._book_rows(number, market, part, a, b)
        for table in self.tables:
            # By receipt a row may have happened where nothing is proven: that is refused here.
            on_gap = self.on_gap if self.clock == "received" else "ignore"
            rows = checked(
                self.lake, table, [market.book.market], (a, b),
                on_gap="raise" if on_gap == "raise" else "ignore", clock=self.clock, columns=None,
            )  # fmt: skip
            yield _other_rows(table, number, rows, times_us(rows.column(column_of(self.clock))))

    def _book_rows(
        self, number: int, market: _Market, part: _Part, a: int, b: int
    ) -> Iterator[_Rows]:
        """The changes of a stretch in [a, b), and before the first of all the book."""
        name, until = market.book.market, min(part.to_us, b)
        if part.from_us >= a:
            found = reach(self.lake, name, part.epoch, part.from_us, until, self.clock)
            opening = (part, found.before, found.book())
            yield _Rows(_OPENED, number, np.array([part.from_us]), (), [opening])
        else:
            found = reach(self.lake, name, part.epoch, a - 1, until, self.clock)
            _check(self.lake, market.book, found, a)
        receipts = rows_of(self.lake, name, part.epoch, found.events, ("received_at",))
        events = found.events
        side = np.where(events.reset, _RESET, events.side)
        columns = (
            events.exchange_us, times_us(receipts.column("received_at")), events.market_seq,
            side, events.price, events.delta,
        )  # fmt: skip
        yield _Rows(_CHANGED, number, found.at, columns)

    def _played(self, rows: Sequence[_Rows]) -> Iterator[Step]:
        """The steps of a slice, in order."""
        if not rows:
            return
        values: list[Any] = []
        columns: list[list[Ints]] = [[] for _ in range(_COLUMNS)]
        for part in rows:
            n = len(part.at)
            told = part.columns or (np.arange(len(values), len(values) + n),)
            values += part.values
            for i, column in enumerate(columns):
                column.append(told[i] if i < len(told) else np.zeros(n, np.int64))
        at = np.concatenate([part.at for part in rows])
        what = np.concatenate([np.full(len(part.at), part.what) for part in rows])
        market = np.concatenate([np.full(len(part.at), part.market) for part in rows])
        order = np.lexsort((what, market, at))  # stable: rows of one kind keep their order
        whole = (at, market, what, *(np.concatenate(column) for column in columns))
        books = [m.book for m in self.markets]
        for start in range(0, len(order), STEPS_AT_ONCE):
            some = order[start : start + STEPS_AT_ONCE]
            yield from self._made(
                zip(*(c[some].tolist() for c in whole), strict=True), books, values
            )

    def _made(
        self, rows: Iterable[tuple[int, ...]], books: Sequence[LiveBook], values: Sequence[Any]
    ) -> Iterator[Step]:
        new: Any = tuple.__new__  # half the time of calling the class
        for at, market, what, us, received, seq, side, price, delta in rows:
            book = books[market]
            book.at_us = at
            if what == _CHANGED:
                book.market_seq = seq
                book.events += 1
                if side == 0:
                    book.change_yes(price, delta)
                elif side == 1:
                    book.change_no(price, delta)
                else:
                    book.empty()
                    yield Emptied(book.market, at, book, us, received, seq)
                    continue
                yield new(
                    Changed,
                    (book.market, at, book, us, received, seq, SIDES[side], price, delta),
                )
                continue
            step = self._other(what, at, book, values[us])
            if step is not None:
                yield step

    def _other(self, what: int, at: int, book: LiveBook, value: Any) -> Step | None:
        if what == _TRADED:
            return Traded(book.market, at, book, *value)
        if what == _TOLD:
            return Told(book.market, at, book, *value)
        if what == _OPENED:
            part, seq, levels = value
            book.open(levels, part.epoch, seq, part.sources)
            return Opened(book.market, at, book)
        if value.channel == "orderbook":
            book.status, book.sources = value.status, value.sources
        if self.on_gap != "column":
            return None
        return Missing(
            book.market, at, book, value.to_us, value.channel, value.status, value.reason
        )


_RESET: Final = 2  # beside the sides


def _check(lake: Lake, book: LiveBook, found: Reach, at: int) -> None:
    """L-43."""
    given = found.book()
    if (found.before, given.yes, given.no) != (book.market_seq, book.yes, book.no):
        raise LakeError(
            f"{book.market}: the book at {iso(at)} does not follow from the events before it",
            hint=f"tape verify {lake.store.location}",
        )


def _other_rows(table: str, number: int, rows: pa.Table, at: Ints) -> _Rows:
    times = [times_us(rows.column(c)).tolist() for c in ("exchange_ts", "received_at")]
    if table == "trades":
        units = [units_of(rows.column(c)).tolist() for c in ("yes_price", "no_price", "count")]
        texts = [rows.column(c).to_pylist() for c in ("taker_side", "is_block_trade")]
        ids = rows.column("trade_id").to_pylist()
        return _Rows(_TRADED, number, at, (), list(zip(*times, ids, *units, *texts, strict=True)))
    columns = {f.name: _whole(rows.column(f.name)) for f in TABLES[table].schema if f.nullable}
    told = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return _Rows(_TOLD, number, at, (), list(zip(*times, told, strict=True)))


def _whole(column: pa.ChunkedArray) -> list[int | None]:
    if not pa.types.is_decimal(column.type):
        return list(column.to_pylist())
    has = column.is_valid().to_pylist()
    return [u if there else None for u, there in zip(units_of(column).tolist(), has, strict=True)]
