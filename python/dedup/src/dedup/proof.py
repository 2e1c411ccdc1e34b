"""The evidence that production holds about a stretch of time, as marketdata.coverage wants it.

What holds: everything that bears on [from_us, to_us) is there: progress of runs, claims, marks,
epochs, audits; and the markets concerned are those with a claim, a mark or an epoch in it.
What `tape repair` proved counts like a claim; a gap, and rows that were kept aside, no longer count
where it filled them; its note is the reason in coverage.

Does not do: turning evidence into intervals (marketdata.coverage), writing evidence (publish).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dedup.repair import subtracted
from marketdata.coverage import (
    ORDERBOOK,
    TRADE,
    AuditPoint,
    EpochStart,
    Mark,
    MarketClaim,
    RunProgress,
)
from runtime.postgres import Connection


@dataclass(slots=True)
class Evidence:
    """Rows of evidence about one stretch of time, in the order of their keys."""

    tickers: list[str] = field(default_factory=list)
    progress: list[RunProgress] = field(default_factory=list)
    claims: list[MarketClaim] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    epochs: list[EpochStart] = field(default_factory=list)
    audits: list[AuditPoint] = field(default_factory=list)


_PROGRESS = (
    "SELECT gatherer, run_id, channel, from_us, to_us, ended, reason FROM run_progress"
    " WHERE from_us < $2 AND to_us > $1 ORDER BY gatherer, run_id"
)
# An open claim reaches as far as its run; joined here so that old, long dead claims stay out.
_CLAIMS = (
    "SELECT m.ticker, c.gatherer, c.run_id, c.from_us, c.to_us, c.valid, c.reason"
    " FROM market_claim c JOIN market m USING (market_id)"
    " LEFT JOIN run_progress p ON p.gatherer = c.gatherer AND p.run_id = c.run_id"
    " WHERE c.from_us < $2 AND c.to_us > $1"
    " AND (NOT coalesce(p.ended, false) OR greatest(p.to_us, c.from_us + 1) > $1)"
    " ORDER BY m.ticker, c.gatherer, c.run_id, c.from_us"
)
_MARKS = (
    "SELECT m.ticker, k.kind, k.from_us, k.to_us, k.reason FROM mark k JOIN market m"
    " USING (market_id) WHERE k.from_us < $2 AND k.to_us > $1"
    " ORDER BY m.ticker, k.from_us, k.to_us, k.kind, k.reason, k.window_index, k.ord"
)
_AUDITS = (
    "SELECT m.ticker, a.gatherer, a.exchange_us, a.agrees FROM audit_point a JOIN market m"
    " USING (market_id) WHERE a.exchange_us >= $1 AND a.exchange_us < $2"
    " ORDER BY m.ticker, a.exchange_us, a.gatherer, a.agrees"
)
# The epoch that is open at the start counts too: every epoch that began before the end.
_EPOCHS = (
    "SELECT m.ticker, e.epoch, e.from_us FROM market_epoch e JOIN market m USING (market_id)"
    " WHERE m.ticker = ANY($1::text[]) AND e.from_us < $2 ORDER BY m.ticker, e.epoch"
)


_BEGAN = (
    "SELECT m.ticker FROM market_epoch e JOIN market m USING (market_id)"
    " WHERE e.from_us >= $1 AND e.from_us < $2"
)


_REPAIRS = (
    "SELECT coalesce(m.ticker, '') AS ticker, p.channel, p.gatherer, p.from_us, p.to_us, p.note"
    " FROM repair_proof p LEFT JOIN market m USING (market_id)"
    " WHERE p.from_us < $2 AND p.to_us > $1 ORDER BY p.repair_id, p.ord"
)
# The epoch after an added one begins in coverage where the added one says.
_ADDED = (
    "SELECT m.ticker, r.epoch, r.after_epoch, r.until_us FROM repair_epoch r"
    " JOIN market m USING (market_id) WHERE m.ticker = ANY($1::text[]) ORDER BY m.ticker, r.epoch"
)
FILLED = ("gap", "quarantined", "late")  # kinds of marks that a repair answers


async def load_evidence(
    conn: Connection, from_us: int, to_us: int, tickers: Sequence[str] | None = None
) -> Evidence:
    """All evidence about [from_us, to_us), or all that bears on some markets."""
    made = Evidence()
    made.progress = [RunProgress(*r) for r in await conn.fetch(_PROGRESS, from_us, to_us)]
    span: tuple[Any, ...] = from_us, to_us
    claims, marks, audits, began_in = (
        _of_some(sql, tickers) for sql in (_CLAIMS, _MARKS, _AUDITS, _BEGAN)
    )
    if tickers is not None:
        span = *span, list(tickers)
    made.claims = [MarketClaim(*r) for r in await conn.fetch(claims, *span)]
    made.marks = [Mark(*r) for r in await conn.fetch(marks, *span)]
    made.audits = [AuditPoint(*r) for r in await conn.fetch(audits, *span)]
    began = await conn.fetch(began_in, *span)
    await _take_repairs(conn, made, from_us, to_us, tickers)
    concerned = {c.ticker for c in made.claims} | {m.ticker for m in made.marks}
    made.tickers = sorted(concerned | {r["ticker"] for r in began})
    found = [EpochStart(*r) for r in await conn.fetch(_EPOCHS, made.tickers, to_us)]
    added = await conn.fetch(_ADDED, made.tickers)
    made.epochs = with_added(found, [tuple(r) for r in added])
    return made


def _of_some(sql: str, tickers: Sequence[str] | None) -> str:
    """The statement over all markets, or over those named in $3."""
    if tickers is None:
        return sql
    head, order, tail = sql.partition(" ORDER BY")
    return f"{head} AND m.ticker = ANY($3::text[]){order}{tail}"


async def _take_repairs(
    conn: Connection,
    made: Evidence,
    from_us: int,
    to_us: int,
    tickers: Sequence[str] | None,
) -> None:
    """Proofs of repairs, as claims of runs that are none of the deduplicator's."""
    answered: dict[str, list[tuple[int, int]]] = defaultdict(list)
    notes: list[Mark] = []
    for n, r in enumerate(await conn.fetch(_REPAIRS, from_us, to_us), 1):
        ticker, channel, gatherer, low, high, note = r
        if channel == TRADE:
            made.progress.append(RunProgress(gatherer, -n, TRADE, low, high, ended=True, reason=""))
        elif channel == ORDERBOOK and (tickers is None or ticker in tickers):
            made.claims.append(MarketClaim(ticker, gatherer, -n, low, high, valid=True, reason=""))
            notes.append(Mark(ticker, "late", low, high, note))
            answered[ticker].append((low, high))
    kept = [
        part
        for mark in made.marks
        for part in (
            without(mark, answered.get(mark.ticker, [])) if mark.kind in FILLED else [mark]
        )
    ]
    made.marks = kept + notes


def without(mark: Mark, answered: list[tuple[int, int]]) -> list[Mark]:
    """The parts of a mark outside of what was answered."""
    span = mark.from_us, mark.to_us
    return [replace(mark, from_us=low, to_us=high) for low, high in subtracted(span, answered)]


def with_added(
    epochs: list[EpochStart], added: list[tuple[str, int, int, int]]
) -> list[EpochStart]:
    """Epoch starts where added ones (ticker, epoch, the epoch before it, until) stand between: the
    deduplicator's next epoch begins where the last of them ends."""
    begins: dict[tuple[str, int], int] = {}
    for ticker, _, after, until_us in added:
        if until_us:
            name = ticker, after + 1
            begins[name] = max(begins.get(name, 0), until_us)
    return [replace(e, from_us=begins.get((e.ticker, e.epoch), e.from_us)) for e in epochs]
