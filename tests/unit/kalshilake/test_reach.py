"""How far a book has got, by either clock, against a truth that is replayed event by event."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from kalshilake import open_lake
from kalshilake.clocks import CLOCKS_APART_US as APART
from kalshilake.clocks import Clock
from kalshilake.coverage import CoverageInterval
from kalshilake.reach import parts_of, reach
from marketdata.errors import IncompleteTape, LakeError
from tests.lake_receipts import Heard, heard
from tests.lake_world import Epoch, Market, as_levels, make_world


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Heard]:
    root = tmp_path_factory.mktemp("heard") / "lake"
    return root, heard(root, make_world(23, markets=2, hours=2, events=150))


def in_force(found: Heard, market: Market, epoch: Epoch, clock: Clock) -> list[int]:
    if clock == "received":
        return found.in_force(market, epoch)
    return np.maximum.accumulate([e.us for e in epoch.events] or [0]).tolist()[: len(epoch.events)]


@pytest.mark.parametrize("clock", ["exchange", "received"])
def test_events_and_the_book_before_them_are_those_of_the_truth(
    told: tuple[Path, Heard], clock: Clock
) -> None:
    """L-13 by both clocks; a receipt that comes an hour late holds back all behind it."""
    root, found = told
    lake, rng, checked = open_lake(root), random.Random(5), 0
    for market in found.world.markets:
        for epoch in market.epochs:
            at = in_force(found, market, epoch, clock)
            for _ in range(12):
                a, b = sorted(rng.sample(range(epoch.from_us, epoch.to_us), 2))
                got = reach(lake, market.ticker, epoch.number, a, b, clock)
                numbers = [n for n, us in enumerate(at, 1) if a < us < b]
                assert got.events.market_seq.tolist() == numbers
                assert got.at.tolist() == [at[n - 1] for n in numbers]
                assert got.before == sum(us <= a for us in at)
                book = got.book()
                truth = epoch.book_after(got.before)
                assert tuple(reversed(book.levels(0))) == as_levels(truth, 0)
                assert tuple(reversed(book.levels(1))) == as_levels(truth, 1)
                checked += len(numbers)
    assert checked > 100


@pytest.mark.parametrize("clock", ["exchange", "received"])
def test_two_intervals_that_touch_are_one(told: tuple[Path, Heard], clock: Clock) -> None:
    """L-38."""
    root, found = told
    lake = open_lake(root)
    market = max(found.world.markets, key=lambda m: max(len(e.events) for e in m.epochs))
    epoch = max(market.epochs, key=lambda e: len(e.events))
    a, c = epoch.from_us, epoch.to_us
    whole = reach(lake, market.ticker, epoch.number, a, c, clock)
    for b in whole.at[:: max(1, len(whole.at) // 9)].tolist():
        one = reach(lake, market.ticker, epoch.number, a, b, clock)
        two = reach(lake, market.ticker, epoch.number, b - 1, c, clock)
        assert [*one.at.tolist(), *two.at.tolist()] == whole.at.tolist()
        assert two.before == one.before + len(one.at)


def test_the_book_that_had_been_received_is_not_the_book_that_was(
    told: tuple[Path, Heard],
) -> None:
    """And an event that overtook the one before it is not in it until that one is."""
    root, found = told
    lake, differ = open_lake(root), 0
    for market in found.world.markets:
        for epoch in market.epochs:
            for us in found.receipts[market.ticker, epoch.number]:
                for at in (us - 1, us):
                    truth = found.book_at(market, at)
                    if truth is None:
                        with pytest.raises(IncompleteTape):
                            lake.book(market.ticker, at, clock="received", on_gap="ignore")
                        continue
                    view = lake.book(market.ticker, at, clock="received")
                    assert (view.epoch, view.market_seq) == (truth[0].number, truth[1])
                    assert (view.clock, view.complete) == ("received", True)
                    assert view.yes_bids == as_levels(truth[2], 0)
                    assert view.no_bids == as_levels(truth[2], 1)
                    differ += view.market_seq != lake.book(market.ticker, at).market_seq
    assert differ > 20


def test_the_last_proven_moment_of_receipt_is_before_that_of_the_exchange(
    told: tuple[Path, Heard],
) -> None:
    """By as much as the clocks may lie apart."""
    root, found = told
    lake = open_lake(root)
    ticker = found.world.markets[0].ticker
    assert lake.book(ticker, clock="received").at_us == lake.book(ticker).at_us - APART


def test_an_interval_that_names_no_epoch_is_told_by_its_rows(told: tuple[Path, Heard]) -> None:
    """By receipt only where there is one."""
    root, found = told
    lake, market = open_lake(root), found.world.markets[0]
    one = next(e for e in market.epochs if e.events)

    def span(a: int, b: int) -> CoverageInterval:
        return CoverageInterval(market.ticker, "orderbook", a, b, "complete", "")

    inside = span(one.events[0].us + APART + 1, one.to_us - APART)
    for clock in ("exchange", "received"):
        assert parts_of(lake, market.ticker, inside, clock) == [
            (one.number, inside.from_us, inside.to_us)
        ]
    across = span(one.events[0].us + APART + 1, market.epochs[-1].to_us)
    if len({e.number for e in market.epochs if e.events}) > 1:
        with pytest.raises(LakeError, match="nothing tells them apart"):
            parts_of(lake, market.ticker, across, "received")
