"""Coverage of an hour as rows of the lake."""

from __future__ import annotations

from itertools import pairwise

from dedup.coverage_rows import CHANNELS, coverage_records
from dedup.proof import Evidence
from kalshilake.tables import records_table
from marketdata.coverage import OPEN_US, EpochStart, MarketClaim, RunProgress
from tests.window_outputs import T0


def test_every_channel_of_every_market_is_told_without_a_hole() -> None:
    """A reader must not have to guess what an absent row means inside an exported stretch."""
    evidence = Evidence(
        tickers=["A", "B"],
        progress=[RunProgress(1, 5, "orderbook", T0, T0 + 60, ended=False, reason="")],
        claims=[MarketClaim("A", 1, 5, T0 + 10, OPEN_US, valid=True, reason="")],
        epochs=[EpochStart("A", 1, T0 + 10)],
    )
    records = coverage_records(evidence, T0, T0 + 100)
    for ticker in ("A", "B"):
        for channel in CHANNELS:
            mine = [r for r in records if r["market_ticker"] == ticker and r["channel"] == channel]
            edges = [(r["from_ts"], r["to_ts"]) for r in mine]
            assert edges[0][0] == T0
            assert edges[-1][1] == T0 + 100
            assert all(a[1] == b[0] for a, b in pairwise(edges))
    (complete,) = [r for r in records if r["status"] == "complete"]
    assert (complete["from_ts"], complete["to_ts"]) == (T0 + 10, T0 + 60)
    assert complete["sources"] == 2
    assert complete["epoch"] == 1
    assert any(r["epoch"] is None for r in records)
    assert records_table("coverage", records).num_rows == len(records)
