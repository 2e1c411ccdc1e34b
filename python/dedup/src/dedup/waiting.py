"""Trades and tickers that wait for their window, by window.

What holds: `take` gives everything up to a window once, in the order of arrival; its cost follows
what it gives, not what waits: a backlog read at once spans hundreds of windows.

Does not do: giving windows.
"""

from __future__ import annotations

import numpy as np

from dedup.columns import I64, Rows, joined, picked, stable_order


class _Read:
    """The rows of one read by window, then arrival; windows take them in turn."""

    __slots__ = ("_oldest", "_order", "_rows", "_taken", "_window")

    def __init__(self, rows: Rows, window: I64) -> None:
        self._order = stable_order(window)
        self._rows, self._window = picked(rows, self._order), window[self._order]
        self._oldest = np.minimum.accumulate(self._rows["batch_id"][::-1])[::-1]
        self._taken = 0

    @property
    def used_up(self) -> bool:
        return self._taken == self._window.size

    @property
    def next_window(self) -> int:
        return int(self._window[self._taken])

    @property
    def oldest_batch(self) -> int:
        return int(self._oldest[self._taken])

    def take(self, window: int) -> Rows | None:
        start, stop = self._taken, int(self._window.searchsorted(window, side="right"))
        if stop <= start:
            return None
        self._taken = stop
        rows = self._rows[start:stop]
        if not isinstance(self._order, slice) and self._window[start] != self._window[stop - 1]:
            rows = picked(rows, np.argsort(self._order[start:stop]))
        return rows


class Waiting:
    """Rows of one gatherer and kind; their layout has a `batch_id`."""

    __slots__ = ("_none", "_reads")

    def __init__(self, layout: np.dtype[np.void]) -> None:
        self._none = np.empty(0, layout)
        self._reads: list[_Read] = []  # in the order of arrival, none used up

    def add(self, rows: Rows, window: I64) -> None:
        """Rows in the order of arrival and the window that each belongs to."""
        if rows.size:
            self._reads.append(_Read(rows, window))

    def take(self, window: int) -> Rows:
        """Everything up to and with `window`, in the order of arrival."""
        found = [rows for read in self._reads if (rows := read.take(window)) is not None]
        if not found:
            return self._none
        self._reads = [read for read in self._reads if not read.used_up]
        return found[0] if len(found) == 1 else joined(found)

    @property
    def next_window(self) -> int | None:
        """The earliest window that a row waits for."""
        return min((read.next_window for read in self._reads), default=None)

    @property
    def oldest_batch(self) -> int | None:
        """The smallest batch id of a row that waits."""
        return min((read.oldest_batch for read in self._reads), default=None)
