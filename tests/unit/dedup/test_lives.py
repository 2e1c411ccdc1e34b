"""A gatherer that lost its disk: its numbers are moved behind the old ones, its old runs end."""

from __future__ import annotations

import numpy as np

from dedup.lives import REPLACED, Life, Lives
from marketdata.rows import DELTA_ROW, ControlKind, ControlRow, GathererBatch, SnapshotRow


def batch(number: int, *runs: int, ns: int = 0, rows_of: int = 0) -> GathererBatch:
    """One batch in which these runs begin, each on a connection of its number."""
    rows = np.zeros(2 if rows_of else 0, DELTA_ROW)
    rows["batch_id"], rows["run_id"], rows["seq"] = number, rows_of, np.arange(rows.size)
    return GathererBatch(
        0, number, number, ns or number * 10, rows,
        controls=[
            ControlRow(number, n, 1, ControlKind.RUN_START, run, run_id=run, sid=2)
            for n, run in enumerate(runs)
        ],
    )  # fmt: skip


def ends(made: GathererBatch) -> list[tuple[int, int, str]]:
    return [
        (c.batch_id, c.run_id, c.reason) for c in made.controls if c.kind == ControlKind.RUN_END
    ]


def test_the_first_life_is_passed_on_as_it_is() -> None:
    lives = Lives(Life())
    made = lives.lift(batch(3, 7, rows_of=7), 99)
    assert (made.first_batch_id, made.deltas["run_id"].tolist()) == (3, [7, 7])
    assert ends(made) == []
    told = Life.decode(made.life)
    assert (told.number, told.system_identifier, told.batch_max, told.run_max) == (0, 99, 3, 7)


def test_ids_that_begin_again_are_moved_and_open_runs_end_once() -> None:
    lives = Lives(Life())
    lives.lift(batch(3, 1, 2, rows_of=2), 99)
    over = GathererBatch(0, 4, 4, 40, np.empty(0, DELTA_ROW), controls=[
        ControlRow(4, 0, 1, ControlKind.RUN_END, 1, run_id=1)])  # fmt: skip
    lives.lift(over, 99)
    first = batch(1, 1, ns=500, rows_of=1)
    first.snapshots = [SnapshotRow(1, 1, 0, 0, 1, 1, 1, 1, 1, 0, b"")]
    lives.begin(77, first)
    made = lives.lift(first, 77)
    assert ends(made) == [(5, 2, REPLACED)]  # run 1 had ended before
    assert (made.first_batch_id, made.last_batch_id) == (5, 5)
    assert made.deltas["batch_id"].tolist() == [5, 5]
    assert made.deltas["run_id"].tolist() == [3, 3]
    assert (made.snapshots[0].run_id, made.snapshots[0].batch_id) == (3, 5)
    assert [(c.run_id, c.conn_id) for c in made.controls if c.kind == ControlKind.RUN_START] == [
        (3, 3)
    ]
    assert ends(lives.lift(batch(2), 77)) == []
    assert first.deltas["run_id"].tolist() == [1, 1]  # what was read stays as it was read


def test_run_ids_that_lie_beyond_the_old_ones_are_not_moved() -> None:
    """A new spool begins with ids of its own time: they stay what the gatherer calls them."""
    lives = Lives(Life())
    lives.lift(batch(3, 10), 99)
    lives.begin(77, batch(1, 1_000))
    made = lives.lift(batch(1, 1_000), 77)
    assert [c.run_id for c in made.controls] == [10, 1_000]
    assert made.first_batch_id == 4


def test_a_row_without_a_run_gets_none() -> None:
    lives = Lives(Life(number=1, batch_base=3, run_base=10, batch_max=3))
    rows = np.zeros(1, DELTA_ROW)
    made = lives.lift(GathererBatch(0, 9, 9, 1, rows), 77)
    assert made.deltas["run_id"].tolist() == [0]


def test_after_a_restart_the_ends_come_again_until_they_are_published() -> None:
    """INV-L2: the arbiter knows the ended runs still, and reads from the life's first batch."""
    lives = Lives(Life())
    lives.lift(batch(3, 1, 2), 99)
    lives.begin(77, batch(1, 1))
    token = lives.lift(batch(1, 1), 77).life
    life = Life.decode(token)
    assert life.local(4) == 1
    again = Lives(life, open_runs=[1, 2, 3], from_batch=life.local(4))
    assert again.known_here() == {1}
    assert ends(again.lift(batch(1), 77)) == [(4, 1, REPLACED), (4, 2, REPLACED)]
    later = Lives(life, open_runs=[3], from_batch=2)
    assert ends(later.lift(batch(2), 77)) == []


def test_a_second_replacement_moves_on_from_the_first() -> None:
    lives = Lives(Life())
    lives.lift(batch(3, 5), 99)
    for identifier in (77, 66):
        lives.begin(identifier, batch(1, 5))
        made = lives.lift(batch(1, 5), identifier)
    assert made.first_batch_id == 5
    assert ends(made) == [(5, 10, REPLACED)]
    assert [c.run_id for c in made.controls if c.kind == ControlKind.RUN_START] == [15]
    assert Life.decode(made.life).number == 2


def test_nothing_known_is_the_first_life() -> None:
    assert Life.decode(b"") == Life()
