"""Lives of one gatherer: what it recorded before and after its disk was replaced by an empty one.

Purpose: let a gatherer that lost everything simply join again. Its new database counts batches from
1, and its runs and connections may get ids that were given before. So what is read of a later life
is moved behind everything read of the former ones before it goes to the arbiter, and every run that
was open when the former life ended is ended (`replaced`): it proves what it had shown, no more.

How it is known after a restart: the `Life` goes with every batch, the arbiter keeps the latest one
with its state ("life-<gatherer>") and so it is stored with the positions that count in it.

Invariants:
- INV-L1 a batch, run or connection id of one gatherer means one thing in all its lives.
- INV-L2 the runs that a replacement ends are ended again after a restart until that is published:
  their ends carry the number of the first batch of the new life.
- INV-L3 the ids of the newest life are moved only if they collide; market ids never are, as a
  market's row comes again with the first batch that needs it.

Does not do: finding out that a database was replaced (pull), merging.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final, Self

import msgspec
import numpy as np

from dedup.columns import copied
from marketdata.rows import ControlKind, ControlRow, DeltaRows, GathererBatch

REPLACED: Final = "replaced"  # how a run ended


class Life(msgspec.Struct, frozen=True):
    """One life: what its ids are moved by, and how far it was read (moved ids)."""

    number: int = 0
    system_identifier: int = 0
    batch_base: int = 0
    run_base: int = 0
    connection_base: int = 0
    batch_max: int = 0
    run_max: int = 0
    connection_max: int = 0
    received_ns: int = 0
    over: tuple[int, ...] = ()  # runs that ended with the life before

    @classmethod
    def decode(cls, token: bytes) -> Self:
        """The life that a stored state tells of."""
        return msgspec.msgpack.decode(token, type=cls) if token else cls()

    def encode(self) -> bytes:
        """For the state."""
        return msgspec.msgpack.encode(self)

    def local(self, batch_id: int) -> int:
        """The gatherer's own number of a batch; 0 or less: of a former life."""
        return batch_id - self.batch_base

    def next(self, system_identifier: int, first: GathererBatch, over: Iterable[int]) -> Life:
        """The life that begins with `first`, as it was read."""
        runs = [c.run_id for c in first.controls if c.kind == ControlKind.RUN_START]
        connections = [c.conn_id for c in first.controls if c.conn_id > 0]
        runs += [int(r) for r in np.unique(first.deltas["run_id"])]
        return Life(
            number=self.number + 1,
            system_identifier=system_identifier,
            batch_base=self.batch_max,
            run_base=self.run_max if min(runs, default=0) <= self.run_max else 0,
            connection_base=(
                self.connection_max if min(connections, default=0) <= self.connection_max else 0
            ),
            batch_max=self.batch_max,
            run_max=self.run_max,
            connection_max=self.connection_max,
            received_ns=self.received_ns,
            over=tuple(sorted(over)),
        )


class Lives:
    """Moves what is read of one gatherer. `open_runs`: those that the arbiter knew (moved ids);
    `from_batch`: where reading goes on, as the gatherer numbers it."""

    def __init__(self, life: Life, open_runs: Iterable[int] = (), from_batch: int = 1) -> None:
        self.life = life
        self._open = set(open_runs)
        self._owed = from_batch <= 1  # the ends of the life before are (again) to be told

    def known_here(self) -> set[int]:
        """Open runs of this life, as the gatherer numbers them."""
        own = (run_id - self.life.run_base for run_id in self._open - set(self.life.over))
        return {run_id for run_id in own if run_id > 0}

    def begin(self, system_identifier: int, first: GathererBatch) -> None:
        """The database was replaced by an empty one, of which `first` is the first read."""
        self.life = self.life.next(system_identifier, first, self._open)
        self._open = set()
        self._owed = True

    def lift(self, batch: GathererBatch, system_identifier: int) -> GathererBatch:
        """The batch as the arbiter takes it, with ids that no former life used."""
        life = self.life
        ends: list[ControlRow] = []
        if self._owed:
            ends = [self._end(run_id, n) for n, run_id in enumerate(life.over)]
            self._owed = False
        moved = batch if not life.batch_base else self._moved(batch)
        if ends:
            moved = replace(moved, controls=[*ends, *moved.controls])
        started = {c.run_id for c in moved.controls if c.kind == ControlKind.RUN_START}
        self._open |= started
        self._open -= {c.run_id for c in moved.controls if c.kind == ControlKind.RUN_END}
        runs = [*started, int(moved.deltas["run_id"].max()) if moved.deltas.size else 0]
        self.life = msgspec.structs.replace(
            life,
            system_identifier=system_identifier,
            batch_max=max(life.batch_max, moved.last_batch_id),
            run_max=max(life.run_max, *runs),
            connection_max=max([life.connection_max, *(c.conn_id for c in moved.controls)]),
            received_ns=max(life.received_ns, batch.max_received_ns),
        )
        return replace(moved, life=self.life.encode())

    def _end(self, run_id: int, place: int) -> ControlRow:
        life = self.life
        return ControlRow(
            life.batch_base + 1, place, life.received_ns, ControlKind.RUN_END, 0, run_id,
            reason=REPLACED,
        )  # fmt: skip

    def _moved(self, batch: GathererBatch) -> GathererBatch:
        by, runs, connections = (
            self.life.batch_base, self.life.run_base, self.life.connection_base,
        )  # fmt: skip
        return replace(
            batch,
            first_batch_id=batch.first_batch_id + by,
            last_batch_id=batch.last_batch_id + by,
            deltas=_shifted(batch.deltas, by, runs),
            trades=_shifted(batch.trades, by, runs),
            tickers=_shifted(batch.tickers, by, runs),
            snapshots=[
                replace(s, batch_id=s.batch_id + by, run_id=s.run_id + runs)
                for s in batch.snapshots
            ],
            controls=[
                replace(
                    c,
                    batch_id=c.batch_id + by,
                    run_id=c.run_id + runs if c.run_id > 0 else c.run_id,
                    conn_id=c.conn_id + connections if c.conn_id > 0 else c.conn_id,
                )
                for c in batch.controls
            ],
        )


def _shifted(rows: DeltaRows, batches: int, runs: int) -> DeltaRows:
    if not rows.size:
        return rows
    moved = copied(rows)
    names = moved.dtype.names or ()
    if "batch_id" in names:
        moved["batch_id"] += batches
    if "run_id" in names:
        moved["run_id"][moved["run_id"] > 0] += runs
    return moved
