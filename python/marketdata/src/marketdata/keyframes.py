"""Books of the tape at chosen places, computed from an earlier keyframe and the changes after it.

Purpose: keyframes of our own, so that a reader starts near: at every EVERY_EVENTS-th event of an
epoch, at the start of an hour in which the market moved before, at the start of a day for all.
Invariants: INV-92 a computed book's hash is the chain's hash at its place, else it is none: a book
that cannot be proven is not written.
Does not do: choosing the places from a database, storing (dedup.keyframes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from marketdata.book import Book, apply_many
from marketdata.errors import SegmentError
from marketdata.rows import DeltaFlag, DeltaRows

EVERY_EVENTS: Final = 10_000
"""Of an epoch, between two keyframes; a reader replays at most so many changes."""


def books_at(start: bytes, rows: DeltaRows, positions: Sequence[int]) -> list[Book | None]:
    """The book after event `positions[i]` of one epoch, ascending; None where the chain differs.

    `start`: levels of a keyframe. `rows`: MERGED_ROW, every event after it up to the last position,
    by market_seq; the keyframe stands before the first of them. No rows: the keyframe's own place.
    """
    try:
        book = Book.from_bytes(start)
    except SegmentError:
        return [None] * len(positions)
    seqs = rows["market_seq"]
    if rows.size and (np.diff(seqs) != 1).any():
        return [None] * len(positions)
    found: list[Book | None] = []
    done = 0
    for position in positions:
        stop = int(seqs.searchsorted(position, side="right")) if rows.size else 0
        book = _after(book, rows[done:stop])
        done = stop
        is_there = not rows.size or (stop > 0 and int(seqs[stop - 1]) == position)
        proven = is_there and (not rows.size or book.hash == int(rows["book_hash"][stop - 1]))
        found.append(book.copy() if proven else None)
    return found


def _after(book: Book, rows: DeltaRows) -> Book:
    """The book after these changes; a reset empties it."""
    resets = np.flatnonzero((rows["flags"] & int(DeltaFlag.RESET)) != 0)
    if resets.size:
        book, rows = Book(), rows[int(resets[-1]) + 1 :]
    if not rows.size:
        return book
    return apply_many(book, rows["side"], rows["price"], rows["delta"])
