"""Trades and tickers that wait for their window, by window.

What holds: `take` gives everything up to a window once, in the order of arrival; its cost follows
what it gives, not what waits: a backlog read at once spans hundreds of windows.

Does not do: giving windows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar


class HasBatch(Protocol):
    """A row that knows the batch that brought it."""

    batch_id: int


T = TypeVar("T", bound=HasBatch)


class Waiting(Generic[T]):
    """Rows of one gatherer and kind."""

    __slots__ = ("_arrived", "_by_window", "_oldest")

    def __init__(self) -> None:
        self._by_window: dict[int, list[tuple[int, T]]] = {}
        self._oldest: dict[int, int] = {}  # window -> smallest batch id
        self._arrived = 0

    def add(self, window: int, row: T) -> None:
        """A row that belongs to `window`."""
        self.extend([(row, window)])

    def extend(self, rows: Iterable[tuple[T, int]]) -> None:
        """Rows and the window that each belongs to, in the order of arrival."""
        arrived, at, oldest = self._arrived, -1, 0
        found: list[tuple[int, T]] = []
        for row, window in rows:
            if window != at or not found:
                if found:
                    self._oldest[at] = oldest
                at, oldest = window, self._oldest.get(window, row.batch_id)
                found = self._by_window.setdefault(window, [])
            if row.batch_id < oldest:
                oldest = row.batch_id
            found.append((arrived, row))
            arrived += 1
        if found:
            self._oldest[at] = oldest
        self._arrived = arrived

    def take(self, window: int) -> list[T]:
        """Everything up to and with `window`, in the order of arrival."""
        due = [w for w in self._by_window if w <= window]
        found = [item for w in due for item in self._by_window.pop(w)]
        for w in due:
            del self._oldest[w]
        if len(due) > 1:
            found.sort(key=lambda item: item[0])
        return [row for _, row in found]

    @property
    def next_window(self) -> int | None:
        """The earliest window that a row waits for."""
        return min(self._by_window, default=None)

    @property
    def oldest_batch(self) -> int | None:
        """The smallest batch id of a row that waits."""
        return min(self._oldest.values(), default=None)
