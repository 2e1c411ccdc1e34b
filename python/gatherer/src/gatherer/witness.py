"""REST beside the frames: its parts made, run and told of in one place.

Purpose: make the comparison of trades, the audits of books and the measurement of our clock, give
them to the supervisor, hand on what they need to hear, and turn what they say of themselves into
metrics, health and figures.
Invariants: the recording waits for nothing here; what REST does not answer is told and tried again.
Does not do: comparing (reconcile, rest_audit, clock_offset), rows (continuity), requests (rest).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from gatherer.clock_offset import ClockOffset
from gatherer.feed import FeedConnection
from gatherer.intake import LiveIntake
from gatherer.packing import PackedBatch
from gatherer.reconcile import Reconciler, ReconcileSettings
from gatherer.rest import RestClient
from gatherer.rest_audit import AuditSettings, RestAudit
from gatherer.side_rows import SideRows
from gatherer.sink import SinkStatus
from marketdata.units import US_PER_S
from runtime.clock import Clock
from runtime.config import GathererSettings
from runtime.health import Health
from runtime.metrics import Followed, Metrics
from runtime.spool import SpoolWriter
from runtime.supervise import Supervisor

OBSERVE_S: Final = 1.0
NS_PER_S: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000
BEHIND_MAX_S: Final = 300
"""Trades that have not been compared for longer than this are told in /health."""


class Witness:
    """See the module's text."""

    def __init__(
        self,
        settings: GathererSettings,
        rest: RestClient,
        spool: SpoolWriter,
        intake: LiveIntake,
        sink: SinkStatus,
        clock: Clock,
        health: Health,
        metrics: Metrics,
        feeds: Mapping[str, FeedConnection],
    ) -> None:
        self._settings = settings
        self._health = health
        self._metrics = metrics
        self._followed = Followed(self._metrics)
        self._rows_reason = ""
        self.rows = SideRows(settings.postgres_dsn, clock, on_state=self._rows_state)
        self.clock = ClockOffset(self.rows, clock, settings.clock_limit_ms)
        self.books = RestAudit(
            AuditSettings(
                settings.rest_audit_share,
                settings.rest_rate_per_s,
                settings.rest_audit_interval_s,
            ),
            rest,
            intake,
            feeds,
            self.rows,
            clock,
        )
        self.trades = Reconciler(
            ReconcileSettings(
                settings.timescale_dsn,
                settings.trade_window_s,
                settings.trade_settle_s,
                settings.trade_lookback_s,
            ),
            rest,
            spool,
            intake,
            sink,
            clock,
            date_us=self.clock.date_us,
            carries=lambda: any("trade" in f.session.settings.channels for f in feeds.values()),
        )

    def add(self, supervisor: Supervisor) -> None:
        """After the feeds, so that they are stopped before the last record of the spool."""
        supervisor.add("evidence", self.rows.run)
        supervisor.add("clock", self.clock.run)
        supervisor.add("books by REST", self.books.run)
        supervisor.add("trades by REST", self.trades.run)
        supervisor.add("witness", self._observe)

    def committed(self, packed: PackedBatch) -> None:
        """A batch is in the database."""
        self.trades.committed(packed)

    def numbers(self) -> dict[str, Any]:
        """Figures for /health."""
        status, books = self.trades.status, self.books.status
        return {
            "rest_books": {
                "rounds": books.rounds,
                "requests": books.requests,
                "failed": books.failed,
                "verdicts": {v.name.lower(): n for v, n in sorted(books.verdicts.items())},
                "differences": books.differences,
                "differing": len(self.books.doubts.differing),
                "snapshots_asked": books.snapshots_asked,
                "reason": books.reason,
            },
            "rest_trades": {
                "windows": status.windows,
                "listed": status.listed,
                "missing": status.missing,
                "skipped_s": status.skipped_s,
                "refused": status.refused,
                "behind_s": self._behind_s(),
                "reason": status.reason,
            },
            "clock": self._clock_numbers(),
            "evidence": {"pending": self.rows.pending, "reason": self._rows_reason},
        }

    def _clock_numbers(self) -> dict[str, Any]:
        bounds, kernel = self.clock.wall_bounds(), self.clock.kernel
        return {
            "low_ms": None if bounds is None else bounds.low_ns // NS_PER_MS,
            "high_ms": None if bounds is None else bounds.high_ns // NS_PER_MS,
            "synchronised": None if kernel is None else kernel.synchronised,
            "stepped_ms": self.clock.stepped_ns // NS_PER_MS,
        }

    async def _observe(self) -> None:
        while True:
            self._observe_clock()
            books = self._observe_books()
            trades = self._observe_trades()
            told = "; ".join(part for part in (books, trades) if part)
            self._health.set("rest", "degraded" if told else "ok", told)
            await asyncio.sleep(OBSERVE_S)

    def _behind_s(self) -> int:
        """Seconds of the exchange's time that were not compared yet; 0 before the first look."""
        done_s = self.trades.status.done_s
        return max(0, self.trades.now_us() // US_PER_S - done_s) if done_s else 0

    def _rows_state(self, told: str) -> None:
        self._rows_reason = told

    def _observe_clock(self) -> None:
        bounds, kernel = self.clock.wall_bounds(), self.clock.kernel
        gauge = self._metrics.gauge
        if bounds is not None:
            gauge("clock_offset_low_seconds").set(bounds.low_ns / NS_PER_S)
            gauge("clock_offset_high_seconds").set(bounds.high_ns / NS_PER_S)
        if kernel is not None:
            gauge("clock_synchronised").set(kernel.synchronised)
            gauge("clock_kernel_error_seconds").set(kernel.error_ns / NS_PER_S)
        gauge("clock_stepped_seconds").set(self.clock.stepped_ns / NS_PER_S)
        reason = self.clock.reason
        self._health.set("clock", "degraded" if reason else "ok", reason)

    def _observe_books(self) -> str:
        """What is wrong, for /health."""
        status = self.books.status
        self._followed.follow("rest_audit_requests_total", status.requests)
        self._followed.follow("rest_audits_failed_total", status.failed)
        self._followed.follow("rest_differences_total", status.differences)
        for verdict, count in list(status.verdicts.items()):
            self._followed.follow("rest_audits_total", count, verdict=verdict.name.lower())
        self._metrics.gauge("rest_books_differing").set(len(self.books.doubts.differing))
        return self.books.told()

    def _observe_trades(self) -> str:
        """What is wrong, for /health."""
        status, behind_s = self.trades.status, self._behind_s()
        self._followed.follow("rest_windows_total", status.windows)
        self._followed.follow("rest_trades_listed_total", status.listed)
        self._followed.follow("rest_trades_missing_total", status.missing)
        self._followed.follow("rest_trades_skipped_total", status.skipped_s)
        self._followed.follow("rest_windows_refused_total", status.refused)
        self._metrics.gauge("rest_trades_behind_seconds").set(behind_s)
        told = []
        if behind_s > BEHIND_MAX_S:
            told.append(f"trades of {behind_s} s are not compared yet: {status.reason or 'at it'}")
        if status.skipped_s:
            told.append(f"trades of {status.skipped_s} s lie before the look-back")
        if status.refused:
            told.append(f"{status.refused} windows of trades are refused")
        return "; ".join(told)
