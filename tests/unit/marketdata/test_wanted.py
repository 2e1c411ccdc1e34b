"""What to ask for next, found without a walk over all books, is what a walk would find."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from marketdata.wanted import Books

UNIVERSE = tuple(f"M{n}" for n in range(9))


def by_walking(books: Books) -> tuple[set[str], set[str]]:
    """INV-45 said the long way, over all books."""
    busy = books._adding | books._deleting
    kept = set(books._kept)
    to_add = books.wanted.keys() - books.subscribed.keys() - busy - books.refused
    return to_add, books.subscribed.keys() - books.wanted.keys() - busy - kept


def step(books: Books, rng: Random) -> None:
    """Something that happens to a session."""
    some = rng.sample(UNIVERSE, rng.randrange(4))
    to_add, to_delete = books.due()
    match rng.randrange(10):
        case 0:
            books.want(some)
        case 1 | 2:
            books.change(some, [t for t in UNIVERSE if t not in some][: rng.randrange(4)])
        case 3:
            books.asked(to_add)
            books.asked(to_delete, delete=True)
        case 4:
            books.acknowledged(sorted(books._adding)[:2])
        case 5:
            books.acknowledged(sorted(books._deleting)[:2], delete=True)
        case 6:
            books.refuse(sorted(books._adding)[:1])
        case 7:
            books.keep(sorted(books._deleting)[:1])
        case 8:
            books.open_again(sorted(books._adding | books._deleting)[:2])
        case _:
            books.forgive() if rng.random() < 0.7 else books.reset()


@given(st.integers(0, 2**32), st.integers(0, 120))
def test_due_is_what_a_walk_over_all_books_finds(seed: int, steps: int) -> None:
    rng, books = Random(seed), Books()
    for _ in range(steps):
        step(books, rng)
        to_add, to_delete = books.due()
        assert (set(to_add), set(to_delete)) == by_walking(books)
        assert not books._adding & books._deleting


def test_a_change_that_is_not_noted_is_found_by_the_walk() -> None:
    """The control: a comparison that cannot fail proves nothing."""
    books = Books()
    books.change(["A", "B"], [])
    books._touched.clear()
    assert books.due() == ([], [])
    assert by_walking(books) == ({"A", "B"}, set())


def test_a_market_that_leaves_while_it_is_asked_for_is_given_back() -> None:
    books = Books()
    books.change(["A"], [])
    books.asked(["A"])
    books.change([], ["A"])
    assert books.due() == ([], [])
    books.acknowledged(["A"])
    assert books.due() == ([], ["A"])


def test_nothing_is_looked_at_where_nothing_happened() -> None:
    """INV-73: what costs is what changed."""
    books = Books()
    books.want(UNIVERSE)
    books.asked(UNIVERSE)
    books.acknowledged(UNIVERSE)
    books.due()
    assert not books.may_differ
    books.change(["NEW"], ["M1"])
    assert set(books._touched) == {"NEW", "M1"}
