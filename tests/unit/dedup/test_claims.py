"""Claims open behind a time that was shown in sequence and end before what was not placed."""

from __future__ import annotations

import pytest

from marketdata.coverage import OPEN_US, MarketClaim
from tests.hand import Hand, merge, us

BOOK = {100_000: 500}


def claims(hand: Hand, ticker: str = "A") -> list[MarketClaim]:
    """The last word on every claim of a market."""
    found: dict[object, MarketClaim] = {}
    for output in merge(hand):
        for c in output.claims:
            found[(c.ticker, c.run_id, c.from_us)] = c
    return [c for c in found.values() if c.ticker == ticker]


def opened() -> Hand:
    hand = Hand(0)
    hand.start(0)
    hand.snap("A", BOOK)
    return hand


def test_a_run_that_ends_closes_its_claim_with_the_reason() -> None:
    hand = opened()
    hand.delta(100, "A", 10_000, 1)
    hand.delta(900, "A", 10_000, 1)
    hand.end("stall")
    hand.control("gatherer_end")
    (claim,) = claims(hand)
    assert (claim.from_us, claim.to_us) == (us(100) + 1, us(900))
    assert (claim.valid, claim.reason) == (True, "stall")


def test_a_run_that_never_showed_a_second_time_claims_nothing() -> None:
    hand = opened()
    hand.delta(100, "A", 10_000, 1)
    hand.stop()
    assert [c for c in claims(hand) if c.valid] == []


def test_a_run_that_lives_keeps_its_claim_open() -> None:
    hand = opened()
    for ms in (100, 900, 1_900):
        hand.delta(ms, "A", 10_000, 1)
    (claim,) = claims(hand)
    assert (claim.to_us, claim.valid) == (OPEN_US, True)


@pytest.mark.parametrize("later", [0, 1_900])
def test_rows_that_break_the_chain_end_the_claim_before_them(later: int) -> None:
    hand = opened()
    for ms in (100, 500, 900):
        hand.delta(ms, "A", 10_000, 1)
    hand.rows[1]["book_hash"] += 1
    if later:
        hand.delta(later, "A", 10_000, 1)
    hand.stop()
    assert all(c.to_us <= us(500) for c in claims(hand) if c.valid)


def test_after_a_contradiction_a_snapshot_opens_a_new_claim() -> None:
    hand = opened()
    hand.delta(100, "A", 10_000, 1)
    hand.delta(200, "A", 10_000, 1)
    hand.snap("A", {30_000: 7})
    for ms in (1_000, 1_500, 2_500):
        hand.delta(ms, "A", 20_000, 1)
    hand.stop()
    valid = [(c.from_us, c.to_us) for c in claims(hand) if c.valid]
    assert valid == [(us(1_000) + 1, us(2_500))]
