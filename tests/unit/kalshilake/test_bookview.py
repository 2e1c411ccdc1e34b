"""A book from a keyframe and events."""

from __future__ import annotations

import numpy as np
import pytest

from kalshilake.bookview import BookView, EpochEvents, Keyframe, first_missing, prefix_end, rebuild
from marketdata.book import Book
from marketdata.errors import LakeError

P = 400_000


def events(*rows: tuple[int, int, int | None]) -> EpochEvents:
    """(market_seq, exchange_us, delta on one YES level; None: a reset)."""
    return EpochEvents(
        market_seq=np.array([r[0] for r in rows], np.int64),
        exchange_us=np.array([r[1] for r in rows], np.int64),
        reset=np.array([r[2] is None for r in rows], np.bool_),
        side=np.zeros(len(rows), np.int64),
        price=np.full(len(rows), P, np.int64),
        delta=np.array([r[2] or 0 for r in rows], np.int64),
    )


def keyframe(seq: int, size: int, us: int = 0) -> Keyframe:
    return Keyframe(1, seq, us, Book([(P, size)] if size else []))


def test_a_book_is_the_same_from_either_side() -> None:
    """INV L-13: forwards from the keyframe before, backwards from the one after."""
    line = events((1, 10, 5), (2, 20, 7), (3, 30, -3))
    for start, size in ((0, 100), (1, 105), (2, 112), (3, 109)):
        for last, want in ((0, 100), (1, 105), (2, 112), (3, 109)):
            assert rebuild(keyframe(start, size), line, last).size(0, P) == want


def test_a_reset_empties_the_book_and_cannot_be_crossed_backwards() -> None:
    """What lay in the book before it is told by nobody after it."""
    line = events((1, 10, 5), (2, 20, None), (3, 30, 8))
    assert rebuild(keyframe(0, 100), line, 3).size(0, P) == 8
    assert not rebuild(keyframe(0, 100), line, 2)
    assert not rebuild(keyframe(3, 8), line, 2)
    with pytest.raises(LakeError, match="reset at market_seq 2"):
        rebuild(keyframe(3, 8), line, 1)


def test_the_prefix_ends_before_the_first_event_that_is_later() -> None:
    """A time that steps back does not pull later events into the past."""
    line = events((4, 10, 1), (5, 30, 1), (6, 20, 1), (7, 40, 1))
    at = [prefix_end(keyframe(3, 0), line, t) for t in (9, 10, 20, 29, 30, 40)]
    assert at == [3, 4, 4, 4, 6, 7]
    assert prefix_end(keyframe(9, 0), events(), 5) == 9


def test_a_missing_event_between_keyframe_and_end_is_named() -> None:
    """A hole must stop the read; beside the stretch it does not matter."""
    line = events((2, 0, 1), (4, 0, 1), (5, 0, 1))
    assert first_missing(keyframe(1, 0), line, 5) == 3
    assert first_missing(keyframe(5, 0), line, 1) == 3
    assert first_missing(keyframe(3, 0), line, 5) is None
    assert first_missing(keyframe(5, 0), line, 6) == 6
    assert first_missing(keyframe(0, 0), line, 0) is None


def test_offers_are_the_other_sides_bids() -> None:
    """Both sides are bids; a book may lack either."""
    view = BookView("M", 0, 1, 1, ((300_000, 5),), ((600_000, 7), (100_000, 2)), 0, "gap", 0, 0, 0)
    assert view.yes_asks == ((400_000, 7), (900_000, 2))
    assert view.no_asks == ((700_000, 5),)
    assert (view.best_yes_bid, view.best_yes_ask) == ((300_000, 5), (400_000, 7))
    assert (view.best_no_bid, view.best_no_ask) == ((600_000, 7), (700_000, 5))
    assert not view.complete
    empty = BookView("M", 0, 1, 1, (), (), 0, "complete", 1, 0, 0)
    assert (
        empty.best_yes_bid is empty.best_yes_ask is empty.best_no_bid is empty.best_no_ask is None
    )
