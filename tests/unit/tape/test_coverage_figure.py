"""The calendar of coverage against the claims of a known world."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kalshilake import open_lake, paths
from marketdata.errors import TapeError
from tape.coverage_figure import NO_CELL, coverage_cells, coverage_figure
from tape.figure_style import LIGHT, png
from tests.lake_world import START, World


def test_a_cell_is_the_proven_part_of_its_hour(lake: Path, world: World) -> None:
    """Summed over the markets of the series, from the world's own claims."""
    cells = coverage_cells(open_lake(lake))
    assert (cells.series, cells.markets) == (("KX",), (len(world.markets),))
    assert cells.hours.tolist() == [START + h * paths.US_PER_HOUR for h in range(world.hours)]
    for h, begun in enumerate(cells.hours.tolist()):
        ended = begun + paths.US_PER_HOUR
        proven = sum(
            max(0, min(epoch.to_us, ended) - max(epoch.from_us, begun))
            for market in world.markets
            for epoch in market.epochs
        )
        assert cells.proven[0, h] == proven * 1000 // (paths.US_PER_HOUR * len(world.markets))
        gaps = [
            (a.to_us, b.from_us)
            for market in world.markets
            for a, b in zip(market.epochs, market.epochs[1:], strict=False)
        ]
        assert cells.lost[0, h] == any(a < ended and b > begun for a, b in gaps)
    assert cells.lost.any()


def test_the_picture_has_every_cell_and_a_dot_for_a_gap(lake: Path) -> None:
    """Names of series and hours on the axes; the control has no gap and no dot."""
    cells = coverage_cells(open_lake(lake))
    figure = coverage_figure(cells, LIGHT)
    (axes,) = [a for a in figure.axes if a.get_label() == "calendar"]
    (mesh,) = [c for c in axes.collections if c.get_gid() == "calendar"]
    assert mesh.get_array().shape == cells.proven.shape
    assert (mesh.get_array() == cells.proven).all()
    (dots,) = [line for line in axes.lines if line.get_gid() == "lost"]
    assert len(dots.get_xdata()) == int(cells.lost.sum())
    assert [t.get_text() for t in axes.get_yticklabels()] == [f"KX ({cells.markets[0]})"]
    assert all(t.get_text().endswith(":00") for t in axes.get_xticklabels())
    clean = coverage_figure(replace(cells, lost=cells.lost & False), LIGHT)
    assert [line for line in clean.axes[0].lines if line.get_gid() == "lost"] == []
    assert png(clean) != png(figure)


def test_an_hour_without_coverage_is_no_cell(lake: Path) -> None:
    """Masked, not red: nothing was claimed."""
    cells = coverage_cells(open_lake(lake))
    proven = cells.proven.copy()
    proven[0, 0] = NO_CELL
    mesh = coverage_figure(replace(cells, proven=proven), LIGHT).axes[0].collections[0]
    assert np.ma.getmaskarray(mesh.get_array()).sum() == 1


def test_an_interval_that_nothing_covers_is_refused(lake: Path) -> None:
    """Instead of an empty picture."""
    with pytest.raises(TapeError, match="no coverage of orderbook"):
        coverage_cells(open_lake(lake), "2001-01-01", "2001-01-02")
