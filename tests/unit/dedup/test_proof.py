"""Evidence comes back from production as it went in, and only what bears on the stretch."""

from __future__ import annotations

from dedup.proof import load_evidence
from dedup.publication import HOUR_US, publication_of
from dedup.publish import Publisher
from marketdata.coverage import OPEN_US, AuditPoint, EpochStart, Mark, MarketClaim, RunProgress
from tests.window_outputs import T0, window_output

H = HOUR_US


async def test_everything_about_a_stretch_and_nothing_else(production: str) -> None:
    """A claim whose run died hours ago costs nothing; one that reaches in counts."""
    output = window_output(0, ["A"])
    output.progress = [
        RunProgress(0, 1, "orderbook", T0 - 9 * H, T0 - 5 * H, ended=True, reason="close"),
        RunProgress(0, 2, "orderbook", T0 - 2 * H, T0 + 5, ended=False, reason=""),
        RunProgress(1, 3, "trade", T0 - 2 * H, T0 - H, ended=True, reason="gap"),
    ]
    output.claims = [
        MarketClaim("OLD", 0, 1, T0 - 9 * H, OPEN_US, valid=True, reason=""),
        MarketClaim("A", 0, 2, T0 - 2 * H, OPEN_US, valid=True, reason=""),
        MarketClaim("B", 0, 2, T0 - 2 * H, T0 - H, valid=True, reason="removed"),
        MarketClaim("C", 0, 2, T0 - H, T0 + H, valid=False, reason="contradicted"),
    ]
    output.marks = [
        Mark("D", "gap", T0 - 1, T0 + 1, "hole"),
        Mark("D", "gap", T0 - 3, T0, "before"),
    ]
    output.audits = [AuditPoint("A", 0, T0 + H, agrees=True), AuditPoint("A", 0, T0, agrees=False)]
    publisher = Publisher(production, {})
    await publisher.open()
    await publisher.commit(publication_of([output], {}, {}), {})
    found = await load_evidence(await publisher.connection(), T0, T0 + H)
    some = await load_evidence(await publisher.connection(), T0, T0 + H, ["A", "OLD", "NONE"])
    await publisher.close()
    assert some.progress == found.progress
    assert [c.ticker for c in some.claims] == ["A"]
    assert (some.marks, some.audits, some.tickers) == ([], found.audits, ["A"])
    assert some.epochs == found.epochs
    assert [p.run_id for p in found.progress] == [2]
    assert [(c.ticker, c.valid) for c in found.claims] == [("A", True), ("C", False)]
    assert found.marks == output.marks[:1]
    assert found.audits == output.audits[1:]
    assert found.epochs == [EpochStart("A", 1, T0)]
    assert found.tickers == ["A", "C", "D"]
