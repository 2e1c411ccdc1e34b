"""What a lake may claim: coverage rows of many hours as intervals per market and channel.

Purpose: joins the hourly rows again, and answers the three questions of a reader: is [a, b) proven,
what is the status of each row, where does the proof begin and end.

Invariants:
    L-11 a moment without a coverage row is `dark`, never complete.
    L-12 joining hours changes no moment's status.
    L-37 with `apart_us` a moment r suffices only if every moment from r - apart to r + apart
         does, in one epoch.

Does not do: deciding what is complete (marketdata.coverage did), reading objects (read).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kalshilake.schema import STATUSES
from kalshilake.tables import times_us

NO_ROW: Final = "no coverage row"
TWO_EPOCHS: Final = "two epochs touch here: by receipt nothing tells them apart"
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

    def __init__(self, rows: pa.Table, apart_us: int = 0) -> None:
        """`rows`: the lake's coverage columns, sorted by (market, channel, from_ts).

        `apart_us`: the claims are told for moments of receipt (clocks). What does not suffice is
        wider by as much on each side; where two epochs touch, nothing tells them apart (L-37).
        """
        self._by: dict[tuple[str, str], list[CoverageInterval]] = {}
        for interval in _intervals(rows):
            line = self._by.setdefault((interval.market, interval.channel), [])
            if line and line[-1].continues(interval):
                audits = line[-1].audits + interval.audits
                line[-1] = replace(line[-1], to_us=interval.to_us, audits=audits)
            else:
                line.append(interval)
        if apart_us:
            self._by = {
                (market, channel): _by_receipt(
                    list(self.filled(market, channel, line[0].from_us, line[-1].to_us)), apart_us
                )
                for (market, channel), line in self._by.items()
            }

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


def of_one_epoch(spans: Sequence[CoverageInterval]) -> list[CoverageInterval]:
    """Proven neighbours of one epoch as one: that other gatherers saw them is no break."""
    made: list[CoverageInterval] = []
    for span in spans:
        before = made[-1] if made else None
        if (
            before is not None
            and (before.status, span.status) == ("complete", "complete")
            and (before.epoch, before.to_us) == (span.epoch, span.from_us)
        ):
            made[-1] = replace(before, to_us=span.to_us)
        else:
            made.append(span)
    return made


def _by_receipt(line: Sequence[CoverageInterval], apart: int) -> list[CoverageInterval]:
    """`line`: intervals without a hole. What does not suffice grows into what does, and beyond."""
    wide: list[CoverageInterval] = []  # ascending, none over another

    def grow(span: CoverageInterval, from_us: int, to_us: int) -> None:
        at = max(from_us, wide[-1].to_us) if wide else from_us
        if at < to_us:
            wide.append(replace(span, from_us=at, to_us=to_us))

    low, high = line[0].from_us, line[-1].to_us
    for i, span in enumerate(line):
        suffices = SUFFICES[span.channel]
        before, after = line[i - 1] if i else None, line[i + 1] if i + 1 < len(line) else None
        if span.status not in suffices:
            reach_back = before is not None and before.status in suffices
            reach_on = after is not None and after.status in suffices
            grow(span, span.from_us - apart * reach_back, span.to_us + apart * reach_on)
        elif before is not None and before.status in suffices and before.epoch != span.epoch:
            cut = replace(span, status="ambiguous", reason=TWO_EPOCHS, epoch=None)
            grow(cut, span.from_us - apart, span.from_us + apart)
    # Before the line and behind it nothing is claimed: that grows, too.
    starts = [low + apart, *(w.to_us for w in wide)]
    ends = [*(w.from_us for w in wide), high]
    made = list(wide)
    for span in line:
        if span.status in SUFFICES[span.channel]:
            # The free stretches that this one touches.
            first = bisect_right(ends, span.from_us)
            for a, b in zip(starts[first:], ends[first:], strict=True):
                if a >= span.to_us:
                    break
                x, y = max(a, span.from_us, low + apart), min(b, span.to_us, high - apart)
                if x < y:
                    made.append(replace(span, from_us=x, to_us=y))
    return sorted(made, key=lambda span: span.from_us)


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
