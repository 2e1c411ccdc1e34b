"""Everything in one order of time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from kalshilake import open_lake, tables
from kalshilake.clocks import CLOCKS_APART_US as APART
from kalshilake.events import EVENT_KINDS, EVENTS, TICKER_FIELDS
from kalshilake.read import Lake
from kalshilake.tables import times_us, units_of
from marketdata.errors import IncompleteTape, LakeError
from tests.lake_receipts import heard
from tests.lake_world import (
    START,
    World,
    crowded_world,
    make_world,
    world_tables,
    write_world,
)


def truth(world: World, whole: dict[str, pa.Table], a: int, b: int) -> list[tuple[Any, ...]]:
    """(at, market, kind, number) of everything in [a, b), in order; from plain lists."""
    found: list[tuple[Any, ...]] = []
    for market in world.markets:
        for epoch in market.epochs:
            at = 0
            for seq, event in enumerate(epoch.events, 1):
                at = max(at, event.us)
                kind = "reset" if event.reset else "delta"
                found.append((at, market.ticker, 1, epoch.number, seq, kind))
    rows = whole["trades"]
    for ticker, us, name in zip(
        rows["market_ticker"].to_pylist(), times_us(rows["exchange_ts"]).tolist(),
        rows["trade_id"].to_pylist(), strict=True,
    ):  # fmt: skip
        found.append((us, ticker, 0, 0, name, "trade"))
    return [(r[0], r[1], r[5], r[4]) for r in sorted(f for f in found if a <= f[0] < b)]


def told(rows: pa.Table) -> list[tuple[Any, ...]]:
    numbers = [s if t is None else t for s, t in zip(
        rows["market_seq"].to_pylist(), rows["trade_id"].to_pylist(), strict=True)]  # fmt: skip
    columns = times_us(rows["at"]).tolist(), rows["market_ticker"].to_pylist()
    return list(zip(*columns, rows["kind"].to_pylist(), numbers, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_the_rows_are_those_of_the_truth_in_its_order(tmp_path: Path, seed: int) -> None:
    """Over gaps, resets, times that step back, and several things in one microsecond."""
    world, whole = crowded_world(seed)
    write_world(tmp_path, world, whole)
    lake = open_lake(tmp_path)
    shared = 0
    for a in range(START, world.end_us, 1_500_000_000):
        b = min(world.end_us, a + 1_500_000_000)
        rows = lake.events_between(None, a, b, on_gap="ignore")
        assert rows.schema.equals(EVENTS)
        assert told(rows) == truth(world, whole, a, b)
        marked = lake.events_between(None, a, b, on_gap="column")
        assert told(marked) == told(rows)
        shared += int((np.diff(times_us(rows["at"])) == 0).sum())
        for i, (us, ticker, *_) in enumerate(told(rows)):
            market = next(m for m in world.markets if m.ticker == ticker)
            inside = any(e.from_us <= us < e.to_us for e in market.epochs)
            assert marked["complete"][i].as_py() == inside
    assert shared > 30


def test_values_are_those_of_the_tables(tmp_path: Path) -> None:
    """Each kind has its own columns; the others are null, not zero."""
    world, whole = crowded_world(4)
    write_world(tmp_path, world, whole)
    lake = open_lake(tmp_path)
    rows = lake.events_between(None, START, world.end_us, on_gap="ignore")
    assert set(rows["kind"].to_pylist()) == set(EVENT_KINDS) - {"ticker"}
    order = [("market_ticker", "ascending"), ("exchange_ts", "ascending")]
    numbered = [*order, ("epoch", "ascending"), ("market_seq", "ascending")]
    changes = rows.filter(pc.is_in(rows["kind"], value_set=pa.array(["delta", "reset"])))
    deltas = lake.deltas(on_gap="ignore").drop_columns(["flags"])
    assert changes.select(deltas.schema.names).sort_by(numbered).to_pylist() == deltas.to_pylist()
    trades = rows.filter(pc.equal(rows["kind"], "trade"))
    want = lake.trades(on_gap="ignore")
    got = trades.select(want.schema.names).sort_by([*order, ("trade_id", "ascending")])
    assert got.to_pylist() == want.to_pylist()
    assert trades["price"].null_count == trades["market_seq"].null_count == trades.num_rows
    assert changes["count"].null_count == changes.num_rows
    no_trades = lake.events_between(None, START, world.end_us, trades=False, on_gap="ignore")
    assert no_trades.equals(changes)


def test_the_changes_lead_from_the_book_before_to_the_book_at_the_end(tmp_path: Path) -> None:
    """L-40; an event that stepped back over the border of the interval is on the side where the
    book has it."""
    world = make_world(51, hours=1, events=60)
    write_world(tmp_path, world)
    lake, stepped = open_lake(tmp_path), 0
    for market in world.markets:
        for epoch in market.epochs:
            for event in epoch.events:
                a, b = event.us, epoch.to_us
                if not epoch.from_us < a < b:
                    continue
                rows = lake.events_between(market.ticker, a, b, trades=False)
                before, after = world.book_at(market.ticker, a - 1), world.book_at(
                    market.ticker, b - 1)  # fmt: skip
                assert before is not None
                assert after is not None
                assert rows["market_seq"].to_pylist() == list(range(before[1] + 1, after[1] + 1))
                stepped += int((times_us(rows["exchange_ts"]) < a).sum())
    assert stepped > 0


def test_a_gap_is_refused_unless_asked(pristine: Path, world: World) -> None:
    """The rule of every read, for each channel that is in the answer."""
    lake, market = open_lake(pristine), world.markets[0]
    first, second = market.epochs[:2]
    with pytest.raises(IncompleteTape) as refused:
        lake.events_between(market.ticker, first.from_us, second.to_us)
    assert [i[1:4] for i in refused.value.intervals] == [(first.to_us, second.from_us, "gap")]
    inside = lake.events_between(market.ticker, first.from_us, first.to_us)
    assert inside.num_rows >= len(first.events) - 1
    for wrong in ({"on_gap": "skip"}, {"clock": "local"}, {"start": 5, "end": 5}):
        with pytest.raises(LakeError):
            lake.events_between(market.ticker, **wrong)


def test_tickers_come_last_and_only_if_asked(tmp_path: Path) -> None:
    """A state that holds already; its price is not that of a level."""
    world = make_world(11, markets=1, hours=1, events=20)
    market = world.markets[0]
    epoch = max(market.epochs, key=lambda e: len(e.events))
    us = np.sort([e.us for e in epoch.events if epoch.from_us <= e.us < epoch.to_us][-3:])
    whole = world_tables(world)
    values = {f.name[7:]: np.arange(3) + 1 for f in TICKER_FIELDS}
    values["yes_ask"] = np.array([-1, 5, 6])
    whole["tickers"] = tables.tickers_table(
        [market.ticker] * 3, us, us * 1000, np.arange(3), np.full(3, 3), values
    )
    write_world(tmp_path, world, whole)
    lake = open_lake(tmp_path)
    span = (market.ticker, epoch.from_us, epoch.to_us)
    rows = lake.events_between(*span, tickers=True)
    assert rows.schema.equals(pa.schema([*EVENTS, *TICKER_FIELDS]))
    mine = rows.filter(pc.equal(rows["kind"], "ticker"))
    assert units_of(mine["ticker_price"]).tolist() == [1, 2, 3]
    assert mine["ticker_yes_ask"].null_count == 1
    assert mine["price"].null_count == 3
    assert mine["ticker_dollar_volume"].to_pylist() == [1, 2, 3]
    kinds, at = rows["kind"].to_pylist(), times_us(rows["at"]).tolist()
    for i, kind in enumerate(kinds[:-1]):
        assert kind != "ticker" or at[i + 1] > at[i] or kinds[i + 1] == "ticker"
    assert "ticker" not in lake.events_between(*span)["kind"].to_pylist()
    assert mine.num_rows == 3


def test_by_receipt_the_order_is_that_of_what_could_be_known(tmp_path: Path) -> None:
    """Numbers never step back, times of receipt neither, and nothing is missed."""
    found = heard(tmp_path, make_world(23, markets=2, hours=2, events=150))
    lake: Lake = open_lake(tmp_path)
    seen = 0
    for market in found.world.markets:
        for epoch in market.epochs:
            a, b = epoch.from_us + APART, epoch.to_us - APART
            if a >= b:
                continue
            rows = lake.events_between(market.ticker, a, b, trades=False, clock="received")
            want = [(us, n) for n, us in enumerate(found.in_force(market, epoch), 1) if a <= us < b]
            got = zip(times_us(rows["at"]).tolist(), rows["market_seq"].to_pylist(), strict=True)
            assert list(got) == want
            seen += len(want)
    assert seen > 30
    everything = lake.events_between(None, START, found.world.end_us + 10**12, on_gap="ignore",
                                     clock="received")  # fmt: skip
    changes = sum(len(e.events) for m in found.world.markets for e in m.epochs)
    assert everything.num_rows == changes + lake.trades(on_gap="ignore").num_rows
    trades = everything.filter(pc.equal(everything["kind"], "trade"))
    assert trades["at"].equals(trades["received_at"])
