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
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kalshilake import paths
from kalshilake.bookview import (
    BookView,
    EpochEvents,
    Keyframe,
    best_first,
    first_missing,
    prefix_end,
    rebuild,
)
from kalshilake.coverage import CoverageInterval, CoverageMap
from kalshilake.manifest import ObjectRecord
from kalshilake.objects import MAX_US, ObjectReader
from kalshilake.schema import STATUSES, spec_of
from kalshilake.store import Store, open_store
from kalshilake.tables import levels_at, sort_order, times_us, units_of
from kalshilake.write import Commit, load_head, load_version
from marketdata.book import Book
from marketdata.errors import IncompleteTape, LakeError

Moment = int | str | datetime
OnGap = Literal["raise", "column", "ignore"]
Markets = str | Sequence[str] | None

# How far times of one epoch may lie out of order; the later values are tried only if needed.
STEP_BACK_US: Final = (1_000_000, paths.US_PER_HOUR, 24 * paths.US_PER_HOUR)
SHOWN_INTERVALS: Final = 4  # named in the message of IncompleteTape; all are in `.intervals`
_HINT: Final = 'on_gap="column" marks every row, on_gap="ignore" reads as if nothing were missing'
_EVENT_COLUMNS: Final = (
    "exchange_ts", "epoch", "market_seq", "kind", "side", "price", "delta",
)  # fmt: skip


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


