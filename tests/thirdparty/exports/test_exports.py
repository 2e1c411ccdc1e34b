"""The real hftbacktest and nautilus_trader read exports: they show the book of the tape."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kalshilake import open_lake
from kalshilake.exports.hftbacktest import BUY, DEPTH, EVENT, SELL, export_hftbacktest
from kalshilake.exports.nautilus import export_nautilus
from kalshilake.tables import times_us, units_of
from tests.lake_world import START, make_world, write_world

PROGRAM = Path(__file__).resolve().parents[1] / "clients" / "read_hftbacktest.py"
RECEIVED_US = 7_000  # the world receives everything so much later


def read(path: Path, moments_us: list[int]) -> dict[str, Any]:
    """What the library sees, in a process of its own environment."""
    python = os.environ.get("KT_EXPORTS_PYTHON")
    assert python, "make thirdparty-exports sets KT_EXPORTS_PYTHON"
    done = subprocess.run(
        [python, str(PROGRAM), str(path), "0.01"],
        input=json.dumps([us * 1000 for us in moments_us]),
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def true_book(world: Any, ticker: str, at_us: int) -> list[list[int]]:
    """[side, tick of YES, size] as the tape has it; nothing where it is not covered."""
    truth = world.book_at(ticker, at_us)
    book = truth[2] if truth else {}
    return sorted([s, (10**6 - p if s else p) // 10_000, q] for (s, p), q in book.items())


def stable(world: Any, ticker: str, at_us: int) -> bool:
    """Whether the local book does not depend on which event has been received yet."""
    around = (at_us - RECEIVED_US - 2_000_000, at_us - RECEIVED_US, at_us)
    return len({json.dumps(true_book(world, ticker, us)) for us in around}) == 1


def compared(world: Any, ticker: str, told: dict[str, Any], moments: list[int]) -> list[int]:
    """Moments at which the library's book is not that of the tape."""
    assert told["done"] == len(moments)
    return [
        us
        for us, book in zip(moments, told["books"], strict=True)
        if sorted(book) != true_book(world, ticker, us)
    ]


def test_the_library_shows_the_book_of_the_tape(tmp_path: Path, say: Callable[[str], None]) -> None:
    """Over epochs, gaps, resets; and its trades are those of the lake, by side."""
    shown, levels, empty, traded = 0, 0, 0, 0
    for seed in (1, 3):
        world = make_world(seed, hours=2, events=60)
        write_world(tmp_path / f"{seed}", world)
        lake = open_lake(tmp_path / f"{seed}")
        for market in world.markets:
            path = tmp_path / f"{seed}-{market.ticker}.npz"
            n = export_hftbacktest(lake, market.ticker, path, START, world.end_us, on_gap="ignore")
            first = int(np.load(path)["data"]["local_ts"].min()) // 1000
            last = int(np.load(path)["data"]["local_ts"].max()) // 1000
            grid = np.linspace(first + 1, last - 1, 400).astype(int).tolist()
            moments = [us for us in grid if stable(world, market.ticker, us)]
            told = read(path, moments)
            assert told["same_layout"]
            assert told["events"] == n
            assert compared(world, market.ticker, told, moments) == []
            trades = lake.trades(market.ticker, on_gap="ignore")
            times = times_us(trades.column("received_at"))
            before = times <= moments[-1]
            sizes = units_of(trades.column("count"))
            sides = np.array(trades.column("taker_side").to_pylist(), object)
            true = [int(sizes[before & (sides == s)].sum()) for s in (None, "yes", "no")]
            assert np.array(told["traded"]).sum(axis=0).tolist() == true
            shown += len(moments)
            levels += sum(map(len, told["books"]))
            empty += sum(not book for book in told["books"])
            traded += sum(true)
    assert shown > 500
    assert levels > 1000
    assert empty > 50
    assert traded
    say(f"hftbacktest: {shown} books, {levels} levels, {empty} of them empty, as on the tape")


def test_one_changed_event_is_seen(tmp_path: Path) -> None:
    """Negative control: the same comparison finds one wrong size."""
    world = make_world(1, hours=2, events=60)
    write_world(tmp_path / "lake", world)
    ticker = max(world.markets, key=lambda m: len(m.epochs[0].events)).ticker
    path = tmp_path / "out.npz"
    export_hftbacktest(
        open_lake(tmp_path / "lake"), ticker, path, START, world.end_us, on_gap="ignore"
    )
    data = np.load(path)["data"]
    assert data.dtype == EVENT
    row = np.flatnonzero((data["ev"] & np.uint64(0xFF)) == DEPTH)[0]
    data["qty"][row] += 1
    changed = tmp_path / "changed.npz"
    np.savez_compressed(changed, data=data)
    at_us = int(data["local_ts"][row]) // 1000 + 1
    (true,), (wrong,) = (read(p, [at_us])["books"] for p in (path, changed))
    assert true != wrong


