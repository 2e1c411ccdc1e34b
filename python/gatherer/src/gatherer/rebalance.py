"""Hot markets spread over the connections, while they are recorded.

Purpose: tell the plan how many frames each market had lately, carry out the moves it begins, and
end each when both connections have recorded the market for a while (marketdata.moves).
Invariants:
- The recording path is not touched: rates come from one committed batch every SAMPLE_NS, counted
  as a whole; a database that is away means no new rates and no new moves.
- Without enough seen (SEEN_MIN_NS) nothing is moved.
Does not do: choosing (plan), subscriptions (session), aligning the old run with the new one (the
deduplicator does it, as for two gatherers).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from gatherer.feed import FeedConnection
from gatherer.intake import LiveIntake
from gatherer.packing import PackedBatch
from marketdata.moves import Moves
from marketdata.plan import NS_PER_S, RATE_S, Changes, Plan
from runtime import logs
from runtime.clock import Clock
from runtime.pgcopy import DELTA_COPY, view_rows

STEP_S: Final = 1
SAMPLE_NS: Final = 2 * NS_PER_S
SEEN_MIN_NS: Final = 2 * NS_PER_S
"""Of the time that the sampled batches span together."""
BOOKS: Final = "books-{number}"

log = logs.get("rebalance")


class Rebalancer:
    """See the module's text. `interval_s` 0: rates are never looked at."""

    def __init__(
        self,
        plan: Plan,
        intake: LiveIntake,
        feeds: Mapping[str, FeedConnection],
        clock: Clock,
        *,
        interval_s: int,
        on_changes: Callable[[Changes], None],
    ) -> None:
        self._plan = plan
        self._intake = intake
        self._feeds = feeds
        self._clock = clock
        self._interval_ns = interval_s * NS_PER_S
        self._on_changes = on_changes
        self._moves = Moves(plan)
        self._sample_due_ns = 0
        self._frames: dict[int, int] = {}  # market id -> changes in the samples
        self._seen_ns = 0

    def committed(self, packed: PackedBatch) -> None:
        """A batch is in the database: a sample, if one is due."""
        now_ns = self._clock.monotonic_ns()
        if not self._interval_ns or now_ns < self._sample_due_ns or not packed.n_deltas:
            return
        self._sample_due_ns = now_ns + SAMPLE_NS
        self._seen_ns += packed.max_received_ns - packed.min_received_ns
        for layout, body in packed.tables:
            if layout is DELTA_COPY:
                ids, counts = np.unique(view_rows(layout, body)["market_id"], return_counts=True)
                for market_id, count in zip(ids.tolist(), counts.tolist(), strict=True):
                    self._frames[market_id] = self._frames.get(market_id, 0) + count

    def numbers(self) -> dict[str, Any]:
        """Figures for /health."""
        moves = self._moves
        return {
            "moving": len(self._plan.moving),
            "moves_begun": moves.begun,
            "moves_ended": moves.ended,
            "moves_given_up": moves.given_up,
        }

    async def run(self) -> None:
        """Look at moves all the time and at rates in their interval, for ever."""
        due_ns = self._clock.monotonic_ns() + self._interval_ns
        while True:
            await asyncio.sleep(STEP_S)
            now_ns = self._clock.monotonic_ns()
            if self._plan.moving:
                for changes in self._moves.step(self._covers, now_ns):
                    self._on_changes(changes)
            if self._interval_ns and now_ns >= due_ns and self._seen_ns >= SEEN_MIN_NS:
                due_ns = now_ns + self._interval_ns
                self._look(now_ns)

    def _look(self, now_ns: int) -> None:
        rates = self._rates()
        changes = self._plan.rebalance(rates, now_ns)
        if changes:
            log.info("hot markets move", moves=changes.add)
            self._on_changes(changes)

    def _rates(self) -> dict[str, int]:
        """Frames per RATE_S of markets that may be hot; the samples begin anew."""
        frames, seen_ns = self._frames, self._seen_ns
        self._frames, self._seen_ns = {}, 0
        rates = {n: count * RATE_S * NS_PER_S // seen_ns for n, count in frames.items()}
        hot = {n: rate for n, rate in rates.items() if rate >= self._plan.limits.hot_rate}
        tickers = self._intake.tickers_by_id(hot.keys()) if hot else {}
        return {tickers[n]: rate for n, rate in hot.items() if n in tickers}

    def _covers(self, number: int, ticker: str) -> bool:
        feed = self._feeds.get(BOOKS.format(number=number))
        return feed is not None and feed.status.state == "open" and feed.session.covers(ticker)
