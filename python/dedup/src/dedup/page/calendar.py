"""Coverage by series and hour: from the lake where an hour is exported, else from the evidence.

Purpose: the calendar and the heat map, and from a cell of them to one market's intervals. An
exported hour is summed once from its coverage object, column by column; an hour that is not in the
lake as it is now, the running one above all, from production's evidence by the same function that
exports it (marketdata.coverage), so that the page and the lake say the same.

What holds:
- A sum is kept under what it was made of (the object's SHA-256): another version of an hour is
  summed again. At most HOURS_KEPT hours, HOURS_A_LOOK of them a look, newest first; what has not
  been looked at yet is told as such, never as complete.
- Times are integers (microseconds of exchange time); `us` of a cell has one number a status.
- Dark time (before and after a market was recorded) is told and is no lack.

Does not do: deciding what is complete (marketdata.coverage, dedup.proof), HTTP.
"""

from __future__ import annotations

import asyncio
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dedup.proof import Evidence, load_evidence
from dedup.publication import DAY_US, HOUR_US
from dedup.repair_lake import Noted, stored_body
from kalshilake.schema import STATUSES
from kalshilake.store import Store
from marketdata import coverage
from runtime.postgres import Connection

HOURS_KEPT: Final = 24 * 14
HOURS_A_LOOK: Final = 8
SERIES_SHOWN: Final = 200
MARKETS_SHOWN: Final = 200
MARKETS_OF_A_SERIES_MAX: Final = 20_000
INTERVALS_SHOWN: Final = 500
CHANNELS: Final = ("orderbook", "trade")
"""Those whose completeness can be proven: tickers carry no sequence numbers."""
COMPLETE: Final = STATUSES.index("complete")
DARK: Final = STATUSES.index("dark")
NO_LACK: Final = frozenset({"complete", "dark"})

_HOURS: Final = """
SELECT h.hour_us, h.rows_dirty OR h.proof_dirty AS dirty, o.key, o.sha256, o.n_rows, o.n_bytes,
    o.watermark_us
FROM lake_hour h LEFT JOIN export_object o ON o.hour_us = h.hour_us AND o.table_name = 'coverage'
WHERE h.hour_us > 0 ORDER BY h.hour_us DESC LIMIT $1
"""
_CLOSED: Final = "SELECT min(closed_to_us) FROM merge_state"
_TICKERS: Final = """
SELECT ticker FROM market WHERE ticker = $1 OR (ticker >= $1 || '-' AND ticker < $1 || '.')
ORDER BY ticker LIMIT $2
"""


def series_of(ticker: str) -> str:
    """The series that a market's name begins with."""
    return ticker.partition("-")[0]


@dataclass(slots=True)
class Cell:
    """One series and hour of one channel. `us`: time by status, in the order of STATUSES."""

    us: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(STATUSES), np.int64))
    markets: int = 0
    lacking: int = 0  # markets with time that is neither complete nor dark

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"us": self.us.tolist(), "markets": self.markets, "lacking": self.lacking}


Cells = dict[str, dict[str, Cell]]  # channel -> series -> cell


@dataclass(frozen=True, slots=True)
class Hour:
    """One hour of the tape: from which object of the lake, if from one."""

    hour_us: int
    noted: Noted | None


@dataclass(slots=True)
class Sum:
    """An hour's cells, what they were made of, and up to where."""

    made_of: str
    to_us: int
    cells: Cells


