"""Every metric there is: name, kind, unit, labels, meaning, in one table; and their values.

What holds: a metric that is not in TABLE cannot be written; label values come from closed sets
(reasons, kinds, gatherers), never from tickers, so the number of series has a bound.

`python -m runtime.metrics` prints the table as Markdown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PREFIX: Final = "kalshi_tape_"
LATENCY_BUCKETS_S: Final = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SERIES_MAX: Final = 200  # label combinations of one metric; more are counted under "other"


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the table. `name` is without prefix and, for counters, ends in _total."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    meaning: str
    labels: tuple[str, ...] = ()


def _rows(kind: Literal["counter", "gauge", "histogram"], text: str) -> list[Metric]:
    """`name | unit | labels | meaning` a line."""
    found: list[Metric] = []
    for line in text.strip().splitlines():
        name, unit, labels, meaning = (cell.strip() for cell in line.split("|"))
        found.append(Metric(name, kind, unit, meaning, tuple(labels.split())))
    return found


_COUNTERS: Final = """
frames_total | frames | channel | frames received, by channel of the connection
frame_bytes_total | bytes | | payload bytes received
connects_total | events | | connections opened
closes_total | events | reason | connections ended
reconnect_tries_total | events | reason | connection attempts that failed
gaps_total | events | channel | stretches of missing sequence numbers
gap_frames_total | frames | channel | sequence numbers that never came
duplicates_total | frames | | frames with a sequence number already seen
problems_total | frames | reason | frames kept but not understood
snapshots_total | snapshots | verdict | snapshots by what they said about the running book
snapshot_requests_total | requests | reason | get_snapshot commands sent
negative_levels_total | events | | levels that went below zero
rest_requests_total | requests | status | REST answers by status class
rest_windows_total | windows | | windows of trades compared with REST
rest_trades_listed_total | trades | | trades that REST listed
rest_trades_missing_total | trades | | of them, those that no frame had brought
rest_trades_skipped_total | exchange seconds | | left out, longer ago than the look-back
rest_windows_refused_total | windows | | old windows that the exchange does not list
rest_audit_requests_total | requests | | for order books, beside the frames
rest_audits_failed_total | requests | | of them, those without a usable answer
rest_audits_total | books | verdict | books by REST, by what they said of ours
rest_differences_total | books | | books that differed twice in a row while ours stood still
spool_bytes_total | bytes | | bytes appended to the spool
spool_commits_total | commits | | group commits
spool_errors_total | errors | | writes or syncs that the disk refused
spool_torn_total | tails | | torn tails kept aside
sink_rows_total | rows | table | rows committed
sink_batches_total | batches | | batches committed
sink_retries_total | tries | reason | commits tried again
partitions_default_total | spans | | time spans left to the DEFAULT partition
pull_rows_total | rows | gatherer | rows read from a gatherer
pull_errors_total | errors | gatherer | reads that failed and were repeated
merged_rows_total | rows | table | rows of the tape
duplicate_rows_total | rows | | rows proven to be already on the tape
quarantined_rows_total | rows | gatherer reason | rows that could not be placed
suspect_runs_total | runs | gatherer reason | runs in markets that the others contradicted
exchange_changes_total | changes | subject before after | what was proven of it and no more
skipped_rows_total | rows | | repeats of a row of the same run
late_rows_total | rows | | rows that came after their window had closed, kept aside
ambiguous_total | events | | cuts that no data can decide
disputed_total | events | | contradictions between gatherers that no audit decides
epochs_total | epochs | reason | epochs opened
audits_total | snapshots | outcome | snapshots compared with the merged book
invariant_breaks_total | events | invariant | broken invariants; anything but 0 is a bug
windows_total | windows | | windows closed
windows_closed_total | windows | reason | by what: watermark, or why nobody was waited for
live_given_total | rows | | published before their window closed
live_confirmed_total | rows | | of them, found on the tape under their number
live_contradicted_total | rows | | of them, not on the tape and taken back; an alert
live_missed_total | rows | reason | rows of the tape that were not published before
exports_total | objects | table | lake objects written
"""
_GAUGES: Final = """
up | 1 | | 1 while the service runs
healthy | 1 | component | 1 ok, 0 otherwise, by component
exchange_exact | 1 | pair | 1 where two gatherers get equal times and order, proven
exchange_replies_proven | 1 | | 1 where get_snapshot replies stand at their seq, proven
connections_open | connections | | connections that are open
markets_subscribed | markets | | markets wanted
capture_complete | 1 | | 1 while all that is known is recorded without a hole
markets_to_cover | markets | channel | markets to record (1 where the channel has no filter)
markets_covered | markets | channel | of them, recorded without a hole now
oldest_proof_seconds | seconds | channel | silence of the quietest connection
message_age_seconds | seconds | | from a message's exchange time to its receipt, worst
spool_buffered_bytes | bytes | | appended and not yet durable
spool_disk_free_bytes | bytes | | free space where the spool lies
spool_lag_bytes | bytes | | between the sink's cursor and the end of the spool
sink_queue_rows | rows | | rows waiting for commit in memory
clock_offset_seconds | seconds | | of the wall clock against the exchange's Date header
rest_trades_behind_seconds | seconds | | of the exchange's time, not yet compared with REST
rest_books_differing | books | | that differed and have not agreed since
clock_offset_low_seconds | seconds | | our clock minus the exchange's is proven to be this at least
clock_offset_high_seconds | seconds | | and this at most
clock_synchronised | 1 | | 1 while the kernel says so
clock_kernel_error_seconds | seconds | | the kernel's own estimate of its error
clock_stepped_seconds | seconds | | how far the wall clock was set since the start, all steps
watermark_age_seconds | seconds | | age of the merge watermark; 0 before there is one
gatherer_lag_seconds | seconds | gatherer | since the receipt of what was read of it last
gatherers_waited_for | 1 | | reasons that keep the next window open
export_lag_hours | hours | | hours that are over and not in the lake as they are
"""
_HISTOGRAMS: Final = """
commit_seconds | seconds | | duration of one database commit
spool_sync_seconds | seconds | | duration of one spool write and sync
receive_to_commit_seconds | seconds | | from receiving a frame to its committed row
live_receive_to_commit_seconds | seconds | | the same to its row in production, worst of a commit
window_seconds | seconds | | duration of merging and publishing one window
export_seconds | seconds | | duration of one lake export
"""
TABLE: Final[tuple[Metric, ...]] = (
    *_rows("counter", _COUNTERS),
    *_rows("gauge", _GAUGES),
    *_rows("histogram", _HISTOGRAMS),
)


class Metrics:
    """The values of one process, in a registry of their own. Metrics appear when first used."""

    def __init__(self) -> None:
        self._table = {metric.name: metric for metric in TABLE}
        self._registry = CollectorRegistry()
        self._live: dict[str, Counter | Gauge | Histogram] = {}
        self._series: dict[str, set[tuple[str, ...]]] = {}

    def counter(self, name: str, **labels: str) -> Counter:
        """The counter, bound to its labels: keep it where it is used often."""
        found = self._bound(name, labels)
        assert isinstance(found, Counter), f"{name} is not a counter"
        return found

    def gauge(self, name: str, **labels: str) -> Gauge:
        """The gauge, bound to its labels."""
        found = self._bound(name, labels)
        assert isinstance(found, Gauge), f"{name} is not a gauge"
        return found

    def histogram(self, name: str, **labels: str) -> Histogram:
        """The histogram, bound to its labels."""
        found = self._bound(name, labels)
        assert isinstance(found, Histogram), f"{name} is not a histogram"
        return found

    def _bound(self, name: str, labels: dict[str, str]) -> Counter | Gauge | Histogram:
        metric = self._table.get(name)
        assert metric is not None, f"metric {name} is not in the table"
        assert set(labels) == set(metric.labels), f"{name} has labels {metric.labels}"
        parent = self._live.get(name) or self._make(metric)
        if not labels:
            return parent
        values = tuple(labels[label] for label in metric.labels)
        series = self._series.setdefault(name, set())
        if values not in series and len(series) >= SERIES_MAX:
            values = ("other",) * len(values)
        series.add(values)
        return parent.labels(*values)

    def _make(self, metric: Metric) -> Counter | Gauge | Histogram:
        name, text = PREFIX + metric.name, f"{metric.meaning} [{metric.unit}]"
        made: Counter | Gauge | Histogram
        if metric.kind == "counter":
            made = Counter(name, text, metric.labels, registry=self._registry)
        elif metric.kind == "gauge":
            made = Gauge(name, text, metric.labels, registry=self._registry)
        else:
            made = Histogram(
                name, text, metric.labels, registry=self._registry, buckets=LATENCY_BUCKETS_S
            )
        self._live[metric.name] = made
        return made

    def exposition(self) -> bytes:
        """All values in Prometheus' text form."""
        return generate_latest(self._registry)


class Followed:
    """Counters that are brought up to numbers that others keep and that only grow."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counted: dict[tuple[str, str, str], int] = {}

    def follow(self, name: str, value: int, of: str = "", **labels: str) -> None:
        """`of`: whose number it is, where several add up to one counter."""
        key = (name, of, str(labels))
        more = value - self._counted.get(key, 0)
        if more > 0:
            self._counted[key] = value
            self._metrics.counter(name, **labels).inc(more)

    def begin_anew(self, name: str) -> None:
        """What was followed for this counter counts from nothing again."""
        for key in [key for key in self._counted if key[0] == name]:
            del self._counted[key]


def markdown() -> str:
    """TABLE as Markdown."""
    lines = ["| metric | kind | unit | labels | meaning |", "|---|---|---|---|---|"]
    for metric in TABLE:
        labels = ", ".join(metric.labels) or "-"
        cells = f"`{PREFIX}{metric.name}` | {metric.kind} | {metric.unit} | {labels}"
        lines.append(f"| {cells} | {metric.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
