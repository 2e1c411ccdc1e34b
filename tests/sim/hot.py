"""A gatherer's hot database: batches, the spool's cursor, and the rows of each batch.

Purpose: answer the statements of `gatherer.hot_database` and `dedup.pull` as PostgreSQL would, with
transaction ids, snapshots and row locks (sql). Rows are kept as the bytes they were copied in.

Invariants: SIM-7 `log` lists every committed batch in the order of commits, for the checkers.

Does not do: refused rows (tests of the gatherer do), partitions.
"""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import dataclass, field
from typing import Any

from marketdata.rows import ControlKind
from runtime.pgcopy import CONTROL_COPY, MARKET_COPY, SNAPSHOT_COPY
from tests.sim.sql import Record, Server, SimConnection, Tx, copied_rows, number_of, unique
from tests.sim.virtual import Story

SNAPSHOT_ORDER = (0, 1, 2, 3, 5, 6, 4, 7, 8, 9, 10)  # dedup.pull's columns among SNAPSHOT_COPY's
CONTROL_ORDER = (0, 1, 2, 9, 5, 6, 7, 3, 8, 4, 10, 11)


@dataclass
class Batch:
    """One committed batch."""

    batch_id: int
    uid: Any
    xid: int
    n_deltas: int
    n_rows: int
    min_ns: int
    max_ns: int
    committed_s: float = 0.0  # virtual time
    bodies: dict[str, bytes] = field(default_factory=dict)
    snapshots: list[tuple[Any, ...]] = field(default_factory=list)
    controls: list[tuple[Any, ...]] = field(default_factory=list)
    markets: list[tuple[Any, ...]] = field(default_factory=list)


