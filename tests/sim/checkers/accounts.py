"""I3: every delta row that a gatherer stored is accounted for, once."""

from __future__ import annotations

from collections.abc import Iterator

from runtime.pgcopy import DELTA_COPY
from tests.sim.checkers.view import View, Violation
from tests.sim.production import counts_of


def check(view: View) -> Iterator[Violation]:
    """Stored = merged + duplicate + quarantined + skipped; merged = rows of the tape."""
    counts = counts_of(view.content)
    parts = ("merged_rows", "duplicate_rows", "quarantined_rows", "skipped_rows")
    accounted = sum(counts.get(name, 0) for name in parts)
    told = {name: counts.get(name, 0) for name in (*parts, "rows_in", "merged_events")}
    if counts.get("rows_in", 0) != accounted:
        yield Violation("rows that were read are not accounted for", seen=str(told))
    stored = 0
    for host in view.world.hosts:
        for server in host.databases:
            stored += sum(
                len(b.bodies.get("orderbook_delta", b"")) // DELTA_COPY.row_bytes
                for b in server.log
            )
    if view.world.ended and not view.replaced and stored != counts.get("rows_in", 0):
        yield Violation(
            "not every stored row was read, once",
            seen=str(counts.get("rows_in", 0)), expected=str(stored),
        )  # fmt: skip
    on_tape = sum(len(rows) for rows in view.rows.values())
    if on_tape != counts.get("merged_rows", 0) or on_tape != counts.get("merged_events", 0):
        yield Violation("rows on the tape", seen=str(on_tape), expected=str(told))
    quarantined = sum(
        row[8] for row in view.content.tables["quarantine"].values() if len(row[9]) > 0
    )
    if quarantined != counts.get("quarantined_rows", 0):
        yield Violation(
            "rows in quarantine", seen=str(quarantined),
            expected=str(counts.get("quarantined_rows", 0)),
        )  # fmt: skip
