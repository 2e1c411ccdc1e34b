"""What the deduplicator's metrics say of reading, merging and exporting (runtime.metrics).

Purpose: counters follow the totals that the merge keeps anyway; gauges of age are computed when
they are asked for, so that a process that stands still shows it.

Does not do: deciding anything by them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from dedup.publication import Publication
from dedup.readers import GathererReader
from runtime.metrics import Followed, Metrics

COUNTED: Final[Mapping[str, str]] = {
    "duplicate_rows": "duplicate_rows_total",
    "skipped_rows": "skipped_rows_total",
    "late_rows": "late_rows_total",
    "ambiguous_events": "ambiguous_total",
    "disputed_events": "disputed_total",
}
"""Total of a publication -> counter."""
PULLED: Final = ("pull_rows_total", "pull_errors_total")
AUDITED: Final[Mapping[str, str]] = {"audits": "agreed", "audits_failed": "failed"}


class Measured:
    """The metrics of one merger that its pipeline does not write itself."""

    def __init__(self, metrics: Metrics, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self._metrics = metrics
        self._wall_ns = wall_ns
        self._followed = Followed(metrics)
        # From the start, so that the first of anything is seen as one more than none.
        for name in COUNTED.values():
            metrics.counter(name).inc(0)
        for outcome in AUDITED.values():
            metrics.counter("audits_total", outcome=outcome).inc(0)

    def published(self, made: Publication) -> None:
        """A publication is in production."""
        for total, name in COUNTED.items():
            self._metrics.counter(name).inc(made.counts.get(total, 0))
        for total, outcome in AUDITED.items():
            self._metrics.counter("audits_total", outcome=outcome).inc(made.counts.get(total, 0))
        for *_, reason in made.epochs:
            self._metrics.counter("epochs_total", reason=reason).inc()

    def exported(self, written: Mapping[str, int]) -> None:
        """Objects written since the process began, by table."""
        for table, n in written.items():
            self._followed.follow("exports_total", n, table=table)

    def watch(
        self,
        readers: Callable[[], Sequence[GathererReader]],
        gatherers: int,
        closed_to_us: Callable[[], int],
        waited_for: Callable[[], int],
        hours_due: Callable[[int], int] | None,
    ) -> None:
        """Compute the gauges from these whenever somebody asks. `hours_due` None: another merger
        exports."""

        def age() -> float:
            closed = closed_to_us()
            return (self._wall_ns() // 1_000 - closed) / 1e6 if closed else 0.0

        self._metrics.gauge("watermark_age_seconds").set_function(age)
        self._metrics.gauge("gatherers_waited_for").set_function(lambda: float(waited_for()))
        for index in range(gatherers):
            lag = self._metrics.gauge("gatherer_lag_seconds", gatherer=str(index))
            lag.set_function(partial(self._lag, readers, index))
        if hours_due is not None:
            due = hours_due
            self._metrics.gauge("export_lag_hours").set_function(lambda: float(due(closed_to_us())))

    def read(self, readers: Sequence[GathererReader]) -> None:
        """What the readers counted so far."""
        for reader in readers:
            gatherer = str(reader.index)
            for name, n in zip(PULLED, (reader.rows, reader.errors), strict=True):
                self._metrics.counter(name, gatherer=gatherer)  # there from the start, as 0
                self._followed.follow(name, n, gatherer=gatherer)

    def began(self) -> None:
        """New readers count from nothing."""
        for name in PULLED:
            self._followed.begin_anew(name)

    def _lag(self, readers: Callable[[], Sequence[GathererReader]], index: int) -> float:
        """Since what came last of a gatherer was received there; 0 before anything came."""
        for reader in readers():
            if reader.index == index and reader.max_received_ns:
                return (self._wall_ns() - reader.max_received_ns) / 1e9
        return 0.0
