"""Bars of trades and quotes against plain Python."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from kalshilake import open_lake
from kalshilake.read import Lake
from marketdata.errors import IncompleteTape, LakeError
from tests.lake_world import START, World

STEP = 600_000_000


@pytest.fixture(scope="module")
def lake(pristine: Path) -> Lake:
    return open_lake(pristine)


def us(moment: Any) -> int:
    return int(moment.timestamp() * 10**6)


def test_bars_of_trades_are_those_of_the_trades(lake: Lake) -> None:
    """Open and close by the order of the tape; sums without a rounding."""
    by_bar: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in lake.trades(on_gap="ignore").to_pylist():
        by_bar[row["market_ticker"], us(row["exchange_ts"]) // STEP * STEP].append(row)
    made = lake.bars(None, every="10m", on_gap="ignore").to_pylist()
    assert [(r["market_ticker"], us(r["from_ts"])) for r in made] == sorted(by_bar)
    assert max(len(rows) for rows in by_bar.values()) > 1
    for bar in made:
        rows = by_bar[bar["market_ticker"], us(bar["from_ts"])]
        prices = [r["yes_price"] for r in rows]
        assert (bar["open"], bar["close"]) == (prices[0], prices[-1])
        assert (bar["high"], bar["low"]) == (max(prices), min(prices))
        assert bar["volume"] == sum(r["count"] for r in rows)
        assert bar["notional"] == sum((r["count"] * r["yes_price"] for r in rows), Decimal(0))
        assert bar["rows"] == len(rows)


def test_bars_of_quotes_open_with_what_is_in_force(lake: Lake, world: World) -> None:
    """A bar without a change has the quote that stands; one over a gap ends with the proof."""
    for market in world.markets:
        quotes = lake.quotes(market.ticker, on_gap="ignore").to_pylist()
        made = {
            us(r["from_ts"]): r
            for r in lake.bars(
                market.ticker, every="10m", source="bid", on_gap="ignore"
            ).to_pylist()
        }
        wanted: dict[int, list[Decimal]] = defaultdict(list)
        for quote in quotes:
            if quote["yes_bid"] is None:
                continue
            first, until = us(quote["exchange_ts"]), us(quote["until"])
            wanted[first // STEP * STEP].append(quote["yes_bid"])
            bar = first // STEP * STEP + STEP
            while bar < until:
                wanted[bar].append(quote["yes_bid"])
                bar += STEP
        assert sorted(made) == sorted(wanted)
        for bar, prices in wanted.items():
            assert (made[bar]["open"], made[bar]["close"]) == (prices[0], prices[-1])
            assert (made[bar]["high"], made[bar]["low"]) == (max(prices), min(prices))


def test_a_gap_is_refused_unless_asked(lake: Lake, world: World) -> None:
    """A high over a gap is nobody's high."""
    market = world.markets[0]
    for source in ("trades", "bid", "ask"):
        with pytest.raises(IncompleteTape):
            lake.bars(market.ticker, START, world.end_us, source=source)
        epoch = market.epochs[0]
        assert lake.bars(market.ticker, epoch.from_us, epoch.to_us, source=source).num_rows >= 0


def test_an_unknown_source_is_refused(lake: Lake, world: World) -> None:
    """One clear word."""
    with pytest.raises(LakeError, match="trades, bid or ask"):
        lake.bars(world.markets[0].ticker, source="mid", on_gap="ignore")  # type: ignore[arg-type]


def test_large_sums_are_exact() -> None:
    """Price times size of a busy hour is beyond 64 bits."""
    import numpy as np

    from kalshilake.bars import _notional

    price = np.array([999_999, 1, 999_999, 500_000], np.int64)
    size = np.array([2**62, 7, 2**61 + 3, 2**40 + 1], np.int64)
    got = _notional(price, size, np.array([0, 2])).to_pylist()
    exact = [int(p) * int(s) for p, s in zip(price, size, strict=True)]
    assert got == [Decimal(exact[0] + exact[1]).scaleb(-8), Decimal(exact[2] + exact[3]).scaleb(-8)]
