"""Rows that wait for their window."""

from __future__ import annotations

import random
from dataclasses import dataclass

from dedup.waiting import Waiting


@dataclass
class Row:
    batch_id: int
    number: int


def test_nothing_waits_at_first() -> None:
    """An empty store has no earliest window and no oldest batch."""
    waiting: Waiting[Row] = Waiting()
    assert waiting.next_window is None
    assert waiting.oldest_batch is None
    assert waiting.take(10) == []


def test_what_is_due_comes_once_in_order_of_arrival() -> None:
    """Compared with the plain way: a list that is looked through every time."""
    rng = random.Random(3)
    waiting: Waiting[Row] = Waiting()
    plain: list[tuple[int, Row]] = []
    for step in range(300):
        for _ in range(rng.randint(0, 4)):
            window, row = rng.randint(0, 30), Row(rng.randint(1, 50), step)
            waiting.add(window, row)
            plain.append((window, row))
        at = rng.randint(0, 12)
        assert waiting.take(at) == [row for w, row in plain if w <= at]
        plain = [(w, row) for w, row in plain if w > at]
        assert waiting.next_window == min((w for w, _ in plain), default=None)
        assert waiting.oldest_batch == min((r.batch_id for _, r in plain), default=None)


def test_rows_together_wait_as_rows_one_by_one() -> None:
    """Windows that change, come back, and hold batches in any order."""
    rng = random.Random(4)
    rows = [(Row(rng.randint(1, 50), n), rng.choice([3, 3, 3, 5, 4])) for n in range(200)]
    together: Waiting[Row] = Waiting()
    single: Waiting[Row] = Waiting()
    together.extend(rows[:120])
    together.extend([])
    together.extend(rows[120:])
    for row, window in rows:
        single.add(window, row)
    for at in (3, 5):
        assert together.oldest_batch == single.oldest_batch
        assert together.next_window == single.next_window
        assert together.take(at) == single.take(at)
