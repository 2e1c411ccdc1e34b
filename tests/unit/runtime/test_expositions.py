"""Metrics of several processes read as one."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from runtime.expositions import joined
from runtime.metrics import Metrics


def text_of(up: int, seen: int) -> str:
    metrics = Metrics()
    metrics.gauge("up").set(up)
    metrics.counter("windows_total").inc(seen)
    return metrics.exposition().decode()


def test_samples_keep_their_values_and_get_their_process() -> None:
    families = {
        f.name: f for f in text_string_to_metric_families(joined([text_of(1, 3), text_of(0, 4)]))
    }
    up = next(f for name, f in families.items() if name.endswith("up"))
    assert {s.labels["process"]: int(s.value) for s in up.samples} == {"1": 1, "2": 0}
    windows = next(f for name, f in families.items() if "windows" in name)
    values = {s.labels["process"]: int(s.value) for s in windows.samples if "created" not in s.name}
    assert values == {"1": 3, "2": 4}


def test_nothing_is_nothing() -> None:
    assert joined(["", ""]) == ""
