"""Orders, groups, and whole rows as plain bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dedup.columns import by_run, copied, distinct, groups, joined, picked, stable_order
from marketdata.rows import BATCH_TICKER, BATCH_TRADE, DELTA_ROW, MERGED_ROW


def test_runs_of_a_column_are_found_whether_it_holds_one_or_several() -> None:
    assert by_run(np.array([3, 3], np.int32)) == [(3, slice(None))]
    found = by_run(np.array([3, 2, 3], np.int32))
    assert [run for run, _ in found] == [2, 3]
    for mine, wanted in zip([m for _, m in found], ([0, 1, 0], [1, 0, 1]), strict=True):
        assert isinstance(mine, np.ndarray)
        assert mine.tolist() == wanted


def test_what_ascends_needs_no_order() -> None:
    assert stable_order(np.array([1, 1, 2], np.int64)) == slice(None)
    order = stable_order(np.array([2, 1, 2, 1], np.int64))
    assert isinstance(order, np.ndarray)
    assert order.tolist() == [1, 3, 0, 2]


def test_equal_rows_are_a_group_in_the_order_of_arrival() -> None:
    """Compared with sorted(), which is stable."""
    rng = np.random.default_rng(1)
    columns = [rng.integers(0, 4, 300), rng.integers(0, 3, 300).astype(np.uint64)]
    order, starts = groups(columns)
    pairs = list(zip(*(c.tolist() for c in columns), strict=True))
    assert order.tolist() == sorted(range(300), key=lambda n: pairs[n])
    assert len(starts) == len(set(pairs))
    assert [pairs[n] for n in order[starts].tolist()] == sorted(set(pairs))


def test_groups_of_nothing_are_none() -> None:
    order, starts = groups([np.empty(0, np.int64)])
    assert (order.size, starts.size) == (0, 0)


@pytest.mark.parametrize("layout", [BATCH_TICKER, BATCH_TRADE, DELTA_ROW, MERGED_ROW])
def test_rows_as_bytes_are_what_numpy_gives_field_by_field(layout: np.dtype[np.void]) -> None:
    rng = np.random.default_rng(2)
    rows = np.frombuffer(rng.bytes(50 * layout.itemsize), layout)
    at = rng.permutation(50)[:30]
    assert picked(rows, at).tolist() == rows[at].tolist()
    assert picked(rows, slice(3, 9)).tolist() == rows[3:9].tolist()
    whole = joined([rows[:20], rows[20:20], rows[20:]])
    assert (whole.dtype, whole.tobytes()) == (layout, rows.tobytes())
    again = copied(rows)
    assert (again.dtype, again.tobytes()) == (layout, rows.tobytes())
    again["market_id"] = 7
    assert rows["market_id"].tolist() != again["market_id"].tolist()


def test_rows_of_different_layouts_are_not_joined() -> None:
    """As bytes they would be taken for each other without a word."""
    with pytest.raises(AssertionError, match="different layouts"):
        joined([np.zeros(1, DELTA_ROW), np.zeros(1, MERGED_ROW)])


@given(st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 3)))
def test_distinct_values_are_those_of_numpy(values: list[int]) -> None:
    rows = np.array(values, np.int64)
    assert distinct(rows) == np.unique(rows).tolist()
