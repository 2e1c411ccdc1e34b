"""The event array: read as hftbacktest reads it, by numpy alone, against a replayed truth.

The real library reads the same array by `make thirdparty-exports`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kalshilake import open_lake
from kalshilake.exports import hftbacktest as hft
from kalshilake.read import Lake
from kalshilake.tables import times_us, units_of
from marketdata.errors import IncompleteTape, LakeError, TapeError
from tests.lake_world import START, Levels, World, make_world, write_world


@pytest.fixture(scope="module")
def lake(pristine: Path) -> Lake:
    return open_lake(pristine)


def micros(px: float) -> int:
    return round(px * 10**6)


def books(rows: np.ndarray, clock: int) -> list[tuple[int, Levels]]:
    """(time in microseconds, book of YES bids and offers after it) as one clock sees the rows."""
    book: Levels = {}
    made = []
    name = "exch_ts" if clock == hft.EXCH else "local_ts"
    for row in rows[(rows["ev"] & clock) != 0]:
        kind = int(row["ev"]) & 0xFF
        price = micros(row["px"])
        if kind == hft.CLEAR:
            assert not int(row["ev"]) & (hft.BUY | hft.SELL)
            book.clear()
        elif kind in (hft.DEPTH, hft.SNAPSHOT):
            side = 0 if int(row["ev"]) & hft.BUY else 1
            book[side, price] = round(row["qty"] * 100)
            if not book[side, price]:
                del book[side, price]
        made.append((int(row[name]) // 1000, dict(book)))
    return made


def of_yes(book: Levels) -> Levels:
    """The truth's two sides of bids as bids and offers of YES."""
    return {(side, 10**6 - price if side else price): size for (side, price), size in book.items()}


@pytest.mark.parametrize("seed", range(4))
def test_the_book_of_the_rows_is_the_truth(tmp_path: Path, seed: int) -> None:
    """L-35 at the exchange's clock, over gaps, resets and times that step back."""
    world = make_world(seed, hours=2, events=60)
    write_world(tmp_path, world)
    lake, seen, empty = open_lake(tmp_path), 0, 0
    for market in world.markets:
        rows = hft.events(lake, market.ticker, START, world.end_us, on_gap="ignore")
        for clock in ("exch_ts", "local_ts"):
            flag = hft.EXCH if clock == "exch_ts" else hft.LOCAL
            assert (np.diff(rows[clock][(rows["ev"] & flag) != 0]) >= 0).all()
        line = books(rows, hft.EXCH)
        # The local clock sees the same books in the same order, only later.
        locals_ = [b for _, b in books(rows, hft.LOCAL)]
        assert locals_[-1] == line[-1][1]
        times = [us for us, _ in line]
        moments = np.linspace(START, world.end_us - 1, 200).astype(int).tolist()
        for at_us in moments:
            n = int(np.searchsorted(times, at_us, side="right"))
            held = line[n - 1][1] if n else {}
            truth = world.book_at(market.ticker, at_us)
            assert held == (of_yes(truth[2]) if truth else {})
            seen += bool(truth)
            empty += truth is None
    assert seen > 50
    assert empty > 50


def test_a_wrong_size_would_be_seen(lake: Lake, world: World) -> None:
    """Negative control of the comparison above."""
    market = world.markets[0]
    rows = hft.events(lake, market.ticker, on_gap="ignore")
    line = books(rows, hft.EXCH)
    changed = rows.copy()
    changed["qty"][np.flatnonzero((rows["ev"] & 0xFF) == hft.DEPTH)[0]] += 1
    assert books(changed, hft.EXCH) != line


