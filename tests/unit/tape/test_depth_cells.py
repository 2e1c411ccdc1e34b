"""What a picture shows is what the tape holds, cell by cell."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from kalshilake import open_lake
from kalshilake.tables import times_us
from marketdata.errors import IncompleteTape, TapeError
from tape.depth_cells import MISSING, MOMENTS, _ladder, depth_cells, fitting_step
from tests.lake_world import START, World


def test_every_cell_is_the_size_at_its_price_and_moment(lake: Path, world: World) -> None:
    """Both sides at the price of YES, nothing left out, nothing shown where nothing is proven."""
    held, missing = 0, 0
    for market in world.markets:
        cells = depth_cells(
            open_lake(lake), market.ticker, START, world.end_us, every="20s", on_gap="column"
        )
        assert cells.bids.shape == cells.asks.shape == (len(cells.bids), len(cells.times))
        for column, us in enumerate(cells.times.tolist()):
            truth = world.book_at(market.ticker, us)
            if truth is None:
                assert set(cells.bids[:, column]) == set(cells.asks[:, column]) == {MISSING}
                assert cells.best_bid[column] == cells.best_ask[column] == MISSING
                missing += 1
                continue
            for side, matrix in enumerate((cells.bids, cells.asks)):
                rows = np.flatnonzero(matrix[:, column])
                shown = {cells.low + cells.tick * int(r): int(matrix[r, column]) for r in rows}
                told = {
                    (10**6 - price if side else price): size
                    for (s, price), size in truth[2].items()
                    if s == side
                }
                assert shown == told
                best = (cells.best_bid, cells.best_ask)[side][column]
                assert best == ((min, max)[side == 0](told) if told else MISSING)
                held += len(told)
    assert held > 100
    assert missing > 50


def test_trades_and_coverage_are_those_of_the_interval(lake: Path, world: World) -> None:
    """The strip has no hole, and every trade of the lake is there once."""
    ticker = world.markets[0].ticker
    opened = open_lake(lake)
    cells = depth_cells(opened, ticker, START, world.end_us, every="20s", on_gap="column")
    truth = opened.trades(ticker, on_gap="ignore")
    assert cells.trades[0].tolist() == times_us(truth.column("exchange_ts")).tolist()
    codes = {"yes": 0, "no": 1, None: MISSING}
    assert cells.trades[2].tolist() == [codes[s] for s in truth["taker_side"].to_pylist()]
    edges = [(part.from_us, part.to_us) for part in cells.coverage]
    assert edges[0][0] == cells.from_us
    assert edges[-1][1] == cells.to_us
    assert all(a[1] == b[0] for a, b in pairwise(edges))


def test_a_gap_is_refused_unless_asked(lake: Path, world: World) -> None:
    """The rule of every read."""
    with pytest.raises(IncompleteTape):
        depth_cells(open_lake(lake), world.markets[0].ticker, START, world.end_us)


def test_a_grid_without_a_moment_is_refused(lake: Path, world: World) -> None:
    """Instead of an empty picture."""
    epoch = world.markets[0].epochs[0]
    with pytest.raises(TapeError, match="smaller --every"):
        depth_cells(
            open_lake(lake), world.markets[0].ticker, epoch.from_us, epoch.from_us + 2,
            every="1d", on_gap="column",
        )  # fmt: skip


def test_a_step_that_is_not_given_fits_the_picture(lake: Path, world: World) -> None:
    """The smallest round one with at most MOMENTS columns."""
    opened, ticker = open_lake(lake), world.markets[0].ticker
    assert fitting_step(opened, ticker, START, START + MOMENTS * 10**6) == 10**6
    assert fitting_step(opened, ticker, START, START + MOMENTS * 10**6 + 10**6) == 2 * 10**6
    assert fitting_step(opened, ticker, START, world.end_us) == 15 * 10**6


def test_ticks_finer_than_a_picture_share_a_row() -> None:
    """A row for every price as long as that can be seen; then rows of a cent."""
    assert _ladder(np.array([500_000, 501_000])) == (1_000, 500_000, 2)
    assert _ladder(np.array([1_000, 999_000])) == (10_000, 0, 101)
    assert _ladder(np.zeros(0, np.int64)) == (10_000, 0, 101)
