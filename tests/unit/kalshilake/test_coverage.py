"""Coverage rows of many hours as intervals."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from kalshilake.coverage import (
    NO_ROW,
    SUFFICES,
    TWO_EPOCHS,
    CoverageInterval,
    CoverageMap,
    of_one_epoch,
)
from kalshilake.schema import STATUSES
from kalshilake.tables import records_table

Row = tuple[int, int, str, int | None]


def cover(*rows: Row, channel: str = "orderbook", apart_us: int = 0) -> CoverageMap:
    return CoverageMap(claims(*rows, channel=channel), apart_us)


def claims(*rows: Row, channel: str = "orderbook") -> pa.Table:
    return records_table(
        "coverage",
        [
            {"market_ticker": "M", "channel": channel, "from_ts": a, "to_ts": b,
             "status": status, "reason": "", "sources": 7, "audits": 1, "epoch": epoch}
            for a, b, status, epoch in rows
        ],
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


def test_other_gatherers_are_no_break_and_another_epoch_is() -> None:
    """A snapshot in the middle of a stretch would cost a reader its place in every queue."""

    def span(a: int, b: int, status: str, sources: int, epoch: int | None) -> CoverageInterval:
        return CoverageInterval("KX", "orderbook", a, b, status, "", sources, 0, epoch)

    line = [
        span(0, 5, "complete", 7, 1), span(5, 9, "complete", 3, 1), span(9, 12, "complete", 7, 2),
        span(12, 15, "gap", 0, None), span(15, 20, "gap", 0, None), span(20, 30, "complete", 7, 2),
    ]  # fmt: skip
    found = [(s.from_us, s.to_us, s.epoch) for s in of_one_epoch(line) if s.status == "complete"]
    assert found == [(0, 9, 1), (9, 12, 2), (20, 30, 2)]


def test_by_receipt_what_is_not_proven_is_wider_and_epochs_that_touch_are_cut() -> None:
    """A lost event would have been received somewhat later, or earlier by a slow clock."""
    made = cover(
        (0, 100, "complete", 1), (100, 110, "gap", None), (110, 200, "complete", 2),
        (200, 300, "complete", 3), (300, 306, "complete", 3), (306, 310, "dark", None),
        (310, 320, "complete", 4), (320, 330, "gap", None), apart_us=7,
    )  # fmt: skip
    found = made.intervals("M", "orderbook")
    assert [(i.from_us, i.to_us, i.status, i.epoch) for i in found] == [
        (7, 93, "complete", 1), (93, 117, "gap", None), (117, 193, "complete", 2),
        (193, 207, "ambiguous", None), (207, 299, "complete", 3), (299, 317, "dark", None),
        (317, 330, "gap", None),
    ]  # fmt: skip
    assert found[3].reason == TWO_EPOCHS


@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=8),
    apart=st.integers(1, 30),
    channel=st.sampled_from(["orderbook", "trade", "ticker"]),
)
def test_by_receipt_a_moment_suffices_only_if_all_around_it_does(
    lengths: list[tuple[int, int]], apart: int, channel: str
) -> None:
    """L-37, moment by moment: kind 0 is a gap, 3 unproven, 1 and 2 epochs."""
    rows: list[Row] = []
    at = 0
    for length, kind in lengths:
        status = {0: "gap", 3: "unproven"}.get(kind, "complete")
        epoch = kind if status == "complete" and channel == "orderbook" else None
        rows.append((at, at + length, status, epoch))
        at += length
    plain, made = (cover(*rows, channel=channel, apart_us=us) for us in (0, apart))
    suffices = SUFFICES[channel]
    for r in range(-5, at + 5):
        around = [plain.at("M", channel, us) for us in range(r - apart, r + apart + 1)]
        proven = all(i.status in suffices for i in around) and len({i.epoch for i in around}) == 1
        got = made.at("M", channel, r)
        assert (got.status in suffices) == proven
        if proven:
            assert got.epoch == around[0].epoch
    line = made.intervals("M", channel)
    assert all(a.to_us <= b.from_us for a, b in pairwise(line))
