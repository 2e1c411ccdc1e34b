"""Many books at once equal each book on its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kalshilake import ladders as module
from kalshilake.bookview import EpochEvents, Keyframe, best_first, rebuild
from kalshilake.ladders import ladders
from marketdata.book import Book
from marketdata.errors import LakeError


def made(seed: int, n: int, resets: float) -> tuple[Book, EpochEvents]:
    """A sound random stretch: sizes never below zero, some resets."""
    rng = np.random.default_rng(seed)
    book = Book([(10_000 * p, 100 * p) for p in (3, 7, 40)], [(10_000 * p, 50) for p in (5, 55)])
    now = book.copy()
    rows = []
    for _ in range(n):
        if rng.random() < resets:
            now = Book()
            rows.append((True, 0, 0, 0))
            continue
        side, price = int(rng.integers(0, 2)), 10_000 * int(rng.integers(1, 12))
        held = dict(now.levels(side)).get(price, 0)
        delta = -held if held and rng.random() < 0.4 else 100 * int(rng.integers(1, 9))
        now.apply(side, price, delta)
        rows.append((False, side, price, delta))
    reset, side, price, delta = (np.array(c) for c in zip(*rows, strict=True))
    seq = np.arange(1, n + 1)
    return book, EpochEvents(seq, seq * 1000, reset.astype(bool), side, price, delta)


@given(
    seed=st.integers(0, 10**6),
    resets=st.sampled_from([0.0, 0.05, 0.4]),
    depth=st.integers(1, 30),
    cells=st.sampled_from([1, 60, 10**6]),
    data=st.data(),
)
def test_every_row_is_the_book_at_its_place(
    seed: int, resets: float, depth: int, cells: int, data: st.DataObject
) -> None:
    """L-18, whatever the chunks are and wherever resets fall."""
    n = 60
    book, events = made(seed, n, resets)
    ends = np.array(sorted(data.draw(st.lists(st.integers(0, n), min_size=1, max_size=25))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CELLS_MAX", cells)
        sides = ladders(book, events, ends, depth)
    keyframe = Keyframe(1, 0, 0, book)
    for side, ladder in enumerate(sides):
        at = 0
        best_price, best_size = ladder.best()
        for row, end in enumerate(ends.tolist()):
            wanted = best_first(rebuild(keyframe, events, end).levels(side))[:depth]
            count = int(ladder.counts[row])
            prices, sizes = ladder.prices[at : at + count], ladder.sizes[at : at + count]
            assert tuple(zip(prices.tolist(), sizes.tolist(), strict=True)) == wanted
            best = wanted[0] if wanted else (-1, 0)
            assert (best_price[row], best_size[row]) == best
            at += count


def test_a_level_below_zero_is_an_error() -> None:
    """A book that cannot be is never given out."""
    one = np.array([1])
    events = EpochEvents(one, one, np.array([False]), np.array([0]), np.array([10_000]), -one)
    with pytest.raises(LakeError, match="below zero"):
        ladders(Book(), events, one, 5)


def test_nothing_asked_nothing_given() -> None:
    """An empty grid is no special case for the caller."""
    book, events = made(1, 5, 0)
    yes, no = ladders(book, events, np.zeros(0, np.int64), 5)
    assert (len(yes.counts), len(no.prices)) == (0, 0)
