"""Coverage of one hour as rows of the lake's `coverage` table.

Does not do: deciding what evidence proves (marketdata.coverage), reading it (proof), writing.
"""

from __future__ import annotations

from typing import Any, Final

from dedup.proof import Evidence
from marketdata import coverage

CHANNELS: Final = (coverage.ORDERBOOK, coverage.TRADE, coverage.TICKER)


def coverage_records(evidence: Evidence, from_us: int, to_us: int) -> list[dict[str, Any]]:
    """One record an interval of [from_us, to_us), for every market that the evidence concerns."""
    return [
        {
            "market_ticker": interval.ticker,
            "channel": interval.channel,
            "from_ts": interval.from_us,
            "to_ts": interval.to_us,
            "status": interval.status,
            "reason": interval.reason,
            "sources": interval.sources,
            "audits": interval.audits,
            "epoch": interval.epoch or None,
        }
        for interval in coverage.intervals(evidence, from_us, to_us)
    ]
