"""REST beside the frames: its parts made, run and told of in one place.

Purpose: make the comparison of trades, give it to the supervisor, hand on what it needs to hear,
and turn what it says of itself into metrics, health and figures.
Invariants: the recording waits for nothing here; what REST does not answer is told and tried again.
Does not do: comparing (reconcile), rows (continuity), requests (rest).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from gatherer.feed import FeedConnection
from gatherer.intake import LiveIntake
from gatherer.packing import PackedBatch
from gatherer.reconcile import Reconciler, ReconcileSettings
from gatherer.rest import RestClient
from gatherer.sink import SinkStatus
from marketdata.units import US_PER_S
from runtime.clock import Clock
from runtime.config import GathererSettings
from runtime.health import Health
from runtime.metrics import Metrics
from runtime.spool import SpoolWriter
from runtime.supervise import Supervisor

OBSERVE_S: Final = 1.0
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
        self._counted: dict[str, int] = {}
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
            carries=lambda: any("trade" in f.session.settings.channels for f in feeds.values()),
        )

    def add(self, supervisor: Supervisor) -> None:
        """After the feeds, so that they are stopped before the last record of the spool."""
        supervisor.add("trades by REST", self.trades.run)
        supervisor.add("witness", self._observe)

    def committed(self, packed: PackedBatch) -> None:
        """A batch is in the database."""
        self.trades.committed(packed)

    def numbers(self) -> dict[str, Any]:
        """Figures for /health."""
        status = self.trades.status
        return {
            "rest_trades": {
                "windows": status.windows,
                "listed": status.listed,
                "missing": status.missing,
                "skipped_s": status.skipped_s,
                "refused": status.refused,
                "behind_s": self._behind_s(),
                "reason": status.reason,
            }
        }

    async def _observe(self) -> None:
        while True:
            self._observe_trades()
            await asyncio.sleep(OBSERVE_S)

    def _behind_s(self) -> int:
        """Seconds of the exchange's time that were not compared yet; 0 before the first look."""
        done_s = self.trades.status.done_s
        return max(0, self.trades.now_us() // US_PER_S - done_s) if done_s else 0

    def _observe_trades(self) -> None:
        status, behind_s = self.trades.status, self._behind_s()
        self._follow("rest_windows_total", status.windows)
        self._follow("rest_trades_listed_total", status.listed)
        self._follow("rest_trades_missing_total", status.missing)
        self._follow("rest_trades_skipped_total", status.skipped_s)
        self._follow("rest_windows_refused_total", status.refused)
        self._metrics.gauge("rest_trades_behind_seconds").set(behind_s)
        told = []
        if behind_s > BEHIND_MAX_S:
            told.append(f"trades of {behind_s} s are not compared yet: {status.reason or 'at it'}")
        if status.skipped_s:
            told.append(f"trades of {status.skipped_s} s lie before the look-back")
        if status.refused:
            told.append(f"{status.refused} windows of trades are refused")
        self._health.set("rest", "degraded" if told else "ok", "; ".join(told))

    def _follow(self, name: str, value: int, **labels: str) -> None:
        """Bring a counter up to a number that only grows."""
        key = f"{name} {labels}"
        more = value - self._counted.get(key, 0)
        if more > 0:
            self._counted[key] = value
            self._metrics.counter(name, **labels).inc(more)
