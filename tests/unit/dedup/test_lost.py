"""Rows that are gone: the runs before them end, and nothing is read across."""

from __future__ import annotations

import numpy as np

from dedup.lost import ROWS_LOST, Gone, KnownRuns
from marketdata.rows import (
    BATCH_TRADE,
    DELTA_ROW,
    ControlKind,
    ControlRow,
    GathererBatch,
    SnapshotRow,
)


def batch(
    *run_ids: int, started: tuple[int, ...] = (), snapshots: tuple[int, ...] = ()
) -> GathererBatch:
    rows = np.zeros(len(run_ids), DELTA_ROW)
    rows["run_id"] = run_ids
    return GathererBatch(
        0, 50, 51, 9_000, rows,
        [SnapshotRow(1, 1, 0, 0, 1, run, 1, 50, 0, 0, b"") for run in snapshots],
        controls=[ControlRow(50, 0, 1, ControlKind.RUN_START, 1, run) for run in started],
    )  # fmt: skip


def test_rows_of_known_runs_pass_as_they_are() -> None:
    """Nothing is copied where nothing is wrong."""
    known, given = KnownRuns([7]), batch(7, 8, started=(8,), snapshots=(8,))
    assert known.usable(given, None) is given
    assert known.left_out == 0


def test_rows_of_a_run_whose_beginning_is_gone_are_left_out() -> None:
    """Counted, never guessed; trades and controls stay."""
    known = KnownRuns([7])
    found = known.usable(batch(7, 9, 9, snapshots=(9, 7)), None)
    assert found.deltas["run_id"].tolist() == [7]
    assert [s.run_id for s in found.snapshots] == [7]
    assert known.left_out == 3


def test_every_open_run_ends_at_the_hole() -> None:
    """Those that begin after it do not, wherever their beginning is read again."""
    known = KnownRuns([7, 8, 11])
    gone = Gone(40, 50, frozenset({11, 12}))
    found = known.usable(batch(7, 11, 12, started=(12,)), gone)
    ends = [c for c in found.controls if c.kind == ControlKind.RUN_END]
    assert [(c.run_id, c.reason, c.batch_id) for c in ends] == [
        (7, ROWS_LOST, 40), (8, ROWS_LOST, 40),
    ]  # fmt: skip
    assert found.deltas["run_id"].tolist() == [11, 12]
    assert known.usable(batch(7, 8, 12), None).deltas["run_id"].tolist() == [12]
    assert "batches 40 to 49 are gone" in gone.told()


def test_a_run_ends_once() -> None:
    """Its own end comes later and is of no use any more."""
    known = KnownRuns([7])
    known.usable(batch(), Gone(40, 50, frozenset()))
    again = batch()
    again.controls = [ControlRow(60, 0, 1, ControlKind.RUN_END, 1, 7, reason="close")]
    assert known.usable(again, None).controls == []


def test_trades_stay_and_prove_nothing_for_a_run_that_ended() -> None:
    """Else the run would claim every trade up to them."""
    known, given = KnownRuns([7, 11]), batch()
    given.trades = np.zeros(2, BATCH_TRADE)
    given.trades["run_id"] = [7, 11]
    found = known.usable(given, Gone(40, 50, frozenset({11})))
    assert found.trades["run_id"].tolist() == [0, 11]
    assert given.trades["run_id"].tolist() == [7, 11], "the batch stays as it was read"
