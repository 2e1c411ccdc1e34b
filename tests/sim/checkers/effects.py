"""Each effect exactly once: rows in the hot databases, windows in production, records on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from gatherer.intake import Decoding
from marketdata.continuity import Continuity
from marketdata.rows import DELTA_ROW, TICKER_ROW, TRADE_ROW
from runtime.pgcopy import (
    DELTA_COPY,
    HEADER,
    TICKER_COPY,
    TRADE_COPY,
    TRAILER,
    CopyLayout,
    unpack_rows,
)
from runtime.spool_files import START
from tests.sim.checkers.view import View, Violation
from tests.sim.disk import SimDisk, SimReader
from tests.sim.gatherer import Host
from tests.sim.hot import HotServer


def check(view: View) -> Iterator[Violation]:
    """All three."""
    yield from _production(view)
    for host in view.world.hosts:
        for disk in host.disks:
            gone = disk.lost()
            if gone:
                yield Violation(f"{host.name}: the spool lost durable bytes", seen=gone)
        if len(host.databases) == 1:
            yield from _hot(host)


def _production(view: View) -> Iterator[Violation]:
    production = view.world.production
    if production.refused:
        yield Violation("production refused a second row of one key", seen=production.refused[0])
    state = view.content.state
    if state is None:
        yield Violation("nothing was ever published")


def stored(server: HotServer, table: str, layout: CopyLayout, dtype: np.dtype) -> np.ndarray:
    """All rows of one table in the order of batches; batch ids are left out by `dtype`."""
    bodies = [b.bodies.get(table, b"") for b in sorted(server.log, key=lambda b: b.batch_id)]
    return unpack_rows(layout, HEADER + b"".join(bodies) + TRAILER, dtype)


def replayed(disk: SimDisk) -> Continuity:
    """The rows that follow from a spool's records, made in one go."""
    decoding = Decoding(Continuity(disk.meta.id_base))
    reader = SimReader(disk, START)
    while records := reader.read():
        for record in records:
            decoding.apply(record)
    return decoding.continuity


def _hot(host: Host) -> Iterator[Violation]:
    """What a gatherer's database holds is what its spools say, once. A spool that was lost may have
    been committed in part, up to some record."""
    server = host.database
    ids = [b.batch_id for b in sorted(server.log, key=lambda b: b.batch_id)]
    if ids != list(range(1, len(ids) + 1)):
        yield Violation(f"{host.name}: batch ids have a hole", seen=str(ids[-3:]))
    marks = [b.max_ns for b in sorted(server.log, key=lambda b: b.batch_id)]
    if marks != sorted(marks):
        yield Violation(f"{host.name}: max_received_ns of batches goes back")
    tables = (
        ("deltas", "orderbook_delta", DELTA_COPY, DELTA_ROW),
        ("trades", "trade", TRADE_COPY, TRADE_ROW),
        ("tickers", "ticker", TICKER_COPY, TICKER_ROW),
    )
    whole = [replayed(disk).rows for disk in host.disks]
    for name, table, layout, dtype in tables:
        seen = stored(server, table, layout, dtype).copy()
        if "batch_id" in (dtype.names or ()):
            seen["batch_id"] = 0
        wanted = [np.frombuffer(bytes(getattr(rows, name)), dtype) for rows in whole]
        if len(host.disks) == 1:
            if seen.tobytes() != wanted[0].tobytes():
                yield Violation(
                    f"{host.name}: {table} is not what the spool says",
                    seen=f"{len(seen)} rows", expected=f"{len(wanted[0])} rows",
                )  # fmt: skip
        else:
            have = Counter(row.tobytes() for row in seen)
            told = Counter(row.tobytes() for part in wanted for row in part)
            last = Counter(row.tobytes() for row in wanted[-1])
            if have - told or last - have:
                yield Violation(f"{host.name}: {table} has rows too many or too few")
    snapshots = sum(len(b.snapshots) for b in server.log)
    controls = sum(len(b.controls) for b in server.log)
    if len(host.disks) == 1:
        told_snapshots, told_controls = len(whole[0].snapshots), len(whole[0].controls)
        if (snapshots, controls) != (told_snapshots, told_controls):
            yield Violation(
                f"{host.name}: snapshots and control rows",
                seen=f"{snapshots}, {controls}", expected=f"{told_snapshots}, {told_controls}",
            )  # fmt: skip
