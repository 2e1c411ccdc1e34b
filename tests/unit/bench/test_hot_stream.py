"""The made-up recordings of benchmarks are sound: unsound ones would measure quarantine."""

from __future__ import annotations

from collections import Counter

import numpy as np

from marketdata.book import Book
from tests.bench.hot_stream import DEEP, PRICES, HotStream


def test_the_hash_chain_is_that_of_the_books() -> None:
    """Wherever the calls cut the stream, and in every market."""
    stream = HotStream(5, 1_000)
    levels = [(cent * 10_000, DEEP) for cent in range(1, PRICES + 1)]
    books = [Book(levels, levels) for _ in range(5)]
    assert {book.hash for book in books} == {stream.opening_hash}
    seq = 5
    for count in (1, 400, 17):
        for row in stream.next(count):
            seq += 1
            book = books[row["market_id"] - 1]
            book.apply(int(row["side"]), int(row["price"]), int(row["delta"]))
            assert (book.hash, row["seq"]) == (int(row["book_hash"]), seq)


def test_some_changes_repeat_in_their_microsecond() -> None:
    """Otherwise a design that knows content only would lose nothing."""
    rows = HotStream(50, 5_000).next(20_000)
    fields = ("market_id", "exchange_us", "side", "price", "delta")
    seen = Counter(zip(*(rows[name].tolist() for name in fields), strict=True))
    repeats = sum(n - 1 for n in seen.values())
    assert 20 <= repeats <= 120
    assert (np.diff(rows["exchange_us"]) >= 0).all()


def test_the_rate_is_that_of_the_exchange_time() -> None:
    """A backlog is told in seconds of it."""
    stream = HotStream(3, 250)
    times_us = np.concatenate([stream.next(500)["exchange_us"] for _ in range(2)])
    assert times_us[-1] - times_us[0] == 999 * 4_000
