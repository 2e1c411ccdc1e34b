"""Coverage rows of many hours as intervals."""

from __future__ import annotations

import numpy as np

from kalshilake.coverage import NO_ROW, CoverageMap
from kalshilake.schema import STATUSES
from kalshilake.tables import records_table

Row = tuple[int, int, str, int | None]


def cover(*rows: Row, channel: str = "orderbook") -> CoverageMap:
    return CoverageMap(
        records_table(
            "coverage",
            [
                {"market_ticker": "M", "channel": channel, "from_ts": a, "to_ts": b,
                 "status": status, "reason": "", "sources": 7, "audits": 1, "epoch": epoch}
                for a, b, status, epoch in rows
            ],
        )
    )  # fmt: skip


def test_rows_that_touch_and_say_the_same_are_one_interval_and_audits_add_up() -> None:
    """An hour's border is no gap."""
    made = cover((0, 10, "complete", 1), (10, 20, "complete", 1), (20, 30, "complete", 2))
    joined = made.intervals("M", "orderbook")
    assert [(i.from_us, i.to_us, i.epoch, i.audits) for i in joined] == [
        (0, 20, 1, 2),
        (20, 30, 2, 1),
    ]


def test_a_moment_without_a_row_is_dark() -> None:
    """Nobody said anything: that is not a claim."""
    made = cover((10, 20, "complete", 1), (30, 40, "gap", None))
    filled = [(i.from_us, i.to_us, i.status) for i in made.filled("M", "orderbook", 0, 50)]
    assert filled == [
        (0, 10, "dark"), (10, 20, "complete"), (20, 30, "dark"), (30, 40, "gap"), (40, 50, "dark"),
    ]  # fmt: skip
    assert made.at("M", "orderbook", 20).reason == NO_ROW
    assert made.at("X", "orderbook", 15).status == "dark"
    assert [i.status for i in cover().filled("M", "trade", 3, 4)] == ["dark"]


def test_filled_cuts_rows_to_the_question() -> None:
    """Ends inside a row, at its edge, and beyond."""
    made = cover((10, 20, "complete", 1), (20, 30, "gap", None))
    for a, b, want in (
        (12, 15, [(12, 15)]), (10, 20, [(10, 20)]), (19, 21, [(19, 20), (20, 21)]),
        (30, 31, [(30, 31)]), (5, 10, [(5, 10)]),
    ):  # fmt: skip
        assert [(i.from_us, i.to_us) for i in made.filled("M", "orderbook", a, b)] == want


def test_tickers_suffice_when_a_live_connection_recorded_and_nothing_else_does() -> None:
    """`unproven` is the best a channel without numbers has; for a book it proves nothing."""
    rows = ((0, 10, "unproven", None), (10, 20, "dark", None))
    assert len(cover(*rows, channel="ticker").unproven("M", "ticker", 0, 20)) == 1
    assert len(cover(*rows).unproven("M", "orderbook", 0, 20)) == 2
    assert cover(*rows, channel="ticker").proven_span("M", "ticker") == (0, 10)
    assert cover(*rows).proven_span("M", "orderbook") is None


def test_statuses_of_moments_agree_with_the_intervals() -> None:
    """The column that a read adds is this."""
    made = cover((10, 20, "complete", 1), (20, 25, "gap", None), (30, 40, "disputed", None))
    times = np.arange(0, 50)
    codes = made.statuses("M", "orderbook", times)
    assert [STATUSES[c] for c in codes] == [made.at("M", "orderbook", t).status for t in range(50)]
    assert set(made.statuses("X", "orderbook", times)) == {STATUSES.index("dark")}
    assert made.markets == ["M"]
