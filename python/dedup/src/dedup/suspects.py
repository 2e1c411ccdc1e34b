"""Which gatherer was set aside because the others contradicted it, and how often.

How it is told: counts of the tape (`merge_state.counts`, kept over restarts) with names of
`named_counts`; two metrics, `suspect_runs_total` and `quarantined_rows_total`, by gatherer and
reason; and /status. Any step of the first one is an alert: it names a gatherer that is wrong, or
that the others contradict.

Purpose: name the culprit. A gatherer that silently misses an event (no gap was seen) is outvoted:
its run is taken off the market until its next snapshot. Rows that end in quarantine say so, but a
run may be set aside before it brings another row; what that leaves is a claim that ends with the
reason. Counted are runs in markets, by gatherer and reason; an alert watches the counter.

Invariants: INV-S1 the counts depend only on the output of a window, so a restart repeats them.

Does not do: deciding who is right (marketdata.merge, quiet.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from dedup.output import WindowOutput

# How the claim of a run ends that the others contradicted. Not here: `disputed`. Nobody can say who
# is right, so it names nobody; it is counted as disputed events.
REASONS: Final = {
    "contradicted": "contradicted",
    "missed an event": "missed_event",
    "snapshot differs": "snapshot_differs",
}
SUSPECT: Final = "suspect"  # runs in markets
ASIDE: Final = "aside"  # rows in quarantine


def suspects(output: WindowOutput) -> dict[tuple[int, str], int]:
    """(gatherer, reason) -> runs in markets that this window set aside."""
    found: dict[tuple[str, int, int], str] = {}
    for kept in output.quarantine:  # a run without a claim yet leaves its rows only
        if kept.reason in ("contradicted", "broken_chain"):
            found[kept.ticker, kept.gatherer, kept.run_id] = kept.reason
    for claim in output.claims:
        reason = REASONS.get(claim.reason)
        if reason is not None:
            found.setdefault((claim.ticker, claim.gatherer, claim.run_id), reason)
    counted = Counter((gatherer, reason) for (_, gatherer, _), reason in found.items())
    return dict(sorted(counted.items()))


def named_counts(output: WindowOutput) -> dict[str, int]:
    """The same, and the rows in quarantine, as counts of the tape: "kind:gatherer:reason"."""
    found: Counter[str] = Counter()
    for (gatherer, reason), n in suspects(output).items():
        found[f"{SUSPECT}:{gatherer}:{reason}"] += n
    for kept in output.quarantine:
        found[f"{ASIDE}:{kept.gatherer}:{kept.reason}"] += kept.n_rows
    return dict(sorted(found.items()))


def read_counts(counts: Mapping[str, int], kind: str) -> Iterator[tuple[int, str, int]]:
    """(gatherer, reason, count) of one kind among counts of the tape."""
    for name, n in sorted(counts.items()):
        first, _, rest = name.partition(":")
        if first == kind:
            gatherer, _, reason = rest.partition(":")
            yield int(gatherer), reason, n


def by_gatherer(counts: Mapping[str, int], kind: str, gatherer: int) -> dict[str, int]:
    """reason -> count of one gatherer."""
    return {reason: n for g, reason, n in read_counts(counts, kind) if g == gatherer}
