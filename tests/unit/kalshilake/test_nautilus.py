"""The catalog of nautilus_trader, read by hand; by the library itself: tests/thirdparty/exports."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kalshilake import open_lake
from kalshilake.exports import nautilus
from kalshilake.exports.nautilus import ADD, CLEAR, DELETE, LAST, SNAPSHOT, export_nautilus
from kalshilake.tables import times_us, units_of
from marketdata.errors import IncompleteTape, LakeError, TapeError
from tests.lake_world import START, World


def read(catalog: Path, kind: str, ticker: str) -> pa.Table:
    (path,) = (catalog / "data" / kind / f"{ticker}.KALSHI").iterdir()
    return pq.read_table(path, partitioning=None)


def units(column: pa.ChunkedArray, scale: int) -> list[int]:
    """16-byte integers of 16 decimals as integers of `scale`; nothing may be left over."""
    raw = [int.from_bytes(value, "little", signed=True) for value in column.to_pylist()]
    assert all(value % (10**16 // scale) == 0 for value in raw)
    return [value // (10**16 // scale) for value in raw]


def book_at(rows: pa.Table, at_us: int) -> dict[tuple[int, int], int]:
    """{(0 bid or 1 offer, price of YES): size} after all deltas of the time."""
    book: dict[tuple[int, int], int] = {}
    columns = (
        rows.column("action").to_pylist(), rows.column("side").to_pylist(),
        units(rows.column("price"), 10**6), units(rows.column("size"), 100),
        rows.column("ts_event").to_pylist(),
    )  # fmt: skip
    for action, side, price, size, ts in zip(*columns, strict=True):
        if ts > at_us * 1000:
            break
        if action == CLEAR:
            book.clear()
        elif action == DELETE:
            book.pop((side - 1, price), None)
        else:
            assert size > 0
            book[side - 1, price] = size
    return book


def truth(world: World, ticker: str, at_us: int) -> dict[tuple[int, int], int]:
    found = world.book_at(ticker, at_us)
    return {(s, 10**6 - p if s else p): q for (s, p), q in (found[2] if found else {}).items()}


def test_the_books_are_those_of_the_tape(pristine: Path, world: World, tmp_path: Path) -> None:
    """At every event and gap of every market, exactly."""
    lake, seen = open_lake(pristine), 0
    for market in world.markets:
        n = export_nautilus(lake, market.ticker, tmp_path, START, world.end_us, on_gap="ignore")
        rows = read(tmp_path, "order_book_delta", market.ticker)
        trades = lake.trades(market.ticker, on_gap="ignore").num_rows
        assert n == rows.num_rows + trades
        assert rows.schema.remove_metadata() == nautilus.DELTA
        late = np.asarray(rows.column("ts_init"))
        assert (np.diff(late.astype(np.int64)) >= 0).all()
        for epoch in market.epochs:
            edges = [epoch.from_us, epoch.to_us - 1, epoch.to_us, *(e.us for e in epoch.events)]
            for us in edges:
                assert book_at(rows, us) == truth(world, market.ticker, us), us
                seen += 1
    assert seen > 100


def test_a_stretch_begins_with_a_snapshot(pristine: Path, world: World, tmp_path: Path) -> None:
    """Cleared, then every level, the last of them ending the event."""
    market = max(world.markets, key=lambda m: len(m.epochs[0].book_after(0)))
    export_nautilus(open_lake(pristine), market.ticker, tmp_path, on_gap="ignore")
    rows = read(tmp_path, "order_book_delta", market.ticker).to_pylist()
    first = [r for r in rows if r["flags"] & SNAPSHOT]
    assert first[0]["action"] == CLEAR
    run = first[: next(i for i, r in enumerate(first) if r["flags"] & LAST) + 1]
    assert [r["action"] for r in run[1:]] == [ADD] * (len(run) - 1)
    assert all(not r["flags"] & LAST for r in run[:-1])
    assert len(run) > 1


def test_trades_are_those_of_the_tape(pristine: Path, world: World, tmp_path: Path) -> None:
    lake, sides = open_lake(pristine), set()
    for market in world.markets:
        want = lake.trades(market.ticker, on_gap="ignore")
        if not want.num_rows:
            continue
        export_nautilus(lake, market.ticker, tmp_path, START, world.end_us, on_gap="ignore")
        got = read(tmp_path, "trade_tick", market.ticker)
        assert got.column("trade_id").to_pylist() == want.column("trade_id").to_pylist()
        assert units(got.column("price"), 10**6) == units_of(want.column("yes_price")).tolist()
        assert units(got.column("size"), 100) == units_of(want.column("count")).tolist()
        times = [us * 1000 for us in times_us(want.column("exchange_ts")).tolist()]
        assert got.column("ts_event").to_pylist() == times
        by = {"yes": 1, "no": 2, None: 0}
        taker = [by[side] for side in want.column("taker_side").to_pylist()]
        assert got.column("aggressor_side").to_pylist() == taker
        sides |= set(taker)
    assert sides >= {1, 2}


def test_sizes_beyond_64_bits_are_whole() -> None:
    """A thousand contracts are 10^19 of the library's units."""
    sizes = np.array([0, 1, 92_233, 92_234, 100_000, 10**12 + 7], np.int64)
    got = nautilus._raw(sizes, 100).to_pylist()
    assert [int.from_bytes(v, "little", signed=True) for v in got] == [
        int(s) * 10**14 for s in sizes
    ]


