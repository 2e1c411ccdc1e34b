"""By what each window closed, kept in production: a count by reason, and each that was not awaited.

What holds: written in the transaction of the window; the bytes of the tape do not depend on it, as
the reason may depend on when a database answered.

Does not do: deciding (gate).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dedup.gate import WATERMARK
from dedup.output import WindowOutput
from runtime.postgres import Connection


@dataclass(frozen=True, slots=True)
class Closing:
    """How one window closed. `detail`: who was not waited for."""

    window: int
    to_us: int
    reason: str
    detail: str


def closings_of(outputs: Iterable[WindowOutput]) -> list[Closing]:
    """The closings of windows, in their order."""
    return [Closing(o.window, o.to_us, *o.closed_by) for o in outputs]


def by_reason(closings: Iterable[Closing]) -> Counter[str]:
    """How many windows closed by what."""
    return Counter(closing.reason for closing in closings)


async def write_closings(conn: Connection, closings: Sequence[Closing], shard: int) -> None:
    """Within the transaction of these windows."""
    counts = sorted(by_reason(closings).items())
    await conn.execute(
        "INSERT INTO window_closing AS c (shard, reason, windows)"
        " SELECT $3, * FROM unnest($1::text[], $2::bigint[])"
        " ON CONFLICT (shard, reason) DO UPDATE SET windows = c.windows + excluded.windows",
        [reason for reason, _ in counts],
        [windows for _, windows in counts],
        shard,
    )
    unwaited = [c for c in closings if c.reason != WATERMARK]
    if unwaited:
        await conn.copy_records_to_table(
            "window_unwaited",
            records=[(shard, c.window, c.to_us, c.reason, c.detail) for c in unwaited],
            columns=["shard", "window_index", "to_us", "reason", "detail"],
        )


async def read_closings(conn: Connection, shard: int) -> Counter[str]:
    """How many windows closed by what since the tape began."""
    rows = await conn.fetch("SELECT reason, windows FROM window_closing WHERE shard = $1", shard)
    return Counter({row["reason"]: row["windows"] for row in rows})
