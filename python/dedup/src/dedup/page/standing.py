"""How the service stands, for the page: the overview of a second, and the lists of what went wrong.

Purpose: the overview puts together what the process knows of itself (/status, /health), what was
learned from production, and the verdict; the lists are the newest of each kind, read by an index
from the end, so that they cost the same however long the tape is.

What holds:
- Of what somebody outside may not know (addresses, passwords, paths) nothing is told: reasons are
  those of /health.
- Bytes and counts are integers; what is not known is null, never 0.

Does not do: coverage (calendar), books (depth), HTTP (serving).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dedup.page.verdict import Hours, judge
from runtime.postgres import Connection

ROWS_SHOWN: Final = 100
RECENT_US: Final = 600_000_000
"""Of the tape before its end: a gap in it is told before its hour is summed again."""
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
MERGE: Final = (
    "rows_in", "rows_merged", "duplicates", "quarantined", "skipped", "late", "ambiguous",
    "disputed", "gaps", "audits", "audits_failed", "trades", "tickers", "markets", "windows",
    "rows_read_per_s", "rows_merged_per_s", "closed_to_us", "waiting_for", "finished",
    "complete_share", "mergers", "windows_closed_by",
)  # fmt: skip
GATHERER: Final = (
    "gatherer", "state", "reason", "rows", "batches_behind", "lag_ms", "errors", "suspect",
    "quarantined",
)  # fmt: skip

_STATE: Final = """
SELECT min(closed_to_us) AS closed_us, max(received_ns_max) AS received_ns, count(*) AS mergers
FROM merge_state
"""
_SUBSCRIPTIONS: Final = """
SELECT gatherer, channel, count(*) AS in_sequence, max(to_us) AS proven_to_us
FROM run_progress WHERE NOT ended GROUP BY 1, 2 ORDER BY 1, 2
"""
_GAPS: Final = """
SELECT m.ticker, k.kind, k.from_us, k.to_us, k.reason FROM mark k JOIN market m USING (market_id)
WHERE k.kind IN ('gap', 'quarantined', 'ambiguous', 'disputed')
ORDER BY k.window_index DESC, k.ord DESC LIMIT $1
"""
_QUARANTINE: Final = """
SELECT m.ticker, q.gatherer, q.reason, q.from_us, q.to_us, q.n_rows
FROM quarantine q LEFT JOIN market m USING (market_id)
ORDER BY q.window_index DESC, q.ord DESC LIMIT $1
"""
_AUDITS: Final = """
SELECT m.ticker, a.gatherer, a.exchange_us, a.agrees
FROM audit_point a JOIN market m USING (market_id)
ORDER BY a.window_index DESC, a.ord DESC LIMIT $1
"""
_UNWAITED: Final = """
SELECT to_us, reason, detail FROM window_unwaited ORDER BY window_index DESC LIMIT $1
"""
_BYTES: Final = """
SELECT pg_database_size(current_database()) AS production,
    (SELECT coalesce(sum(n_bytes), 0)::bigint FROM export_object) AS lake,
    (SELECT count(*) FROM export_object) AS objects,
    (SELECT version FROM lake_version) AS version,
    (SELECT max(hour_us) FROM lake_hour WHERE NOT rows_dirty AND NOT proof_dirty) AS exported_us
