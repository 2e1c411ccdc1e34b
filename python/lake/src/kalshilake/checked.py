"""Rows of one table, as careful about gaps as was asked, by either clock.

Purpose: what `Lake.deltas`, `trades`, `tickers` and `snapshots` share.

By the exchange's clock a row belongs to the moment of its exchange_ts; by receipt to that of its
received_at, wherever its exchange_ts lies, and rows come in the order of receipt. A moment of
receipt is proven as in clocks. A row that was received long after it happened is proven only if
its own exchange_ts is proven too: with on_gap="raise" it refuses the read otherwise, with "column"
its status says so.

Does not do: reading objects (objects), joining hours (Lake.rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kalshilake.clocks import Clock, OnGap, check_on_gap, column_of
from kalshilake.coverage import SUFFICES, CoverageInterval, CoverageMap
from kalshilake.moments import Moment
from kalshilake.objects import MAX_US
from kalshilake.places import bounds
from kalshilake.schema import STATUSES, spec_of
from kalshilake.tables import sort_order, times_us

if TYPE_CHECKING:
    from kalshilake.read import Lake

Ints = npt.NDArray[Any]
Asked = tuple[Moment | None, Moment | None]


def checked(
    lake: Lake,
    table: str,
    names: Sequence[str] | None,
    asked: Asked,
    *,
    on_gap: OnGap,
    clock: Clock,
    columns: Sequence[str] | None,
) -> pa.Table:
    """Rows of [asked) as `Lake.deltas` says."""
    check_on_gap(on_gap)
    time = column_of(clock)
    span = bounds(*asked)
    if on_gap == "ignore":
        kept, wanted = _with(table, columns, [time] if clock == "received" else [])
        return _read(lake, table, names, span, wanted, clock).select(kept)
    cover = lake.coverage_map(names, *asked, clock=clock)
    if on_gap == "column":
        return _with_coverage(lake, table, names, span, columns, cover, clock)
    return _proven(lake, table, names, asked, span, columns, cover, clock)


def _read(
    lake: Lake,
    table: str,
    names: Sequence[str] | None,
    span: tuple[int, int],
    columns: Sequence[str] | None,
    clock: Clock,
) -> pa.Table:
    if clock == "exchange":
        return lake.rows(table, names, *span, columns)
    spec = spec_of(table)
    key = (spec.key[0], column_of(clock), *spec.key[1:])
    wanted = list(dict.fromkeys([*(spec.schema.names if columns is None else columns), *key]))
    rows = lake.rows(table, names, -MAX_US, MAX_US, wanted, received=span)
    return rows.take(pa.array(sort_order(rows, key)))


def _proven(
    lake: Lake,
    table: str,
    names: Sequence[str] | None,
    asked: Asked,
    given: tuple[int, int],
    columns: Sequence[str] | None,
    cover: CoverageMap,
    clock: Clock,
) -> pa.Table:
    """Rows of proven intervals only, or IncompleteTape with everything that is not."""
    spec = spec_of(table)
    channel, time = spec.channel or "", column_of(clock)
    a, b = given
    spans: dict[str, tuple[int, int]] = {}
    missing: list[CoverageInterval] = []
    for name in sorted(names) if names is not None else cover.markets:
        span = cover.proven_span(name, channel)
        if span is None:
            missing.append(lake.nothing(name, channel, a, b))
            continue
        spans[name] = (span[0] if asked[0] is None else a, span[1] if asked[1] is None else b)
        missing += cover.unproven(name, channel, *spans[name])
    if missing:
        raise lake.incomplete(missing)
    low = min((s[0] for s in spans.values()), default=0)
    high = max((s[1] for s in spans.values()), default=0)
    kept, wanted = _with(table, columns, ["market_ticker", spec.time, time])
    rows = _read(lake, table, sorted(spans), (low, high), wanted, clock)
    if any(s != (low, high) for s in spans.values()):
        of_row, present = coded(rows)
        span_of = np.array([spans[name] for name in present], np.int64).reshape(-1, 2)
        times = times_us(rows.column(time))
        inside = (times >= span_of[of_row, 0]) & (times < span_of[of_row, 1])
        rows = rows.filter(pa.array(inside))
    if clock == "received":
        _refuse_unproven(lake, table, rows)
    return rows.select(kept)


def _refuse_unproven(lake: Lake, table: str, rows: pa.Table) -> None:
    """IncompleteTape if a row's own exchange time is not proven, whenever it was received."""
    channel = spec_of(table).channel or ""
    times = times_us(rows.column(spec_of(table).time))
    codes = _statuses(lake, table, rows, times)
    good = np.isin(codes, [STATUSES.index(s) for s in SUFFICES[channel]])
    if good.all():
        return
    of_row, present = coded(rows)
    missing: dict[tuple[str, int], CoverageInterval] = {}
    cover = _cover_of(lake, present, times)
    for i in np.flatnonzero(~good).tolist():
        name, us = present[of_row[i]], int(times[i])
        line = cover.intervals(name, channel)
        whole = (span for span in line if span.from_us <= us < span.to_us)
        found = next(whole, None) or cover.at(name, channel, us)
        missing.setdefault((found.market, found.from_us), found)
    raise lake.incomplete(list(missing.values()))


