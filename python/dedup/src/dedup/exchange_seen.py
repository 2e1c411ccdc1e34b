"""What was seen of the exchange, told: changes as counts, all of it as plain values.

How it is told: `exchange` in /status, in `tape status` and in the lake (formats.md); two gauges and
`exchange_changes_total` by subject, before and after. Any step of that counter is an alert: the
exchange, or a gatherer, does not do any more what had been proven, or does again.

Purpose: the same words everywhere. A change is counted under a name of `change_counts` in the
tape's counts, so that it is told once and survives a restart.

Does not do: measuring or deciding (marketdata.evidence).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from dedup.state import EVIDENCE, evidence_of
from marketdata.evidence import APART_US, Change, Evidence, Likeness
from runtime.logs import get
from runtime.metrics import Metrics

log = get("exchange_seen")

CHANGED: Final = "exchange"
BUCKETS: Final = (*(f"up_to_{us}_us" for us in APART_US), "more")


def change_counts(changes: Iterable[Change]) -> dict[str, int]:
    """Changes as counts of the tape: "exchange:subject:before:after"."""
    counts: dict[str, int] = {}
    for c in changes:
        name = f"{CHANGED}:{c.subject}:{c.before}:{c.after}"
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def read_changes(counts: Mapping[str, int]) -> Iterator[tuple[Change, int]]:
    """The same back from counts of the tape."""
    for name, n in sorted(counts.items()):
        kind, _, rest = name.partition(":")
        if kind == CHANGED:
            yield Change(*rest.split(":")), n


def told(evidence: Evidence) -> dict[str, Any]:
    """Everything seen, as plain values; equal evidence gives equal values."""
    return {
        "pairs": {
            name: {
                "mode": pair.mode,
                "equal_since": pair.streak,
                **_likeness(pair.likeness),
                "connections": {
                    both: _likeness(seen.likeness)
                    for both, seen in sorted(pair.connections.items())
                },
                "connections_forgotten": pair.more,
            }
            for name, pair in sorted(evidence.pairs.items())
        },
        "replies": asdict(evidence.replies),
    }


def _likeness(likeness: Likeness) -> dict[str, Any]:
    apart = {name: n for name, n in zip(BUCKETS, likeness.apart, strict=True) if n}
    return {
        "compared": likeness.compared,
        "equal_us": likeness.equal_us,
        "other_order": likeness.other_order,
        "apart_us_max": likeness.apart_us_max,
        "apart": apart,
    }


class ExchangeWatch:
    """What the running service tells of the exchange: the evidence as published, and alerts."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.evidence = Evidence()

    def began(self, states: Mapping[str, bytes]) -> None:
        """The tape stands here."""
        self.evidence = evidence_of(states)
        self._show()

    def published(self, states: Mapping[str, bytes | None], counts: Mapping[str, int]) -> None:
        """A publication with these states and counts is in production."""
        packed = states.get(EVIDENCE)
        if packed is not None:
            self.evidence = evidence_of({EVIDENCE: packed})
            self._show()
        for change, n in read_changes(counts):
            self._metrics.counter(
                "exchange_changes_total",
                subject=change.subject, before=change.before, after=change.after,
            ).inc(n)  # fmt: skip
            log.error("the exchange changed", **asdict(change), times=n)

    def _show(self) -> None:
        for name, pair in self.evidence.pairs.items():
            self._metrics.gauge("exchange_exact", pair=name).set(pair.mode == "exact")
        self._metrics.gauge("exchange_replies_proven").set(self.evidence.replies.proven)


__all__ = ["ExchangeWatch", "change_counts", "read_changes", "told"]
