"""An interval of a lake as an exchange that can be played: the merged tape, event by event.

Purpose: a source (exchange.timeline.Source) of the books, changes, trades and ticker states of
chosen markets, hour by hour; the next hour is read in a thread while one is played.

Invariants:
    REPLAY-1 of every proven stretch of a market's book the events after the book at its beginning
             are given, each once, in market_seq order; `at_us` never goes back.
    REPLAY-2 a stretch begins with its book; nothing is given of a book that is not proven.
    REPLAY-3 where an hour ends and the next goes on, the book carried over is the book that the
             lake gives there: they are compared, LakeError if they differ.

Times on the wire are those of the tape. What a tape does not hold is made up: a market's UUID (from
its ticker) and, without a row in `markets`, its event and series (from its ticker).

Does not do: serving (exchange.player), judging coverage (it is read).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from exchange.frames import price_text, size_text, time_text
from exchange.timeline import (
    BookItem,
    DeltaItem,
    EmptySnapshotItem,
    Item,
    MarketSpec,
    TickerItem,
    TradeItem,
)
from kalshilake import paths
from kalshilake.bookview import rebuild
from kalshilake.coverage import CoverageInterval
from kalshilake.places import iso
from kalshilake.read import Lake
from kalshilake.series import Stretch, edges_of, stretch_of
from kalshilake.tables import times_us, units_of
from marketdata.errors import LakeError

UUID_SPACE: Final = uuid.UUID("0b0f6c0e-4a53-4f0e-8a39-7f3d0a2c9e11")
SECOND_US: Final = 1_000_000
MILLI_US: Final = 1_000
TICKER_PRICES: Final = ("price", "yes_bid", "yes_ask")
TICKER_SIZES: Final = (
    "volume", "open_interest", "yes_bid_size", "yes_ask_size", "last_trade_size",
)  # fmt: skip
TICKER_WHOLE: Final = ("dollar_volume", "dollar_open_interest")
# What a recorded market body says of one moment: the replay tells it from its own books.
OF_A_MOMENT: Final = frozenset(
    {
        "status", "result", "expiration_value", "settlement_value_dollars", "settlement_ts",
        "yes_bid_dollars", "yes_bid_size_fp", "yes_ask_dollars", "yes_ask_size_fp",
        "no_bid_dollars", "no_ask_dollars", "last_price_dollars", "volume_fp", "volume_24h_fp",
        "open_interest_fp", "previous_yes_bid_dollars", "previous_yes_ask_dollars",
        "previous_price_dollars", "liquidity_dollars",
    }
)  # fmt: skip

Timed = tuple[list[int], list[Item]]


@dataclass(frozen=True, slots=True)
class Reached:
    """Where a market's book stands after what was given of it."""

    epoch: int
    market_seq: int
    book_hash: int


