"""What the on-host tests ask of a tape's coverage: that of the time in which a market lived."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import orjson
import pytest

from exchange.truth import KIND_HOLE, Ledger, TruthWriter, pack_event
from tape.proof import Interval
from tests.onhost.tape_checks import LISTED_US, lives, unproven

HOUR: Final = 3_600_000_000
WINDOW: Final = (HOUR // 2, HOUR // 2 + 60_000_000)
LISTED: Final = WINDOW[0] + 10_000_000
CLOSED: Final = WINDOW[0] + 40_000_000
THROUGHOUT: Final = (0, HOUR - 1)


def faults(life: tuple[int, int], *found: tuple[int, int, str]) -> tuple[list[str], int]:
    intervals = {"A": [Interval(a, b, status, "") for a, b, status in found]}
    return unproven(intervals, {"A": life}, *WINDOW)


def test_a_market_that_was_listed_and_one_that_was_closed_have_no_fault() -> None:
    begun = LISTED + 100_000
    listed = faults((LISTED, HOUR - 1), (0, begun, "dark"), (begun, HOUR, "complete"))
    assert listed == ([], 0)
    over = CLOSED + 8_000_000
    closed = faults((1, CLOSED), (0, over, "complete"), (over, HOUR, "dark"))
    assert closed == ([], 0)
    assert faults(THROUGHOUT, (0, HOUR, "complete")) == ([], 1)


@pytest.mark.parametrize(
    ("life", "found"),
    [
        ((LISTED, HOUR), [(0, LISTED + LISTED_US + 1, "dark"), (LISTED, HOUR, "complete")]),
        (THROUGHOUT, [(0, WINDOW[0] + 1, "dark"), (WINDOW[0] + 1, HOUR, "complete")]),
        (THROUGHOUT, [(0, CLOSED, "complete"), (CLOSED, HOUR, "dark")]),
        ((1, CLOSED), [(0, CLOSED - 1, "complete"), (CLOSED - 1, HOUR, "dark")]),
        ((1, CLOSED), [(0, LISTED, "complete"), (LISTED, CLOSED, "gap"), (CLOSED, HOUR, "dark")]),
        (THROUGHOUT, [(0, LISTED, "complete"), (CLOSED, HOUR, "complete")]),
    ],
    ids=["told too late", "begun late", "left", "left before its end", "gap", "no interval"],
)
def test_what_it_lived_through_is_asked_for(
    life: tuple[int, int], found: list[tuple[int, int, str]]
) -> None:
    assert faults(life, *found)[0]


def test_a_market_that_the_truth_does_not_know_lives_all_the_time() -> None:
    intervals = {"B": [Interval(0, HOUR, "dark", "")]}
    assert len(unproven(intervals, {}, *WINDOW)[0]) == 1


def test_lives_are_those_of_the_truth(tmp_path: Path) -> None:
    ledger = Ledger(markets=["A", "B", "C"])
    for market, us in ((0, 30), (2, 20), (0, 10), (0, 20)):
        ledger.events += pack_event(market, 0, 0, 500_000, 100, us)
    ledger.events += pack_event(-1, KIND_HOLE, 0, 0, 99, 99)
    TruthWriter(tmp_path / "truth").close(ledger)
    assert orjson.loads((tmp_path / "truth/markets.json").read_bytes()) == ["A", "B", "C"]
    assert lives(tmp_path / "truth") == {"A": (10, 30), "C": (20, 20)}
