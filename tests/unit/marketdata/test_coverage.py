"""Coverage: complete only by proof. A false `complete` is the worst fault the project can have."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from marketdata.coverage import (
    NO_BOOK,
    OPEN_US,
    AuditPoint,
    EpochStart,
    Interval,
    Mark,
    MarketClaim,
    RunProgress,
    intervals,
)


@dataclass
class Found:
    tickers: list[str] = field(default_factory=lambda: ["A"])
    progress: list[RunProgress] = field(default_factory=list)
    claims: list[MarketClaim] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    epochs: list[EpochStart] = field(default_factory=lambda: [EpochStart("A", 1, 0)])
    audits: list[AuditPoint] = field(default_factory=list)


def claim(from_us: int, to_us: int, gatherer: int = 0, *, valid: bool = True) -> MarketClaim:
    return MarketClaim("A", gatherer, 1, from_us, to_us, valid, "")


def book(found: Found, from_us: int = 0, to_us: int = 100) -> list[tuple[int, int, str, int]]:
    made = [i for i in intervals(found, from_us, to_us) if i.channel == "orderbook"]
    assert made[0].from_us == from_us
    assert made[-1].to_us == to_us
    assert all(a.to_us == b.from_us for a, b in pairwise(made))
    return [(i.from_us, i.to_us, i.status, i.sources) for i in made]


def test_nothing_claimed_is_dark_and_never_complete() -> None:
    assert book(Found()) == [(0, 100, "dark", 0)]


def test_claims_of_two_gatherers_cover_with_both_as_sources() -> None:
    found = Found(claims=[claim(10, 60), claim(40, 90, 1)])
    assert book(found) == [
        (0, 10, "dark", 0), (10, 40, "complete", 1), (40, 60, "complete", 3),
        (60, 90, "complete", 2), (90, 100, "dark", 0),
    ]  # fmt: skip


def test_between_two_claims_lies_a_gap() -> None:
    found = Found(claims=[claim(0, 40), claim(60, 100)])
    assert book(found) == [(0, 40, "complete", 1), (40, 60, "gap", 0), (60, 100, "complete", 1)]


def test_an_open_claim_reaches_as_far_as_its_run_has_shown_time() -> None:
    """Idle time is covered only once a later frame proves it."""
    found = Found(
        progress=[RunProgress(0, 1, "orderbook", 0, 70, False, "")], claims=[claim(10, OPEN_US)]
    )
    assert book(found) == [(0, 10, "dark", 0), (10, 70, "complete", 1), (70, 100, "dark", 0)]


def test_an_open_claim_of_a_run_nobody_knows_covers_nothing() -> None:
    assert book(Found(claims=[claim(10, OPEN_US)])) == [(0, 100, "dark", 0)]


def test_an_open_claim_that_starts_behind_its_runs_progress_covers_nothing() -> None:
    found = Found(
        progress=[RunProgress(0, 1, "orderbook", 0, 5, False, "")], claims=[claim(10, OPEN_US)]
    )
    assert book(found) == [(0, 100, "dark", 0)]


def test_a_claim_taken_back_covers_nothing() -> None:
    assert book(Found(claims=[claim(10, 90, valid=False)])) == [(0, 100, "dark", 0)]


def test_marks_take_complete_away_whoever_claims() -> None:
    found = Found(
        claims=[claim(0, 100), claim(0, 100, 1)],
        marks=[
            Mark("A", "ambiguous", 10, 20, "tied order"),
            Mark("A", "disputed", 15, 30, "contradiction"),
            Mark("A", "quarantined", 40, 50, "one run"),
            Mark("A", "gap", 60, 70, "book_equal"),
        ],
    )
    assert [(i[0], i[1], i[2]) for i in book(found)] == [
        (0, 10, "complete"), (10, 15, "ambiguous"), (15, 30, "disputed"), (30, 40, "complete"),
        (40, 50, "gap"), (50, 60, "complete"), (60, 70, "gap"), (70, 100, "complete"),
    ]  # fmt: skip


def test_a_late_mark_only_gives_a_reason() -> None:
    found = Found(claims=[claim(0, 100)], marks=[Mark("A", "late", 10, 20, "rows came late")])
    made = [i for i in intervals(found, 0, 100) if i.channel == "orderbook"]
    assert {i.status for i in made} == {"complete"}
    assert [i.reason for i in made] == ["", "rows came late", ""]


def test_marks_of_other_markets_change_nothing() -> None:
    found = Found(claims=[claim(0, 100)], marks=[Mark("B", "disputed", 0, 100, "x")])
    assert book(found) == [(0, 100, "complete", 1)]


def test_no_complete_interval_crosses_the_start_of_an_epoch() -> None:
    """INV-C3: numbers begin anew there, so a reader must be told."""
    found = Found(claims=[claim(0, 100)], epochs=[EpochStart("A", 1, 0), EpochStart("A", 2, 50)])
    made = [i for i in intervals(found, 0, 100) if i.channel == "orderbook"]
    assert [(i.from_us, i.to_us, i.epoch) for i in made] == [(0, 50, 1), (50, 100, 2)]


def test_the_epoch_open_at_the_start_counts() -> None:
    found = Found(claims=[claim(0, 100)], epochs=[EpochStart("A", 3, -500)])
    assert [i.epoch for i in intervals(found, 0, 100) if i.channel == "orderbook"] == [3]


def test_audits_that_agreed_are_counted_where_they_stood() -> None:
    found = Found(
        claims=[claim(0, 60)],
        audits=[AuditPoint("A", 0, 10, True), AuditPoint("A", 1, 59, True),
                AuditPoint("A", 0, 60, True), AuditPoint("A", 0, 20, False)],
    )  # fmt: skip
    made = [i for i in intervals(found, 0, 100) if i.channel == "orderbook"]
    assert [i.audits for i in made] == [2, 1]


def test_the_trade_channel_is_covered_by_its_own_runs_for_every_market() -> None:
    found = Found(progress=[RunProgress(1, 9, "trade", 20, 80, True, "close")], claims=[])
    made = [i for i in intervals(found, 0, 100) if i.channel == "trade"]
    assert [(i.from_us, i.to_us, i.status, i.sources) for i in made] == [
        (0, 20, "dark", 0), (20, 80, "complete", 2), (80, 100, "dark", 0),
    ]  # fmt: skip


def test_the_ticker_channel_is_never_complete() -> None:
    """It is throttled and has no sequence numbers."""
    made = [i for i in intervals(Found(claims=[claim(0, 100)]), 0, 100) if i.channel == "ticker"]
    assert made == [Interval("A", "ticker", 0, 100, "unproven", "no sequence numbers", 0, 0, 0)]


def test_an_empty_stretch_has_no_intervals() -> None:
    assert intervals(Found(claims=[claim(0, 100)]), 50, 50) == []


def test_tickers_come_out_in_order_and_once() -> None:
    found = Found(tickers=["B", "A", "B"])
    made = intervals(found, 0, 10)
    assert [i.ticker for i in made] == ["A"] * 3 + ["B"] * 3


def test_quiet_time_that_leads_into_the_first_epoch_is_of_it() -> None:
    """Two gatherers subscribe one after the other: one stretch of proof must not look like two."""
    found = Found(claims=[claim(10, 90), claim(20, 90, 1)], epochs=[EpochStart("A", 1, 20)])
    made = [i for i in intervals(found, 0, 100) if i.channel == "orderbook"]
    assert [(i.from_us, i.status, i.epoch) for i in made] == [
        (0, "dark", 0), (10, "complete", 1), (20, "complete", 1), (90, "dark", 1),
    ]  # fmt: skip


def test_time_before_the_first_epoch_that_does_not_lead_into_it_has_no_book() -> None:
    """Nothing was missed in it, but nobody who asks for the book could be answered (INV-C4)."""
    late = [claim(10, 15), claim(20, 90, 1)]
    found = Found(claims=late, epochs=[EpochStart("A", 1, 20)])
    made = [i for i in intervals(found, 0, 90) if i.channel == "orderbook"]
    assert [(i.from_us, i.status, i.epoch) for i in made] == [
        (0, "dark", 0), (10, "unproven", 0), (15, "gap", 0), (20, "complete", 1),
    ]  # fmt: skip
    assert made[1].reason == NO_BOOK
    none = [i for i in intervals(Found(claims=late, epochs=[]), 0, 90) if i.status == "complete"]
    assert none == []


def test_trades_need_no_epoch() -> None:
    progress = [RunProgress(0, 1, "trade", 0, 100, False, "")]
    made = intervals(Found(progress=progress, epochs=[]), 0, 100)
    assert [i.status for i in made if i.channel == "trade"] == ["complete"]
