"""What the deduplicator's metrics say, of a merger that ran and of one that stands still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from dedup.measured import Measured
from dedup.readers import GathererReader
from runtime.embedded import EmbeddedPostgres
from runtime.metrics import PREFIX, Metrics
from tests.dedup_rig import make_recordings, run_through, settings
from tests.gatherer_rows import make_stream


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    """(name without prefix, values of the labels) -> value."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        (s.name.removeprefix(PREFIX), " ".join(s.labels.values())): s.value
        for family in families
        for s in family.samples
        if not s.name.endswith("_created")
    }


async def test_a_merger_that_ran_says_what_it_did(
    production: str, postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """The same numbers as /status and the lake, and every one of them is there."""
    made = await make_recordings(postgres_server, make_stream(seed=5, markets=4))
    ran = await run_through(settings(made, production, tmp_path / "lake"))
    told, totals = samples(ran._metrics), ran.tally.totals
    for total, name in (
        ("duplicate_rows", "duplicate_rows_total"), ("skipped_rows", "skipped_rows_total"),
        ("late_rows", "late_rows_total"), ("ambiguous_events", "ambiguous_total"),
        ("disputed_events", "disputed_total"),
    ):  # fmt: skip
        assert told[name, ""] == totals.get(total, 0), name
    assert told["duplicate_rows_total", ""] > 0
    assert told["audits_total", "agreed"] == totals.get("audits", 0)
    assert told["audits_total", "failed"] == totals.get("audits_failed", 0)
    assert told["epochs_total", "first"] == 4
    for gatherer in "012":
        assert told["pull_rows_total", gatherer] > 0
    written = {k[1]: v for k, v in told.items() if k[0] == "exports_total"}
    lying = [p.parts[-5] for p in (tmp_path / "lake" / "parquet").rglob("*.parquet")]
    assert written == {name: lying.count(name) for name in set(lying)}
    assert told["export_lag_hours", ""] == 0


def test_ages_are_of_the_moment_when_somebody_asks() -> None:
    """A merger that hangs sets nothing any more: its age must grow all the same."""
    metrics, now_ns, readers = Metrics(), 0, [GathererReader(1, "postgresql://nowhere", poll_s=1)]
    facts: dict[str, Any] = {"closed": 0, "waits": 2, "due": 0}
    measured = Measured(metrics, lambda: now_ns)
    measured.watch(
        lambda: readers, 2, lambda: facts["closed"], lambda: facts["waits"], lambda _: facts["due"]
    )
    before = samples(metrics)
    assert before["watermark_age_seconds", ""] == before["gatherer_lag_seconds", "1"] == 0
    facts |= {"closed": 5_000_000, "due": 3}
    readers[0].max_received_ns = 7_000_000_000
    now_ns = 9_000_000_000
    told = samples(metrics)
    assert told["watermark_age_seconds", ""] == 4
    assert (told["gatherer_lag_seconds", "0"], told["gatherer_lag_seconds", "1"]) == (0, 2)
    assert (told["gatherers_waited_for", ""], told["export_lag_hours", ""]) == (2, 3)
    now_ns = 60_000_000_000
    assert samples(metrics)["watermark_age_seconds", ""] == 55


def test_a_merger_that_does_not_export_says_nothing_of_it() -> None:
    metrics = Metrics()
    Measured(metrics).watch(list, 1, lambda: 0, lambda: 0, None)
    assert ("export_lag_hours", "") not in samples(metrics)


def test_readers_that_begin_anew_are_counted_on() -> None:
    """A counter never falls, and nothing is counted twice."""
    metrics = Metrics()
    measured = Measured(metrics)
    first = GathererReader(0, "postgresql://nowhere", poll_s=1)
    first.rows, first.errors = 10, 1
    for _ in range(2):
        measured.read([first])
    second = GathererReader(0, "postgresql://nowhere", poll_s=1)
    second.rows = 4
    measured.began()
    measured.read([second])
    told = samples(metrics)
    assert (told["pull_rows_total", "0"], told["pull_errors_total", "0"]) == (14, 1)
