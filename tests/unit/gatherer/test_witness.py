"""gatherer.witness: what REST found becomes metrics, health and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from gatherer.reconcile import ReconcileStatus
from gatherer.rest import RestClient
from gatherer.sink import SinkStatus
from gatherer.witness import BEHIND_MAX_S, Witness
from runtime.clock import Clock
from runtime.health import Health
from runtime.metrics import Metrics
from tests.unit.gatherer.test_service import settings


class Shown:
    """An intake that has shown a time."""

    def __init__(self, at_s: int) -> None:
        self.at_s = at_s

    def latest_exchange_us(self) -> int:
        return self.at_s * 1_000_000


def witness(folder: Path, status: ReconcileStatus, at_s: int) -> tuple[Witness, Health, Metrics]:
    health, metrics = Health("gatherer"), Metrics()
    unused = cast(Any, None)
    made = Witness(
        settings(folder), cast(RestClient, None), unused, cast(Any, Shown(at_s)), SinkStatus(),
        Clock(0), health, metrics, {},
    )  # fmt: skip
    made.trades.status = status
    return made, health, metrics


def test_a_comparison_that_keeps_up_is_well(tmp_path: Path) -> None:
    status = ReconcileStatus(reason="", done_s=1000, windows=3, listed=70, missing=2)
    made, health, metrics = witness(tmp_path, status, 1040)
    made._observe_trades()
    made._observe_trades()
    assert health.report()["components"]["rest"] == {"state": "ok", "reason": ""}
    text = metrics.exposition().decode()
    assert "kalshi_tape_rest_trades_listed_total 70.0" in text
    assert "kalshi_tape_rest_trades_missing_total 2.0" in text
    assert "kalshi_tape_rest_trades_behind_seconds 40.0" in text
    assert made.numbers()["rest_trades"]["behind_s"] == 40


def test_what_cannot_be_compared_is_told(tmp_path: Path) -> None:
    status = ReconcileStatus(reason="TimeoutError: ", done_s=1000, skipped_s=60, refused=2)
    made, health, _ = witness(tmp_path, status, 1000 + BEHIND_MAX_S + 1)
    made._observe_trades()
    told = health.report()["components"]["rest"]
    assert told["state"] == "degraded"
    assert "trades of 301 s are not compared yet: TimeoutError" in told["reason"]
    assert "60 s lie before the look-back" in told["reason"]
    assert "2 windows" in told["reason"]


def test_before_the_first_look_nothing_is_behind(tmp_path: Path) -> None:
    made, health, _ = witness(tmp_path, ReconcileStatus(), 1_000_000)
    made._observe_trades()
    assert health.report()["state"] == "ok"