@pytest.mark.parametrize(
    ("prices", "decimals"),
    [([], 2), ([450_000], 2), ([456_000], 3), ([1], 6), ([990_000, 5_500], 4)],
)
def test_an_instrument_has_the_decimals_that_its_prices_need(
    prices: list[int], decimals: int
) -> None:
    assert nautilus._decimals(np.array(prices, np.int64)) == decimals


def test_the_instrument_says_what_is_known(pristine: Path, world: World, tmp_path: Path) -> None:
    ticker = world.markets[0].ticker
    export_nautilus(open_lake(pristine), ticker, tmp_path, on_gap="ignore")
    (row,) = read(tmp_path, "binary_option", ticker).to_pylist()
    assert (row["id"], row["raw_symbol"], row["currency"]) == (f"{ticker}.KALSHI", ticker, "USD")
    assert row["price_increment"] == "0." + "0" * (row["price_precision"] - 1) + "1"
    names = [p.name for p in tmp_path.rglob("*.parquet")]
    stamp = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d-\d{9}Z"
    assert all(re.fullmatch(rf"{stamp}_{stamp}\.parquet", name) for name in names)


def test_what_cannot_be_exported_leaves_nothing_behind(
    pristine: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, ticker = open_lake(pristine), world.markets[0].ticker
    with pytest.raises(LakeError, match="column for coverage"):
        export_nautilus(lake, ticker, tmp_path, on_gap="column")
    with pytest.raises(IncompleteTape):
        export_nautilus(lake, ticker, tmp_path, START, world.end_us)
    with pytest.raises(LakeError, match="KX-NO"):
        export_nautilus(lake, "KX-NO", tmp_path, on_gap="ignore")
    real = pq.write_table

    def full(rows: pa.Table, *given: object, **more: object) -> None:
        if rows.schema.remove_metadata() == nautilus.INSTRUMENT:
            raise OSError(28, "no space left on device")
        real(rows, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", full)
        with pytest.raises(TapeError, match="no space left"):
            export_nautilus(lake, ticker, tmp_path, on_gap="ignore")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    export_nautilus(lake, ticker, tmp_path, on_gap="ignore")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.parquet")}
    with pytest.raises(TapeError, match="has files"):
        export_nautilus(lake, ticker, tmp_path, on_gap="ignore")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.parquet")} == before
