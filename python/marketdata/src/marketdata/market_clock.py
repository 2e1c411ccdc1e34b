"""Openings and closings of markets: no message announces them, the clock does.

Purpose: times of known markets in, due markets out. A market that the exchange lists as initialized
is due OPEN_LEAD_NS before its opening, so that its subscription stands when it opens; a market is
looked up CLOSE_LOOK_NS after its closing time, so that its history tells the closing at once.
Invariants:
- INV-75 every market that is waited for is due once, in order of time; a changed time replaces the
  earlier one, `forget` takes it out.
- A closing is only a reason to look: what a market is, the exchange says. A closing time that is
  past when it is learnt is no reason.
Does not do: reading a clock, subscribing (plan), asking (lookups).
"""

from __future__ import annotations

import heapq
from typing import Final

NS_PER_S: Final = 1_000_000_000
OPEN_LEAD_NS: Final = 60 * NS_PER_S
"""Longer than a subscription takes and than clocks are off."""
CLOSE_LOOK_NS: Final = 5 * NS_PER_S


class Due:
    """Names and their times; a heap whose stale entries are passed over."""

    def __init__(self) -> None:
        self._at: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, name: object) -> bool:
        return name in self._at

    def wait(self, name: str, at_ns: int) -> None:
        """It is due at this time, whatever was said before."""
        if self._at.get(name) != at_ns:
            self._at[name] = at_ns
            heapq.heappush(self._heap, (at_ns, name))

    def forget(self, name: str) -> None:
        """It is not due any more."""
        self._at.pop(name, None)

    def next(self) -> int | None:
        """When the first is due."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now_ns: int, limit: int = 1 << 62) -> list[str]:
        """Those that are due, once each."""
        found: list[str] = []
        while len(found) < limit and (at_ns := self.next()) is not None and at_ns <= now_ns:
            name = heapq.heappop(self._heap)[1]
            del self._at[name]
            found.append(name)
        return found


class MarketClock:
    """See the module's text. All times are of the wall clock, in ns."""

    def __init__(self) -> None:
        self._opening = Due()
        self._closing = Due()

    @property
    def n_waiting(self) -> int:
        """Markets that wait for their opening."""
        return len(self._opening)

    def opens(self, ticker: str, open_ns: int | None, now_ns: int) -> bool:
        """An initialized market: whether it opens so soon (or nobody knows when) that it should be
        subscribed now; else it is due later."""
        if open_ns is None or open_ns - OPEN_LEAD_NS <= now_ns:
            self._opening.forget(ticker)
            return True
        self._opening.wait(ticker, open_ns - OPEN_LEAD_NS)
        return False

    def closes(self, ticker: str, close_ns: int | None, now_ns: int) -> None:
        """A market that is recorded, with its closing time."""
        if close_ns is not None and close_ns > now_ns:
            self._closing.wait(ticker, close_ns + CLOSE_LOOK_NS)

    def forget(self, ticker: str) -> None:
        """It is open already, or over."""
        self._opening.forget(ticker)
        self._closing.forget(ticker)

    def opened(self, ticker: str) -> None:
        """It need not be waited for any more."""
        self._opening.forget(ticker)

    def take_opening(self, now_ns: int) -> list[str]:
        """Markets to be subscribed now."""
        return self._opening.take(now_ns)

    def take_closing(self, now_ns: int) -> list[str]:
        """Markets whose closing time has passed."""
        return self._closing.take(now_ns)
