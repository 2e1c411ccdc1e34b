"""The book and its hash: two gatherers compare books by this number alone."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from marketdata import book as books
from marketdata.book import Book
from marketdata.errors import SegmentError

YES, NO = 0, 1


def splitmix(x: int) -> int:
    """The definition of docs/formats.md, written a second time."""
    m = 2**64
    x = (x + 0x9E3779B97F4A7C15) % m
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) % m
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) % m
    return x ^ x >> 31


def test_level_constant_is_the_documented_one_and_odd() -> None:
    """Other readers compute it from docs/formats.md; splitmix64(0) is a published test value."""
    assert splitmix(0) == 0xE220A8397B1DCDAF
    for side in (YES, NO):
        for price in (0, 1, 570_000, 1_000_000):
            constant = books.level_constant(side, price)
            assert constant == splitmix(side * 2**32 + price) | 1
            assert constant % 2 == 1


def test_level_constants_past_the_memo_limit_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memo is bounded; a price that does not fit in it must still have its constant."""
    monkeypatch.setattr(books, "MAX_CONSTANTS", 0)
    price = 123_457
    assert books.CONSTANTS[YES].get(price) is None
    assert books.level_constant(YES, price) == splitmix(price) | 1
    assert books.CONSTANTS[YES].get(price) is None


def test_column_of_constants_equals_one_by_one() -> None:
    """The deduplicator hashes columns, the gatherer single levels: same numbers."""
    side = np.array([0, 1, 0, 1], dtype="i2")
    price = np.array([0, 1_000_000, 570_000, 570_000], dtype="i4")
    got = books.level_constants(side, price)
    assert got.dtype == np.uint64
    assert got.tolist() == [
        books.level_constant(s, p) for s, p in zip(side.tolist(), price.tolist(), strict=True)
    ]


def test_apply_adds_removes_at_zero_and_keeps_a_negative_level() -> None:
    """New = old + delta; a level below zero says that a change was missed and must stay visible."""
    book = Book()
    assert book.apply(YES, 570_000, 1200) == 1200
    assert book.apply(YES, 570_000, -1200) == 0
    assert not book
    assert book.hash == 0
    assert book.apply(NO, 300_000, -5) == -5
    assert book.is_negative()
    assert book.size(NO, 300_000) == -5
    assert book.size(YES, 300_000) == 0
    assert book.apply(NO, 300_000, 5) == 0
    assert not book.is_negative()


def test_removal_of_a_level_that_never_was_leaves_no_trace() -> None:
    """A zero delta must not create a level of size 0 (INV-2)."""
    book = Book()
    assert book.apply(YES, 10_000, 0) == 0
    assert book.yes == {}


def test_hash_follows_every_change_and_equals_that_of_the_levels() -> None:
    """One multiply-add per delta equals hashing the whole book."""
    book = Book([(100, 7)], [(200, 9)])
    assert book.hash == books.hash_levels([(100, 7)], [(200, 9)])
    book.apply(NO, 200, -20)
    assert book.hash == books.hash_levels([(100, 7)], [(200, -11)])
    assert book.hash != books.hash_levels([(100, 7)], [(200, 11)])


def test_best_prices_of_both_sides_ignore_levels_below_zero() -> None:
    """Both sides are bids: the ask of one is a dollar less the best bid of the other."""
    book = Book([(10_000, 100), (570_000, 200)], [(400_000, 300), (420_000, -1)])
    assert book.best_bid() == (570_000, 200)
    assert book.best_bid(NO) == (400_000, 300)
    assert book.best_ask() == (600_000, 300)
    assert book.best_ask(NO) == (430_000, 200)
    assert Book().best_bid() is None
    assert Book().best_ask() is None


