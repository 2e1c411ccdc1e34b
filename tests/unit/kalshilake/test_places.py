"""Epochs along a grid of moments; keyframes and prefixes are tested through books (test_read)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kalshilake import open_lake
from kalshilake.places import epoch_at, epochs_at, iso
from marketdata.errors import LakeError
from tests.lake_world import START, World


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


def test_moments_are_shown_as_people_read_them() -> None:
    """Also those that no calendar has."""
    assert iso(1_747_000_000_123_457) == "2025-05-11T21:46:40.123457Z"
    assert iso(1 << 62) == "the end of time"
    assert iso(-(1 << 62)) == "the beginning of time"