class Calendar:
    """Sums of hours, kept. Not for two looks at once (asked.Production sees to that)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sums: dict[int, Sum] = {}
        self._hours: list[int] = []
        self._closed_us = 0

    async def look(self, conn: Connection) -> None:
        """Learn which hours there are, and sum those that are due, newest first."""
        hours = await hours_of(conn)
        self._closed_us = int(await conn.fetchval(_CLOSED) or 0)
        self._hours = [h.hour_us for h in hours]
        self._sums = {us: s for us, s in self._sums.items() if us in set(self._hours)}
        due = [h for h in hours if self._is_due(h)]
        for hour in due[:HOURS_A_LOOK]:
            self._sums[hour.hour_us] = await self._sum(conn, hour)

    def _is_due(self, hour: Hour) -> bool:
        kept = self._sums.get(hour.hour_us)
        return kept is None or hour.noted is None or kept.made_of != hour.noted.sha256

    async def _sum(self, conn: Connection, hour: Hour) -> Sum:
        low, high = hour.hour_us, hour.hour_us + HOUR_US
        if hour.noted is not None:
            table = await asyncio.to_thread(coverage_table, self._store, hour.noted)
            cells = await asyncio.to_thread(cells_of_table, table)
            return Sum(hour.noted.sha256, high, cells)
        high = max(low, min(high, self._closed_us))
        evidence = await load_evidence(conn, low, high)
        cells = await asyncio.to_thread(cells_of_evidence, evidence, low, high)
        return Sum("evidence", high, cells)

    def days(self, channel: str) -> dict[str, Any]:
        """Every hour of the tape that is kept, all series together; newest day first."""
        days: dict[int, dict[int, dict[str, Any]]] = {}
        for hour_us in self._hours:
            kept = self._sums.get(hour_us)
            cell = _all_together(kept.cells[channel].values()) if kept is not None else None
            told = {"summed": cell is not None, **(cell or Cell()).told()}
            day_us = hour_us - hour_us % DAY_US
            days.setdefault(day_us, {})[(hour_us - day_us) // HOUR_US] = told
        return {
            "channel": channel,
            "statuses": list(STATUSES),
            "closed_us": self._closed_us,
            "days": [
                {"day_us": day, "hours": [hours.get(n) for n in range(24)]}
                for day, hours in sorted(days.items(), reverse=True)
            ],
        }

    def hours(self, channel: str, day_us: int, part: str) -> dict[str, Any]:
        """The 24 hours of a day by series whose name holds `part`; those that lack most first."""
        rows: dict[str, list[dict[str, Any] | None]] = {}
        total: dict[str, npt.NDArray[np.int64]] = {}
        waiting = []
        for n in range(24):
            hour_us = day_us + n * HOUR_US
            kept = self._sums.get(hour_us)
            if kept is None:
                waiting += [n] if hour_us in self._hours else []
                continue
            for name, cell in kept.cells[channel].items():
                if part and part not in name:
                    continue
                rows.setdefault(name, [None] * 24)[n] = cell.told()
                total[name] = total.get(name, 0) + cell.us
        worst = sorted(rows, key=lambda name: (-lack_us(total[name]), name))
        return {
            "channel": channel,
            "statuses": list(STATUSES),
            "day_us": day_us,
            "closed_us": self._closed_us,
            "not_summed": waiting,
            "left_out": max(0, len(worst) - SERIES_SHOWN),
            "series": [{"name": name, "hours": rows[name]} for name in worst[:SERIES_SHOWN]],
        }

    def newest(self, channel: str, count: int) -> list[tuple[int, int, dict[str, Cell]]]:
        """(hour, summed up to, series -> cell) of the last `count` hours that are summed."""
        found = [(us, self._sums[us]) for us in self._hours if us in self._sums]
        return [(us, kept.to_us, kept.cells[channel]) for us, kept in found[:count]]


def lack_us(us: npt.NDArray[np.int64]) -> int:
    """Time that is neither complete nor dark."""
    return int(_lack(us))


def _lack(us: npt.NDArray[np.int64]) -> Any:
    """The same of each row of times by status."""
    return us.sum(axis=-1) - us[..., COMPLETE] - us[..., DARK]


def _all_together(cells: Iterable[Cell]) -> Cell:
    made = Cell()
    for cell in cells:
        made.us += cell.us
        made.markets += cell.markets
        made.lacking += cell.lacking
    return made


async def hours_of(conn: Connection, hour_us: int | None = None) -> list[Hour]:
    """The newest HOURS_KEPT hours, or the one; without an object where it is not as it is now."""
    rows = await conn.fetch(_HOURS, HOURS_KEPT)
    return [
        Hour(
            r["hour_us"],
            None
            if r["dirty"] or r["key"] is None
            else Noted(
                key=r["key"],
                table="coverage",
                hour_us=r["hour_us"],
                n_bytes=r["n_bytes"],
                sha256=r["sha256"],
                watermark_us=r["watermark_us"],
                n_rows=r["n_rows"],
            ),
        )
        for r in rows
        if hour_us is None or r["hour_us"] == hour_us
    ]


def coverage_table(store: Store, noted: Noted, market: str | None = None) -> pa.Table:
    """An hour's coverage object, or the rows of one market in it. Raises LakeError."""
    filters = None if market is None else [("market_ticker", "==", market)]
    return pq.read_table(io.BytesIO(stored_body(store, noted)), filters=filters)


