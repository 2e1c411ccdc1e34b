"""Books of the tape at chosen places, computed from an earlier keyframe and the changes after it.

Purpose: keyframes of our own, so that a reader starts near: at every EVERY_EVENTS-th event of an
epoch, at the start of an hour in which the market moved before, at the start of a day for all.
Invariants: INV-92 a computed book's hash is the chain's hash at its place, else it is none: a book
that cannot be proven is not written.
Does not do: choosing the places from a database, storing (dedup.keyframes).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from marketdata.book import Book, apply_many
from marketdata.errors import SegmentError
from marketdata.rows import DeltaFlag, DeltaRows

EVERY_EVENTS: Final = 10_000
"""Of an epoch, between two keyframes; a reader replays at most so many changes."""


def book_at(start: bytes, start_position: int, rows: DeltaRows, position: int) -> Book | None:
    """The book after event `position` of an epoch; None where the chain does not prove it.

    `start`: levels of the keyframe after event `start_position`. `rows`: MERGED_ROW, the events
    after that one up to `position`, by market_seq.
    """
    if rows["market_seq"].tolist() != list(range(start_position + 1, position + 1)):
        return None
    try:
        book = after(Book.from_bytes(start), rows)
    except SegmentError:
        return None
    return None if rows.size and book.hash != int(rows["book_hash"][-1]) else book


def after(book: Book, rows: DeltaRows) -> Book:
    """The book after these changes (n rows of a delta layout, in order); a reset empties it."""
    resets = np.flatnonzero((rows["flags"] & int(DeltaFlag.RESET)) != 0)
    if resets.size:
        book, rows = Book(), rows[int(resets[-1]) + 1 :]
    if not rows.size:
        return book
    return apply_many(book, rows["side"], rows["price"], rows["delta"])
