"""Hot markets move between connections while they are recorded: nothing is missing, nothing twice.

One gatherer, so that nobody else can fill what a move would lose; the proof compares the tape with
the exchange's own log, and coverage of the moved markets has no hole between its ends.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kalshilake import open_lake
from marketdata.plan import Limits
from tape import children, demo
from tape import fleet as fleets
from tape.fleet import DemoPlan

SETTINGS = {"KT_REBALANCE_S": "3", "KT_HOT_FRAMES_PER_S": "1"}


class Eager(children.Child):
    """A gatherer that looks at hot markets all the time."""

    def __init__(self, **given: Any) -> None:
        if given["module"] == "gatherer.main":
            given["environment"] = {**given["environment"], **SETTINGS}
        super().__init__(**given)


def open_folder() -> Path:
    """A new folder; the servers' account must be able to reach its own folders in it."""
    out = Path(tempfile.mkdtemp(prefix="kalshi-tape-moving-"))
    out.chmod(0o711)
    return out


def moved(log: Path) -> list[str]:
    """Markets that a gatherer's log says it began to move."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if "markets move" in line]
    return [ticker for line in lines for tickers in line["moves"].values() for ticker in tickers]


def let_go(log: Path) -> int:
    """How often a connection gave markets back."""
    return log.read_text().count('"markets_removed"')


def holes(rows: list[dict[str, Any]]) -> int:
    """Intervals of an order book that are not complete, between those that are."""
    statuses = [row["status"] for row in rows if row["channel"] == "orderbook"]
    known = [n for n, status in enumerate(statuses) if status == "complete"]
    return sum(s != "complete" for s in statuses[known[0] : known[-1]]) if known else len(statuses)


def test_a_hole_is_seen() -> None:
    """The control."""
    rows = [{"channel": "orderbook", "status": s} for s in ("dark", "complete", "gap", "complete")]
    assert holes(rows) == 1
    assert holes(rows[:2]) == 0


@pytest.mark.timeout(240)
async def test_a_market_that_moves_is_on_the_tape_once(monkeypatch: pytest.MonkeyPatch) -> None:
    await moving(monkeypatch, gatherers=1, without_holes=False)


@pytest.mark.slow
@pytest.mark.parametrize("gatherers", [1, 2])
@pytest.mark.timeout(240)
async def test_a_market_that_moves_is_covered_all_along(
    monkeypatch: pytest.MonkeyPatch, gatherers: int
) -> None:
    """Not always: in one of thirteen plays coverage claimed less than was recorded at a move."""
    await moving(monkeypatch, gatherers=gatherers, without_holes=True)


async def moving(monkeypatch: pytest.MonkeyPatch, *, gatherers: int, without_holes: bool) -> None:
    """A play with moves, proven."""
    monkeypatch.setattr(fleets, "Child", Eager)
    out = open_folder()
    plan = DemoPlan(
        out=out, frames=None, synthetic=40, rate="1", seconds=60.0, faults="none", seed=1,
        gatherers=gatherers, merge="runs", transport="picows", window_ms=2000,
        markets_per_connection=10, events_per_s=250.0,
    )  # fmt: skip
    try:
        result, verdict = await demo.demo_once(plan, 0, Console(quiet=True))
        assert {key: result[key] for key in demo.ZEROS if result[key]} == {}, verdict.examples
        assert result["events_merged"] > 3_000
        tickers = set(moved(out / "logs" / "g1.log"))
        assert tickers, "nothing moved: the test shows nothing"
        gone = let_go(out / "logs" / "g1.log")
        under_way = Limits().moves_max  # at the end of the play, at most
        assert gone >= len(tickers) - under_way, "the old connections let go"
        lake = open_lake(str(out / "lake"))
        found = {t: n for t in tickers if (n := holes(lake.coverage(t).to_pylist()))}
        assert not (without_holes and found), found
    finally:
        shutil.rmtree(out, ignore_errors=True)
