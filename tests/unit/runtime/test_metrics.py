"""runtime.metrics: one table, no series without bound."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.metrics import SERIES_MAX, TABLE, Followed, Metrics, markdown

ROOT = Path(__file__).resolve().parents[3]


def test_every_metric_of_the_table_can_be_written_and_is_exposed() -> None:
    metrics = Metrics()
    for metric in TABLE:
        labels = dict.fromkeys(metric.labels, "x")
        if metric.kind == "counter":
            metrics.counter(metric.name, **labels).inc()
        elif metric.kind == "gauge":
            metrics.gauge(metric.name, **labels).set(1)
        else:
            metrics.histogram(metric.name, **labels).observe(0.1)
    text = metrics.exposition().decode()
    for metric in TABLE:
        assert f"# TYPE kalshi_tape_{metric.name} {metric.kind}" in text


def test_names_say_their_unit_and_kind() -> None:
    """Prometheus' own rules: counters end in _total, base units, lower case."""
    assert len({metric.name for metric in TABLE}) == len(TABLE)
    for metric in TABLE:
        assert re.fullmatch(r"[a-z][a-z_]*", metric.name), metric.name
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        if metric.unit == "seconds":
            assert metric.name.endswith("_seconds"), metric.name
        assert "ticker" not in metric.labels


def test_a_metric_that_is_not_in_the_table_cannot_be_written() -> None:
    metrics = Metrics()
    with pytest.raises(AssertionError, match="not in the table"):
        metrics.counter("surprise_total")
    with pytest.raises(AssertionError, match="has labels"):
        metrics.counter("frames_total", market="KXA")
    with pytest.raises(AssertionError, match="not a gauge"):
        metrics.gauge("spool_commits_total")
    with pytest.raises(AssertionError, match="not a counter"):
        metrics.counter("up")
    with pytest.raises(AssertionError, match="not a histogram"):
        metrics.histogram("up")


def test_label_values_without_bound_end_under_other() -> None:
    """A reason taken from outside must not make a series for every distinct text."""
    metrics = Metrics()
    for number in range(SERIES_MAX + 50):
        metrics.counter("problems_total", reason=f"r{number}").inc()
    text = metrics.exposition().decode()
    assert text.count("kalshi_tape_problems_total{") == SERIES_MAX + 1
    assert 'kalshi_tape_problems_total{reason="other"} 50.0' in text


def test_two_processes_values_do_not_mix() -> None:
    """Each service object has a registry of its own: tests and simulations run several."""
    first, second = Metrics(), Metrics()
    first.counter("windows_total").inc()
    assert b"kalshi_tape_windows_total 1.0" in first.exposition()
    assert b"windows_total" not in second.exposition()


def test_the_table_prints_as_markdown() -> None:
    lines = markdown().splitlines()
    assert len(lines) == len(TABLE) + 2
    assert all(line.count("|") == 6 for line in lines)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "runtime.metrics"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == markdown()


def test_the_table_in_the_documents_is_this_one() -> None:
    """`python -m runtime.metrics` prints what belongs there."""
    text = (Path(__file__).parents[3] / "docs" / "gatherer.md").read_text(encoding="utf-8")
    assert text.endswith(markdown())


def _written(names: list[str]) -> set[str]:
    """Those of the names that some module outside the table writes: as they stand, before a "/"
    (a series of its own), or made of a word (live_{name}_total)."""
    told: set[str] = set()
    for path in ROOT.glob("python/*/src/**/*.py"):
        if path.name == "metrics.py" and path.parent.name == "runtime":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                told.add(re.escape(node.value.partition("/")[0]))
            elif isinstance(node, ast.JoinedStr):
                parts = [
                    re.escape(part.value) if isinstance(part, ast.Constant) else "[a-z]+"
                    for part in node.values
                ]
                text = "".join(parts).partition("/")[0]
                if text.endswith("_total") or "/" in "".join(parts):
                    told.add(text)
    return {name for name in names if any(re.fullmatch(text, name) for text in told)}


def test_no_metric_is_promised_and_not_written() -> None:
    """A table of what an alert may rely on: a name that nobody writes never fires."""
    names = [metric.name for metric in TABLE]
    assert set(names) - _written(names) == set()
    assert _written(["books_in_the_moon_total"]) == set()


def test_numbers_that_others_keep_are_followed() -> None:
    """A counter never falls, adds up whoever shares it, and counts on where one begins anew."""
    metrics = Metrics()
    followed = Followed(metrics)
    for value in (3, 3, 2, 5):
        followed.follow("connects_total", value, of="books-0")
    followed.follow("connects_total", 4, of="books-1")
    followed.follow("sink_batches_total", 7)
    assert "kalshi_tape_connects_total 9.0" in metrics.exposition().decode()
    followed.begin_anew("connects_total")
    followed.follow("connects_total", 1, of="books-0")
    followed.follow("sink_batches_total", 7)
    text = metrics.exposition().decode()
    assert "kalshi_tape_connects_total 10.0" in text
    assert "kalshi_tape_sink_batches_total 7.0" in text
