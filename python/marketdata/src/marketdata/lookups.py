"""Single markets to be asked for by REST: what a lifecycle frame or the clock gave reason to.

Purpose: which market is to be asked for when. A new market is not found for a while (404 after
`created`), and REST lags behind a settlement: each is asked again with growing waits until the
answer has a status that was waited for.
Invariants:
- INV-76 a market is asked for at most TRIES_MAX times, then told as given up; a request that fails
  altogether (REST is away) is no try.
- A reason that comes while another is pending joins it: one question answers both.
- At most WAITING_MAX wait; more are left to the next full round and counted.
Does not do: requests (gatherer.lifecycle), reading a clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from marketdata.market_clock import NS_PER_S, Due

GATHER_NS: Final = NS_PER_S // 2
"""From the reason to the question: a burst of frames makes one request."""
AGAIN_NS: Final = NS_PER_S
AGAIN_MAX_NS: Final = 300 * NS_PER_S
TRIES_MAX: Final = 12  # some 25 minutes
WAITING_MAX: Final = 200_000
TOGETHER_MAX: Final = 100
"""Markets of one request; their tickers stand in its address."""

ANY: Final[frozenset[str]] = frozenset()
DETERMINED: Final = frozenset({"determined", "disputed", "amended", "finalized"})
SETTLED: Final = frozenset({"finalized"})


@dataclass(slots=True)
class Question:
    """A market that is asked for. `until`: statuses that end it; ANY: whatever the answer says."""

    until: frozenset[str]
    tries: int = 0


class Lookups:
    """See the module's text. Times are of the monotonic clock."""

    def __init__(self) -> None:
        self._due = Due()
        self._open: dict[str, Question] = {}
        self.given_up = 0
        self.left_out = 0

    def __len__(self) -> int:
        return len(self._open)

    def add(self, ticker: str, now_ns: int, until: frozenset[str] = ANY) -> None:
        """There is a reason to ask for this market."""
        question = self._open.get(ticker)
        if question is None:
            if len(self._open) >= WAITING_MAX:
                self.left_out += 1
                return
            self._open[ticker] = Question(until)
        else:
            question.tries = 0
            question.until = (question.until & until) or until or question.until
        self._due.wait(ticker, now_ns + GATHER_NS)

    def next_due(self) -> int | None:
        """When the next question is due."""
        return self._due.next()

    def take(self, now_ns: int) -> list[str]:
        """What to ask for now, in one request. Each is to be told of afterwards."""
        return self._due.take(now_ns, TOGETHER_MAX)

    def answered(self, ticker: str, status: str, now_ns: int) -> None:
        """The exchange told this status."""
        question = self._open.get(ticker)
        if question is not None and question.until and status not in question.until:
            self._again(ticker, question, now_ns)
        elif ticker not in self._due:  # else: another reason came after the request
            self._open.pop(ticker, None)

    def not_found(self, ticker: str, now_ns: int) -> None:
        """The exchange does not know it, or not yet."""
        question = self._open.get(ticker)
        if question is not None:
            self._again(ticker, question, now_ns)

    def failed(self, tickers: list[str], now_ns: int) -> None:
        """The request came to nothing."""
        for ticker in tickers:
            if ticker in self._open and ticker not in self._due:
                self._due.wait(ticker, now_ns + AGAIN_NS)

    def _again(self, ticker: str, question: Question, now_ns: int) -> None:
        question.tries += 1
        if question.tries >= TRIES_MAX:
            del self._open[ticker]
            self._due.forget(ticker)
            self.given_up += 1
        elif ticker not in self._due:
            wait_ns = min(AGAIN_MAX_NS, AGAIN_NS << (question.tries - 1))
            self._due.wait(ticker, now_ns + wait_ns)