"""


async def state_told(conn: Connection) -> dict[str, Any]:
    """How far the tape is, and which subscriptions are in sequence."""
    state = await conn.fetchrow(_STATE)
    return {
        "closed_us": int(state["closed_us"] or 0),
        "received_ms": int(state["received_ns"] or 0) // 1_000_000,
        "mergers": state["mergers"],
        "subscriptions": [dict(r) for r in await conn.fetch(_SUBSCRIPTIONS)],
    }


async def gaps_told(conn: Connection) -> dict[str, Any]:
    """The newest stretches that are not complete, and windows that were not waited for."""
    rows = await conn.fetch(_GAPS, ROWS_SHOWN)
    return {
        "gaps": [{"market": r["ticker"], **_span(r), "kind": r["kind"], "reason": r["reason"]}
                 for r in rows],
        "unwaited": [dict(r) for r in await conn.fetch(_UNWAITED, ROWS_SHOWN)],
    }  # fmt: skip


async def quarantine_told(conn: Connection) -> dict[str, Any]:
    """The newest rows that were kept aside."""
    rows = await conn.fetch(_QUARANTINE, ROWS_SHOWN)
    return {
        "quarantine": [
            {
                "market": r["ticker"] or "", "gatherer": r["gatherer"], "reason": r["reason"],
                "rows": r["n_rows"], **_span(r),
            }
            for r in rows
        ]
    }  # fmt: skip


async def audits_told(conn: Connection) -> dict[str, Any]:
    """The newest snapshots that were held against the merged book."""
    rows = await conn.fetch(_AUDITS, ROWS_SHOWN)
    return {
        "audits": [
            {
                "market": r["ticker"], "gatherer": r["gatherer"],
                "exchange_us": r["exchange_us"], "agrees": r["agrees"],
            }
            for r in rows
        ]
    }  # fmt: skip


async def bytes_told(conn: Connection) -> dict[str, Any]:
    """What production and the lake hold."""
    r = await conn.fetchrow(_BYTES)
    return {
        "production_bytes": r["production"],
        "lake_bytes": r["lake"],
        "lake_objects": r["objects"],
        "lake_version": r["version"],
        "exported_hour_us": r["exported_us"],
    }


def _span(row: Mapping[str, Any]) -> dict[str, int]:
    return {"from_us": row["from_us"], "to_us": row["to_us"]}


def host_told(lake_uri: str, revision: str) -> dict[str, Any]:
    """This process and its disk. Of a lake that is not a directory here the disk says nothing."""
    local = "://" not in lake_uri
    place = Path(lake_uri) if local else Path("/")
    while local and not place.exists() and place != place.parent:
        place = place.parent
    disk = shutil.disk_usage(place)
    return {
        "revision": revision or "unknown",
        "lake": "directory" if local else lake_uri.partition("://")[0],
        "disk_bytes": disk.total,
        "disk_free_bytes": disk.free,
        "memory_bytes": _resident(),
    }


def _resident() -> int | None:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None


def overview(
    health: Mapping[str, Any],
    merge: Mapping[str, Any],
    state: Mapping[str, Any] | None,
    gaps: Sequence[Mapping[str, Any]],
    hours: Hours,
    known: Mapping[str, Any] | None,
    now_ms: int,
) -> dict[str, Any]:
    """The body of /api/overview. `state`: of production; None: never read. `gaps`: the newest.
    `known`: of `hours`."""
    lag_ms = None
    if state is not None and state["received_ms"]:
        lag_ms = max(0, now_ms - state["received_ms"])
    since_us = (state["closed_us"] if state else 0) - RECENT_US
    recent = [gap for gap in gaps if gap["to_us"] > since_us]
    seen = merge.get("seen") or {}
    by_index = {of["gatherer"]: of for of in seen.get("gatherers", [])}
    return {
        "at_ms": now_ms,
        "verdict": judge(health, merge, hours, known, lag_ms, recent),
        "service": {"state": health["state"], "reasons": health["reasons"]},
        "merge": {name: merge.get(name) for name in MERGE},
        "tape_lag_ms": lag_ms,
        "witnesses": merge.get("witnesses") or {},
        "gatherers": [
            {
                **{name: g.get(name) for name in GATHERER},
                "connections": by_index.get(g["gatherer"], {}).get("connections"),
                "channels": by_index.get(g["gatherer"], {}).get("channels", {}),
            }
            for g in merge.get("gatherers") or []
        ],
        "interrupted": seen.get("interrupted", 0),
        "live": merge.get("live") or {},
        "lake": {k: v for k, v in (merge.get("lake") or {}).items() if k != "sha256"},
        "recent_gaps": len(recent),
        "production": state,
        "coverage_known": known,
    }
