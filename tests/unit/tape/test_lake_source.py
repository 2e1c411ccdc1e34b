"""The source of a replay: everything that is proven, once, in order, from any moment on."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from exchange.timeline import (
    BookItem,
    DeltaItem,
    EmptySnapshotItem,
    Item,
    TickerItem,
    TradeItem,
)
from kalshilake.read import open_lake
from kalshilake.tables import times_us
from marketdata.errors import LakeError
from tape.lake_source import LakeSource
from tests.finished_demo import write_demo
from tests.lake_world import START, Levels, World, make_world, write_world

HOUR = 3_600_000_000


def played(source: LakeSource, items: list[Item], until_us: int) -> list[Levels]:
    """The books after all items up to a moment, by a plain loop."""
    books: list[Levels] = []
    for spec in source.markets:
        sides = ((0, spec.yes), (1, spec.no))
        books.append({(side, p): q for side, levels in sides for p, q in levels})
    for item in items:
        if item.at_us > until_us:
            break
        if isinstance(item, BookItem):
            sides = ((0, item.yes), (1, item.no))
            books[item.market] = {(side, p): q for side, levels in sides for p, q in levels}
        elif isinstance(item, EmptySnapshotItem):
            books[item.market] = {}
        elif isinstance(item, DeltaItem):
            key = (item.side, item.price)
            left = books[item.market].get(key, 0) + item.delta
            books[item.market][key] = left
            if not left:
                del books[item.market][key]
    return books


def moments(world: World) -> list[int]:
    """Just before, at and after every edge and event, and some between."""
    found = {START, world.end_us - 1}
    for market in world.markets:
        for epoch in market.epochs:
            found |= {epoch.from_us, epoch.to_us - 1}
            found |= {event.us + step for event in epoch.events for step in (-1, 0)}
    return sorted(at for at in found if START <= at < world.end_us)


def oracle(world: World, at_us: int) -> dict[int, Levels]:
    """The truth's books where they are covered, by market number."""
    told = {}
    for number, market in enumerate(world.markets):
        found = world.book_at(market.ticker, at_us)
        if found is not None:
            told[number] = found[2]
    return told


@pytest.mark.parametrize("seed", range(3))
def test_every_book_equals_the_truth_at_every_moment(tmp_path: Path, seed: int) -> None:
    """Over gaps, resets, times that step back and borders of hours; from the start and from
    moments in between (a seek)."""
    world = make_world(seed)
    write_world(tmp_path, world)
    lake = open_lake(tmp_path)
    source = LakeSource(lake, START, world.end_us, None, closes=False)
    items = list(source.items())
    assert all(a.at_us <= b.at_us for a, b in pairwise(items))
    at = moments(world)
    seeks = [items, *(list(source.items_from(t)) for t in at[:: max(1, len(at) // 4)])]
    compared = 0
    for run in seeks:
        begins = START if run is items else run[0].at_us
        for moment in (t for t in at[::3] if t >= begins):
            books = played(source, run, moment)
            for number, levels in oracle(world, moment).items():
                assert books[number] == levels, (source.markets[number].ticker, moment)
                compared += 1
    assert compared > 20
    # Negative control: one change left out is seen.
    change = next(i for i in items if isinstance(i, DeltaItem) and i.at_us in at)
    wrong = played(source, [i for i in items if i is not change], change.at_us)
    assert wrong[change.market] != oracle(world, change.at_us)[change.market]


def test_each_event_of_a_proven_stretch_comes_once(tmp_path: Path) -> None:
    world = make_world(3)
    write_world(tmp_path, world)
    source = LakeSource(open_lake(tmp_path), START, world.end_us, None, closes=False)
    got = [(i.market, i.side, i.price, i.delta, i.exchange_us)
           for i in source.items() if isinstance(i, DeltaItem)]  # fmt: skip
    expected = []
    for number, market in enumerate(world.markets):
        for epoch in market.epochs:
            # What steps behind the claim or lies before it is in the book that is sent first.
            first = next((n for n, e in enumerate(epoch.events) if e.us >= epoch.from_us), 0)
            expected += [(number, e.side, e.price, e.delta, e.us)
                         for e in epoch.events[first:] if not e.reset]  # fmt: skip
    assert sorted(got) == sorted(expected)
    assert len(got) > 50


def test_a_seek_brings_every_book_first_and_an_empty_one_where_nothing_is_proven(
    tmp_path: Path,
) -> None:
    write_demo(tmp_path)
    source = LakeSource(open_lake(tmp_path / "lake"), START, START + HOUR, None, closes=True)
    items = list(source.items_from(START + 15_000_000))
    heads = [item for item in items[:2] if isinstance(item, BookItem)]
    assert [head.market for head in heads] == [0, 1]
    assert heads[1].yes == heads[1].no == []  # the tape has a gap there
    assert [i.at_us for i in items if isinstance(i, BookItem)][2:] == [START + 20_000_000]
    assert all(item.closes for item in items if isinstance(item, BookItem) and item.yes)


def test_trades_and_tickers_say_what_the_lake_says(tmp_path: Path) -> None:
    write_demo(tmp_path)
    lake = open_lake(tmp_path / "lake")
    source = LakeSource(lake, START, START + HOUR, None, closes=False)
    items = list(source.items())
    trades = [orjson.loads(i.msg) for i in items if isinstance(i, TradeItem)]
    rows = lake.trades(on_gap="ignore")
    assert [t["trade_id"].replace("-", "") for t in trades] == rows["trade_id"].to_pylist()
    assert [t["yes_price_dollars"] for t in trades] == ["0.4000"] * 2
    assert "created_time" not in trades[0]  # a whole millisecond needs none
    assert trades[1]["created_time"].endswith(".000001Z")
    states: list[dict[str, Any]] = [orjson.loads(i.msg) for i in items if isinstance(i, TickerItem)]
    assert [s["yes_ask_dollars"] for s in states] == ["0.5500"]
    assert "last_trade_size_fp" not in states[0]  # the tape has none
    assert [s["ts_ms"] * 1000 for s in states] == times_us(
        lake.tickers(on_gap="ignore")["exchange_ts"]
    ).tolist()


def test_what_cannot_be_played_is_refused(tmp_path: Path) -> None:
    write_demo(tmp_path)
    lake = open_lake(tmp_path / "lake")
    with pytest.raises(LakeError, match="no market 'KX-Z'"):
        LakeSource(lake, START, START + HOUR, ["KX-Z"], closes=False)
    with pytest.raises(LakeError, match="holds no moment"):
        LakeSource(lake, START, START, None, closes=False)
    with pytest.raises(LakeError, match="has no market"):
        LakeSource(lake, START + 90 * HOUR, START + 91 * HOUR, None, closes=False)
