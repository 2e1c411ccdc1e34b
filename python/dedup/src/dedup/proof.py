"""The evidence that production holds about a stretch of time, as marketdata.coverage wants it.

What holds: everything that bears on [from_us, to_us) is there: progress of runs, claims, marks,
epochs, audits; and the markets concerned are those with a claim, a mark or an epoch in it.

Does not do: turning evidence into intervals (marketdata.coverage), writing evidence (publish).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from marketdata.coverage import AuditPoint, EpochStart, Mark, MarketClaim, RunProgress
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


async def load_evidence(conn: Connection, from_us: int, to_us: int) -> Evidence:
    """All evidence about [from_us, to_us)."""
    made = Evidence()
    made.progress = [RunProgress(*r) for r in await conn.fetch(_PROGRESS, from_us, to_us)]
    made.claims = [MarketClaim(*r) for r in await conn.fetch(_CLAIMS, from_us, to_us)]
    made.marks = [Mark(*r) for r in await conn.fetch(_MARKS, from_us, to_us)]
    made.audits = [AuditPoint(*r) for r in await conn.fetch(_AUDITS, from_us, to_us)]
    began = await conn.fetch(
        "SELECT m.ticker FROM market_epoch e JOIN market m USING (market_id)"
        " WHERE e.from_us >= $1 AND e.from_us < $2",
        from_us,
        to_us,
    )
    tickers = {c.ticker for c in made.claims} | {m.ticker for m in made.marks}
    made.tickers = sorted(tickers | {r["ticker"] for r in began})
    made.epochs = [EpochStart(*r) for r in await conn.fetch(_EPOCHS, made.tickers, to_us)]
    return made
