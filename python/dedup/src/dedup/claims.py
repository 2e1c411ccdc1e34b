"""What one market's runs prove, and the claims made from it.

Purpose: the ground floor of a market's window: its runs, the time they prove, and opening and
closing of claims. quiet.py builds runs without events on it, markets.py the whole window.

Invariants: INV-K3 rows that are not placed end the claim of their run before them; nothing is
claimed again before the next snapshot.

Does not do: placing anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dedup.drafts import Draft
from dedup.output import ArbiterSettings
from dedup.runs import Market, Pair, Run, Standing
from dedup.window import RunTimes, WindowSink, open_claim
from marketdata.alignment import Events, no_events
from marketdata.coverage import Mark, MarketClaim, MarkKind
from marketdata.evidence import Evidence, Seen
from marketdata.merge import Rejected

BACKWARDS: Final = "known backwards from a get_snapshot reply, by one gatherer"


def rests_on_reply(pair: Pair, after_seq: int) -> bool:
    """Does a claim from behind `after_seq` on reach back to before the reply that gave H?"""
    return pair.rests_seq > after_seq + 1


@dataclass(slots=True)
class Context:
    """What all markets of one window share."""

    settings: ArbiterSettings
    window: int
    to_us: int
    times: RunTimes
    sink: WindowSink
    runs: dict[tuple[int, int], Run]
    n_markets: dict[tuple[int, int], int]  # of each run
    inherits: Callable[[Run, str], bool]  # was the market subscribed before the run's gap?
    unclaimed: dict[tuple[int, int], dict[str, int]]  # run -> ticker -> seq: waits for a time
    evidence: Evidence  # what earlier windows showed of the exchange
    seen: Seen  # and this one
    # Events from here on stay at hand: by another gatherer's clock they may lie in the next window,
    # and a run may begin with them there. OPEN_US where equal times of all are proven.
    kept_us: int


@dataclass(slots=True)
class Placement:
    """Where a draft's last event stands: `position` events of `epoch` up to and with it."""

    epoch: int
    position: int


class Claims:
    """One market in one window: its runs and their claims."""

    def __init__(self, market: Market, index: int, context: Context) -> None:
        self.market = market
        self.index = index
        self.ctx = context
        self.sink = context.sink
        self.drafts: list[Draft] = []
        self.ends: dict[int, Placement] = {}  # id(draft) -> where it ended
        self.settled: set[int] = set()  # ids of quiet drafts: their pairs are up to date
        self.rejects: dict[int, list[Rejected]] = {}
        self.segment_at: dict[int, tuple[int, int]] = {}  # id(segment) -> (epoch, position of [0])
        self.appended: Events = no_events()  # of the current epoch, in this window
        self.appended_masks: list[int] = []
        # The latest keyframe's position, of epochs that ended in this window too: one per place.
        self.keyframed: dict[int, int] = {market.epoch: market.keyframe_at}

    def _mark(self, kind: MarkKind, from_us: int, to_us: int, reason: str) -> None:
        self.sink.marks.append(Mark(self.market.ticker, kind, from_us, to_us, reason))

    def _proof_to(self, pair: Pair) -> int:
        key = (pair.gatherer, pair.run_id)
        run = self.ctx.runs[key]
        count = self.ctx.n_markets.get(key, 1)
        return self.ctx.times.proof_to(run, self.index, pair.last_us, count)

    def _claim_starts(self) -> dict[int, int]:
        """id(piece) -> time from which its run proves everything of this market; -1 unknown."""
        starts: dict[int, int] = {}
        for draft in self.drafts:
            pair = draft.pair
            if draft.begins_anew:
                starts[id(draft.piece)] = self._resolve(draft.run, draft.begin_seq)
            elif pair.claim_from_us >= 0:
                starts[id(draft.piece)] = pair.claim_from_us
            elif pair.claim_seq >= 0:
                starts[id(draft.piece)] = self._resolve(draft.run, pair.claim_seq)
            else:
                starts[id(draft.piece)] = -1
        return starts

    def _resolve(self, run: Run, after_seq: int) -> int:
        return self.ctx.times.claim_start(run, self.index, self.market.ticker, after_seq)

    def open_claim(self, pair: Pair, after_seq: int, from_us: int | None = None) -> None:
        """The pair is in sequence after `after_seq`: claim from the first time shown after it."""
        key = (pair.gatherer, pair.run_id)
        run = self.ctx.runs[key]
        start = self._resolve(run, after_seq) if from_us is None else from_us
        pair.claim_seq = after_seq
        if start < 0:
            self.ctx.unclaimed.setdefault(key, {})[self.market.ticker] = after_seq
            return
        self.ctx.unclaimed.get(key, {}).pop(self.market.ticker, None)
        pair.claim_from_us = start
        self.sink.claim(open_claim(self.market.ticker, run, start))
        self._mark_unproven(pair, after_seq, start)

    def _mark_unproven(self, pair: Pair, after_seq: int, from_us: int) -> None:
        """What a claim holds of before the reply that gave H backwards rests on that reply standing
        at its seq: until the exchange has shown that it does, it takes a second gatherer.
        """
        if not rests_on_reply(pair, after_seq) or self.ctx.evidence.replies_proven(self.ctx.seen):
            return
        to_us = pair.rests_us + 1 + self.ctx.settings.engine_skew_us
        if from_us < to_us:
            self._mark("unproven", from_us, to_us, BACKWARDS)

    def _open_waiting(self) -> None:
        """Claims of quiet runs whose first exchange time has come."""
        for pair in self.market.pairs:
            known = pair.standing in (Standing.PINNED, Standing.PENDING)
            if known and pair.claim_from_us < 0 and pair.claim_seq >= 0:
                self.open_claim(pair, pair.claim_seq)

    def close_claim(self, pair: Pair, to_us: int, reason: str) -> None:
        """The pair's claim ends at `to_us` (INV-K3); nothing is claimed again before a snapshot."""
        self.ctx.unclaimed.get((pair.gatherer, pair.run_id), {}).pop(self.market.ticker, None)
        if pair.claim_from_us >= 0:
            to_us = max(to_us, pair.claim_from_us)
            self.sink.claim(
                MarketClaim(
                    self.market.ticker, pair.gatherer, pair.run_id, pair.claim_from_us, to_us,
                    valid=to_us > pair.claim_from_us, reason=reason,
                )
            )  # fmt: skip
        pair.claim_from_us = pair.claim_seq = -1
