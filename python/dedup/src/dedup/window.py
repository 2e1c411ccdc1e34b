"""What one window collects while its markets are merged, and the evidence of its runs.

Purpose: `WindowSink` gathers rows, evidence and counts of one window; `RunTimes` answers what a run
proves: the first exchange time after a place in its sequence (start of a claim) and the last one
(how far it proves silence), as of this window only, never of rows read further ahead.

Invariants: INV-E1 a claim starts only after an exchange time that the run showed in sequence, with
the engines' margin unless that time is the market's own. INV-E2 the latest time counts only as far
as closed windows go, so that results do not depend on how far ahead rows were read.

Does not do: merging (markets.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dedup.columns import by_run, stable_order
from dedup.inflow import Inflow
from dedup.items import LOW, UNTIMED, Cut, EndItem
from dedup.output import ArbiterSettings, EpochRow, GapRow, QuarantineRow
from dedup.runs import Run, RunMarkets
from marketdata.coverage import OPEN_US, AuditPoint, Mark, MarketClaim
from marketdata.evidence import Change
from marketdata.rows import DELTA_ROW, MERGED_ROW, DeltaRows, SnapshotRow

I64 = npt.NDArray[np.int64]


@dataclass(slots=True)
class PlacedSnapshot:
    """A keyframe with its place in the merged sequence."""

    ticker: str
    epoch: int
    position: int
    exchange_us: int
    received_ns: int
    book_hash: int
    levels: bytes
    sources: int


@dataclass(slots=True)
class WindowSink:
    """Everything one window adds; `blocks` hold merged rows with the ticker's arbiter index."""

    blocks: list[DeltaRows] = field(default_factory=list)
    snapshots: list[PlacedSnapshot] = field(default_factory=list)
    epochs: list[EpochRow] = field(default_factory=list)
    gaps: list[GapRow] = field(default_factory=list)
    quarantine: list[QuarantineRow] = field(default_factory=list)
    claims: dict[tuple[str, int, int, int], MarketClaim] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list)
    audits: list[AuditPoint] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)  # of what the exchange had shown
    counts: Counter[str] = field(default_factory=Counter)

    def late(self, ticker: str, gatherer: int, run_id: int, us: int, kind: str) -> None:
        """A ticker state that came too late to be told from a repeat."""
        self.counts[f"late_{kind}"] += 1
        self.quarantine.append(
            QuarantineRow(ticker, gatherer, run_id, "late", us, us + 1, 1, np.empty(0, DELTA_ROW))
        )

    def claim(self, claim: MarketClaim) -> None:
        self.claims[(claim.ticker, claim.gatherer, claim.run_id, claim.from_us)] = claim


@dataclass(slots=True)
class PairRows:
    """Rows and snapshots of one run in one market in this window."""

    run: Run
    rows: DeltaRows
    snapshots: list[SnapshotRow]


class RunTimes:
    """Exchange times that the runs of this window showed, in sequence order."""

    def __init__(self, settings: ArbiterSettings, inflows: list[Inflow], cuts: list[Cut]) -> None:
        self.skew_us = settings.engine_skew_us
        self.inflows = inflows
        self.cuts = cuts
        self.ends: dict[tuple[int, int, int], EndItem] = {}  # (gatherer, run, market or -1)
        self._times: dict[tuple[int, int], tuple[I64, I64, I64]] = {}
        for inflow, cut in zip(inflows, cuts, strict=True):
            for end in cut.ends:
                market = -1 if end.key < 0 else end.key >> 32
                self.ends[(inflow.gatherer, end.run_id, market)] = end

    def timed(self, run: Run) -> tuple[I64, I64, I64]:
        """(seq, exchange_us, market index) of the run's timed rows of this window, by seq."""
        found = self._times.get((run.gatherer, run.run_id))
        if found is None:
            cut = self.cuts[run.gatherer]
            mine = (cut.key & LOW) == run.run_id
            mine &= (cut.rows["flags"] & UNTIMED) == 0
            seq = cut.rows["seq"][mine].astype(np.int64)
            order = stable_order(seq)
            found = (seq[order], cut.rows["exchange_us"][mine][order], cut.key[mine][order] >> 32)
            self._times[(run.gatherer, run.run_id)] = found
        return found

    def advance(self, tickers: list[str]) -> set[tuple[int, int]]:
        """Move every run's `z_us` over this window's rows; returns the runs that moved."""
        moved: set[tuple[int, int]] = set()
        for inflow, cut in zip(self.inflows, self.cuts, strict=True):
            if cut.rows.size == 0:
                continue
            timed_us = np.where((cut.rows["flags"] & UNTIMED) == 0, cut.rows["exchange_us"], -1)
            for run_id, mine in by_run(cut.rows["run_id"]):
                run = inflow.runs[run_id]
                latest = int(timed_us[mine].max())
                if latest < 0:
                    continue
                if run.first_us < 0:
                    _, us, market = self.timed(run)
                    run.first_us, run.first_market = int(us[0]), tickers[int(market[0])]
                if latest > run.z_us:
                    run.z_us = latest
                    moved.add((run.gatherer, run_id))
        return moved

    def claim_start(self, run: Run, market: int, ticker: str, after_seq: int) -> int:
        """Exchange time from which the run proves everything of the market; -1: not shown yet."""
        if after_seq < run.first_seq:
            if run.first_us < 0:
                return -1
            own = run.first_market == ticker
            return run.first_us + 1 + (0 if own else self.skew_us)
        seq, us, markets = self.timed(run)
        at = int(seq.searchsorted(after_seq, side="right"))
        if at == seq.size:
            return -1
        own = int(markets[at]) == market
        return int(us[at]) + 1 + (0 if own else self.skew_us)

    def proof_to(self, run: Run, market: int, own_last_us: int, n_markets: int) -> int:
        """Time before which the run, if it is in sequence, proves that nothing else happened."""
        shown_us = run.z_us
        removed = self.ends.get((run.gatherer, run.run_id, market))
        if removed is not None:  # the market left the subscription here
            shown_us = min(shown_us, removed.shown_us)
        if shown_us < 0:
            return own_last_us
        margin = 0 if n_markets <= 1 else self.skew_us
        return max(own_last_us, shown_us - margin)

    def end_of(self, run: Run, market: int) -> EndItem | None:
        """How the run, or this market in it, ended in this window."""
        whole = self.ends.get((run.gatherer, run.run_id, -1))
        return whole or self.ends.get((run.gatherer, run.run_id, market))


def open_claim(ticker: str, run: Run, from_us: int) -> MarketClaim:
    return MarketClaim(ticker, run.gatherer, run.run_id, from_us, OPEN_US, valid=True, reason="")


def empty_block(n: int) -> DeltaRows:
    return np.zeros(n, MERGED_ROW)


__all__ = [
    "PairRows",
    "PlacedSnapshot",
    "RunMarkets",
    "RunTimes",
    "WindowSink",
    "empty_block",
    "open_claim",
]
