"""A book from the lake equals the replay of everything, at any moment, or the read is refused."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kalshilake import open_lake
from marketdata.errors import IncompleteTape
from tests.lake_world import START, World, as_levels, make_world, merged_rows, write_world

MOMENTS = 40  # of each world; every one of a world takes seconds


def moments(world: World) -> list[tuple[str, int]]:
    """Every moment at which something changes, and its neighbours."""
    made = set()
    for market in world.markets:
        for epoch in market.epochs:
            for us in (epoch.from_us, epoch.to_us, *(e.us for e in epoch.events)):
                made |= {(market.ticker, us + d) for d in (-1, 0, 1)}
        made |= {(market.ticker, START), (market.ticker, world.end_us)}
    return sorted(made)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), hours=st.integers(1, 2), chosen=st.randoms())
def test_book_equals_replaying_everything_or_the_moment_is_refused(
    seed: int, hours: int, chosen: random.Random
) -> None:
    """INV L-13, L-16: over epochs, gaps, resets, keyframes only after the moment, steps back."""
    world = make_world(seed, hours=hours, events=12)
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder), world)
        lake = open_lake(folder)
        every = moments(world)
        for ticker, at_us in chosen.sample(every, min(MOMENTS, len(every))):
            truth = world.book_at(ticker, at_us)
            if truth is None:
                with pytest.raises(IncompleteTape):
                    lake.book(ticker, at_us)
                continue
            epoch, n, book = truth
            view = lake.book(ticker, at_us)
            assert (view.epoch, view.market_seq, view.complete) == (epoch.number, n, True)
            assert view.yes_bids == as_levels(book, 0)
            assert view.no_bids == as_levels(book, 1)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_a_read_gives_exactly_the_rows_of_its_interval_or_is_refused(
    seed: int, data: st.DataObject
) -> None:
    """Push-down to hours and row groups must change nothing; a gap is never read in silence."""
    world = make_world(seed, hours=2, events=20)
    rows, names = merged_rows(world)
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder), world)
        lake = open_lake(folder)
        for market in world.markets:
            a = data.draw(st.integers(START, world.end_us - 1))
            b = data.draw(st.integers(a + 1, world.end_us))
            mine = rows[[names[i] == market.ticker for i in rows["market_id"]]]
            want = mine[(mine["exchange_us"] >= a) & (mine["exchange_us"] < b)]
            order = np.lexsort((want["market_seq"], want["epoch"], want["exchange_us"]))
            got = lake.deltas(market.ticker, a, b, on_gap="ignore")
            assert got.column("market_seq").to_pylist() == want["market_seq"][order].tolist()
            assert got.column("epoch").to_pylist() == want["epoch"][order].tolist()
            covered = any(e.from_us <= a and b <= e.to_us for e in market.epochs)
            if covered:
                assert lake.deltas(market.ticker, a, b).equals(got)
            else:
                with pytest.raises(IncompleteTape) as refused:
                    lake.deltas(market.ticker, a, b)
                assert refused.value.intervals
            marked = lake.deltas(market.ticker, a, b, on_gap="column")
            inside = [
                any(e.from_us <= us < e.to_us for e in market.epochs)
                for us in want["exchange_us"][order].tolist()
            ]
            assert marked.column("complete").to_pylist() == inside
