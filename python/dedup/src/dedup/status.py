"""The numbers of /status: totals of the tape, rates, state of every gatherer, proof so far.

Does not do: counting for decisions (the arbiter does), metrics (runtime.metrics).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from dedup.publication import Publication
from dedup.readers import GathererReader
from dedup.suspects import ASIDE, SUSPECT, by_gatherer
from marketdata.rows import GathererBatch

RATE_OVER_S: Final = 5.0


class Rate:
    """Events a second over about the last RATE_OVER_S."""

    __slots__ = ("_began_s", "_last", "_monotonic", "_seen")

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._began_s = monotonic()
        self._seen = 0
        self._last = 0

    def add(self, count: int) -> None:
        """`count` more events."""
        self._roll()
        self._seen += count

    @property
    def per_s(self) -> int:
        """Of the last whole period, or of the running one before the first is over."""
        self._roll()
        return self._last

    def _roll(self) -> None:
        passed_s = self._monotonic() - self._began_s
        if passed_s >= RATE_OVER_S:
            self._last = round(self._seen / passed_s)
            self._began_s, self._seen = self._monotonic(), 0


class Tally:
    """Totals since the tape began (kept in production) and rates of this process."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.rows_read = Rate()
        self.rows_merged = Rate()

    def began(self, counts: Mapping[str, int]) -> None:
        """Totals as production has them."""
        self.totals = dict(counts)

    def read(self, batch: GathererBatch) -> None:
        """Rows came from a gatherer."""
        self.rows_read.add(len(batch.deltas) + len(batch.trades) + len(batch.tickers))

    def published(self, made: Publication) -> None:
        """A publication is in production."""
        for name, value in made.counts.items():
            self.totals[name] = self.totals.get(name, 0) + value
        self.rows_merged.add(len(made.deltas) + len(made.trades) + len(made.tickers))

    def witnesses(self) -> dict[str, int]:
        """How many events of the tape 1, 2, 3, ... gatherers saw."""
        found = {
            k.rpartition("_")[2]: v for k, v in self.totals.items() if k.startswith("witnesse")
        }
        return dict(sorted(found.items()))


def gatherer_status(reader: GathererReader, now_ns: int) -> dict[str, Any]:
    """One gatherer as the deduplicator sees it. `now_ns`: wall clock."""
    lag_ms = (now_ns - reader.max_received_ns) // 1_000_000 if reader.max_received_ns else None
    return {
        "gatherer": reader.index,
        "state": reader.state,
        "reason": reader.reason,
        "rows": reader.rows,
        "batches_behind": reader.backlog,
        "last_batch": reader.position.last_batch_id,
        "received_ns": reader.max_received_ns,
        "lag_ms": lag_ms,
        "errors": reader.errors,
    }


def complete_share(coverage_us: Mapping[str, int]) -> float | None:
    """Share of complete time in the time between a market's first and last proof, order books.

    Of the exported hours; None before the first. Dark time (before and after) does not count.
    """
    total_us = sum(us for status, us in coverage_us.items() if status != "dark")
    return round(coverage_us.get("complete", 0) / total_us, 4) if total_us else None


def status(
    tally: Tally,
    readers: Sequence[GathererReader],
    now_ns: int,
    **more: Any,
) -> dict[str, Any]:
    """The body of /status; `more` is added as it is."""
    totals = tally.totals
    return {
        "rows_in": totals.get("rows_in", 0),
        "rows_merged": totals.get("merged_events", 0),
        "duplicates": totals.get("duplicate_rows", 0),
        "quarantined": totals.get("quarantined_rows", 0),
        "skipped": totals.get("skipped_rows", 0),
        "late": totals.get("late_rows", 0),
        "ambiguous": totals.get("ambiguous_events", 0),
        "disputed": totals.get("disputed_events", 0),
        "gaps": totals.get("gaps", 0) + totals.get("book_equal_gaps", 0),
        "audits": totals.get("audits", 0),
        "audits_failed": totals.get("audits_failed", 0),
        "trades": totals.get("trades", 0),
        "tickers": totals.get("tickers", 0),
        "modes": {k[len("mode_") :]: v for k, v in totals.items() if k.startswith("mode_")},
        "witnesses": tally.witnesses(),
        "rows_read_per_s": tally.rows_read.per_s,
        "rows_merged_per_s": tally.rows_merged.per_s,
        "gatherers": [
            {
                **gatherer_status(r, now_ns),
                "suspect": by_gatherer(totals, SUSPECT, r.index),
                "quarantined": by_gatherer(totals, ASIDE, r.index),
            }
            for r in readers
        ],
        **more,
    }