@pytest.mark.parametrize("name", ["BUY_EVENT", "SELL_EVENT", "DEPTH_EVENT", "TRADE_EVENT"])
def test_the_numbers_are_those_of_the_library(name: str) -> None:
    """Ours are written down, not imported."""
    python = os.environ["KT_EXPORTS_PYTHON"]
    shown = subprocess.run(
        [python, "-c", f"from hftbacktest import types; print(types.{name})"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    ours = {"BUY_EVENT": BUY, "SELL_EVENT": SELL, "DEPTH_EVENT": DEPTH, "TRADE_EVENT": 2}
    assert int(shown.stdout) == ours[name]


# -- nautilus_trader -------------------------------------------------------------------------------


def read_catalog(catalog: Path, name: str, moments_us: list[int]) -> dict[str, Any]:
    """What nautilus_trader sees of a market, in a process of its own environment."""
    python = os.environ.get("KT_EXPORTS_PYTHON")
    assert python, "make thirdparty-exports sets KT_EXPORTS_PYTHON"
    done = subprocess.run(
        [python, str(PROGRAM.with_name("read_nautilus.py")), str(catalog), name],
        input=json.dumps([us * 1000 for us in moments_us]),
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def book_of_yes(world: Any, ticker: str, at_us: int) -> list[list[int]]:
    """[side, price of YES in micro-dollars, size] as the tape has it."""
    truth = world.book_at(ticker, at_us)
    return sorted(
        [s, 10**6 - p if s else p, q] for (s, p), q in (truth[2] if truth else {}).items()
    )


def test_nautilus_shows_the_book_of_the_tape(tmp_path: Path, say: Callable[[str], None]) -> None:
    """One catalog of several markets; books over epochs, gaps and resets; every trade."""
    shown = levels = empty = traded = 0
    world = make_world(3, hours=2, events=60)
    write_world(tmp_path / "lake", world)
    lake = open_lake(tmp_path / "lake")
    for market in world.markets:
        n = export_nautilus(
            lake, market.ticker, tmp_path / "catalog", START, world.end_us, on_gap="ignore"
        )
        edges = {us for e in market.epochs for us in (e.from_us, e.to_us - 1, e.to_us)}
        moments = sorted({us for e in market.epochs for us in (x.us for x in e.events)} | edges)
        told = read_catalog(tmp_path / "catalog", f"{market.ticker}.KALSHI", moments)
        want = [book_of_yes(world, market.ticker, us) for us in moments]
        assert told["ascending"]
        assert told["books"] == want
        rows = lake.trades(market.ticker, on_gap="ignore")
        assert told["deltas"] + len(told["trades"]) == n
        sides = {"yes": "BUYER", "no": "SELLER", None: "NO_AGGRESSOR"}
        assert [t[:5] for t in told["trades"]] == [
            [name, price, size, sides[side], us * 1000]
            for name, price, size, side, us in zip(
                rows.column("trade_id").to_pylist(), units_of(rows.column("yes_price")).tolist(),
                units_of(rows.column("count")).tolist(), rows.column("taker_side").to_pylist(),
                times_us(rows.column("exchange_ts")).tolist(), strict=True,
            )
        ]  # fmt: skip
        assert told["instrument"][0] == f"{market.ticker}.KALSHI"
        shown += len(moments)
        levels += sum(map(len, want))
        empty += sum(not book for book in want)
        traded += len(told["trades"])
    assert shown > 100
    assert levels > 200
    assert empty > 5
    assert traded > 10
    say(
        f"nautilus_trader: {shown} books, {levels} levels, {empty} empty, {traded} trades, as taped"
    )


def test_nautilus_sees_one_changed_size(tmp_path: Path) -> None:
    """Negative control."""
    world = make_world(1, hours=2, events=60)
    write_world(tmp_path / "lake", world)
    ticker = max(world.markets, key=lambda m: len(m.epochs[0].events)).ticker
    export_nautilus(
        open_lake(tmp_path / "lake"), ticker, tmp_path / "made", START, world.end_us,
        on_gap="ignore",
    )  # fmt: skip
    (path,) = (tmp_path / "made/data/order_book_delta" / f"{ticker}.KALSHI").iterdir()
    rows = pq.read_table(path, partitioning=None)
    actions = rows.column("action").to_pylist()
    at = actions.index(2)
    moment = rows.column("ts_event").to_pylist()[at] // 1000
    (true,) = read_catalog(tmp_path / "made", f"{ticker}.KALSHI", [moment])["books"]
    sizes = rows.column("size").to_pylist()
    sizes[at] = (int.from_bytes(sizes[at], "little") + 10**14).to_bytes(16, "little")
    column = pa.array(sizes, pa.binary(16))
    changed = rows.set_column(3, rows.schema.field(3), column)
    pq.write_table(changed, path)
    (wrong,) = read_catalog(tmp_path / "made", f"{ticker}.KALSHI", [moment])["books"]
    assert true != wrong
