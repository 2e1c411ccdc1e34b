"""Proven stretches of a book against a truth that is replayed event by event."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kalshilake import open_lake
from kalshilake.bookview import EpochEvents
from kalshilake.exports.stretches import ProvenStretch, sizes_after, stretches
from marketdata.book import Book
from marketdata.errors import IncompleteTape, LakeError
from tests.lake_world import START, Levels, World, make_world, write_world


def replayed(found: ProvenStretch, at_us: int) -> Levels:
    """The book of a stretch at one moment, by its levels alone."""
    book = {(side, p): q for side in (0, 1) for p, q in found.base.levels(side)}
    columns = (found.exchange_us, found.reset, found.side, found.price, found.size)
    for us, reset, side, price, size in zip(*(c.tolist() for c in columns), strict=True):
        if us > at_us:
            break
        if reset:
            book.clear()
            continue
        book[side, price] = size
        if not size:
            del book[side, price]
    return book


@pytest.mark.parametrize("seed", range(6))
def test_a_stretch_gives_the_true_book_at_every_moment(tmp_path: Path, seed: int) -> None:
    """L-32 and L-33 over epochs, resets, late keyframes and times that step back."""
    world = make_world(seed, hours=2, events=60)
    write_world(tmp_path, world)
    lake, seen, resets = open_lake(tmp_path), 0, 0
    for market in world.markets:
        found = stretches(lake, market.ticker, START, world.end_us, on_gap="ignore")
        assert (found.from_us, found.to_us) == (START, world.end_us)
        claims = [(e.from_us, e.to_us) for e in market.epochs]
        assert [(s.from_us, s.to_us) for s in found.stretches] == claims
        for stretch in found.stretches:
            assert (np.diff(stretch.exchange_us) >= 0).all()
            resets += int(stretch.reset.sum())
            moments = np.linspace(stretch.from_us, stretch.to_us - 1, 25).astype(int).tolist()
            for at_us in {*moments, *stretch.exchange_us.tolist()}:
                truth = world.book_at(market.ticker, at_us)
                assert truth is not None
                assert replayed(stretch, at_us) == truth[2]
                seen += 1
    assert seen > 100
    assert resets or seed not in (0, 1)


def test_each_event_has_its_own_time_of_receipt(pristine: Path, world: World) -> None:
    """The world receives everything seven milliseconds after the exchange's own time."""
    market = world.markets[0]
    found = stretches(open_lake(pristine), market.ticker, on_gap="ignore").stretches
    for stretch, epoch in zip(found, market.epochs, strict=True):
        n = len(stretch.exchange_us)
        told = [e.us + 7_000 for e in epoch.events[len(epoch.events) - n :]]
        assert stretch.received_us.tolist() == told


def test_a_gap_is_refused_unless_asked(pristine: Path, world: World) -> None:
    """The rule of every read."""
    market = world.markets[0]
    with pytest.raises(IncompleteTape):
        stretches(open_lake(pristine), market.ticker, START, world.end_us)
    epoch = market.epochs[0]
    inside = stretches(open_lake(pristine), market.ticker, epoch.from_us, epoch.to_us)
    assert len(inside.stretches) == 1


def test_a_size_below_zero_is_refused() -> None:
    """L-33: a damaged tape gives an error, not a book."""
    one = np.array([1])
    events = EpochEvents(one, one, np.array([False]), np.array([0]), np.array([500_000]), -one)
    with pytest.raises(LakeError, match="below zero"):
        sizes_after(Book(), events)
    assert sizes_after(Book([(500_000, 3)], []), events).tolist() == [2]