def _with_coverage(
    lake: Lake,
    table: str,
    names: Sequence[str] | None,
    span: tuple[int, int],
    columns: Sequence[str] | None,
    cover: CoverageMap,
    clock: Clock,
) -> pa.Table:
    spec = spec_of(table)
    time = column_of(clock)
    kept, wanted = _with(table, columns, ["market_ticker", spec.time, time])
    rows = _read(lake, table, names, span, wanted, clock)
    codes = statuses_of(cover, spec.channel or "", rows, times_us(rows.column(time)))
    if clock == "received" and rows.num_rows:
        # What was not proven when it happened is not by having been received in good times.
        own = _statuses(lake, table, rows, times_us(rows.column(spec.time)))
        good = np.isin(own, [STATUSES.index(s) for s in SUFFICES[spec.channel or ""]])
        codes = np.where(good, codes, own)
    return marked(rows.select(kept), codes)


def marked(rows: pa.Table, codes: npt.NDArray[np.int8]) -> pa.Table:
    """`rows` with `coverage` (the status) and `complete`."""
    status = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(STATUSES))
    rows = rows.append_column("coverage", status.cast(pa.string()))
    return rows.append_column("complete", pa.array(codes == STATUSES.index("complete")))


def statuses_of(
    cover: CoverageMap, channel: str, rows: pa.Table, times: Ints
) -> npt.NDArray[np.int8]:
    """Index into STATUSES for each row (with market_ticker) at its time."""
    codes = np.zeros(rows.num_rows, np.int8)
    of_row, present = coded(rows)
    for i, name in enumerate(present):
        mine = of_row == i
        codes[mine] = cover.statuses(name, channel, times[mine])
    return codes


def _statuses(lake: Lake, table: str, rows: pa.Table, times: Ints) -> npt.NDArray[np.int8]:
    """The same by the exchange's clock."""
    _, present = coded(rows)
    cover = _cover_of(lake, present, times)
    return statuses_of(cover, spec_of(table).channel or "", rows, times)


def _cover_of(lake: Lake, names: Sequence[str], times: Ints) -> CoverageMap:
    if not len(times):
        return lake.coverage_map([], 0, 1)
    return lake.coverage_map(names, int(times.min()), int(times.max()) + 1)


def _with(
    table: str, columns: Sequence[str] | None, needed: Sequence[str]
) -> tuple[list[str], list[str]]:
    """(columns that were asked for, these and the ones that are needed besides)."""
    kept = spec_of(table).schema.names if columns is None else list(columns)
    return kept, list(dict.fromkeys([*kept, *needed]))


def coded(rows: pa.Table) -> tuple[npt.NDArray[np.int64], list[str]]:
    """(index of each row's market, the markets)."""
    if not rows.num_rows:
        return np.zeros(0, np.int64), []
    found = rows.column("market_ticker").combine_chunks().dictionary_encode()
    return np.asarray(found.indices, np.int64), found.dictionary.to_pylist()
