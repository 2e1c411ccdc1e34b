"""marketdata.rest_books: hashes of REST books, and what an answer says about ours."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketdata import rest_bodies
from marketdata.book import hash_levels
from marketdata.errors import WireError
from marketdata.rest_books import (
    QUERY_CHARS_MAX,
    TICKER_OVERHEAD,
    TICKERS_MAX,
    AuditVerdict,
    Doubts,
    Look,
    books_page,
    entries_of,
    hash_of,
    judge,
    requests_of,
)

A, B, C = Look(1, 10, 100), Look(1, 20, 200), Look(1, 30, 300)


@pytest.mark.parametrize(
    ("rest_hash", "looks", "verdict"),
    [
        (10, [A, B, C], AuditVerdict.AGREES),  # as it was at sending
        (30, [A, B, C], AuditVerdict.AGREES),  # as it was a little later
        (20, [A, B, C], AuditVerdict.AGREES),
        (20, [None, B], AuditVerdict.AGREES),
        (99, [A, B, C], AuditVerdict.BUSY),
        (99, [A, A, A], AuditVerdict.SUSPECT),
        (99, [A, Look(2, 10, 100)], AuditVerdict.BUSY),  # another run: it was taken anew
        (99, [A, Look(1, 10, 101)], AuditVerdict.BUSY),  # there and back
        (99, [A, None, A], AuditVerdict.NO_BOOK),
        (99, [None, None], AuditVerdict.NO_BOOK),
        (99, [], AuditVerdict.NO_BOOK),
        (None, [A, A], AuditVerdict.ABSENT),
    ],
)
def test_verdicts(rest_hash: int | None, looks: list[Look | None], verdict: AuditVerdict) -> None:
    """INV-73 and half of INV-74."""
    assert judge(rest_hash, looks) is verdict


def test_a_difference_takes_two_audits_in_a_row_of_the_same_state() -> None:
    """INV-74."""
    doubts = Doubts()
    assert doubts.note("M", 99, [A, A], 5) is AuditVerdict.SUSPECT
    assert doubts.due(14, 10) == []
    assert doubts.due(15, 10) == ["M"]
    assert doubts.note("M", 98, [A, A], 15) is AuditVerdict.DIFFERS
    assert doubts.differing == {"M": 15}
    assert doubts.note("M", 97, [B, B], 16) is AuditVerdict.DIFFERS, "until it agrees"
    assert (doubts.due(75, 10), doubts.due(76, 10)) == ([], ["M"])
    assert doubts.note("M", 99, [B, C], 77) is AuditVerdict.BUSY
    assert doubts.due(76 + 60, 10) == []
    assert doubts.note("M", 20, [B, B], 78) is AuditVerdict.AGREES
    assert doubts.differing == {}


def test_markets_that_are_not_audited_any_more_are_forgotten() -> None:
    doubts = Doubts({"A": (A, 1), "B": (A, 1)}, {"C": 1, "D": 1})
    doubts.keep({"B", "C"})
    assert (list(doubts.suspects), list(doubts.differing)) == (["B"], ["C"])


@pytest.mark.parametrize(
    ("rest_hash", "looks"), [(10, [A]), (99, [A, B]), (99, [None]), (None, [A])]
)
def test_anything_between_two_suspicions_ends_the_first(
    rest_hash: int | None, looks: list[Look | None]
) -> None:
    doubts = Doubts()
    doubts.note("M", 99, [A, A], 1)
    doubts.note("M", rest_hash, looks, 2)
    assert doubts.note("M", 99, [A, A], 3) is AuditVerdict.SUSPECT
    assert doubts.differing == {}


def test_a_book_that_changed_between_two_suspicions_is_a_new_suspicion() -> None:
    """Each answer may have been late by itself."""
    doubts = Doubts()
    assert doubts.note("M", 99, [A, A], 1) is AuditVerdict.SUSPECT
    assert doubts.note("M", 98, [B, B], 2) is AuditVerdict.SUSPECT
    assert doubts.note("M", 98, [B, B], 3) is AuditVerdict.DIFFERS


_price = st.integers(0, 10_000).map(lambda n: f"{n // 10_000}.{n % 10_000:04d}")
_size = st.integers(0, 10**9).map(lambda n: f"{n // 100}.{n % 100:02d}")
_odd_price = st.sampled_from(["0.5", "0.50", "0.500", "1.0001", "-0.1000", "", "0.123456", "a"])
_odd_size = st.sampled_from(
    ["5", "5.0", "5.000", "+5.00", "-5.00", " 5.00", "1_0.00", ".50", "5.", "007.00", "1e2.00",
     "\u0665.\u0660\u0660"]
)  # fmt: skip
_side = st.lists(st.tuples(_price, _size).map(list), max_size=8)
_odd_side = st.lists(
    st.tuples(_price | _odd_price, _size | _odd_size | st.integers(0, 9)).map(list), max_size=4
)


@given(_side | _odd_side, _side | _odd_side, st.booleans())
def test_the_quick_hash_is_that_of_the_exact_reading_or_both_refuse(
    yes: list[Any], no: list[Any], is_sorted: bool
) -> None:
    """INV-75."""
    sides = [sorted(side, key=str) if is_sorted else side for side in (yes, no)]
    entry = {"ticker": "M", "orderbook_fp": {"yes_dollars": sides[0], "no_dollars": sides[1]}}
    try:
        exact = rest_bodies.order_book(entry, "M")
    except WireError:
        with pytest.raises(WireError):
            hash_of(entry)
        return
    assert hash_of(entry) == ("M", hash_levels(exact.yes, exact.no))


@pytest.mark.parametrize(
    "book",
    [
        {"orderbook_fp": {}},
        {"orderbook_fp": {"yes_dollars": None}},
        {"orderbook": {"yes": [[50, 3]], "no": None}},
    ],
)
def test_other_forms_are_read_exactly(book: dict[str, Any]) -> None:
    exact = rest_bodies.order_book(book, "M")
    assert hash_of({"ticker": "M", **book}) == ("M", hash_levels(exact.yes, exact.no))


def test_one_bad_book_hides_no_other() -> None:
    good = {"ticker": "M", "orderbook_fp": {"yes_dollars": [["0.5000", "1.00"]]}}
    renamed = {"ticker": "N", "orderbook_fp": {"yes_d": [["0.5000", "1.00"]]}}
    found: dict[str, int] = {}
    problems = books_page([renamed, "x", {}, good], found)
    assert found == {"M": hash_levels([(500_000, 100)], [])}
    assert len(problems) == 3, "a book whose levels were renamed is not an empty one"


@pytest.mark.parametrize("body", [{}, {"orderbooks": None}, {"orderbooks": {}}])
def test_an_answer_without_books_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        entries_of(body)


@given(st.lists(st.integers(1, 200).map(lambda n: "T" * n), max_size=300))
def test_requests_hold_every_ticker_once_within_their_limits(tickers: list[str]) -> None:
    parts = requests_of(tickers)
    assert [t for part in parts for t in part] == tickers
    for part in parts:
        assert 1 <= len(part) <= TICKERS_MAX
        assert sum(len(t) + TICKER_OVERHEAD for t in part) <= QUERY_CHARS_MAX
