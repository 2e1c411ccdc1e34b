"""Rows of one read, taken window by window."""

from __future__ import annotations

import random

import numpy as np

from dedup.items import BEFORE, PRINT, Chunk, marks_of
from marketdata.book import level_constant
from marketdata.rows import DELTA_ROW


def test_a_chunk_gives_every_row_once_by_market_and_run_and_then_arrival() -> None:
    """Compared with the plain way, for windows one by one and several at once."""
    rng = random.Random(6)
    for jump in (1, 4):
        found = sorted((rng.randrange(12), rng.randrange(5) << 32 | 1, n) for n in range(300))
        by_key: dict[int, list[int]] = {}
        for window, key, _ in found:  # within a pair the window ascends with the arrival
            by_key.setdefault(key, []).append(window)
        rows = np.zeros(300, DELTA_ROW)
        rows["seq"] = rows["received_ns"] = np.arange(300)
        rows["delta"], rows["book_hash"] = np.arange(300) - 150, np.arange(300) ** 3
        rows["batch_id"] = [rng.randrange(1, 9) for _ in range(300)]
        window, key = (np.array([f[i] for f in found], np.int64) for i in (0, 1))
        chunk = Chunk(rows, key, window)
        left = list(range(300))
        for upto in range(jump - 1, 12, jump):
            assert chunk.oldest_batch == min(int(rows["batch_id"][i]) for i in left)
            assert chunk.next_window == min(found[i][0] for i in left)
            due = [i for i in left if found[i][0] <= upto]
            taken = chunk.take(upto)
            assert taken is not None
            assert taken[0]["seq"].tolist() == sorted(due, key=lambda i: (found[i][1], i))
            assert taken[1].tolist() == sorted(found[i][1] for i in due)
            assert taken[2].tolist() == marks_of(taken[0]).tolist()
            left = [i for i in left if i not in due]
            assert chunk.take(upto) is None
        assert chunk.used_up


def test_a_chunk_knows_the_window_of_a_pairs_latest_row() -> None:
    rows = np.zeros(4, DELTA_ROW)
    rows["seq"] = [4, 5, 7, 9]
    chunk = Chunk(rows, np.array([8, 9, 8, 8], np.int64), np.array([1, 1, 2, 3], np.int64))
    asked = [chunk.window_of(8, seq) for seq in (3, 4, 6, 7, 20)]
    assert asked == [-1, 1, 1, 2, 3]
    assert [chunk.window_of(key, 20) for key in (7, 9, 10)] == [-1, 1, -1]


def test_marks_tell_the_book_before_a_row_and_rows_apart() -> None:
    rows = np.zeros(5, DELTA_ROW)
    rows["exchange_us"], rows["price"], rows["delta"] = [1, 2, 1, 1, 1], 500_000, [7, 7, 8, 7, 7]
    rows["side"] = [0, 0, 0, 1, 0]
    rows["book_hash"] = [
        (level_constant(int(r["side"]), 500_000) * int(r["delta"]) + 11) % 2**64 for r in rows
    ]
    marks = marks_of(rows)
    assert marks[:, BEFORE].tolist() == [11] * 5
    prints = marks[:, PRINT].tolist()
    assert prints[0] == prints[4]
    assert len(set(prints)) == 4
    assert marks_of(rows[:0]).shape == (0, 2)
