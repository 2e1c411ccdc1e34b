"""Coverage: intervals against themselves, and against the events of their hour.

Does not do: what coverage says where the tape is silent; nothing in a lake can contradict that.
"""

from __future__ import annotations

import bisect
from typing import Any, Final

import pyarrow as pa

from .layout import plain
from .lists import HOUR_US
from .report import Report, Stretch

AMBIGUOUS: Final = 64  # bits of `flags`
DISPUTED: Final = 128
REPAIRED: Final = 1 << 24  # epochs from here on were added by a repair
STATUSES: Final = frozenset({"complete", "gap", "dark", "ambiguous", "disputed", "unproven"})
CHANNELS: Final = frozenset({"orderbook", "trade", "ticker"})


class Claims:
    """Coverage of all hours, one after the other."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._before: dict[str, tuple[Any, ...]] = {}  # order-book row a market ended its hour with
        self._complete: dict[str, list[tuple[Any, ...]]] = {}  # checked last, by market
        self._hours: dict[str, set[int]] = {}  # with order-book rows, checked last, by market
        self._joined: dict[tuple[str, str], list[Stretch]] = {}

    def check(self, key: str, rows: pa.Table) -> None:
        """The rows of an hour, or of some hours that follow each other."""
        self._complete, self._hours = {}, {}
        names = ("market_ticker", "channel", "from_ts", "to_ts", "status", "sources", "epoch")
        last: tuple[Any, ...] | None = None
        ended: dict[str, tuple[Any, ...]] = {}
        for row in zip(*(plain(rows.column(n)) for n in names), strict=True):
            market, channel = row[:2]
            same = last is not None and last[:2] == row[:2]
            hour = row[2] - row[2] % HOUR_US
            within = same and last is not None and last[2] >= hour
            if within and last is not None and last[3] != row[2]:
                text = "intervals overlap or leave a hole between them"
                self._report.found(key, f"{market} {channel}: {text}")
            self._check_row(key, row, hour)
            if channel == "orderbook":
                self._hours.setdefault(market, set()).add(hour)
                self._check_joint(key, last if same else self._before.get(market), row)
                if row[4] == "complete":
                    self._complete.setdefault(market, []).append(row)
                ended[market] = row
            last = row
        self._before = ended

    def hold(self, key: str, market: str, events: list[tuple[int, int, int]]) -> None:
        """A market's events (time, epoch, flags; in time order) of the hour that was checked last,
        against what it says of them."""
        hours = self._hours.get(market, set())
        if any(us - us % HOUR_US not in hours for us, _, _ in events):
            self._report.found(key, f"{market} has events in this hour and no order-book coverage")
        for row in self._complete.get(market, []):
            self._check_events(key, row, events)

    def join(self, rows: pa.Table) -> None:
        """One hour's rows, behind those of the hours before."""
        names = ("market_ticker", "channel", "from_ts", "to_ts", "status", "reason", "sources",
                 "epoch")  # fmt: skip
        for values in zip(*(plain(rows.column(n)) for n in names), strict=True):
            stretch = Stretch(*values)
            line = self._joined.setdefault((stretch.market, stretch.channel), [])
            if line and line[-1].goes_on(stretch):
                line[-1].to_us = stretch.to_us
            else:
                line.append(stretch)

    def coverage(self) -> list[Stretch]:
        """All that was joined, by market, channel and time."""
        return [s for key in sorted(self._joined) for s in self._joined[key]]

    def _check_row(self, key: str, row: tuple[Any, ...], hour: int) -> None:
        market, channel, start, end, status, sources, _ = row
        faults = {
            "an interval is empty or leaves its hour": not hour <= start < end <= hour + HOUR_US,
            f"status {status!r} is unknown": status not in STATUSES,
            f"channel {channel!r} is unknown": channel not in CHANNELS,
        }
        if status == "complete":
            faults |= {
                "an interval is complete and nobody proves it": not sources,
                "an interval is complete past the watermark": end > self._report.watermark_us,
                "tickers cannot be complete, they carry no number": channel == "ticker",
            }
        for fault, present in faults.items():
            if present:
                self._report.found(key, f"{market} {channel}: {fault}")

    def _check_joint(self, key: str, before: tuple[Any, ...] | None, row: tuple[Any, ...]) -> None:
        """A new epoch opens only behind something that is not complete, unless a repair proved what
        lies between."""
        if before is None or before[3] != row[2] or before[6] == row[6]:
            return
        if max(before[6] or 0, row[6] or 0) >= REPAIRED:
            return
        if before[4] == row[4] == "complete":
            text = f"complete from epoch {before[6]} into epoch {row[6]} without a gap"
            self._report.found(key, f"{row[0]} orderbook: {text}")

    def _check_events(
        self, key: str, row: tuple[Any, ...], events: list[tuple[int, int, int]]
    ) -> None:
        market, _, start, end, _, _, epoch = row
        for us, of_epoch, flags in events[bisect.bisect_left(events, (start,)) :]:
            if us >= end:
                return
            if of_epoch != epoch:
                text = f"complete in epoch {epoch} over an event of epoch {of_epoch}"
                self._report.found(key, f"{market} orderbook: {text}")
                return
            if flags & (AMBIGUOUS | DISPUTED):
                self._report.found(key, f"{market} orderbook: complete over a flagged event")
                return
