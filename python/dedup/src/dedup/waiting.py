"""Trades and tickers that wait for their window, by window.

What holds: `take` gives everything up to a window once, in the order of arrival; its cost follows
what it gives, not what waits: a backlog read at once spans hundreds of windows.

Does not do: giving windows.
"""

from __future__ import annotations

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
        found = self._by_window.get(window)
        if found is None:
            found = self._by_window[window] = []
            self._oldest[window] = row.batch_id
        elif row.batch_id < self._oldest[window]:
            self._oldest[window] = row.batch_id
        found.append((self._arrived, row))
        self._arrived += 1

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
