"""Rows as numpy holds them: put in order, grouped, chosen, joined.

What holds: every order is stable, so rows with equal values stay as they arrived. Whole rows are
copied as plain bytes: numpy's own way goes through structured rows field by field, which takes ten
to forty times as long.

Does not do: knowing what the columns mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.void]


def picked(rows: Rows, at: I64 | slice) -> Rows:
    """The rows at these places."""
    return rows[at] if isinstance(at, slice) else rows.take(at)


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts, which are of one layout, end to end; there is at least one part."""
    layout = parts[0].dtype
    assert all(part.dtype == layout for part in parts), "rows of different layouts"
    return np.concatenate([_plain(part) for part in parts]).view(layout)


def copied(rows: Rows) -> Rows:
    """The rows once more, to be changed."""
    return _plain(rows).copy().view(rows.dtype)


def _plain(rows: Rows) -> Rows:
    return rows.view(np.dtype((np.void, rows.dtype.itemsize)))


def stable_order(values: npt.NDArray[np.integer[Any]]) -> I64 | slice:
    """The stable order of the values; a slice of all of them where they ascend already."""
    if (values[1:] >= values[:-1]).all():
        return slice(None)
    return np.argsort(values, kind="stable")


def distinct(values: npt.NDArray[np.integer[Any]]) -> list[int]:
    """The values that occur, ascending: fast where most rows have the value of the row before."""
    new = np.flatnonzero(values[1:] != values[:-1]) + 1
    return sorted({*values[:1].tolist(), *values[new].tolist()})


def by_run(run_ids: npt.NDArray[np.int32]) -> list[tuple[int, npt.NDArray[np.bool_] | slice]]:
    """Each run of a column, ascending, and where it stands."""
    if run_ids[0] == run_ids[-1] and (run_ids == run_ids[0]).all():
        return [(int(run_ids[0]), slice(None))]
    return [(run_id, run_ids == run_id) for run_id in distinct(run_ids)]


def groups(columns: Sequence[npt.NDArray[np.integer[Any]]]) -> tuple[I64, I64]:
    """(stable order by the columns, where in it each group of rows equal in all begins)."""
    order = np.lexsort(columns[::-1])
    new = np.ones(order.size, np.bool_)
    if order.size:
        new[1:] = False
    for column in columns:
        values = column[order]
        new[1:] |= values[1:] != values[:-1]
    return order, np.flatnonzero(new)
