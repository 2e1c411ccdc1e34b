"""Where row groups end."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kalshilake.row_groups import ends, row_groups

MOST, LEAST = 20, 5
LENGTHS = st.lists(st.one_of(st.integers(1, 4), st.integers(1, 60)), max_size=12)


def rows(lengths: list[int]) -> pa.Table:
    """So many rows of each market, numbered."""
    names = [f"KX-{n:03}" for n, length in enumerate(lengths) for _ in range(length)]
    numbers = pa.array(range(len(names)), pa.int64())
    return pa.table({"market_ticker": pa.array(names, pa.string()), "n": numbers})


def sizes(lengths: list[int], most: int = MOST, least: int = LEAST) -> list[int]:
    table = rows(lengths)
    return [g.num_rows for g in row_groups([table] if lengths else [], most, least)]


@pytest.mark.parametrize(
    ("lengths", "want"),
    [
        ([], []),
        ([3], [3]),
        ([1, 1, 1, 1, 1, 1], [5, 1]),  # small ones together, until there are enough
        ([2, 7, 2], [2, 7, 2]),  # one that has enough stands alone
        ([4, 3, 2], [7, 2]),
        ([45], [20, 20, 5]),
        ([45, 5], [20, 20, 5, 5]),
        ([43, 4, 1], [20, 20, 7, 1]),  # the rest of a long one goes with small ones
        ([19, 1, 1], [19, 2]),
        ([20, 1], [20, 1]),
    ],
)
def test_groups_end_with_markets(lengths: list[int], want: list[int]) -> None:
    """What a reader of one market has to read with it."""
    assert sizes(lengths) == want


@given(LENGTHS, st.lists(st.integers(1, 40), max_size=8))
def test_parts_are_not_seen(lengths: list[int], widths: list[int]) -> None:
    """INV L-36: the same groups from any parts."""
    table = rows(lengths)
    edges = [0, *(e for e in accumulate(widths) if e < table.num_rows), table.num_rows]
    parts = [table.slice(a, b - a) for a, b in pairwise(edges) if b > a]
    made = list(row_groups(parts, MOST, LEAST))
    assert [g.num_rows for g in made] == sizes(lengths)
    if made:
        assert pa.concat_tables(made).equals(table)


@given(LENGTHS)
def test_no_group_is_too_large_and_none_cuts_a_market_without_need(lengths: list[int]) -> None:
    """A reader of one market reads its own rows and fewer than LEAST and one group's others."""
    ordered = list(accumulate(lengths))
    edges = list(accumulate(sizes(lengths)))
    begun = 0
    for edge in edges:
        assert edge - begun <= MOST
        assert edge in ordered or edge - begun == MOST
        inside = [n for e, n in zip(ordered, lengths, strict=True) if begun < e - n < edge]
        assert all(n < LEAST for n in inside), "a market with enough rows begins its own group"
        begun = edge
    assert edges[-1:] == ordered[-1:]


def test_what_later_rows_may_change_is_left_out() -> None:
    """The first market of those that follow may have enough rows, or this one may go on."""
    assert list(ends([0, 3], 6, MOST, LEAST, whole=False)) == []
    assert list(ends([0, 3], 8, MOST, LEAST, whole=False)) == [3]
    assert list(ends([0], 19, MOST, LEAST, whole=False)) == []
    assert list(ends([0], 20, MOST, LEAST, whole=False)) == [20]
    assert list(ends([0, 3], 6, MOST, LEAST, whole=True)) == [6]


def test_a_least_beyond_the_most_is_the_most() -> None:
    """Tests with tiny groups set only the one."""
    assert sizes([3, 3, 3, 30], most=4, least=100) == [4, 4, 1, 4, 4, 4, 4, 4, 4, 4, 2]
