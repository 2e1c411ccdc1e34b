"""Epochs along a grid of moments; keyframes and prefixes are tested through books (test_read)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kalshilake import open_lake
from kalshilake.places import epoch_at, epochs_at, iso, keyframe_near
from marketdata.coverage import REPAIRED_EPOCH
from marketdata.errors import LakeError
from tests.lake_world import START, World, make_world, write_world


def test_moments_are_told_by_epoch_as_one_by_one(pristine: Path, world: World) -> None:
    """The column form is the single form, over gaps and before the first row."""
    lake = open_lake(pristine)
    for market in world.markets:
        times = np.arange(START, world.end_us, 97_000_003)
        found: list[int | None] = []
        for epoch, mine in epochs_at(lake, market.ticker, times):
            found += [epoch] * len(mine)
        wanted: list[int | None] = []
        for at in times.tolist():
            try:
                wanted.append(epoch_at(lake, market.ticker, at))
            except LakeError:
                wanted.append(None)
        assert found == wanted
        assert len(set(found)) > 1


def test_a_keyframe_is_found_past_hours_that_have_only_those_of_other_epochs(
    tmp_path: Path,
) -> None:
    """Asked at any moment of the lake, hours before its epoch begins or after it has ended."""
    world = make_world(51, markets=2, hours=3, events=40)
    write_world(tmp_path, world)
    lake = open_lake(tmp_path)
    for market in world.markets:
        for epoch in market.epochs:
            for at in range(START, world.end_us, 700_000_000):
                found = keyframe_near(lake, market.ticker, epoch.number, at)
                times = {
                    n: max([e.us for e in epoch.events[:n]] or [max(epoch.from_us - 5, START)])
                    for n in epoch.keyframes
                }
                before = [n for n in epoch.keyframes if times[n] <= at]
                assert found.market_seq == (max(before) if before else min(epoch.keyframes))
    with pytest.raises(LakeError, match="has no keyframe"):
        keyframe_near(lake, world.markets[0].ticker, 99, START)


def test_an_epoch_that_a_repair_added_is_over_when_another_goes_on(tmp_path: Path) -> None:
    """Its number is above all others, its time between them."""
    world = make_world(51, markets=1, hours=3, events=40)
    market = world.markets[0]
    market.epochs = [e for e in market.epochs if len(e.events) > 1][:3]
    market.epochs[1].number = REPAIRED_EPOCH
    write_world(tmp_path, world)
    lake = open_lake(tmp_path)
    last = market.epochs[2]
    times = np.array([market.epochs[0].from_us + 1, last.events[-1].us, world.end_us - 1])
    found = [epoch for epoch, mine in epochs_at(lake, market.ticker, times) for _ in mine]
    assert found[1:] == [last.number, last.number]
    for epoch in market.epochs:
        at = keyframe_near(lake, market.ticker, epoch.number, START)
        assert (at.epoch, at.market_seq) == (epoch.number, min(epoch.keyframes))


def test_moments_are_shown_as_people_read_them() -> None:
    """Also those that no calendar has."""
    assert iso(1_747_000_000_123_457) == "2025-05-11T21:46:40.123457Z"
    assert iso(1 << 62) == "the end of time"
    assert iso(-(1 << 62)) == "the beginning of time"
