"""The parts of reading that need no database; the rest is in integration/test_dedup_pull.py."""

from __future__ import annotations

import sqlite3
from typing import Any

import numpy as np
import pytest

from dedup.pull import Position, _Chosen, _moved, in_order
from marketdata.errors import StorageError
from marketdata.rows import DELTA_ROW


def _chosen(*ids: int) -> _Chosen:
    return _Chosen(ids, xid_after=0, n_deltas=0, n_rows=0, max_received_ns=0)


def test_order_is_total_over_batch_run_and_seq_with_high_bit() -> None:
    """`seq` is the low 32 bits: read as signed it would put 2^31 before 1."""
    rows = np.zeros(4, DELTA_ROW)
    rows["batch_id"] = [2, 1, 1, 1]
    rows["run_id"] = [1, 9, 3, 3]
    rows["seq"] = [1, 1, 2**31, 5]
    got = in_order(rows, "batch_id", "run_id", "seq")
    assert got[["batch_id", "run_id", "seq"]].tolist() == [
        (1, 3, 5),
        (1, 3, 2**31),
        (1, 9, 1),
        (2, 1, 1),
    ]


def test_order_is_that_of_the_columns_however_wide_they_are() -> None:
    """Compared with the plain way: in order already, packed into one number, too wide for that."""
    rng = np.random.default_rng(1)
    for wide in (3, 2**20, 2**40):
        rows = np.zeros(500, DELTA_ROW)
        for name, top in (("batch_id", 5), ("run_id", 4), ("seq", 2**32), ("delta", wide)):
            rows[name] = rng.integers(0, top, 500)
        rows["received_ns"] = np.arange(500)  # tells rows of equal columns apart
        for names in (("batch_id", "run_id"), ("batch_id", "seq", "delta"), ("delta", "batch_id")):
            got = in_order(rows, *names)
            keys = [tuple(int(row[name]) for name in (*names, "received_ns")) for row in got]
            assert keys == sorted(keys)
            assert in_order(got, *names) is got


def test_order_leaves_no_rows_alone() -> None:
    """An empty batch is the usual case of a quiet second."""
    assert len(in_order(np.zeros(0, DELTA_ROW), "seq")) == 0


def test_batches_without_a_hole_are_a_range() -> None:
    """A range lets the database use its block index."""
    assert _chosen(4, 3, 5).condition() == "batch_id BETWEEN $1 AND $2"


def test_batches_with_a_hole_are_named_one_by_one() -> None:
    """A row of a batch that is visible but not yet decided must not slip in through a range."""
    assert _chosen(3, 5).condition().endswith("AND batch_id = ANY('{3,5}'::integer[])")


class Batches:
    """A cluster with batches of these stamps, as far as finding a replacement asks."""

    def __init__(self, *stamps_ns: int) -> None:
        self.held = sqlite3.connect(":memory:")
        self.held.execute("CREATE TABLE ingest_batch (batch_id INTEGER, max_received_ns INTEGER)")
        rows = list(enumerate(stamps_ns, 1))
        self.held.executemany("INSERT INTO ingest_batch VALUES (?, ?)", rows)

    async def fetchval(self, sql: str) -> Any:
        return self.held.execute(sql).fetchone()[0]


@pytest.mark.parametrize(
    ("stamps_ns", "replaced"),
    [((), None), ((600,), 1), ((0,), 1), ((0, 600), 1), ((400, 450, 500, 600), 0)],
)
async def test_a_cluster_that_began_empty_is_told_from_a_copy(
    stamps_ns: tuple[int, ...], replaced: int | None
) -> None:
    """Also one that ended before it had received anything: seed 164 of the simulation."""
    before = Position(system_identifier=1, last_batch_id=3, received_ns=500)
    found = await _moved(Batches(*stamps_ns), 2, before)  # type: ignore[arg-type]
    assert (None if found is None else found.replaced) == replaced


async def test_a_cluster_set_back_to_an_older_copy_is_refused() -> None:
    before = Position(system_identifier=1, last_batch_id=3, received_ns=500)
    with pytest.raises(StorageError):
        await _moved(Batches(0, 400), 2, before)  # type: ignore[arg-type]
