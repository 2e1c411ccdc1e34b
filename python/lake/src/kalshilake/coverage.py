"""What a lake may claim: coverage rows of many hours as intervals per market and channel.

Purpose: joins the hourly rows again, and answers the three questions of a reader: is [a, b) proven,
what is the status of each row, where does the proof begin and end.

Invariants:
    L-11 a moment without a coverage row is `dark`, never complete.
    L-12 joining hours changes no moment's status.

Does not do: deciding what is complete (marketdata.coverage did), reading objects (read).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kalshilake.schema import STATUSES
from kalshilake.tables import times_us

NO_ROW: Final = "no coverage row"
# A ticker has no sequence number, so nothing can prove that none is missing: the most that is ever
# claimed for it is that a live connection recorded. A read of tickers takes that for granted.
SUFFICES: Final[dict[str, frozenset[str]]] = {
    "orderbook": frozenset({"complete"}),
    "trade": frozenset({"complete"}),
    "ticker": frozenset({"complete", "unproven"}),
}
DARK: Final = STATUSES.index("dark")


@dataclass(frozen=True, slots=True)
class CoverageInterval:
    """One stretch [from_us, to_us) of one market and channel. `sources`: bit g = gatherer g."""

    market: str
    channel: str
    from_us: int
    to_us: int
    status: str
    reason: str
    sources: int = 0
    audits: int = 0
    epoch: int | None = None

    def continues(self, other: CoverageInterval) -> bool:
        """Whether `other` begins where this ends and says the same."""
        same = (self.status, self.reason, self.sources, self.epoch) == (
            other.status,
            other.reason,
            other.sources,
            other.epoch,
        )
        return same and self.to_us == other.from_us

    def as_tuple(self) -> tuple[str, int, int, str, str]:
        """The form that IncompleteTape carries."""
        return self.market, self.from_us, self.to_us, self.status, self.reason


class CoverageMap:
    """Coverage of some markets and hours, in memory."""

    def __init__(self, rows: pa.Table) -> None:
        """`rows`: the lake's coverage columns, sorted by (market, channel, from_ts)."""
        self._by: dict[tuple[str, str], list[CoverageInterval]] = {}
        for interval in _intervals(rows):
            line = self._by.setdefault((interval.market, interval.channel), [])
            if line and line[-1].continues(interval):
                audits = line[-1].audits + interval.audits
                line[-1] = replace(line[-1], to_us=interval.to_us, audits=audits)
            else:
                line.append(interval)

    @property
    def markets(self) -> list[str]:
        """Every market with a row, in order."""
        return sorted({market for market, _ in self._by})

    def intervals(self, market: str, channel: str) -> list[CoverageInterval]:
        """The joined rows of one market and channel, in time order."""
        return self._by.get((market, channel), [])

    def filled(self, market: str, channel: str, a: int, b: int) -> Iterator[CoverageInterval]:
        """[a, b) without a hole: rows cut to it, and `dark` where there is none."""
        at = a
        for found in self.intervals(market, channel):
            if found.to_us <= at:
                continue
            if found.from_us >= b:
                break
            if found.from_us > at:
                yield CoverageInterval(market, channel, at, found.from_us, "dark", NO_ROW)
            at = max(at, found.from_us)
            yield replace(found, from_us=at, to_us=min(found.to_us, b))
            at = min(found.to_us, b)
        if at < b:
            yield CoverageInterval(market, channel, at, b, "dark", NO_ROW)

    def unproven(self, market: str, channel: str, a: int, b: int) -> list[CoverageInterval]:
        """The parts of [a, b) that do not suffice for a read."""
        suffices = SUFFICES[channel]
        return [i for i in self.filled(market, channel, a, b) if i.status not in suffices]

    def proven_span(self, market: str, channel: str) -> tuple[int, int] | None:
        """From the first to the last moment that suffices; None if there is none."""
        good = [i for i in self.intervals(market, channel) if i.status in SUFFICES[channel]]
        return (good[0].from_us, good[-1].to_us) if good else None

    def at(self, market: str, channel: str, time_us: int) -> CoverageInterval:
        """The interval that holds one moment."""
        return next(self.filled(market, channel, time_us, time_us + 1))

    def statuses(
        self, market: str, channel: str, times: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int8]:
        """Index into STATUSES for each moment."""
        line = self.intervals(market, channel)
        made = np.full(len(times), DARK, np.int8)
        if line:
            starts = np.array([i.from_us for i in line])
            ends = np.array([i.to_us for i in line])
            codes = np.array([STATUSES.index(i.status) for i in line], np.int8)
            where = np.searchsorted(starts, times, side="right") - 1
            inside = (where >= 0) & (times < ends[where])
            made[inside] = codes[where[inside]]
        return made


def _intervals(rows: pa.Table) -> Iterator[CoverageInterval]:
    columns: Iterable[Iterable[Any]] = (
        rows.column("market_ticker").to_pylist(),
        rows.column("channel").to_pylist(),
        times_us(rows.column("from_ts")).tolist(),
        times_us(rows.column("to_ts")).tolist(),
        *(rows.column(c).to_pylist() for c in ("status", "reason", "sources", "audits", "epoch")),
    )
    for values in zip(*columns, strict=True):
        yield CoverageInterval(*values)
