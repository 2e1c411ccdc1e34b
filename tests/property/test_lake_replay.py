"""A tape that is played gives the book of the truth after every step, and that of Lake.book."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kalshilake import open_lake, steps
from kalshilake.clocks import CLOCKS_APART_US as APART
from kalshilake.clocks import Clock
from kalshilake.read import Lake
from kalshilake.steps import Changed, Emptied, Opened
from marketdata.errors import IncompleteTape
from tests.lake_receipts import Heard, heard
from tests.lake_world import Epoch, Market, as_levels, make_world

MOMENTS = 12  # of each stretch at which `Lake.book` is asked, too


def in_force(found: Heard, market: Market, epoch: Epoch, clock: Clock) -> list[int]:
    if clock == "received":
        return found.in_force(market, epoch)
    at, made = 0, []
    for event in epoch.events:
        at = max(at, event.us)
        made.append(at)
    return made


def check(lake: Lake, market: Market, epoch: Epoch, at: list[int], span: tuple[int, int],
          clock: Clock) -> None:  # fmt: skip
    a, b = span
    played = 0
    moments: dict[int, int] = {}
    seen: list[tuple[int, int]] = []
    # By receipt a trade of a gap may come in good times, which refuses the replay (test_checked).
    for step in lake.replay(market.ticker, a, b, clock=clock, trades=clock == "exchange"):
        book = step.book
        assert (book.epoch, book.status, step.at_us) == (epoch.number, "complete", book.at_us)
        if isinstance(step, Opened):
            assert not seen
            played = sum(us <= a for us in at)
        elif isinstance(step, Changed | Emptied):
            played += 1
            assert step.market_seq == played
            assert step.at_us == at[played - 1]
        truth = epoch.book_after(played)
        assert (book.market_seq, book.yes_bids) == (played, as_levels(truth, 0))
        assert book.no_bids == as_levels(truth, 1)
        seen.append((step.at_us, played))
        moments[step.at_us] = played
    assert seen == sorted(seen)
    assert a <= seen[0][0]
    assert seen[-1][0] < b
    assert played == sum(us < b for us in at)
    for us in list(moments)[:: max(1, len(moments) // MOMENTS)]:
        view = lake.book(market.ticker, us, clock=clock)
        truth = epoch.book_after(moments[us])
        assert (view.market_seq, view.yes_bids) == (moments[us], as_levels(truth, 0))
        assert view.no_bids == as_levels(truth, 1)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    clock=st.sampled_from(["exchange", "received"]),
    slice_us=st.sampled_from([180_000_000, 3_600_000_000]),
    data=st.data(),
)
def test_books_of_a_replay_are_those_of_the_truth_at_every_step(
    seed: int, clock: Clock, slice_us: int, data: st.DataObject
) -> None:
    """L-42, L-43, L-39: over epochs, resets, steps back, late keyframes, slices of any length, and
    receipts that overtake each other or come an hour late."""
    world = make_world(seed, markets=2, hours=2, events=40)
    with tempfile.TemporaryDirectory() as folder, patch.object(steps, "SLICE_US", slice_us):
        found = heard(Path(folder), world)
        lake = open_lake(folder)
        for market in world.markets:
            for epoch in market.epochs:
                margin = APART if clock == "received" else 0
                low, high = epoch.from_us + margin, epoch.to_us - margin
                if high - low < 3:
                    continue
                a = data.draw(st.integers(low, high - 2))
                b = data.draw(st.integers(a + 1, high))
                at = in_force(found, market, epoch, clock)
                for span in ((low, high), (a, b)):
                    check(lake, market, epoch, at, span, clock)
                for beyond in ((low - 1, high), (low, high + 1)):
                    with pytest.raises(IncompleteTape):
                        lake.replay(market.ticker, *beyond, clock=clock)
