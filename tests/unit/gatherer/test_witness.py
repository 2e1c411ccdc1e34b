"""gatherer.witness: what REST found becomes metrics, health and figures."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from gatherer.clock_offset import ClockOffset
from gatherer.reconcile import ReconcileStatus
from gatherer.rest import RestClient
from gatherer.sink import SinkStatus
from gatherer.witness import BEHIND_MAX_S, Witness
from marketdata.clock_bounds import KernelClock
from marketdata.rest_books import AuditVerdict
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
    made, _, metrics = witness(tmp_path, status, 1040)
    assert made._observe_trades() == ""
    assert made._observe_trades() == ""
    text = metrics.exposition().decode()
    assert "kalshi_tape_rest_trades_listed_total 70.0" in text
    assert "kalshi_tape_rest_trades_missing_total 2.0" in text
    assert "kalshi_tape_rest_trades_behind_seconds 40.0" in text
    assert made.numbers()["rest_trades"]["behind_s"] == 40


def test_what_cannot_be_compared_is_told(tmp_path: Path) -> None:
    status = ReconcileStatus(reason="TimeoutError: ", done_s=1000, skipped_s=60, refused=2)
    made, _, _ = witness(tmp_path, status, 1000 + BEHIND_MAX_S + 1)
    told = made._observe_trades()
    assert "trades of 301 s are not compared yet: TimeoutError" in told
    assert "60 s lie before the look-back" in told
    assert "2 windows" in told


def test_before_the_first_look_nothing_is_behind(tmp_path: Path) -> None:
    made, _, _ = witness(tmp_path, ReconcileStatus(), 1_000_000)
    assert made._observe_trades() == ""


def test_books_that_differ_are_told_and_counted(tmp_path: Path) -> None:
    made, _, metrics = witness(tmp_path, ReconcileStatus(), 0)
    assert made._observe_books() == ""
    made.books.status.verdicts.update([AuditVerdict.AGREES] * 7 + [AuditVerdict.DIFFERS])
    made.books.status.differences = 1
    made.books.doubts.differing["KX-M"] = 1
    assert made._observe_books() == "1 books differ from REST's: KX-M"
    text = metrics.exposition().decode()
    assert 'rest_audits_total{verdict="agrees"} 7.0' in text
    assert "kalshi_tape_rest_differences_total 1.0" in text
    assert made.numbers()["rest_books"]["verdicts"] == {"agrees": 7, "differs": 1}


async def test_all_that_is_wrong_is_one_line_of_health_and_the_clock_another(
    tmp_path: Path,
) -> None:
    made, health, metrics = witness(tmp_path, ReconcileStatus(refused=1), 0)
    made.clock = ClockOffset(
        made.rows, Clock(0), 1_000, kernel=lambda: KernelClock(False, 0, 5_000_000)
    )
    made.books.doubts.differing["KX-M"] = 1
    made.clock.once()
    task = asyncio.create_task(made._observe())
    await asyncio.sleep(0)
    task.cancel()
    told = health.report()["components"]
    assert told["rest"]["reason"] == (
        "1 books differ from REST's: KX-M; 1 windows of trades are refused"
    )
    assert told["clock"] == {
        "state": "degraded", "reason": "the kernel's clock is not synchronised",
    }  # fmt: skip
    text = metrics.exposition().decode()
    assert "kalshi_tape_clock_synchronised 0.0" in text
    assert "kalshi_tape_clock_kernel_error_seconds 0.005" in text
    assert made.numbers()["evidence"]["pending"] == 1
