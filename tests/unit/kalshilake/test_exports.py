"""Two formats of one interval tell the same."""

from __future__ import annotations

import csv
from decimal import Decimal
from pathlib import Path

import numpy as np

from kalshilake import open_lake
from kalshilake.exports import export_csv, export_hftbacktest
from kalshilake.exports.hftbacktest import EXCH, TRADE
from tests.lake_world import World


def test_both_formats_tell_the_same_trades(pristine: Path, world: World, tmp_path: Path) -> None:
    """By time, price and size; the two writers share no line of code for them."""
    lake, ticker = open_lake(pristine), world.markets[1].ticker
    export_csv(lake, ticker, tmp_path / "a.csv", table="trades", times="us", on_gap="ignore")
    span = lake.coverage_map(ticker).proven_span(ticker, "orderbook")
    assert span is not None
    export_hftbacktest(lake, ticker, tmp_path / "a.npz", on_gap="ignore")
    with (tmp_path / "a.csv").open(newline="") as lines:
        told = [
            (int(row["exchange_ts"]), Decimal(row["yes_price"]), Decimal(row["count"]))
            for row in csv.DictReader(lines)
            if span[0] <= int(row["exchange_ts"]) < span[1]
        ]
    data = np.load(tmp_path / "a.npz")["data"]
    mine = data[((data["ev"] & 0xFF) == TRADE) & ((data["ev"] & EXCH) != 0)]
    found = [
        (us, Decimal(f"{px:.6f}"), Decimal(f"{qty:.2f}"))
        for us, px, qty in zip(mine["exch_ts"] // 1000, mine["px"], mine["qty"], strict=True)
    ]
    assert found == told
    assert told