class LakeSource:
    """[from_us, to_us) of a lake (see the module). `tickers` None: every market known in it."""

    def __init__(
        self, lake: Lake, from_us: int, to_us: int, tickers: Sequence[str] | None, *, closes: bool
    ) -> None:
        if from_us >= to_us:
            raise LakeError(f"the interval from {iso(from_us)} to {iso(to_us)} holds no moment")
        cover = lake.coverage_map(tickers, from_us, to_us)
        self._names = sorted(set(tickers)) if tickers else cover.markets
        if not self._names:
            raise LakeError(f"{lake.store.location} has no market from {iso(from_us)} on")
        self._lake, self._closes = lake, closes
        # One thread for all hours: what one hour reaches, the next one begins from.
        self._reader = ThreadPoolExecutor(1, "replay")
        self._spans = {name: _proven(lake, cover.filled(name, "orderbook", from_us, to_us), name)
                       for name in self._names}  # fmt: skip
        self.start_us, self.end_us = from_us, to_us
        records = lake.records("orderbook_deltas", from_us, to_us)
        self.events_expected = sum(record.rows for record in records)
        self.markets = _specs(lake, self._names, from_us, to_us)
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._first: Iterator[Item] | None = self.items_from(from_us)
        self._set_first_books()

    def items(self) -> Iterator[Item]:
        """The whole interval; the books at its beginning are in `markets`."""
        first, self._first = self._first, None
        if first is None:
            first = self.items_from(self.start_us)
            for _ in self._names:
                next(first)
        return first

    def items_from(self, at_us: int) -> Iterator[Item]:
        """From `at_us` on; first the book of every market, empty where it is not proven.

        The first hour is read before this returns.
        """
        made = self._made(at_us)
        return chain([next(made)], made)

    def _set_first_books(self) -> None:
        assert self._first is not None
        for spec in self.markets:
            item = next(self._first)
            assert isinstance(item, BookItem)
            spec.yes, spec.no = item.yes, item.no

    def _made(self, at_us: int) -> Iterator[Item]:
        reached: dict[str, Reached] = {}
        cuts = list(range(paths.hour_of(at_us) + paths.US_PER_HOUR, self.end_us,
                          paths.US_PER_HOUR))  # fmt: skip
        edges = [at_us, *cuts, self.end_us]
        ahead = self._reader.submit(self._hour, edges[0], edges[1], reached, first=True)
        try:
            for low, high in zip(edges[1:], [*edges[2:], None], strict=True):
                items = ahead.result()
                if high is not None:
                    ahead = self._reader.submit(self._hour, low, high, reached, first=False)
                yield from items
        finally:
            ahead.cancel()  # a seek has left it

    def _hour(self, low: int, high: int, reached: dict[str, Reached], *, first: bool) -> list[Item]:
        """All items of [low, high) in order."""
        times: list[int] = []
        items: list[Item] = []
        for number, name in enumerate(self._names):
            opened = False
            for span in self._spans[name]:
                if span.from_us < high and span.to_us > low:
                    a, b = max(low, span.from_us), min(high, span.to_us)
                    for epoch, edges in _parts(self._lake, name, span, a, b):
                        opened |= first and int(edges[0]) == low
                        made = self._stretch(number, name, epoch, edges, reached)
                        times += made[0]
                        items += made[1]
            if first and not opened:
                times.append(low)
                items.append(BookItem(low, number, [], []))
        if first:  # every book stands before everything else of this time
            heads = [i for i, item in enumerate(items)
                     if isinstance(item, BookItem) and item.at_us == low]  # fmt: skip
            for i in heads:
                times[i] = low - 1
        for table, make in (("trades", _trades), ("tickers", _tickers)):
            rows = self._lake.rows(table, self._names, low, high, None)
            made = make(rows, self._numbers)
            times += made[0]
            items += made[1]
        order = np.argsort(np.array(times, np.int64), kind="stable")
        return [items[i] for i in order.tolist()]

    def _stretch(
        self,
        number: int,
        name: str,
        epoch: int,
        edges: npt.NDArray[np.int64],
        reached: dict[str, Reached],
    ) -> Timed:
        """One market's events of one epoch in [edges[0], edges[-1]]."""
        found = _events_of(self._lake, name, epoch, edges)
        book, events, seq = found.keyframe.book, found.events, found.keyframe.market_seq
        count = int(found.ends[-1])
        low, before = int(edges[0]), reached.get(name)
        times: list[int] = []
        items: list[Item] = []
        if before is None or (before.epoch, before.market_seq) != (epoch, seq):
            yes, no = book.levels(0), book.levels(1)
            times.append(low)
            items.append(BookItem(low, number, yes, no, self._closes))
        elif before.book_hash != book.hash:
            raise LakeError(
                f"{name}: the book at {iso(low)} does not follow from the events before it",
                hint=f"tape verify {self._lake.store.location}",
            )
        events = events.between(seq, seq + count)
        shown = np.maximum.accumulate(np.maximum(events.exchange_us, low)).tolist()
        columns = (events.reset, events.side, events.price, events.delta, events.exchange_us)
        for at, reset, side, price, delta, us in zip(
            shown, *(column.tolist() for column in columns), strict=True
        ):
            if reset:
                items.append(EmptySnapshotItem(at, number))
            else:
                items.append(DeltaItem(at, number, side, price, delta, us))
        times += shown
        after = rebuild(found.keyframe, found.events, seq + count)
        if after.is_negative():
            raise LakeError(f"{name}: the book after {iso(low)} has a level below zero")
        reached[name] = Reached(epoch, seq + count, after.hash)
        return times, items


def _proven(lake: Lake, found: Iterator[CoverageInterval], name: str) -> list[CoverageInterval]:
    """The proven stretches; LakeError for a market that the lake does not know at all."""
    spans = list(found)
    if all(span.status == "dark" for span in spans):
        lake.nothing(name, "orderbook")
    return [span for span in spans if span.status == "complete"]


def _parts(
    lake: Lake, name: str, span: CoverageInterval, a: int, b: int
) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """(epoch, its first and last moment) of [a, b)."""
    if span.epoch:
        return [(span.epoch, np.array([a, b - 1]))]
    cut = CoverageInterval(name, "orderbook", a, b, span.status, span.reason)
    return edges_of(lake, name, cut)