def test_levels_are_ascending_and_load_drops_zero_sizes() -> None:
    """The form of the exchange's own snapshots."""
    book = Book([(30, 1), (10, 2), (20, 0)], [(5, 5)])
    assert book.levels(YES) == [(10, 2), (30, 1)]
    assert book.levels(NO) == [(5, 5)]
    book.clear()
    assert (book.levels(YES), book.levels(NO), book.hash) == ([], [], 0)


def test_canonical_bytes_are_the_documented_ones() -> None:
    """docs/formats.md section 2, packed by hand."""
    book = Book([(570_000, 1200), (10_000, 5)], [(300_000, -7)])
    expected = struct.pack("<II", 2, 1)
    expected += struct.pack("<iq", 10_000, 5) + struct.pack("<iq", 570_000, 1200)
    expected += struct.pack("<iq", 300_000, -7)
    assert book.to_bytes() == expected
    assert Book.from_bytes(expected) == book
    assert Book.from_bytes(expected).hash == book.hash
    assert books.pack_levels([], []) == struct.pack("<II", 0, 0)


@pytest.mark.parametrize(
    ("packed", "says"),
    [
        (b"", "counts"),
        (b"\0" * 7, "counts"),
        (struct.pack("<II", 1, 0), "do not hold"),
        (struct.pack("<II", 0, 0) + b"\0", "do not hold"),
        (struct.pack("<IIiqiq", 2, 0, 5, 1, 5, 1), "ascending"),
        (struct.pack("<IIiqiq", 0, 2, 6, 1, 5, 1), "ascending"),
        (struct.pack("<IIiq", 1, 0, 5, 0), "size of 0"),
    ],
)
def test_bytes_that_are_not_canonical_are_refused(packed: bytes, says: str) -> None:
    """Two spellings of one book would break the comparison by bytes."""
    with pytest.raises(SegmentError, match=says):
        books.unpack_levels(packed)


def test_books_compare_by_levels_and_copies_are_independent() -> None:
    """A copy that shares its levels would change under the reader's hands."""
    book = Book([(1, 1)], [])
    twin = book.copy()
    assert twin == book
    twin.apply(YES, 1, 1)
    assert twin != book
    assert book != [(1, 1)]
    assert "1 levels" in repr(book)


def test_apply_many_leaves_the_first_book_and_equals_one_by_one() -> None:
    """Twice the same level, a level emptied, a level opened, one driven below zero."""
    start = Book([(10, 5), (20, 5)], [(10, 1)])
    rows = [(0, 10, -2), (0, 10, -3), (1, 30, 4), (1, 10, -2), (0, 20, 1)]
    side, price, delta = (np.array(c, dtype="i8") for c in zip(*rows, strict=True))
    one_by_one = start.copy()
    hashes = []
    for row in rows:
        one_by_one.apply(*row)
        hashes.append(one_by_one.hash)
    got = books.apply_many(start, side, price, delta)
    assert got == one_by_one
    assert got.hash == one_by_one.hash
    assert start == Book([(10, 5), (20, 5)], [(10, 1)])
    assert books.running_hash(start.hash, side, price, delta).tolist() == hashes


def test_first_negative_names_the_first_event_that_breaks_a_level() -> None:
    """The running sum decides, not the final one: a level may recover later."""
    start = Book([(10, 5)], [])
    side = np.zeros(4, dtype="i2")
    price = np.array([10, 10, 10, 20], dtype="i4")
    delta = np.array([-4, -2, 9, -1], dtype="i8")
    assert books.first_negative(start, side, price, delta) == 1
    assert books.first_negative(start, side[:1], price[:1], delta[:1]) == -1
    assert books.first_negative(start, side[3:], price[3:], delta[3:]) == 0


def test_empty_columns_change_nothing() -> None:
    """A window without rows is the commonest of all."""
    empty = np.array([], dtype="i8")
    start = Book([(10, 5)], [])
    assert books.apply_many(start, empty, empty, empty) == start
    assert books.first_negative(start, empty, empty, empty) == -1
    assert books.running_hash(7, empty, empty, empty).tolist() == []