def test_trades_have_price_size_side_and_both_times(lake: Lake, world: World) -> None:
    """Buy where the taker bought YES, sell where NO, neither where nobody told."""
    sides: Counter[int] = Counter()
    for market in world.markets:
        rows = hft.events(lake, market.ticker, START, world.end_us, on_gap="ignore")
        is_trade = (rows["ev"] & 0xFF) == hft.TRADE
        mine = rows[is_trade & ((rows["ev"] & hft.EXCH) != 0)]
        truth = lake.trades(market.ticker, on_gap="ignore")
        code = {"yes": hft.BUY, "no": hft.SELL, None: 0}
        told = [code[side] for side in truth.column("taker_side").to_pylist()]
        found = (mine["ev"] & np.uint64(hft.BUY | hft.SELL)).tolist()
        assert found == told
        assert (mine["exch_ts"] // 1000).tolist() == times_us(truth["exchange_ts"]).tolist()
        assert (mine["local_ts"] // 1000).tolist() == times_us(truth["received_at"]).tolist()
        assert [micros(px) for px in mine["px"]] == units_of(truth["yes_price"]).tolist()
        assert [round(q * 100) for q in mine["qty"]] == units_of(truth["count"]).tolist()
        sides.update(told)
    assert set(sides) == {0, hft.BUY, hft.SELL}


def made(*rows: tuple[Any, ...]) -> hft.Rows:
    return hft.Rows.of(*np.array(rows, np.int64).T)


def test_a_row_that_came_late_is_given_once_for_each_clock() -> None:
    """In place for the exchange where it happened, for the local clock where it was received."""
    rows = hft.ordered(
        made((1, 10, 15, 0, 1), (2, 20, 40, 0, 2), (1, 30, 35, 0, 3), (1, 50, 55, 0, 4))
    )
    told = [
        (int(r["qty"] * 100), bool(r["ev"] & hft.EXCH), bool(r["ev"] & hft.LOCAL)) for r in rows
    ]
    assert told == [(1, True, True), (3, False, True), (2, True, True), (3, True, False),
                    (4, True, True)]  # fmt: skip


def test_of_one_microsecond_the_trade_stands_first(lake: Lake) -> None:
    """joined([trades, depth]) and a stable order: queue models need it."""
    rows = hft.ordered(hft.joined([made((hft.TRADE, 7, 9, 1, 1)), made((hft.DEPTH, 7, 9, 1, 0))]))
    assert (rows["ev"] & 0xFF).tolist() == [hft.TRADE, hft.DEPTH]


def test_every_price_and_size_survives_the_float() -> None:
    """A float of 64 bits holds a price of six decimals and a size of two: all of them come back."""
    prices = np.arange(0, 10**6 + 1)
    sizes = np.concatenate((np.arange(10**5), 10**15 - np.arange(901_000)))[: len(prices)]
    rows = hft.ordered(hft.Rows.of(hft.DEPTH, 0, 0, prices, sizes))
    assert (np.rint(rows["px"] * 10**6).astype(np.int64) == prices).all()
    assert (np.rint(rows["qty"] * 100).astype(np.int64) == sizes).all()


def test_the_file_is_read_by_numpy_and_has_the_same_bytes_twice(
    lake: Lake, world: World, tmp_path: Path
) -> None:
    """One array called data, 64 bytes a row."""
    ticker = world.markets[0].ticker
    for name in ("a.npz", "b.npz"):
        n = hft.export_hftbacktest(lake, ticker, tmp_path / name, on_gap="ignore")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as held:
        assert held.files == ["data"]
        data = held["data"]
    assert (data.dtype, len(data), data.dtype.itemsize) == (hft.EVENT, n, 64)
    assert data.tobytes() == hft.events(lake, ticker, on_gap="ignore").tobytes()


def test_bad_input_leaves_no_file(lake: Lake, world: World, tmp_path: Path) -> None:
    """Another ending, an unknown market, an empty range, a gap, a column it does not have."""
    market = world.markets[0]
    path = tmp_path / "out.npz"
    with pytest.raises(LakeError, match=r"\.npz"):
        hft.export_hftbacktest(lake, market.ticker, tmp_path / "out.bin")
    with pytest.raises(LakeError, match="no market"):
        hft.export_hftbacktest(lake, "KX-NONE", path, on_gap="ignore")
    with pytest.raises(LakeError, match="holds no moment"):
        hft.export_hftbacktest(lake, market.ticker, path, START + 9, START + 5, on_gap="ignore")
    with pytest.raises(IncompleteTape):
        hft.export_hftbacktest(lake, market.ticker, path, START, world.end_us)
    with pytest.raises(LakeError, match="no column for coverage"):
        hft.export_hftbacktest(lake, market.ticker, path, on_gap="column")
    assert list(tmp_path.iterdir()) == []
    path.write_text("mine")
    with pytest.raises(TapeError, match="exists"):
        hft.export_hftbacktest(lake, market.ticker, path, on_gap="ignore")
