"""What was seen of the exchange, beside the coverage of each exported hour.

What holds:
- It is what all mergers had published at the moment of export, which the tape fixes: an undisturbed
  and a killed deduplicator note the same.
- It is kept with the hour in production, so that a lost commit record is made again as it was; what
  a repair exports anew keeps what the hour had.

Does not do: measuring (marketdata.evidence), the words (exchange_seen), objects (export).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dedup.exchange_seen import told
from dedup.state import EVIDENCE, evidence_of
from runtime.postgres import Connection


async def seen_now(conn: Connection) -> str:
    """Everything seen so far, by merger, as one JSON text; equal evidence gives equal text."""
    rows = await conn.fetch(
        "SELECT shard, state FROM arbiter_state WHERE name = $1 ORDER BY shard", EVIDENCE
    )
    seen = {str(r["shard"]): told(evidence_of({EVIDENCE: r["state"]})) for r in rows}
    return json.dumps(seen, sort_keys=True, separators=(",", ":"))


async def seen_at(conn: Connection, hour_us: int) -> str:
    """What was noted with the hour when it was exported last; "" before that."""
    held = await conn.fetchval("SELECT exchange FROM lake_hour WHERE hour_us = $1", hour_us)
    return held or ""


def extra_of(table: str, versions: Sequence[Any], seen: str) -> Mapping[str, Any] | None:
    """The free facts of an object's commit record (docs/formats.md)."""
    extra: dict[str, Any] = {"versions": list(versions)} if versions else {}
    if table == "coverage" and seen:
        extra["exchange"] = json.loads(seen)
    return extra or None
