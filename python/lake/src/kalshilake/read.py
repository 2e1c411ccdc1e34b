"""Reading a lake: one pinned version, and no silence about gaps.

Purpose: `open_lake(place)` gives a Lake; its methods give Arrow tables and books. A read over
anything that coverage does not prove raises IncompleteTape, unless the caller asks for the coverage
column or says that gaps do not matter.

Invariants:
    L-15 everything a Lake gives comes from one version, whatever is written meanwhile.
    L-16 with on_gap="raise" every moment of every market read is proven.
    L-17 rows are ordered by the table's key over all hours.

Does not do: writing, repairing. Moments are int microseconds, aware datetimes or ISO text (UTC
where it names no zone); intervals are half open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from kalshilake import clocks, paths, series
from kalshilake.bars import Source
from kalshilake.bars import bars as make_bars
from kalshilake.bookview import BookView
from kalshilake.checked import Asked, checked
from kalshilake.clocks import CLOCKS_APART_US, column_of
from kalshilake.coverage import CoverageInterval, CoverageMap
from kalshilake.events import events_between as make_events
from kalshilake.manifest import ObjectRecord
from kalshilake.moments import Every, Moment, moment_us
from kalshilake.objects import ALWAYS, MAX_US, ObjectReader, Span
from kalshilake.places import bounds, iso
from kalshilake.reach import book_at
from kalshilake.schema import spec_of
from kalshilake.steps import Step
from kalshilake.steps import replay as make_steps
from kalshilake.store import Store, open_store
from kalshilake.tables import sort_order
from kalshilake.write import Commit, load_head, load_version
from marketdata.errors import IncompleteTape, LakeError

Clock = clocks.Clock
OnGap = clocks.OnGap
Markets = str | Sequence[str] | None

SHOWN_INTERVALS: Final = 4  # named in the message of IncompleteTape; all are in `.intervals`
_HINT: Final = 'on_gap="column" marks every row, on_gap="ignore" reads as if nothing were missing'


def open_lake(
    location: str | Path, version: int | None = None, *, store: Store | None = None
) -> Lake:
    """The lake at a directory or s3://bucket/prefix, pinned to `version` (None: the newest).

    Raises LakeError if there is no lake, no such version, or the version was altered.
    """
    place = store or open_store(location)
    commit = load_head(place) if version is None else load_version(place, version)
    if commit is None:
        raise LakeError(f"{place.location} holds no lake", hint="it has no manifest/v*.json")
    return Lake(place, commit)


class Lake:
    """One version of a lake."""

    def __init__(self, store: Store, commit: Commit) -> None:
        self.store = store
        self.version = commit.version.version
        self.sha256 = commit.sha256  # cite this: it fixes every byte of the version
        self.watermark_us = commit.version.watermark_us
        self.objects = commit.version.objects
        self.reader = ObjectReader(store)

    def deltas(
        self,
        market: Markets = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        on_gap: OnGap = "raise",
        clock: Clock = "exchange",
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """orderbook_deltas of [start, end), ordered by market and time.

        A bound that is None means, with on_gap="raise", the first or last moment at which each
        market is proven; otherwise the end of the lake. "column" adds `coverage` (the status) and
        `complete` (bool) to every row. clock="received": [start, end) and the order are those of
        received_at, wherever exchange_ts lies; no row is missed (docs/guide.md says what it costs
        and what is proven). Raises IncompleteTape, LakeError.
        """
        asked = (start, end)
        return checked(
            self,
            "orderbook_deltas",
            _names(market),
            asked,
            on_gap=on_gap,
            clock=clock,
            columns=columns,
        )

    def snapshots(
        self,
        market: Markets = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        on_gap: OnGap = "raise",
        clock: Clock = "exchange",
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """orderbook_snapshots (keyframes) of [start, end); see `deltas`."""
        asked = (start, end)
        return checked(
            self,
            "orderbook_snapshots",
            _names(market),
            asked,
            on_gap=on_gap,
            clock=clock,
            columns=columns,
        )

    def trades(
        self,
        market: Markets = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        on_gap: OnGap = "raise",
        clock: Clock = "exchange",
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """trades of [start, end); see `deltas`."""
        return self._checked("trades", market, (start, end), on_gap, clock, columns)

    def tickers(
        self,
        market: Markets = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        on_gap: OnGap = "raise",
        clock: Clock = "exchange",
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """tickers of [start, end); see `deltas`. Tickers carry no sequence number, so `unproven`
        (a live connection recorded them) is the best they have, and suffices here."""
        return self._checked("tickers", market, (start, end), on_gap, clock, columns)

    def markets(self) -> pa.Table:
        """What is known of each market: its newest row."""
        return self._newest("markets")

    def events(self) -> pa.Table:
        """What is known of each event (a question with one or more markets): its newest row."""
        return self._newest("events")

    def _newest(self, table: str) -> pa.Table:
        rows = self.rows(table, None, -MAX_US, MAX_US, None)
        names = rows.column(spec_of(table).subject).to_pylist()
        newest = [i for i, n in enumerate(names) if i + 1 == len(names) or names[i + 1] != n]
        return rows.take(pa.array(newest, pa.int64()))

    def coverage(
        self, market: Markets = None, start: Moment | None = None, end: Moment | None = None
    ) -> pa.Table:
        """Coverage rows that touch [start, end), as they lie (an hour's rows end with the hour)."""
        a, b = bounds(start, end)
        rows = self.rows("coverage", _names(market), _hour_start(a), b, None)
        return rows.filter(pc.greater(rows.column("to_ts").cast(pa.int64()), a))

    def coverage_map(
        self,
        market: Markets = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        clock: Clock = "exchange",
    ) -> CoverageMap:
        """The same, joined over hours, for questions about moments and intervals.

        clock="received": for moments of receipt. Such a moment is proven if everything is from
        CLOCKS_APART_US (10 s) before it to as long after it by the exchange's clock (clocks).
        """
        column_of(clock)
        if clock == "exchange":
            return CoverageMap(self.coverage(market, start, end))
        low = None if start is None else moment_us(start) - CLOCKS_APART_US
        high = None if end is None else moment_us(end) + CLOCKS_APART_US
        return CoverageMap(self.coverage(market, low, high), CLOCKS_APART_US)

    def book(
        self,
        market: str,
        at: Moment | None = None,
        *,
        on_gap: OnGap = "raise",
        clock: Clock = "exchange",
    ) -> BookView:
        """The order book of `market` after all events with exchange_ts <= `at` (L-13).

        clock="received": the book as somebody had it who had received, by `at`, what any gatherer
        had: after the longest prefix of the epoch's events, in market_seq order, of which every
        one has received_at <= `at`. Nothing tells that of a moment that is not proven, so by this
        clock on_gap makes no difference.

        None: the last proven moment. Raises IncompleteTape if coverage does not prove `at`
        (otherwise the view's `status` tells), LakeError if nothing is known at all.
        """
        return book_at(self, market, at, on_gap, clock)

    def books(
        self,
        market: Markets = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        every: Every = "1s",
        depth: int = 10,
        on_gap: OnGap = "raise",
    ) -> pa.Table:
        """The books at every multiple of `every` (since 1970 UTC) in [start, end): series.BOOKS.

        One row for each market and moment: `yes` and `no` are the best `depth` bids, best first;
        `yes_bid`, `yes_ask` and their sizes the top of them (null: the side is empty). With
        on_gap="column" a moment that is not proven has no values and its `coverage`; with "ignore"
        what is best known of it. Moments are those of the exchange's clock only: a grid of receipt
        is made of `book(at, clock="received")`. Raises IncompleteTape, LakeError.
        """
        return series.books(self, market, start, end, every=every, depth=depth, on_gap=on_gap)

    def quotes(
        self,
        market: Markets = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        on_gap: OnGap = "raise",
    ) -> pa.Table:
        """Every change of the best bid or offer of YES in [start, end): series.QUOTES.

        `opens`: not a change but how a proven stretch begins. `until`: up to when the quote is in
        force (half open). Unless on_gap="raise", stretches that are not proven are left out.
        By the exchange's clock only; by receipt `replay` gives the best levels after each change.
        """
        return series.quotes(self, market, start, end, on_gap=on_gap)

    def bars(
        self,
        market: Markets = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        every: Every = "1m",
        source: Source = "trades",
        on_gap: OnGap = "raise",
    ) -> pa.Table:
        """Open, high, low and close of YES for every bar with a value in it: series.BARS.

        `source`: trades (with `volume` in contracts and `notional`, the sum of price times count),
        or the best bid or ask, where a bar opens with the quote that is in force. Bars are
        multiples of `every` since 1970 UTC, by the exchange's clock only: a bar of receipts would
        mix what happened at one time with what was recovered then.
        """
        return make_bars(self, market, start, end, every=every, source=source, on_gap=on_gap)

    def asof(
        self,
        rows: pa.Table,
        *,
        time: str | None = None,
        on_gap: OnGap = "raise",
        exact: bool = False,
        clock: Clock = "exchange",
    ) -> pa.Table:
        """`rows` (with market_ticker and `time`) and the quote of YES that was in force just
        before each: yes_bid, yes_bid_size, yes_ask, yes_ask_size.

        `time`: a TIMESTAMP(us, UTC) column of `rows`; without it the clock's: exchange_ts or
        received_at. clock="received": the quote of the book that had been received by then, as in
        `book`. `exact`: a quote of the same microsecond counts. Null: the side was empty, or
        nothing is proven there (not with on_gap="raise"). Raises IncompleteTape, LakeError.
        """
        return series.asof(self, rows, time=time, on_gap=on_gap, exact=exact, clock=clock)

    def events_between(
        self,
        market: Markets = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        trades: bool = True,
        tickers: bool = False,
        on_gap: OnGap = "raise",
        clock: Clock = "exchange",
    ) -> pa.Table:
        """Everything that happened in [start, end) in one order of time: events.EVENTS.

        Changes of books (`kind` delta, reset), trades, and tickers if asked for. `at` is when a row
        is in force, by `clock`; of one microsecond trades come first, then changes in market_seq
        order, then tickers (events says why, and what a tape cannot know). The changes lead from
        the book just before `start` to the book just before `end`. A bound that is None: the first
        or last moment at which each market's book is proven. on_gap as in `deltas`, each row by
        its own channel. Raises IncompleteTape, LakeError.
        """
        return make_events(
            self, market, start, end, trades=trades, tickers=tickers, on_gap=on_gap, clock=clock
        )

    def replay(
        self,
        market: Markets = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        trades: bool = True,
        tickers: bool = False,
        on_gap: OnGap = "raise",
        clock: Clock = "exchange",
    ) -> Iterator[Step]:
        """The same, one step at a time, with the book after each: steps.Step.

        `Opened` gives the book at `start`, then follow `Changed`, `Emptied`, `Traded`, `Told`. All
        steps of a market share one `book` (livebook.LiveBook) that the next step changes: read it,
        or keep `book.view()`. Prices are micro-dollars, sizes 1/100 contract, times microseconds.
        An hour of the markets asked for is in memory at once, however long the interval is.

        Over a gap: on_gap="raise" refuses before the first step; "column" gives `Missing` where
        something is not proven and `Opened` behind it; "ignore" only the latter. No change of a
        book is played where it is not proven: `book.status` says so there.
        Raises IncompleteTape, LakeError.
        """
        return make_steps(
            self, market, start, end, trades=trades, tickers=tickers, on_gap=on_gap, clock=clock
        )

    def records(
        self, table: str, from_us: int = -MAX_US, to_us: int = MAX_US
    ) -> list[ObjectRecord]:
        """Objects of `table` with rows in [from_us, to_us), in time order."""
        spec_of(table)
        return [
            o for o in self.objects if o.table == table and o.min_us < to_us and o.max_us >= from_us
        ]

    def rows(
        self,
        table: str,
        markets: Sequence[str] | None,
        from_us: int,
        to_us: int,
        columns: Sequence[str] | None,
        *,
        received: Span = ALWAYS,
    ) -> pa.Table:
        """Rows without a question of coverage, ordered by the table's key.

        `received`: of them those with received_at in that half open span, for tables that have it.
        Row groups of every object are chosen by their statistics of received_at, so that no row
        is missed wherever its exchange_ts lies.
        """
        spec = spec_of(table)
        names = spec.schema.names if columns is None else list(columns)
        for name in names:
            if name not in spec.schema.names:
                raise LakeError(
                    f"{table} has no column {name!r}", hint=", ".join(spec.schema.names)
                )
        wanted = list(dict.fromkeys([*names, *spec.key]))
        records = [
            o
            for o in self.records(table, from_us, to_us)
            if markets is None or any(o.first_market <= m <= o.last_market for m in markets)
        ]
        if received != ALWAYS:
            self.reader.learn_receipts(records)
        parts = [
            self.reader.read(
                o, columns=wanted, markets=markets, from_us=from_us, to_us=to_us, received=received
            )
            for o in records
        ]
        parts = [p for p in parts if p.num_rows]
        if not parts:
            return pa.schema([spec.schema.field(n) for n in names]).empty_table()
        rows = pa.concat_tables(parts)
        if len(parts) > 1 and (markets is None or len(markets) > 1):
            rows = rows.take(pa.array(sort_order(rows, spec.key)))
        return rows.select(names)

    def _checked(
        self,
        table: str,
        market: Markets,
        asked: Asked,
        on_gap: OnGap,
        clock: Clock,
        columns: Sequence[str] | None,
    ) -> pa.Table:
        names = _names(market)
        return checked(self, table, names, asked, on_gap=on_gap, clock=clock, columns=columns)

    def nothing(
        self, market: str, channel: str, a: int = -MAX_US, b: int = MAX_US
    ) -> CoverageInterval:
        low = max(a, min((o.min_us for o in self.objects), default=0))
        if not self.coverage(market).num_rows:
            known = self.markets().column("market_ticker").to_pylist()
            known += self.coverage_map(None, self.watermark_us - 1, self.watermark_us).markets
            near = ", ".join(get_close_matches(market, sorted(set(known))))
            raise LakeError(
                f"version {self.version} of {self.store.location} knows no market {market!r}",
                hint=f"did you mean {near}" if near else None,
            )
        end = max(low, min(b, self.watermark_us))
        return CoverageInterval(market, channel, low, end, "dark", "never proven")

    def incomplete(self, missing: Iterable[CoverageInterval]) -> IncompleteTape:
        found = list(missing)
        shown = "; ".join(
            f"{i.market}{'' if i.channel == 'orderbook' else f' ({i.channel})'} "
            f"{iso(i.from_us)} to {iso(i.to_us)} {i.status}"
            + (f" ({i.reason})" if i.reason else "")
            for i in found[:SHOWN_INTERVALS]
        )
        more = f"; and {len(found) - SHOWN_INTERVALS} more" if len(found) > SHOWN_INTERVALS else ""
        return IncompleteTape(
            f"{len(found)} interval{'s' * (len(found) != 1)} not complete: {shown}{more}",
            tuple(i.as_tuple() for i in found),
            hint=_HINT,
        )


def _names(market: Markets) -> list[str] | None:
    if market is None:
        return None
    return [market] if isinstance(market, str) else sorted(set(market))


def _hour_start(time_us: int) -> int:
    return time_us if time_us == -MAX_US else paths.hour_of(time_us)
