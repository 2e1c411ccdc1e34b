"""What may be claimed about a market, a channel and an interval: evidence in, intervals out.

Purpose: the rows of evidence that the merge emits (progress of runs, claims of markets, marks), and
the one function that turns them into intervals. A row a window and market would be far too much;
evidence is written where something begins, ends or goes wrong, and coverage is computed from it.

Invariants: INV-C1 `complete` only where a claim that nobody took back reaches, and nowhere where
a mark lies. INV-C2 the intervals of a market and channel are disjoint, ascending and fill [a, b).
INV-C3 no `complete` interval crosses the start of an epoch. INV-C4 a `complete` interval of an
order book lies in an epoch: that nobody missed anything is not enough where no book is known.

Does not do: deciding what a run proves (dedup.evidence), reading or writing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Literal, Protocol, TypeVar

OPEN_US: Final = 2**62  # `to_us` of a claim or mark that has not ended yet

REPAIRED_EPOCH: Final = 1 << 24  # epochs from here on were added by `tape repair`

ORDERBOOK: Final = "orderbook"
TRADE: Final = "trade"
TICKER: Final = "ticker"

NO_BOOK: Final = "in sequence, and no book is known yet"

Status = Literal["complete", "gap", "dark", "ambiguous", "disputed", "unproven"]
MarkKind = Literal["gap", "ambiguous", "disputed", "quarantined", "unproven", "late"]


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run got. Key (gatherer, run_id): a later row replaces the earlier one.

    `[from_us, to_us)` is what the run proves of any of its markets: the margin for clocks of the
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

    `late` only adds a reason; `unproven` forbids it to one gatherer alone (a stretch that rests on
    what the exchange has not been seen to do); all others take `complete` away.
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


class Evidence(Protocol):
    """Everything that bears on one stretch of time, for `tickers`."""

    tickers: list[str]
    progress: list[RunProgress]
    claims: list[MarketClaim]
    marks: list[Mark]
    epochs: list[EpochStart]
    audits: list[AuditPoint]


_Row = TypeVar("_Row", Mark, EpochStart, AuditPoint)


@dataclass(frozen=True, slots=True)
class _Stretch:
    from_us: int
    to_us: int
    gatherer: int


_RANK: Final[dict[str, Status]] = {  # the first that applies wins
    "disputed": "disputed",
    "ambiguous": "ambiguous",
    "quarantined": "gap",
    "gap": "gap",
}


def intervals(evidence: Evidence, from_us: int, to_us: int) -> list[Interval]:
    """Coverage of [from_us, to_us) for every ticker and channel, ordered and without a hole."""
    reach = {(p.gatherer, p.run_id): p for p in evidence.progress}
    claims: dict[str, list[_Stretch]] = {}
    for claim in evidence.claims:
        stretch = _claimed(claim, reach)
        if stretch is not None:
            claims.setdefault(claim.ticker, []).append(stretch)
    trades = [
        _Stretch(p.from_us, p.to_us, p.gatherer) for p in evidence.progress if p.channel == TRADE
    ]
    marks = _by_ticker(evidence.marks)
    epochs = _by_ticker(evidence.epochs)
    audits = _by_ticker([a for a in evidence.audits if a.agrees])
    made: list[Interval] = []
    for ticker in sorted(set(evidence.tickers)):
        times = sorted(a.exchange_us for a in audits.get(ticker, ()))
        book = _channel(
            ticker, ORDERBOOK, from_us, to_us, claims.get(ticker, []), marks.get(ticker, []),
            epochs.get(ticker, []),
        )  # fmt: skip
        made += [_with_audits(i, times) for i in _in_epochs(book)]
        made += _channel(ticker, TRADE, from_us, to_us, trades, [], [])
        if from_us < to_us:
            reason = "no sequence numbers"
            made.append(Interval(ticker, TICKER, from_us, to_us, "unproven", reason, 0, 0, 0))
    return made


def _by_ticker(rows: Sequence[_Row]) -> dict[str, list[_Row]]:
    found: dict[str, list[_Row]] = {}
    for row in rows:
        found.setdefault(row.ticker, []).append(row)
    return found


def _claimed(claim: MarketClaim, reach: Mapping[tuple[int, int], RunProgress]) -> _Stretch | None:
    """What a claim covers: an open one only as far as its run has got."""
    if not claim.valid:
        return None
    to_us = claim.to_us
    if to_us >= OPEN_US:
        run = reach.get((claim.gatherer, claim.run_id))
        if run is None:
            return None
        to_us = run.to_us
    return _Stretch(claim.from_us, to_us, claim.gatherer) if to_us > claim.from_us else None


def _channel(
    ticker: str,
    channel: str,
    from_us: int,
    to_us: int,
    claims: list[_Stretch],
    marks: list[Mark],
    epochs: list[EpochStart],
) -> list[Interval]:
    """Cut [from_us, to_us) at every place where something changes, and judge each part."""
    cuts = {from_us, to_us}
    for claim in claims:
        cuts |= {claim.from_us, claim.to_us}
    for mark in marks:
        cuts |= {mark.from_us, mark.to_us}
    cuts |= {e.from_us for e in epochs}
    ordered = sorted(c for c in cuts if from_us <= c <= to_us)
    first = min((c.from_us for c in claims), default=to_us)
    last = max((c.to_us for c in claims), default=from_us)
    starts = sorted((e.from_us, e.epoch) for e in epochs)
    made: list[Interval] = []
    for low, high in pairwise(ordered):
        sources = 0
        for claim in claims:
            if claim.from_us <= low and high <= claim.to_us:
                sources |= 1 << claim.gatherer
        here = [m for m in marks if m.from_us <= low and high <= m.to_us]
        status, reason = _judge(sources, here, within=first <= low and high <= last)
        epoch = _epoch_at(starts, low)
        part = Interval(ticker, channel, low, high, status, reason, sources, 0, epoch)
        before = made[-1] if made else None
        if before is not None and _alike(before, part):
            part = replace(part, from_us=before.from_us)
            made.pop()
        made.append(part)
    return made


def _in_epochs(made: list[Interval]) -> list[Interval]:
    """INV-C4: complete time right before a market's first epoch is of that epoch, for nothing
    happened in between (a gatherer that came late proves it); what does not lead there is unproven.
    """
    found, after = list(made), None
    for at in range(len(found) - 1, -1, -1):
        here = found[at]
        if here.epoch == 0 and here.status == "complete":
            if after is not None and after.status == "complete":
                here = replace(here, epoch=after.epoch)
            else:
                here = replace(here, status="unproven", reason=NO_BOOK)
            found[at] = here
        after = here
    return found


def _epoch_at(starts: list[tuple[int, int]], us: int) -> int:
    """The epoch that is open at a time; `starts` ascend. One that a repair added counts only until
    the next one begins."""
    highest = current = 0
    for from_us, epoch in starts:
        if from_us > us:
            break
        highest = max(highest, epoch) if epoch < REPAIRED_EPOCH else highest
        current = highest if epoch < REPAIRED_EPOCH else epoch
    return current


def _judge(sources: int, marks: list[Mark], *, within: bool) -> tuple[Status, str]:
    """Status and reason of one part. `within`: claims lie before and after it (INV-C1)."""
    for kind, status in _RANK.items():
        for mark in marks:
            if mark.kind == kind:
                return status, mark.reason
    alone = [m.reason for m in marks if m.kind == "unproven"]
    if alone and sources.bit_count() == 1:
        return "unproven", alone[0]
    note = "; ".join(sorted({m.reason for m in marks if m.kind != "unproven"}))
    if sources:
        return "complete", note
    if within:
        return "gap", note or "no gatherer was in sequence"
    return "dark", note or "not recorded"


def _alike(a: Interval, b: Interval) -> bool:
    return (a.to_us, a.status, a.reason, a.sources, a.epoch) == (
        b.from_us, b.status, b.reason, b.sources, b.epoch,
    )  # fmt: skip


def _with_audits(interval: Interval, times: list[int]) -> Interval:
    passed = bisect_left(times, interval.to_us) - bisect_left(times, interval.from_us)
    return replace(interval, audits=passed) if passed else interval