def cells_of_table(table: pa.Table) -> Cells:
    """The cells of an hour's coverage object."""
    tickers, codes = _coded(table, "market_ticker")
    channels, channel = _coded(table, "channel")
    statuses, status = _coded(table, "status")
    at = np.array([STATUSES.index(s) for s in statuses], np.int64)
    spans = (_us(table, "to_ts") - _us(table, "from_ts")).astype(np.int64)
    made: Cells = {}
    for name in CHANNELS:
        here = channel == (channels.index(name) if name in channels else -1)
        us = np.zeros((len(tickers), len(STATUSES)), np.int64)
        np.add.at(us, (codes[here], at[status[here]] if len(at) else status[here]), spans[here])
        made[name] = _by_series(tickers, us)
    return made


def cells_of_evidence(evidence: Evidence, from_us: int, to_us: int) -> Cells:
    """The cells of [from_us, to_us) as the evidence stands. Most markets of an hour have the same
    evidence in it (recorded throughout, by the same runs): of those one is looked at for all."""
    alike = _alike(evidence, from_us)
    chosen = replace(
        evidence,
        tickers=list(alike),
        claims=[c for c in evidence.claims if c.ticker in alike],
        marks=[m for m in evidence.marks if m.ticker in alike],
        epochs=[e for e in evidence.epochs if e.ticker in alike],
        audits=[],
    )
    by_channel: dict[str, dict[str, npt.NDArray[np.int64]]] = {name: {} for name in CHANNELS}
    for interval in coverage.intervals(chosen, from_us, to_us):
        of = by_channel.get(interval.channel)
        if of is None:
            continue
        us = of.setdefault(interval.ticker, np.zeros(len(STATUSES), np.int64))
        us[STATUSES.index(interval.status)] += interval.to_us - interval.from_us
    return {
        name: _by_series(
            [ticker for one in of for ticker in alike[one]],
            np.repeat(
                np.array(list(of.values()), np.int64).reshape(-1, len(STATUSES)),
                [len(alike[one]) for one in of],
                axis=0,
            ),
        )
        for name, of in by_channel.items()
    }


def _alike(evidence: Evidence, from_us: int) -> dict[str, list[str]]:
    """One market of each kind -> all markets with the same evidence from `from_us` on."""
    told: dict[str, list[tuple[Any, ...]]] = {ticker: [] for ticker in evidence.tickers}
    nobody: list[tuple[Any, ...]] = []
    for c in evidence.claims:
        row = (c.gatherer, c.run_id, max(c.from_us, from_us), c.to_us, c.valid)
        told.get(c.ticker, nobody).append(row)
    for m in evidence.marks:
        told.get(m.ticker, nobody).append((m.kind, max(m.from_us, from_us), m.to_us, m.reason))
    for e in evidence.epochs:  # which one it is makes no difference to a sum, only that there is
        rows = told.get(e.ticker, nobody)
        if not rows or rows[-1] != (max(e.from_us, from_us),):
            rows.append((max(e.from_us, from_us),))
    found: dict[tuple[tuple[Any, ...], ...], list[str]] = defaultdict(list)
    for ticker, rows in told.items():
        found[tuple(rows)].append(ticker)
    return {tickers[0]: tickers for tickers in found.values()}


def _by_series(tickers: Sequence[str], us: npt.NDArray[np.int64]) -> dict[str, Cell]:
    """One row of `us` a market, as cells by series; a market without any time is none."""
    at: dict[str, int] = {}
    code = np.array([at.setdefault(series_of(ticker), len(at)) for ticker in tickers], np.int64)
    sums = np.zeros((len(at), len(STATUSES)), np.int64)
    np.add.at(sums, code, us)
    there = us.any(axis=1)
    markets = np.bincount(code[there], minlength=len(at)).tolist()
    lacking = np.bincount(code[_lack(us) > 0], minlength=len(at)).tolist()
    return {
        name: Cell(sums[n].copy(), markets[n], lacking[n]) for name, n in at.items() if markets[n]
    }


