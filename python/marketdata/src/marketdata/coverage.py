"""What may be claimed about a market, a channel and an interval: evidence in, intervals out.

Purpose: the rows of evidence that the merge emits (progress of runs, claims of markets, marks), and
the one function that turns them into intervals. A row a window and market would be far too much;
evidence is written where something begins, ends or goes wrong, and coverage is computed from it.

Invariants: INV-C1 `complete` only where a claim that nobody invalidated reaches, and nowhere where a
mark lies. INV-C2 the intervals of a market and channel are disjoint, ascending and fill [a, b).
INV-C3 no `complete` interval crosses the start of an epoch.

Does not do: deciding what a run proves (dedup.evidence), reading or writing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

OPEN_US: Final = 2**62  # `to_us` of a claim or mark that has not ended yet

ORDERBOOK: Final = "orderbook"
TRADE: Final = "trade"
TICKER: Final = "ticker"

Status = Literal["complete", "gap", "dark", "ambiguous", "disputed", "unproven"]
MarkKind = Literal["gap", "ambiguous", "disputed", "quarantined", "late"]


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run got. Key (gatherer, run_id): a later row replaces the earlier one.

    `[from_us, to_us)` is what the run proves of other markets' silence: the margin for clocks of the
    exchange's engines is already taken off at both ends. `to_us` grows while the run lives.
    """

    gatherer: int
    run_id: int
    channel: str  # orderbook | trade
    from_us: int
    to_us: int
    ended: bool
    reason: str  # why it ended; "" while it lives


@dataclass(frozen=True, slots=True)
class MarketClaim:
    """A gatherer saw everything of one market's order book in [from_us, to_us).

    Key (ticker, gatherer, run_id, from_us): a later row replaces the earlier one. While `to_us` is
    OPEN_US the claim reaches as far as the progress of its run. `valid` False: taken back, claims
    nothing (a quarantined run).
    """

    ticker: str
    gatherer: int
    run_id: int
    from_us: int
    to_us: int
    valid: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that forbids `complete` in [from_us, to_us), whoever claims it. Append-only.

    `late` only adds a reason; all others take `complete` away.
    """

    ticker: str
    kind: MarkKind
    from_us: int
    to_us: int
    reason: str


@dataclass(frozen=True, slots=True)
class EpochStart:
    """The merged tape of `ticker` numbers anew from `from_us` on (epochs count from 1)."""

    ticker: str
    epoch: int
    from_us: int


@dataclass(frozen=True, slots=True)
class AuditPoint:
    """A snapshot that stood at its place in the merged tape (`agrees`), or did not."""

    ticker: str
    gatherer: int
    exchange_us: int
    agrees: bool


@dataclass(frozen=True, slots=True)
class Interval:
    """One stretch of coverage, half open. `sources`: bit g set if gatherer g proves it."""

    ticker: str
    channel: str
    from_us: int
    to_us: int
    status: Status
    reason: str
    sources: int
    audits: int
    epoch: int
