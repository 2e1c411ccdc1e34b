"""Rows that wait for their window."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from dedup.waiting import Waiting

ROW = np.dtype([("number", "i8"), ("batch_id", "i4")])


def rows(found: list[tuple[int, int]]) -> np.ndarray[Any, Any]:
    """(batch, number) of each row, in the order of arrival."""
    return np.array([(number, batch) for batch, number in found], ROW)


def numbers(found: np.ndarray[Any, Any]) -> list[int]:
    return [number for number, _ in found.tolist()]


def test_nothing_waits_at_first() -> None:
    """An empty store has no earliest window and no oldest batch."""
    waiting = Waiting(ROW)
    assert waiting.next_window is None
    assert waiting.oldest_batch is None
    assert (waiting.take(10).size, waiting.take(10).dtype) == (0, ROW)
    waiting.add(rows([]), np.empty(0, np.int64))
    assert waiting.next_window is None


def test_what_is_due_comes_once_in_order_of_arrival() -> None:
    """Compared with the plain way: a list that is looked through every time."""
    rng = random.Random(3)
    waiting = Waiting(ROW)
    plain: list[tuple[int, int, int]] = []  # window, batch, number
    number = 0
    for _ in range(300):
        fresh = [
            (rng.randint(0, 30), rng.randint(1, 50), number + n) for n in range(rng.randint(0, 4))
        ]
        number += len(fresh)
        waiting.add(rows([(b, n) for _, b, n in fresh]), np.array([w for w, _, _ in fresh], "i8"))
        plain += fresh
        at = rng.randint(0, 12)
        assert numbers(waiting.take(at)) == [n for w, _, n in plain if w <= at]
        plain = [row for row in plain if row[0] > at]
        assert waiting.next_window == min((w for w, _, _ in plain), default=None)
        assert waiting.oldest_batch == min((b for _, b, _ in plain), default=None)


def test_rows_together_wait_as_rows_one_by_one() -> None:
    """Windows that change, come back, and hold batches in any order."""
    rng = random.Random(4)
    found = [(rng.randint(1, 50), n) for n in range(200)]
    window = np.array([rng.choice([3, 3, 3, 5, 4]) for _ in found], "i8")
    together, single = Waiting(ROW), Waiting(ROW)
    for some in (slice(0, 120), slice(120, 120), slice(120, 200)):
        together.add(rows(found[some]), window[some])
    for n in range(200):
        single.add(rows(found[n : n + 1]), window[n : n + 1])
    for at in (3, 5):
        assert together.oldest_batch == single.oldest_batch
        assert together.next_window == single.next_window
        assert numbers(together.take(at)) == numbers(single.take(at))


def test_rows_that_wait_are_not_those_that_were_given() -> None:
    """A later change of what was read must not change what waits."""
    waiting = Waiting(ROW)
    given = rows([(1, 7), (1, 8)])
    waiting.add(given, np.array([5, 4]))
    given["number"] = 0
    assert numbers(waiting.take(5)) == [7, 8]
