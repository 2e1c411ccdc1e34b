"""The real hftbacktest steps through an export: at every moment it shows the book of the tape."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kalshilake import open_lake
from kalshilake.exports.hftbacktest import BUY, DEPTH, EVENT, SELL, export_hftbacktest
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
