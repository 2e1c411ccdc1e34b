"""The book that a replay changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kalshilake.bookview import best_first
from kalshilake.livebook import LiveBook
from marketdata.book import Book
from marketdata.errors import LakeError

Change = tuple[int, int, int]  # side, price in cents, size that is left


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 6), st.integers(0, 3)), max_size=40))
def test_the_best_levels_are_the_highest_after_every_change(changes: list[Change]) -> None:
    """L-41, against a book that sorts."""
    live, plain = LiveBook("M"), Book()
    live.open(Book([(20_000, 5)], [(30_000, 7)]), 1, 0, 7)
    plain.load([(20_000, 5)], [(30_000, 7)])
    for side, cents, left in changes:
        price = cents * 10_000
        delta = left - plain.size(side, price)
        plain.apply(side, price, delta)
        (live.change_no if side else live.change_yes)(price, delta)
        assert live.best_yes_bid == plain.best_bid(0)
        assert live.best_no_bid == plain.best_bid(1)
        assert live.best_yes_ask == plain.best_ask(0)
        assert live.best_no_ask == plain.best_ask(1)
        assert live.yes_bids == best_first(plain.levels(0))
        assert live.no_bids == best_first(plain.levels(1))
        assert live.view().book_hash == plain.hash


def test_a_level_below_zero_is_refused_in_a_change_and_in_an_opening() -> None:
    """A damaged tape gives an error, not a book."""
    live = LiveBook("M")
    live.open(Book([(20_000, 5)], []), 3, 8, 7)
    with pytest.raises(LakeError, match="event 8 of epoch 3 leaves -1 at 20000"):
        live.change_yes(20_000, -6)
    with pytest.raises(LakeError, match="leaves -1 at 10000"):
        live.change_no(10_000, -1)
    with pytest.raises(LakeError, match="below zero"):
        live.open(Book([(20_000, -5)], []), 3, 8, 7)


def test_a_view_stays_and_the_book_goes_on() -> None:
    """What a strategy wants to keep it has to copy."""
    live = LiveBook("M", "received")
    assert (live.best_yes_bid, live.best_no_ask, live.complete) == (None, None, False)
    live.at_us = 5
    live.open(Book([(20_000, 5)], [(30_000, 7)]), 1, 4, 3)
    kept = live.view()
    live.empty()
    assert (kept.best_yes_bid, kept.best_yes_ask) == ((20_000, 5), (970_000, 7))
    assert (kept.keyframe_us, kept.sources, kept.clock, kept.complete) == (5, 3, "received", True)
    assert (live.yes_bids, live.no_bids, live.best_yes_bid) == ((), (), None)
    assert "market_seq=4" in repr(live)
