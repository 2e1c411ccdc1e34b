"""Coverage of one hour as rows of the lake's `coverage` table.

What holds: an epoch opens with the first keyframe that the merge placed; quiet time that another
gatherer proves right before it belongs to the same epoch, for nothing happened in between.

Does not do: deciding what evidence proves (marketdata.coverage), reading it (proof), writing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from dedup.proof import Evidence
from marketdata import coverage
from marketdata.coverage import Interval

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
        for interval in with_epochs(coverage.intervals(evidence, from_us, to_us))
    ]


def with_epochs(intervals: list[Interval]) -> list[Interval]:
    """The intervals, complete ones before a market's first epoch in the epoch they lead into."""
    made = list(intervals)
    for at in range(len(made) - 2, -1, -1):
        here, after = made[at], made[at + 1]
        if (
            here.epoch == 0
            and here.status == after.status == "complete"
            and (here.ticker, here.channel, here.to_us)
            == (after.ticker, after.channel, after.from_us)
        ):
            made[at] = replace(here, epoch=after.epoch)
    return made
