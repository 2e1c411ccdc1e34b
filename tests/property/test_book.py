"""Books under any sequence of changes: the vectorised forms equal the plain ones."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from marketdata import book as books
from marketdata.book import Book
from tests.property import strategies as gen

Level = tuple[int, int]


@given(gen.levels(), gen.levels(), gen.changes)
def test_columns_equal_one_by_one(
    yes: list[Level], no: list[Level], rows: list[tuple[int, int, int]]
) -> None:
    """The gatherer applies single deltas, the deduplicator columns: they must never differ."""
    start = Book(yes, no)
    plain = start.copy()
    hashes, negative = [], -1
    for i, row in enumerate(rows):
        if plain.apply(*row) < 0 and negative < 0:
            negative = i
        hashes.append(plain.hash)
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    side, price, delta = table[:, 0], table[:, 1], table[:, 2]
    end = books.apply_many(start, side, price, delta)
    assert end == plain
    assert end.hash == plain.hash == books.hash_levels(plain.yes.items(), plain.no.items())
    assert books.running_hash(start.hash, side, price, delta).tolist() == hashes
    assert books.first_negative(start, side, price, delta) == negative


@given(gen.levels(), gen.levels())
def test_canonical_bytes_are_one_to_one(yes: list[Level], no: list[Level]) -> None:
    """Equal books, equal bytes, whatever the order the levels came in."""
    packed = books.pack_levels(reversed(yes), reversed(no))
    assert books.unpack_levels(packed) == (yes, no)
    assert Book.from_bytes(packed).to_bytes() == packed


@given(gen.levels(), gen.levels(), st.data())
def test_any_single_change_changes_the_hash(
    yes: list[Level], no: list[Level], data: st.DataObject
) -> None:
    """C is odd, so C * delta is 0 mod 2^64 only for delta = 0 (sizes are far below 2^63)."""
    book = Book(yes, no)
    before = book.hash
    delta = data.draw(gen.deltas.filter(bool))
    book.apply(data.draw(gen.sides), data.draw(gen.ticks), delta)
    assert book.hash != before