def _coded(table: pa.Table, name: str) -> tuple[list[str], npt.NDArray[np.int64]]:
    column = table.column(name).combine_chunks()
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return column.dictionary.to_pylist(), np.asarray(column.indices.to_numpy(), np.int64)


def _us(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    return np.asarray(table.column(name).cast(pa.int64()).to_numpy(), np.int64)


async def rows_of(
    conn: Connection, store: Store, hour_us: int, *, series: str = "", market: str = ""
) -> tuple[list[dict[str, Any]], int]:
    """Intervals of an hour, of a series or of one market, as plain rows; and up to where they go.
    Read where the hour's cells come from."""
    found = await hours_of(conn, hour_us)
    if not found:
        return [], hour_us
    if found[0].noted is not None:
        table = await asyncio.to_thread(coverage_table, store, found[0].noted, market or None)
        return await asyncio.to_thread(_table_rows, table, series, market), hour_us + HOUR_US
    closed_us = int(await conn.fetchval(_CLOSED) or 0)
    high = max(hour_us, min(hour_us + HOUR_US, closed_us))
    tickers = [market]
    if not market:
        got = await conn.fetch(_TICKERS, series, MARKETS_OF_A_SERIES_MAX)
        tickers = [r["ticker"] for r in got]
    evidence = await load_evidence(conn, hour_us, high, tickers)
    return await asyncio.to_thread(_evidence_rows, evidence, hour_us, high), high


def _table_rows(table: pa.Table, series: str, market: str) -> list[dict[str, Any]]:
    names = ("market_ticker", "channel", "status", "reason", "sources", "audits", "epoch")
    columns = [table.column(name).to_pylist() for name in names]
    times = [_us(table, name).tolist() for name in ("from_ts", "to_ts")]
    return [
        {
            "market": ticker, "channel": channel, "from_us": a, "to_us": b, "status": status,
            "reason": reason or "", "sources": sources, "audits": audits, "epoch": epoch or 0,
        }
        for ticker, channel, status, reason, sources, audits, epoch, a, b in zip(
            *columns, *times, strict=True
        )
        if (ticker == market if market else series_of(ticker) == series)
    ]  # fmt: skip


def _evidence_rows(evidence: Evidence, from_us: int, to_us: int) -> list[dict[str, Any]]:
    return [
        {
            "market": i.ticker, "channel": i.channel, "from_us": i.from_us, "to_us": i.to_us,
            "status": i.status, "reason": i.reason, "sources": i.sources, "audits": i.audits,
            "epoch": i.epoch,
        }
        for i in coverage.intervals(evidence, from_us, to_us)
    ]  # fmt: skip


def markets_told(rows: Sequence[dict[str, Any]], channel: str) -> dict[str, Any]:
    """The markets of one cell: time by status, and the longest reason of what is lacking."""
    us: dict[str, list[int]] = {}
    reasons: dict[str, dict[tuple[str, str], int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        if row["channel"] != channel:
            continue
        span = row["to_us"] - row["from_us"]
        us.setdefault(row["market"], [0] * len(STATUSES))[STATUSES.index(row["status"])] += span
        if row["status"] not in NO_LACK:
            reasons[row["market"]][row["status"], row["reason"]] += span
    names = sorted(us, key=lambda m: (-sum(reasons[m].values()), m))
    return {
        "statuses": list(STATUSES),
        "channel": channel,
        "left_out": max(0, len(names) - MARKETS_SHOWN),
        "markets": [
            {
                "name": name,
                "us": us[name],
                "lack_us": sum(reasons[name].values()),
                "reasons": [
                    {"status": status, "reason": reason, "us": span}
                    for (status, reason), span in sorted(
                        reasons[name].items(), key=lambda item: (-item[1], item[0])
                    )[:5]
                ],
            }
            for name in names[:MARKETS_SHOWN]
        ],
    }
