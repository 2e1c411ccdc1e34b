"""The word of several processes: as bad as the worst, and nobody is left out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gatherer import together
from runtime.children import state_of
from runtime.expositions import joined
from runtime.metrics import Metrics


def answer(**detail: Any) -> dict[str, Any]:
    books = {"complete": True, "to_cover": 5, "covered": 5, "joining": 0, "missing": 0,
             "oldest_proof_ms": 40, "oldest_feed": "books-0", "reasons": []}  # fmt: skip
    whole = {"complete": True, "frames": 7, "lag_ms": 20, "channels": {"orderbook_delta": books}}
    return {"state": "ok", "reasons": [], "detail": whole | detail}


def test_figures_are_added_and_the_slowest_counts() -> None:
    found = together.numbers([answer(), answer(frames=3, lag_ms=90)])
    assert (found["frames"], found["lag_ms"], found["complete"]) == (10, 90, True)
    assert found["channels"]["orderbook_delta"]["to_cover"] == 10
    assert found["channels"]["orderbook_delta"]["oldest_proof_ms"] == 40
    assert len(found["processes"]) == 2
    json.dumps(found)


@pytest.mark.parametrize(
    "other", [None, answer(complete=False), answer(channels={}, complete=None)]
)
def test_one_that_is_not_complete_makes_the_whole_not(other: dict[str, Any] | None) -> None:
    assert together.numbers([answer(), other])["complete"] is False
    assert together.numbers([])["complete"] is False


def test_a_process_without_an_answer_is_failing() -> None:
    assert state_of(None) == ("failing", "does not answer")
    assert state_of({"state": "wonderful"})[0] == "failing"
    degraded = {"state": "degraded", "reasons": ["a: b", "c: d"]}
    assert state_of(degraded) == ("degraded", "a: b; c: d")


def test_metrics_are_told_apart_by_process_and_read_by_a_parser() -> None:
    texts = []
    for number in (1, 2):
        made = Metrics()
        made.counter("frames_total", channel="trade").inc(number)
        made.gauge("up").set(1)
        made.histogram("commit_seconds").observe(0.01)
        texts.append(made.exposition().decode())
    families = {f.name: f for f in text_string_to_metric_families(joined(texts))}
    frames = families["kalshi_tape_frames"].samples
    seen = {s.labels["process"]: s.value for s in frames if s.name.endswith("_total")}
    assert seen == {"1": 1.0, "2": 2.0}
    assert {s.labels["channel"] for s in frames if s.name.endswith("_total")} == {"trade"}
    assert len(families["kalshi_tape_up"].samples) == 2
    assert joined(["", ""]) == ""