class HotServer(Server):
    """See the module's text."""

    def __init__(self, name: str, identifier: int, rng: random.Random, story: Story) -> None:
        super().__init__(name, identifier, rng, story)
        self.log: list[Batch] = []
        self.by_id: dict[int, Batch] = {}
        self.cursors: dict[Any, tuple[int, int, int]] = {}
        self.reader_cursor = 0

    def snapshot(self) -> tuple[int, int, int]:
        return len(self.log), self.xmin(), self.next_xid

    def _seen(self, tx: Tx) -> list[Batch]:
        return self.log[: tx.snapshot[0]]

    async def run(self, conn: SimConnection, tx: Tx, kind: str, sql: str, args: Any) -> Any:
        act = getattr(self, f"_{kind}")
        return await act(tx, sql, args)

    # -- the writer

    async def _execute(self, tx: Tx, sql: str, args: Any) -> str:
        if sql.startswith("INSERT INTO spool_cursor"):
            self.write(tx)
            await self.lock(tx, ("cursor", args[0]))
            top = max((b.batch_id for b in self.log), default=0)
            held = self.cursors.get(args[0], (0, 0, top))
            if "DO UPDATE" in sql:
                held = (*held[:2], max(held[2], top))
            tx.staged.append(lambda: self.cursors.update({args[0]: held}))
            return "INSERT 0 1"
        if sql.startswith("UPDATE spool_cursor SET segment"):
            return await self._move_cursor(tx, sql, args)
        if sql.startswith("INSERT INTO ingest_batch"):
            return await self._note_batch(tx, args)
        if sql.startswith("SELECT tell_reader_cursor"):
            self.write(tx)
            tx.staged.append(lambda: setattr(self, "reader_cursor", args[0]))
            return "SELECT 1"
        raise NotImplementedError(f"the simulated database does not know {sql!r}")

    async def _move_cursor(self, tx: Tx, sql: str, args: Any) -> str:
        uid, segment, offset, batch_id, *where = args
        self.write(tx)
        await self.lock(tx, ("cursor", uid))
        names = {"segment": 0, "offset_bytes": 1, "batch_id": 2}
        held = self.cursors.get(uid)
        asked = [names[m] for m in re.findall(r"AND (\w+) = \$", sql)]
        if held is None or any(held[n] != where[n] for n in asked):
            return "UPDATE 0"

        def move() -> None:
            self.cursors[uid] = (segment, offset, batch_id)

        tx.staged.append(move)
        return "UPDATE 1"

    async def _note_batch(self, tx: Tx, args: Any) -> str:
        batch_id, uid, n_deltas, n_rows, min_ns, max_ns = args
        self.write(tx)
        await self.lock(tx, ("batch", batch_id))
        if batch_id in self.by_id or any(b.uid == uid for b in self.log):
            raise unique("ingest_batch", batch_id)
        batch = Batch(batch_id, uid, tx.xid, n_deltas, n_rows, min_ns, max_ns)
        batch.bodies = dict(tx.pending)
        batch.snapshots = copied_rows(SNAPSHOT_COPY, tx.pending.get("orderbook_snapshot", b""))
        batch.controls = copied_rows(CONTROL_COPY, tx.pending.get("control", b""))
        batch.markets = copied_rows(MARKET_COPY, tx.pending.get("market", b""))

        def add() -> None:
            batch.committed_s = asyncio.get_running_loop().time()
            self.log.append(batch)
            self.by_id[batch_id] = batch

        tx.staged.append(add)
        return "INSERT 0 1"

    async def _copy_in(self, tx: Tx, sql: str, args: Any) -> int:
        table, body, _ = args
        self.write(tx)
        assert table not in tx.pending, f"two copies into {table} in one transaction"
        tx.pending[table] = body
        return 1

    # -- readers

    async def _fetchval(self, tx: Tx, sql: str, args: Any) -> Any:
        if "pg_control_system" in sql:
            return self.identifier
        if "pg_snapshot_xmin" in sql:
            return str(tx.snapshot[1])
        if "pg_snapshot_xmax" in sql:
            return str(tx.snapshot[2])
        if "min(max_received_ns)" in sql:
            assert sql.endswith("WHERE max_received_ns > 0"), sql
            return min((b.max_ns for b in self._seen(tx) if b.max_ns > 0), default=None)
        if "max(batch_id)" in sql:
            return max((b.batch_id for b in self._seen(tx)), default=0)
        raise NotImplementedError(f"the simulated database does not know {sql!r}")

    async def _fetchrow(self, tx: Tx, sql: str, args: Any) -> Record | None:
        seen = self._seen(tx)
        if "FROM spool_cursor" in sql:
            told_ns = max((b.max_ns for b in seen), default=0)
            names = ("segment", "offset_bytes", "batch_id", "told_ns")
            return Record(names, (*self.cursors[args[0]], told_ns))
        if "min(xid" in sql:
            at = min((b.xid for b in seen if b.batch_id >= args[0]), default=None)
            before = max((b.xid for b in seen if b.batch_id < args[0]), default=None)
            return Record(("at", "before"), (at, before))
        if "FROM control" in sql:
            kinds = (ControlKind.GATHERER_END, ControlKind.CONN_OPEN)
            ends = [(c[0], c[1], c[9]) for b in seen for c in b.controls if c[9] in kinds]
            if not ends:
                return None
            batch_id, _, kind = max(ends)
            return Record(("batch_id", "kind"), (batch_id, kind))
        raise NotImplementedError(f"the simulated database does not know {sql!r}")

    async def _fetch(self, tx: Tx, sql: str, args: Any) -> list[Record]:
        seen = self._seen(tx)
        if "lag(batch_id" in sql:  # dedup.pull: batches that are gone
            ids = sorted(b.batch_id for b in seen if b.batch_id >= args[0])
            before = [args[0] - 1, *ids]
            return [
                Record(("first", "batch_id"), (low + 1, high))
                for low, high in zip(before, ids, strict=False)
                if high > low + 1
            ]
        if sql.startswith("SELECT run_id FROM control"):
            found = [
                c for b in seen if b.batch_id >= args[1] for c in b.controls if c[9] == args[0]
            ]
            return [Record(("run_id",), (c[6],)) for c in found]
        if "FROM ingest_batch" in sql:
            return self._batches(seen, sql, args)
        if "FROM market " in sql:
            rows = [m for b in seen for m in b.markets if args[0] <= m[1] <= args[1]]
            return [Record(("market_id", "ticker"), (m[0], m[2])) for m in sorted(rows)]
        chosen = _chosen(seen, sql, args)
        if "FROM orderbook_snapshot" in sql:
            rows = [tuple(s[n] for n in SNAPSHOT_ORDER) for b in chosen for s in b.snapshots]
            rows.sort(key=lambda r: (r[7], r[5], r[6], r[4]))
            return [Record([""] * len(r), r) for r in rows]
        if "FROM control" in sql:
            rows = [tuple(c[n] for n in CONTROL_ORDER) for b in chosen for c in b.controls]
            return [Record([""] * len(r), r) for r in sorted(rows, key=lambda r: r[:2])]
        raise NotImplementedError(f"the simulated database does not know {sql!r}")

    def _batches(self, seen: list[Batch], sql: str, args: Any) -> list[Record]:
        """The two windows of dedup.pull: by batch id, and by transaction id."""
        limit = int(args[-1])
        if "batch_id > $1" in sql:
            found = sorted((b for b in seen if b.batch_id > args[0]), key=lambda b: b.batch_id)
        else:
            low, high = int(args[0]), int(args[1])
            over = number_of(sql, r"xid (>=|>) \$1")
            under = number_of(sql, r"xid (<=|<) \$2")
            found = [
                b
                for b in seen
                if (b.xid >= low if over == ">=" else b.xid > low)
                and (b.xid < high if under == "<" else b.xid <= high)
            ]
            found.sort(key=lambda b: b.xid)
        names = ("batch_id", "xid", "n_deltas", "n_rows", "max_received_ns")
        return [
            Record(names, (b.batch_id, str(b.xid), b.n_deltas, b.n_rows, b.max_ns))
            for b in found[:limit]
        ]

    async def _copy_out(self, tx: Tx, sql: str, args: Any) -> bytes:
        table = number_of(sql, r"FROM (\w+) WHERE")
        chosen = _chosen(self._seen(tx), sql, args)
        # A heap gives rows in the order of its free pages, not of their arrival.
        return b"".join(b.bodies.get(table, b"") for b in reversed(chosen))


def _chosen(seen: list[Batch], sql: str, args: Any) -> list[Batch]:
    found = re.search(r"ANY\('\{([\d,]*)\}'", sql)
    ids = {int(n) for n in found[1].split(",")} if found else None
    written = re.search(r"BETWEEN (\d+) AND (\d+)", sql)  # COPY takes no parameters
    first, last = map(int, written.groups()) if written else args
    return [b for b in seen if first <= b.batch_id <= last and (ids is None or b.batch_id in ids)]
