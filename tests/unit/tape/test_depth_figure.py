"""What stands in the picture of a market's depth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kalshilake import open_lake
from tape import figure_style
from tape.depth_cells import MISSING, DepthCells, depth_cells
from tape.depth_figure import depth_figure
from tape.figure_style import LIGHT, png
from tests.lake_world import START, World


@pytest.fixture(scope="module")
def cells(lake: Path, world: World) -> DepthCells:
    return depth_cells(
        open_lake(lake), world.markets[0].ticker, START, world.end_us, every="30s", on_gap="column"
    )


@pytest.fixture(scope="module")
def whole(lake: Path, world: World) -> DepthCells:
    """An interval without a gap."""
    epoch = max(world.markets[0].epochs, key=lambda e: e.to_us - e.from_us)
    return depth_cells(open_lake(lake), world.markets[0].ticker, epoch.from_us + 31 * 10**6,
                       epoch.to_us - 31 * 10**6, every="30s")  # fmt: skip


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer dots than a picture for people: the tests look at what is in it."""
    monkeypatch.setattr(figure_style, "DPI", 30)


def part(figure: Figure, label: str) -> Axes:
    (found,) = [axes for axes in figure.axes if axes.get_label() == label]
    return found


def drawn(axes: Axes, gid: str) -> list[Any]:
    return [a for a in (*axes.patches, *axes.collections) if a.get_gid() == gid]


def test_the_heat_map_has_every_cell_and_its_size(cells: DepthCells) -> None:
    """As many cells as prices times moments; a cell without contracts is not painted."""
    (heat,) = drawn(part(depth_figure(cells, LIGHT), "depth"), "heat")
    shown = heat.get_array()
    assert shown.shape == cells.bids.shape
    total = np.maximum(cells.bids, 0) + np.maximum(cells.asks, 0)
    assert (np.ma.getmaskarray(shown) == (total == 0)).all()
    assert (shown.filled(0) == total).all()
    assert total.any()


def test_axes_say_what_they_show(cells: DepthCells) -> None:
    """Market and interval in the title, units on the axes, every mark in the legend."""
    figure = depth_figure(cells, LIGHT)
    top = part(figure, "depth")
    assert cells.market in top.get_title(loc="left")
    assert [part(figure, n).get_ylabel() for n in ("depth", "spread", "coverage")] == [
        "price of YES", "spread", "coverage",
    ]  # fmt: skip
    assert part(figure, "coverage").get_xlabel() == "exchange time, UTC"
    assert "contracts at the price" in [axes.get_ylabel() for axes in figure.axes]
    names = [text.get_text() for text in top.get_legend().get_texts()]
    assert names[:2] == ["best bid", "best offer"]
    assert names[-1] == "not proven"
    assert any(name.startswith("taker") for name in names)
    figure.canvas.draw()
    assert all(t.get_text().endswith("¢") for t in top.get_yticklabels())


def test_gaps_are_drawn_and_only_gaps(cells: DepthCells, whole: DepthCells) -> None:
    """Hatched above, coloured in the strip, lines broken; the control is an interval without."""
    figure = depth_figure(cells, LIGHT)
    lost = [i for i in cells.coverage if i.status != "complete"]
    hatched = drawn(part(figure, "depth"), "not proven")
    assert len(hatched) == len(lost) > 0
    (heat,) = drawn(part(figure, "depth"), "heat")
    # Behind the heat map: what on_gap="ignore" draws there is seen.
    assert all(one.get_hatch() and one.get_zorder() < heat.get_zorder() for one in hatched)
    strip = part(figure, "coverage")
    for status in ("complete", "gap", "dark"):
        here = [i for i in cells.coverage if i.status == status]
        assert len(drawn(strip, status)) == len(here)
    bid, offer = part(figure, "depth").lines[:2]
    for line, best in ((bid, cells.best_bid), (offer, cells.best_ask)):
        assert (np.ma.getmaskarray(line.get_ydata(orig=True))[:-1] == (best == MISSING)).all()
    control = depth_figure(whole, LIGHT)
    assert drawn(part(control, "depth"), "not proven") == []
    assert drawn(part(control, "coverage"), "gap") == []
    names = [t.get_text() for t in part(control, "depth").get_legend().get_texts()]
    assert "not proven" not in names


def test_the_spread_is_the_offer_less_the_bid(cells: DepthCells) -> None:
    """Broken where one of the two is missing."""
    (line,) = part(depth_figure(cells, LIGHT), "spread").lines
    shown = line.get_ydata(orig=True)[:-1]
    both = (cells.best_bid != MISSING) & (cells.best_ask != MISSING)
    assert (np.ma.getmaskarray(shown) == ~both).all()
    assert shown.compressed().tolist() == (cells.best_ask - cells.best_bid)[both].tolist()


def test_every_trade_is_a_mark_on_the_side_of_its_taker(cells: DepthCells) -> None:
    """At its time and price."""
    marks = {c.get_label(): len(c.get_offsets()) for c in part(depth_figure(cells, LIGHT), "depth")
             .collections if str(c.get_label()).startswith("taker")}  # fmt: skip
    told = {"taker bought YES": 0, "taker bought NO": 1, "taker not told": MISSING}
    counts = {n: int((cells.trades[2] == c).sum()) for n, c in told.items()}
    assert marks == {name: n for name, n in counts.items() if n}
    assert marks


def test_the_picture_changes_with_one_cell_and_with_nothing_else(whole: DepthCells) -> None:
    """The same cells are the same bytes; one other size is another picture."""
    once = png(depth_figure(whole, LIGHT))
    assert once == png(depth_figure(whole, LIGHT))
    bids = whole.bids.copy()
    bids[:, len(whole.times) // 2] += 5_000
    assert png(depth_figure(replace(whole, bids=bids), LIGHT)) != once


def test_an_empty_book_is_a_picture_too(whole: DepthCells) -> None:
    """A market in which nothing stands is complete, not an error."""
    nothing = np.full(len(whole.times), MISSING)
    none = (np.zeros(0, np.int64),) * 3
    empty = replace(whole, bids=whole.bids * 0, asks=whole.asks * 0, best_bid=nothing,
                    best_ask=nothing, trades=none)  # fmt: skip
    assert png(depth_figure(empty, LIGHT)).startswith(b"\x89PNG")
