"""The roll of markets: what becomes of each that the exchange tells of.

Purpose: bodies of REST, lifecycle frames and the passing of time in; changes of the plan and
questions to REST out. Whatever way a market becomes known, the same decision is made here.
Invariants:
- INV-77 an open or paused market that belongs here is given to the plan as soon as it is told of; a
  created one at once, whatever its opening time; an initialized one of a list before it opens.
- INV-78 a market that was given to the plan leaves it only SETTLED_HOLD_NS after the exchange
  called it settled: its closing frames come late, and a closed market may open again.
- INV-79 a market that is recorded and that a full round did not list is asked for: a lost frame
  about its end costs time, never memory.
Does not do: requests (gatherer.discovery, gatherer.lifecycle), rows of history, clocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

from marketdata.events import MarketLifecycle
from marketdata.lookups import ANY, DETERMINED, SETTLED, Lookups
from marketdata.market_clock import NS_PER_S, Due, MarketClock
from marketdata.plan import Changes, MarketRef, Plan
from marketdata.rest_bodies import Market
from marketdata.selection import OPENING, OVER, RECORDED, Selection, event_of

SETTLED_HOLD_NS: Final = 600 * NS_PER_S
NS_PER_US: Final = 1_000
UNTIL: Final = {"determined": DETERMINED, "settled": SETTLED}
"""What a question after such a frame waits for: REST lags behind."""


@dataclass(frozen=True, slots=True)
class Now:
    """One moment by both clocks."""

    wall_ns: int
    monotonic_ns: int


class Roll:
    """See the module's text. `plan` is changed by nobody else but for moves."""

    def __init__(self, plan: Plan, selection: Selection) -> None:
        self.plan = plan
        self.selection = selection
        self.lookups = Lookups()
        self._clock = MarketClock()
        self._waiting: dict[str, MarketRef] = {}  # for their opening
        self._settled = Due()
        self._ended: list[str] = []

    @property
    def n_waiting(self) -> int:
        """Markets that are not open yet and not subscribed yet."""
        return len(self._waiting)

    @property
    def n_settled(self) -> int:
        """Markets that are settled and still subscribed."""
        return len(self._settled)

    # --- what the exchange says

    def told(self, markets: Iterable[Market], now: Now) -> Changes:
        """Markets as REST gives them, of the selection."""
        fresh: list[MarketRef] = []
        for market in markets:
            ticker = market.ticker
            ref = MarketRef(ticker, market.event_ticker)
            if market.status in RECORDED:
                fresh.append(ref)
                self._settled.forget(ticker)
                self._clock.closes(ticker, _ns(market.close_us), now.wall_ns)
            elif market.status in OPENING and not self.plan.knows(ticker):
                if self._clock.opens(ticker, _ns(market.open_us), now.wall_ns):
                    fresh.append(ref)
                else:
                    self._waiting[ticker] = ref
            elif market.status in OVER:
                self._over(ticker, now)
        return self._place(fresh)

    def announced(self, event: MarketLifecycle, now: Now) -> Changes:
        """A lifecycle frame. A new market is placed at once: REST may not know it yet."""
        ticker, kind = event.market, event.event_type
        parent = _parent(event)
        is_known = self.plan.knows(ticker)
        takes = self.selection.takes_created(parent, is_multivariate=event.is_multivariate)
        if not is_known and not takes:
            return Changes()
        self.lookups.add(ticker, now.monotonic_ns, UNTIL.get(kind, ANY))
        close_s = event.body.get("close_ts")
        if type(close_s) is int and 0 < close_s < NS_PER_S * NS_PER_US:
            self._clock.closes(ticker, close_s * NS_PER_S, now.wall_ns)
        if kind == "settled":
            self._over(ticker, now)
        elif kind == "activated":
            self._settled.forget(ticker)
        if kind in ("created", "activated") and not is_known:
            return self._place([MarketRef(ticker, parent)])
        return Changes()

    def listed(self, tickers: Collection[str], now: Now) -> int:
        """A full round listed these. Recorded markets that it did not are asked for; how many."""
        missed = [
            place.ticker
            for place in self.plan.places()
            if place.ticker not in tickers and place.ticker not in self._settled
        ]
        for ticker in missed:
            self.lookups.add(ticker, now.monotonic_ns)
        return len(missed)

    # --- what time says

    def tick(self, now: Now) -> Changes:
        """Markets that open, that have closed, and whose hold is over."""
        for ticker in self._clock.take_closing(now.wall_ns):
            if self.plan.knows(ticker):
                self.lookups.add(ticker, now.monotonic_ns)
        opening = [
            self._waiting[ticker]
            for ticker in self._clock.take_opening(now.wall_ns)
            if ticker in self._waiting
        ]
        changes = self._place(opening)
        over = self._settled.take(now.monotonic_ns)
        for ticker in over:
            self._clock.forget(ticker)
        self._ended += over
        removed = self.plan.remove(over)
        for mine, theirs in ((changes.add, removed.add), (changes.drop, removed.drop)):
            for at, tickers in theirs.items():
                mine.setdefault(at, []).extend(tickers)
        return changes

    def take_ended(self) -> list[str]:
        """Markets that left the plan since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def _place(self, markets: list[MarketRef]) -> Changes:
        for market in markets:
            if self._waiting.pop(market.ticker, None) is not None:
                self._clock.opened(market.ticker)
        return self.plan.place(markets) if markets else Changes()

    def _over(self, ticker: str, now: Now) -> None:
        if self._waiting.pop(ticker, None) is not None:
            self._clock.forget(ticker)
        if self.plan.knows(ticker) and ticker not in self._settled:
            self._settled.wait(ticker, now.monotonic_ns + SETTLED_HOLD_NS)


def _ns(us: int | None) -> int | None:
    return None if us is None else us * NS_PER_US


def _parent(event: MarketLifecycle) -> str:
    metadata: Any = event.body.get("additional_metadata")
    parent = metadata.get("event_ticker") if isinstance(metadata, dict) else None
    return parent if isinstance(parent, str) and parent else event_of(event.market)
