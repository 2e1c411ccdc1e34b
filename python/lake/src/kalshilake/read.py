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

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kalshilake import paths, series
from kalshilake.bars import Source
from kalshilake.bars import bars as make_bars
from kalshilake.bookview import BookView, best_first, rebuild
from kalshilake.coverage import CoverageInterval, CoverageMap
from kalshilake.manifest import ObjectRecord
from kalshilake.moments import Every, Moment, moment_us
from kalshilake.objects import MAX_US, ObjectReader
from kalshilake.places import epoch_at, events_to, iso, keyframe_near
from kalshilake.schema import STATUSES, spec_of
from kalshilake.store import Store, open_store
from kalshilake.tables import sort_order, times_us
from kalshilake.write import Commit, load_head, load_version
from marketdata.errors import IncompleteTape, LakeError

OnGap = Literal["raise", "column", "ignore"]
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
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """orderbook_deltas of [start, end).

        A bound that is None means, with on_gap="raise", the first or last moment at which each
        market is proven; otherwise the end of the lake. "column" adds `coverage` (the status) and
        `complete` (bool) to every row. Raises IncompleteTape, LakeError.
        """
        return self._checked("orderbook_deltas", market, start, end, on_gap, columns)

    def snapshots(
        self,
        market: Markets = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        on_gap: OnGap = "raise",
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """orderbook_snapshots (keyframes) of [start, end); see `deltas`."""
        return self._checked("orderbook_snapshots", market, start, end, on_gap, columns)

    def trades(
        self,
        market: Markets = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        on_gap: OnGap = "raise",
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """trades of [start, end); see `deltas`."""
        return self._checked("trades", market, start, end, on_gap, columns)

    def tickers(
        self,
        market: Markets = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        on_gap: OnGap = "raise",
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """tickers of [start, end); see `deltas`. Tickers carry no sequence number, so `unproven`
        (a live connection recorded them) is the best they have, and suffices here."""
        return self._checked("tickers", market, start, end, on_gap, columns)

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
        self, market: Markets = None, start: Moment | None = None, end: Moment | None = None
    ) -> CoverageMap:
        """The same, joined over hours, for questions about moments and intervals."""
        return CoverageMap(self.coverage(market, start, end))

    def book(self, market: str, at: Moment | None = None, *, on_gap: OnGap = "raise") -> BookView:
        """The order book of `market` after all events with exchange_ts <= `at`.

        None: the last proven moment. Raises IncompleteTape if coverage does not prove `at`
        (otherwise the view's `status` tells), LakeError if nothing is known at all.
        """
        if at is None:
            span = self.coverage_map(market).proven_span(market, "orderbook")
            if span is None:
                raise self.incomplete([self.nothing(market, "orderbook")])
            at_us = span[1] - 1
        else:
            at_us = moment_us(at)
        held = self.coverage_map(market, at_us, at_us + 1).at(market, "orderbook", at_us)
        if held.status != "complete" and on_gap == "raise":
            raise self.incomplete([held])
        epoch = held.epoch if held.status == "complete" and held.epoch else None
        if epoch is None:
            epoch = epoch_at(self, market, at_us)
        keyframe = keyframe_near(self, market, epoch, at_us)
        events, last = events_to(self, market, keyframe, at_us)
        book = rebuild(keyframe, events, last)
        if book.is_negative():
            raise LakeError(f"{market}: the book at {iso(at_us)} has a level below zero")
        return BookView(
            market=market,
            at_us=at_us,
            epoch=epoch,
            market_seq=last,
            yes_bids=best_first(book.levels(0)),
            no_bids=best_first(book.levels(1)),
            book_hash=book.hash,
            status=held.status,
            sources=held.sources,
            keyframe_us=keyframe.exchange_us,
            events=abs(last - keyframe.market_seq),
        )

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
        what is best known of it. Raises IncompleteTape, LakeError.
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
        multiples of `every` since 1970 UTC.
        """
        return make_bars(self, market, start, end, every=every, source=source, on_gap=on_gap)

    def asof(
        self,
        rows: pa.Table,
        *,
        time: str = "exchange_ts",
        on_gap: OnGap = "raise",
        exact: bool = False,
    ) -> pa.Table:
        """`rows` (with market_ticker and `time`) and the quote of YES that was in force just
        before each: yes_bid, yes_bid_size, yes_ask, yes_ask_size.

        `exact`: a quote of the same microsecond counts. Null: the side was empty, or nothing is
        proven there (not with on_gap="raise").
        """
        return series.asof(self, rows, time=time, on_gap=on_gap, exact=exact)

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
    ) -> pa.Table:
        """Rows without a question of coverage, ordered by the table's key."""
        spec = spec_of(table)
        names = spec.schema.names if columns is None else list(columns)
        for name in names:
            if name not in spec.schema.names:
                raise LakeError(
                    f"{table} has no column {name!r}", hint=", ".join(spec.schema.names)
                )
        wanted = list(dict.fromkeys([*names, *spec.key]))
        parts = [
            self.reader.read(o, columns=wanted, markets=markets, from_us=from_us, to_us=to_us)
            for o in self.records(table, from_us, to_us)
            if markets is None or any(o.first_market <= m <= o.last_market for m in markets)
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
        start: Moment | None,
        end: Moment | None,
        on_gap: OnGap,
        columns: Sequence[str] | None,
    ) -> pa.Table:
        if on_gap not in ("raise", "column", "ignore"):
            raise LakeError(f"on_gap {on_gap!r} is unknown", hint="raise, column or ignore")
        names, (a, b) = _names(market), bounds(start, end)
        if on_gap == "ignore":
            return self.rows(table, names, a, b, columns)
        cover = self.coverage_map(market, start, end)
        if on_gap == "column":
            return self._with_coverage(table, names, a, b, columns, cover)
        return self._proven(table, names, (start, end), columns, cover)

    def _proven(
        self,
        table: str,
        names: Sequence[str] | None,
        asked: tuple[Moment | None, Moment | None],
        columns: Sequence[str] | None,
        cover: CoverageMap,
    ) -> pa.Table:
        """Rows of proven intervals only, or IncompleteTape with everything that is not."""
        channel = spec_of(table).channel or ""
        a, b = bounds(*asked)
        spans: dict[str, tuple[int, int]] = {}
        missing: list[CoverageInterval] = []
        for name in sorted(names) if names is not None else cover.markets:
            span = cover.proven_span(name, channel)
            if span is None:
                missing.append(self.nothing(name, channel, a, b))
                continue
            spans[name] = (
                span[0] if asked[0] is None else a,
                span[1] if asked[1] is None else b,
            )
            missing += cover.unproven(name, channel, *spans[name])
        if missing:
            raise self.incomplete(missing)
        low = min((s[0] for s in spans.values()), default=0)
        high = max((s[1] for s in spans.values()), default=0)
        kept, wanted = self._with_identity(table, columns)
        rows = self.rows(table, sorted(spans), low, high, wanted)
        if any(s != (low, high) for s in spans.values()):
            of_row, present = _coded(rows)
            span_of = np.array([spans[name] for name in present], np.int64).reshape(-1, 2)
            times = times_us(rows.column(spec_of(table).time))
            inside = (times >= span_of[of_row, 0]) & (times < span_of[of_row, 1])
            rows = rows.filter(pa.array(inside))
        return rows.select(kept)

    def _with_coverage(
        self,
        table: str,
        names: Sequence[str] | None,
        a: int,
        b: int,
        columns: Sequence[str] | None,
        cover: CoverageMap,
    ) -> pa.Table:
        spec = spec_of(table)
        kept, wanted = self._with_identity(table, columns)
        rows = self.rows(table, names, a, b, wanted)
        times = times_us(rows.column(spec.time))
        codes = np.zeros(rows.num_rows, np.int8)
        of_row, present = _coded(rows)
        for i, name in enumerate(present):
            mine = of_row == i
            codes[mine] = cover.statuses(name, spec.channel or "", times[mine])
        status = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(STATUSES))
        complete = pa.array(codes == STATUSES.index("complete"))
        rows = rows.select(kept)
        rows = rows.append_column("coverage", status.cast(pa.string()))
        return rows.append_column("complete", complete)

    @staticmethod
    def _with_identity(table: str, columns: Sequence[str] | None) -> tuple[list[str], list[str]]:
        """(columns that were asked for, these and the ones that coverage is looked up by)."""
        spec = spec_of(table)
        kept = spec.schema.names if columns is None else list(columns)
        return kept, list(dict.fromkeys([*kept, "market_ticker", spec.time]))

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
            f"{i.market} {iso(i.from_us)} to {iso(i.to_us)} {i.status}"
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


def bounds(start: Moment | None, end: Moment | None) -> tuple[int, int]:
    a = -MAX_US if start is None else moment_us(start)
    b = MAX_US if end is None else moment_us(end)
    if a >= b:
        raise LakeError(f"the interval from {iso(a)} to {iso(b)} holds no moment")
    return a, b


def _hour_start(time_us: int) -> int:
    return time_us if time_us == -MAX_US else paths.hour_of(time_us)


def _coded(rows: pa.Table) -> tuple[npt.NDArray[np.int64], list[str]]:
    """(index of each row's market, the markets)."""
    if not rows.num_rows:
        return np.zeros(0, np.int64), []
    coded = rows.column("market_ticker").combine_chunks().dictionary_encode()
    return np.asarray(coded.indices, np.int64), coded.dictionary.to_pylist()
