"""What several feed processes say, as one gatherer's word.

Purpose: the bodies of their /health -> one. Pure. (Their metrics: runtime.expositions.)
Invariants: the whole is complete only if every process answers and each is complete; a process that
does not answer is a reason, never left out.
Does not do: asking them (processes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from runtime.children import Answer

SUMMED: Final = (
    "frames", "rows_committed", "batches", "gaps", "duplicates", "problems", "audits",
    "audits_failed", "resets", "connections", "markets", "books_subscribed",
    "snapshots_waited_for", "queue_rows", "spills", "tasks",
)  # fmt: skip


def numbers(answers: Sequence[Answer]) -> dict[str, Any]:
    """The figures of all; `processes` has each one's own spool and sink."""
    details = [dict(answer.get("detail", {})) if answer else {} for answer in answers]
    whole: dict[str, Any] = {
        name: sum(int(detail.get(name, 0)) for detail in details) for name in SUMMED
    }
    whole["lag_ms"] = max((int(detail.get("lag_ms", 0)) for detail in details), default=0)
    whole["complete"] = bool(details) and all(detail.get("complete") is True for detail in details)
    whole["channels"] = _channels(details)
    whole["processes"] = [
        {
            name: detail.get(name)
            for name in ("complete", "spool_end", "cursor", "sink", "lag_ms", "retention_waits")
        }
        for detail in details
    ]
    return whole


def _channels(details: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The channels of all processes: counts are added, the longest silence counts."""
    whole: dict[str, dict[str, Any]] = {}
    for detail in details:
        for name, channel in dict(detail.get("channels", {})).items():
            seen = whole.setdefault(
                name,
                {"complete": True, "oldest_proof_ms": None, "oldest_feed": "", "reasons": []},
            )
            seen["complete"] = seen["complete"] and channel.get("complete") is True
            for count in ("to_cover", "covered", "joining", "missing"):
                seen[count] = seen.get(count, 0) + int(channel.get(count, 0))
            proof = channel.get("oldest_proof_ms")
            if proof is not None and proof > (seen["oldest_proof_ms"] or -1):
                seen["oldest_proof_ms"], seen["oldest_feed"] = proof, channel.get("oldest_feed")
            seen["reasons"] += list(channel.get("reasons", ()))
    return whole
