"""Rows that a gatherer no longer has: what of it may still be used, and what its runs still prove.

Purpose: a gatherer numbers its batches without a hole. Where the next one is not the one that
follows, those between are gone (production was restored from a state before them, or the
deduplicator was away for longer than the gatherer keeps). Whoever went on reading a run across them
would call complete what is missing.

Invariants:
- INV-O1 every run that was open before the hole ends there (`rows_lost`); its later order-book rows
  are left out until a run begins that was read from its start.
- INV-O2 the outcome does not depend on where a restart begins to read: the end carries the number
  of the first batch that is gone, so that it is found again until it is in production.

Trades and ticker states need no run to be used: they stay, and prove nothing for a run that ended
at the hole. So do control rows but those on how a run ended that is not used any more.

Does not do: finding the hole (pull), bringing the rows back (`tape repair`, from the spool).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from dedup.columns import copied, picked
from marketdata.rows import ControlKind, ControlRow, GathererBatch, TradeRows

ROWS_LOST: Final = "rows_lost"
_OF_RUNS: Final = (ControlKind.RUN_END, ControlKind.MARKET_REMOVED)  # of no use without the run


@dataclass(frozen=True, slots=True)
class Gone:
    """Batches [from_batch, to_batch) are gone. `started`: runs that begin after them."""

    from_batch: int
    to_batch: int
    started: frozenset[int]

    def told(self) -> str:
        """In words, for logs and /health."""
        which = f"batches {self.from_batch} to {self.to_batch - 1}"
        return f"{which} are gone: its runs end there, `tape repair` can bring them from its spool"


class KnownRuns:
    """Which runs of one gatherer were read from their start, or are known to the arbiter."""

    __slots__ = ("_over", "_runs", "left_out")

    def __init__(self, runs: Iterable[int]) -> None:
        self._runs = set(runs)
        self._over: set[int] = set()  # ended at a hole
        self.left_out = 0  # rows

    def usable(self, batch: GathererBatch, gone: Gone | None) -> GathererBatch:
        """The batch without order-book rows of other runs, and with the ends that `gone` brings."""
        ends: list[ControlRow] = []
        if gone is not None:
            over = sorted(self._runs - gone.started)
            ends = [_end(run_id, n, batch, gone) for n, run_id in enumerate(over)]
            self._runs.difference_update(over)
            self._over.update(over)
        self._runs.update(c.run_id for c in batch.controls if c.kind == ControlKind.RUN_START)
        known = np.fromiter(self._runs, np.int32, len(self._runs))
        keep = np.flatnonzero(np.isin(batch.deltas["run_id"], known))
        snapshots = [s for s in batch.snapshots if s.run_id in self._runs]
        left_out = batch.deltas.size - keep.size + len(batch.snapshots) - len(snapshots)
        trades = self._without_run(batch.trades)
        controls = [c for c in batch.controls if c.kind not in _OF_RUNS or c.run_id in self._runs]
        changed = left_out or ends or trades is not batch.trades
        if not changed and len(controls) == len(batch.controls):
            return batch
        self.left_out += left_out
        return replace(
            batch,
            deltas=picked(batch.deltas, keep),
            snapshots=snapshots,
            trades=trades,
            controls=[*ends, *controls],
        )

    def _without_run(self, trades: TradeRows) -> TradeRows:
        """The trades, those of runs that ended at a hole as of no run."""
        ended = np.fromiter(self._over, np.int32, len(self._over))
        mine = np.isin(trades["run_id"], ended)
        if not mine.any():
            return trades
        made = copied(trades)
        made["run_id"][mine] = 0
        return made


def _end(run_id: int, place: int, batch: GathererBatch, gone: Gone) -> ControlRow:
    return ControlRow(
        gone.from_batch, place, batch.max_received_ns, ControlKind.RUN_END, 0, run_id,
        reason=ROWS_LOST,
    )  # fmt: skip