def _events_of(lake: Lake, name: str, epoch: int, edges: npt.NDArray[np.int64]) -> Stretch:
    """The book before the first moment, so that its own events are played too; where that book
    cannot be known (nothing is kept from before), the one after them."""
    try:
        return stretch_of(lake, name, epoch, np.array([edges[0] - 1, edges[-1]]))
    except LakeError:
        return stretch_of(lake, name, epoch, edges)


def _specs(lake: Lake, names: list[str], from_us: int, to_us: int) -> list[MarketSpec]:
    """The markets as `markets` of the lake has them."""
    known = {row["market_ticker"]: row for row in lake.markets().to_pylist()}
    return [_spec(name, known.get(name) or {}, from_us, to_us) for name in names]


def _spec(name: str, row: dict[str, Any], from_us: int, to_us: int) -> MarketSpec:
    body = orjson.loads(row.get("body") or "{}")
    details = {key: value for key, value in body.items() if key not in OF_A_MOMENT}
    return MarketSpec(
        ticker=name,
        market_id=str(uuid.uuid5(UUID_SPACE, name)),
        event_ticker=row.get("event_ticker") or name.rsplit("-", 1)[0],
        series_ticker=row.get("series_ticker") or name.split("-", 1)[0],
        title=row.get("title") or name,
        open_us=paths.to_us(row["open_ts"]) if row.get("open_ts") else from_us,
        close_us=paths.to_us(row["close_ts"]) if row.get("close_ts") else to_us,
        details=details,
    )


def _trades(rows: pa.Table, numbers: dict[str, int]) -> Timed:
    times = times_us(rows.column("exchange_ts")).tolist()
    columns = (
        rows.column("market_ticker").to_pylist(),
        times,
        rows.column("trade_id").to_pylist(),
        *(units_of(rows.column(c)).tolist() for c in ("yes_price", "no_price", "count")),
        rows.column("taker_side").to_pylist(),
        rows.column("is_block_trade").to_pylist(),
    )
    return times, [_trade(numbers[row[0]], *row) for row in zip(*columns, strict=True)]


def _trade(
    number: int,
    ticker: str,
    us: int,
    trade_id: str,
    yes_price: int,
    no_price: int,
    count: int,
    side: str | None,
    is_block: bool,  # noqa: FBT001 (a row)
) -> TradeItem:
    common: dict[str, Any] = {
        "trade_id": str(uuid.UUID(trade_id)),
        "yes_price_dollars": price_text(yes_price),
        "no_price_dollars": price_text(no_price),
        "count_fp": size_text(count),
        "is_block_trade": is_block,
    }
    if side is not None:
        book_side = "bid" if side == "yes" else "ask"
        common |= {"taker_side": side, "taker_outcome_side": side, "taker_book_side": book_side}
    msg = {**common, "market_ticker": ticker, "ts": us // SECOND_US, "ts_ms": us // MILLI_US}
    if us % MILLI_US:  # REST found it: no frame is as fine, and the tape is
        msg["created_time"] = time_text(us)
    rest = {**common, "ticker": ticker, "created_time": time_text(us)}
    return TradeItem(us, number, orjson.dumps(msg), orjson.dumps(rest), us)


def _tickers(rows: pa.Table, numbers: dict[str, int]) -> Timed:
    times = times_us(rows.column("exchange_ts")).tolist()
    names = rows.column("market_ticker").to_pylist()
    texts: dict[str, list[Any]] = {}
    for column in TICKER_PRICES:
        units = units_of(rows.column(column), absent=-1).tolist()
        # An empty text is how a price is told that is not set.
        texts[f"{column}_dollars"] = [price_text(u) if u >= 0 else "" for u in units]
    for column in TICKER_SIZES:
        units = units_of(rows.column(column), absent=-1).tolist()
        texts[f"{column}_fp"] = [size_text(u) if u >= 0 else None for u in units]
    for column in TICKER_WHOLE:
        texts[column] = rows.column(column).to_pylist()
    items: list[Item] = []
    for place, (name, us) in enumerate(zip(names, times, strict=True)):
        msg: dict[str, Any] = {
            "market_ticker": name,
            "market_id": str(uuid.uuid5(UUID_SPACE, name)),
            **{key: held[place] for key, held in texts.items() if held[place] is not None},
            "ts": us // SECOND_US,
            "ts_ms": us // MILLI_US,
            "time": time_text(us),
        }
        items.append(TickerItem(us, numbers[name], orjson.dumps(msg)))
    return times, items
