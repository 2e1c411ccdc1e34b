"""What a live run is held against, and its picture: each check fails where it has to."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest

from tests.bench.chart import Series, chart, ticks
from tests.bench.live import growth, highest, judged, table
from tests.bench.sustained import Load, Outcome, faults

SENT = {"orderbook_delta": 100, "ticker": 10, "trade": 5}
LATE = {"p50": 20.0, "p99": 200.0, "p99.9": 220.0, "max": 230.0}


def outcome(rate: int = 20_000, **more: Any) -> Outcome:
    cpu = {"gatherer": 6.0, "postgresql": 5.0, "exchange": 4.0}
    made = Outcome(Load(rate, 1), SENT, SENT, {"gaps": 0}, LATE, LATE, cpu, 0.1)
    return replace(made, **more)


def test_a_whole_recording_has_no_fault() -> None:
    assert faults(SENT, SENT, {"gaps": 0, "problems": 0}) == []


@pytest.mark.parametrize(
    ("sent", "stored", "health", "told"),
    [
        (SENT, SENT | {"trade": 4}, {}, "trade: 5 sent, 4 stored"),
        (SENT, SENT | {"ticker": 11}, {}, "ticker: 10 sent, 11 stored"),
        (SENT, SENT, {"gaps": 1}, "gaps: 1"),
        (SENT | {"closed": 2}, SENT, {}, "2 connections ended"),
    ],
)
def test_each_fault_is_told(
    sent: dict[str, int], stored: dict[str, int], health: dict[str, Any], told: str
) -> None:
    assert faults(sent, stored, health) == [told]


def test_a_lost_row_and_a_late_one_miss_their_targets() -> None:
    assert all(v.kept for v in judged(outcome()))
    lost = judged(outcome(stored=SENT | {"trade": 4}))
    assert [v.kept for v in lost] == [False, True]
    late = judged(outcome(receive_to_commit_ms=LATE | {"p99": 1_000.0}))
    assert [v.kept for v in late] == [True, False]
    fast = judged(outcome(50_000, latency_ms=LATE | {"p99": 251.0}))
    assert [v.kept for v in fast] == [True, False]


def test_the_highest_rate_counts_what_was_sent_and_kept_up_with() -> None:
    outcomes = [outcome(), outcome(stored=SENT | {"trade": 0}), outcome(latency_ms=LATE)]
    assert highest(outcomes) == 115
    assert highest([outcomes[1]]) == 0
    assert "20,000" in table(outcomes)


def test_growth_is_that_of_the_second_half() -> None:
    start = [{"x": float(n)} for n in range(100)]
    assert growth(start + [{"x": 100.0}] * 100, "x") == 0
    assert growth([{"x": float(n)} for n in range(200)], "x") > 50


@pytest.mark.parametrize("high", [0.4, 1, 3, 98, 1234, 99_999, 10**7])
def test_axes_end_at_or_beyond_the_highest_value(high: float) -> None:
    marks = ticks(high)
    assert marks[0] == 0
    assert high <= marks[-1] < 2 * high + 1
    assert 2 <= len(marks) <= 6


def test_the_picture_is_well_formed_and_names_what_it_shows() -> None:
    text = chart("A < B", "minutes", [Series("one & two", [(0, 1), (1, 5)]), Series("none", [])])
    root = ET.fromstring(text)
    words = [node.text for node in root.iter() if node.text]
    assert {"A < B", "one & two", "minutes"} <= set(words)