def moment_us(moment: Moment) -> int:
    """A moment as int microseconds UTC. Raises LakeError for text or floats that are none."""
    if isinstance(moment, bool) or not isinstance(moment, (int, str, datetime)):
        raise LakeError(f"{moment!r} is no moment", hint="microseconds, a datetime or ISO text")
    if isinstance(moment, int):
        return moment
    if isinstance(moment, str):
        try:
            parsed = datetime.fromisoformat(moment.strip())
        except ValueError:
            raise LakeError(f"{moment!r} is no moment", hint="2026-05-11T13:00:00Z") from None
        return paths.to_us(parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC))
    if moment.tzinfo is None:
        raise LakeError(f"{moment!r} names no zone", hint="give a datetime with tzinfo")
    return paths.to_us(moment)


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
        rows = self._rows("markets", None, -MAX_US, MAX_US, None)
        tickers = rows.column("market_ticker").to_pylist()
        newest = [i for i, t in enumerate(tickers) if i + 1 == len(tickers) or tickers[i + 1] != t]
        return rows.take(pa.array(newest, pa.int64()))

    def coverage(
        self, market: Markets = None, start: Moment | None = None, end: Moment | None = None
    ) -> pa.Table:
        """Coverage rows that touch [start, end), as they lie (an hour's rows end with the hour)."""
        a, b = _bounds(start, end)
        rows = self._rows("coverage", _names(market), _hour_start(a), b, None)
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
                raise self._incomplete([self._nothing(market, "orderbook")])
            at_us = span[1] - 1
        else:
            at_us = moment_us(at)
        held = self.coverage_map(market, at_us, at_us + 1).at(market, "orderbook", at_us)
        if held.status != "complete" and on_gap == "raise":
            raise self._incomplete([held])
        epoch = held.epoch if held.status == "complete" and held.epoch else None
        if epoch is None:
            epoch = self._epoch_at(market, at_us)
        keyframe = self._keyframe(market, epoch, at_us)
        events, last = self._events_to(market, keyframe, at_us)
        book = rebuild(keyframe, events, last)
        if book.is_negative():
            raise LakeError(f"{market}: the book at {_iso(at_us)} has a level below zero")
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

    def records(
        self, table: str, from_us: int = -MAX_US, to_us: int = MAX_US
    ) -> list[ObjectRecord]:
        """Objects of `table` with rows in [from_us, to_us), in time order."""
        spec_of(table)
        return [
            o for o in self.objects if o.table == table and o.min_us < to_us and o.max_us >= from_us
        ]

    def _rows(
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
        names, (a, b) = _names(market), _bounds(start, end)
        if on_gap == "ignore":
            return self._rows(table, names, a, b, columns)
        cover = self.coverage_map(market, start, end)
        if on_gap == "column":
            return self._with_coverage(table, names, a, b, columns, cover)
        return self._proven(table, names, (start, end), columns, cover)

    def _proven(
        self,
        table: str,
        names: Sequence[str] | None,
        bounds: tuple[Moment | None, Moment | None],
        columns: Sequence[str] | None,
        cover: CoverageMap,
    ) -> pa.Table:
        """Rows of proven intervals only, or IncompleteTape with everything that is not."""
        channel = spec_of(table).channel or ""
        a, b = _bounds(*bounds)
        spans: dict[str, tuple[int, int]] = {}
        missing: list[CoverageInterval] = []
        for name in sorted(names) if names is not None else cover.markets:
            span = cover.proven_span(name, channel)
            if span is None:
                missing.append(self._nothing(name, channel, a, b))
                continue
            spans[name] = (
                span[0] if bounds[0] is None else a,
                span[1] if bounds[1] is None else b,
            )
            missing += cover.unproven(name, channel, *spans[name])
        if missing:
            raise self._incomplete(missing)
        low = min((s[0] for s in spans.values()), default=0)
        high = max((s[1] for s in spans.values()), default=0)
        kept, wanted = self._with_identity(table, columns)
        rows = self._rows(table, sorted(spans), low, high, wanted)
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
        rows = self._rows(table, names, a, b, wanted)
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

    def _epoch_at(self, market: str, at_us: int) -> int:
        """The epoch of the last row at or before a moment that coverage does not prove."""
        best: tuple[int, int] | None = None
        for table in ("orderbook_deltas", "orderbook_snapshots"):
            for record in reversed(self.records(table, to_us=at_us + 1)):
                rows = self.reader.read(
                    record, columns=("exchange_ts", "epoch"), markets=[market], to_us=at_us + 1
                )
                if rows.num_rows:
                    seen = int(times_us(rows.column("exchange_ts"))[-1])
                    best = max(best or (seen, 0), (seen, int(rows.column("epoch")[-1].as_py())))
                    break
        if best is None:
            raise LakeError(f"{market}: nothing is known of its book at or before {_iso(at_us)}")
        return best[1]

    def _keyframe(self, market: str, epoch: int, at_us: int) -> Keyframe:
        """The newest keyframe of the epoch at or before the moment, else the first one after."""
        hour = paths.hour_of(at_us)
        records = self.records("orderbook_snapshots")
        before = [o for o in reversed(records) if o.hour_us <= hour]
        after = [o for o in records if o.hour_us >= hour]
        for objects, later in ((before, False), (after, True)):
            for record in objects:
                rows = self.reader.read(record, markets=[market])
                mine = rows.filter(pc.equal(rows.column("epoch"), epoch))
                times = times_us(mine.column("exchange_ts"))
                fits = np.flatnonzero((times > at_us) if later else (times <= at_us))
                if len(fits):
                    return _keyframe_at(mine, int(fits[0 if later else -1]))
                if rows.num_rows and not mine.num_rows and record.hour_us != hour:
                    break  # an epoch has no hole: past another epoch's keyframes it is over
        raise LakeError(f"{market}: epoch {epoch} has no keyframe, its book cannot be known")

    def _events_to(self, market: str, keyframe: Keyframe, at_us: int) -> tuple[EpochEvents, int]:
        """(events, last): every event between the keyframe and the end of the prefix for `at_us`.

        Times may step back within an epoch, even over an hour's border, and a keyframe's time is
        inferred: where a number is missing a wider stretch is read. The end of the prefix is known
        only once the number after it was seen (an event may have stepped back before all that was
        read): without it an hour more is read, which is where the search for it ends.
        """
        a, b = sorted((keyframe.exchange_us, at_us))
        missing: int | None = None
        for margin in STEP_BACK_US:
            rows = self._rows(
                "orderbook_deltas", [market], a - margin, b + margin + 1, _EVENT_COLUMNS
            )
            events = _epoch_events(rows.filter(pc.equal(rows.column("epoch"), keyframe.epoch)))
            last = prefix_end(keyframe, events, at_us)
            missing = first_missing(keyframe, events, last)
            is_end_seen = margin > STEP_BACK_US[0] or last + 1 in events.market_seq
            if missing is None and is_end_seen:
                return events, last
        raise LakeError(
            f"{market}: event {missing} of epoch {keyframe.epoch} is missing",
            hint=f"tape verify {self.store.location}",
        )

    def _nothing(
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

    def _incomplete(self, missing: Iterable[CoverageInterval]) -> IncompleteTape:
        found = list(missing)
        shown = "; ".join(
            f"{i.market} {_iso(i.from_us)} to {_iso(i.to_us)} {i.status}"
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


def _bounds(start: Moment | None, end: Moment | None) -> tuple[int, int]:
    a = -MAX_US if start is None else moment_us(start)
    b = MAX_US if end is None else moment_us(end)
    if a >= b:
        raise LakeError(f"the interval from {_iso(a)} to {_iso(b)} holds no moment")
    return a, b


def _hour_start(time_us: int) -> int:
    return time_us if time_us == -MAX_US else paths.hour_of(time_us)


def _iso(time_us: int) -> str:
    try:
        return f"{paths.at(time_us):%Y-%m-%dT%H:%M:%S.%f}Z"
    except OverflowError:
        return "the end of time" if time_us > 0 else "the beginning of time"


def _coded(rows: pa.Table) -> tuple[npt.NDArray[np.int64], list[str]]:
    """(index of each row's market, the markets)."""
    if not rows.num_rows:
        return np.zeros(0, np.int64), []
    coded = rows.column("market_ticker").combine_chunks().dictionary_encode()
    return np.asarray(coded.indices, np.int64), coded.dictionary.to_pylist()


def _keyframe_at(rows: pa.Table, i: int) -> Keyframe:
    yes, no = (levels_at(rows.column(side), i).tolist() for side in ("yes", "no"))
    book = Book(yes, no)
    stored = rows.column("book_hash")[i].as_py()
    if book.hash != stored:
        raise LakeError(
            f"keyframe of {rows.column('market_ticker')[i].as_py()}: its levels give "
            f"{book.hash:016x}, it says {stored:016x}"
        )
    return Keyframe(
        epoch=rows.column("epoch")[i].as_py(),
        market_seq=rows.column("market_seq")[i].as_py(),
        exchange_us=int(times_us(rows.column("exchange_ts"))[i]),
        book=book,
    )


def _epoch_events(rows: pa.Table) -> EpochEvents:
    seqs = np.asarray(rows.column("market_seq"), np.int64)
    order = np.argsort(seqs, kind="stable")
    reset = np.asarray(pc.equal(rows.column("kind"), "reset"))
    side = np.asarray(pc.fill_null(pc.equal(rows.column("side"), "no"), fill_value=False))
    return EpochEvents(
        market_seq=seqs[order],
        exchange_us=times_us(rows.column("exchange_ts"))[order],
        reset=reset[order],
        side=side[order].astype(np.int64),
        price=units_of(rows.column("price"))[order],
        delta=units_of(rows.column("delta"))[order],
    )
