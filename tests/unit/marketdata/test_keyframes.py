"""Computed books: right where the chain says so, none where it does not."""

from __future__ import annotations

import random

import numpy as np
import pytest

from marketdata.book import Book
from marketdata.keyframes import book_at
from marketdata.rows import MERGED_ROW, DeltaFlag


def played(
    n: int, seed: int = 1, resets: tuple[int, ...] = ()
) -> tuple[bytes, np.ndarray, list[Book]]:
    """A keyframe, `n` changes after it, and the true book after each."""
    rng = random.Random(seed)
    book = Book([(410_000, 500)], [(560_000, 700)])
    start, rows, books = book.to_bytes(), np.zeros(n, MERGED_ROW), []
    for i in range(n):
        side, price = rng.randrange(2), 10_000 * rng.randrange(30, 40)
        delta = rng.choice((100, 200, -book.size(side, price) or 300))
        flags = 0
        if i in resets:
            book.clear()
            delta, flags = 0, int(DeltaFlag.RESET)
        else:
            book.apply(side, price, delta)
        rows[i] = (i, i, delta, book.hash, i + 1, 1, 1, price, side, flags, 1)
        books.append(book.copy())
    return start, rows, books


@pytest.mark.parametrize("resets", [(), (20,), (3, 20, 21), (39,)])
def test_every_book_on_the_way_is_the_one_that_single_steps_give(resets: tuple[int, ...]) -> None:
    start, rows, books = played(40, resets=resets)
    places = [1, 7, 20, 21, 22, 40]
    assert [book_at(start, 0, rows[:p], p) for p in places] == [books[p - 1] for p in places]


def test_without_changes_it_is_the_keyframe_itself() -> None:
    start, rows, _ = played(1)
    assert book_at(start, 0, rows[:0], 0) == Book.from_bytes(start)
    assert book_at(start, 0, rows[:0], 1) is None, "its change is missing"


def test_a_book_that_the_chain_does_not_prove_is_none() -> None:
    """The control: a changed size, a missing change, another keyframe, bytes that are no book."""
    start, rows, _ = played(10)
    wrong = rows.copy()
    wrong["delta"][4] += 1
    assert [book_at(start, 0, wrong[:p], p) for p in (5, 10)] == [None, None]
    assert book_at(start, 0, wrong[:4], 4) is not None
    assert book_at(start, 0, np.delete(rows, 4), 10) is None
    assert book_at(start, 0, rows[:9], 10) is None
    assert book_at(start, 1, rows, 10) is None
    assert book_at(Book([(10_000, 1)], []).to_bytes(), 0, rows, 10) is None
    assert [book_at(b"\x01", 0, rows[:p], p) for p in (1, 2)] == [None, None]
