"""A tape played to a program (every step against the truth: tests/property/test_lake_replay.py)."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from kalshilake import open_lake, steps, tables
from kalshilake.read import Lake
from kalshilake.steps import Changed, Emptied, Missing, Opened, Step, Told, Traded
from kalshilake.tables import times_us, units_of
from marketdata.errors import IncompleteTape, LakeError
from tests import lake_tamper as tamper
from tests.lake_world import (
    START,
    World,
    as_levels,
    crowded_world,
    make_world,
    world_tables,
    write_world,
)


@pytest.fixture(scope="module")
def lake(pristine: Path) -> Lake:
    return open_lake(pristine)


def test_a_strategy_loop_sees_the_book_before_a_trade_and_after_a_change(
    lake: Lake, world: World
) -> None:
    """The same events as in one table, in the same order."""
    for market in world.markets:
        epoch = max(market.epochs, key=lambda e: len(e.events))
        span = (market.ticker, epoch.from_us + 1, epoch.to_us)
        played = list(lake.replay(*span))
        head, rest = played[0], played[1:]
        assert isinstance(head, Opened)
        assert (head.kind, head.at_us, head.market) == ("opened", span[1], market.ticker)
        rows = lake.events_between(market.ticker, span[1] + 1, span[2]).to_pylist()
        assert len(rows) == len(rest)
        for row, step in zip(rows, rest, strict=True):
            assert step.kind == row["kind"]
            if isinstance(step, Changed):
                assert (step.market_seq, step.side) == (row["market_seq"], row["side"])
                assert (step.price, step.delta) == (row["price"] * 10**6, row["delta"] * 100)
            elif isinstance(step, Traded):
                assert (step.trade_id, step.taker_side) == (row["trade_id"], row["taker_side"])
                assert (step.yes_price, step.size) == (
                    row["yes_price"] * 10**6,
                    row["count"] * 100,
                )
            else:
                assert isinstance(step, Emptied)


def test_a_gap_is_refused_before_the_first_step(lake: Lake, world: World) -> None:
    """Not after an hour of playing."""
    with pytest.raises(IncompleteTape) as refused:
        lake.replay(None, START, world.end_us)
    assert len(refused.value.intervals) >= 4
    with pytest.raises(LakeError, match="knows no market"):
        lake.replay("KX-NOBODY")
    with pytest.raises(LakeError, match="is unknown"):
        lake.replay(None, on_gap="skip")


def test_trades_that_are_not_proven_refuse_a_replay_that_has_them(tmp_path: Path) -> None:
    """Each channel has its own proof; without trades the book's suffices."""
    world = make_world(11, markets=1, hours=1, events=40)
    market = world.markets[0]
    epoch = max(market.epochs, key=lambda e: e.to_us - e.from_us)
    whole = world_tables(world)
    rows = whole["coverage"].to_pylist()
    for row in rows:
        if row["channel"] == "trade":
            row["status"], row["reason"] = "dark", "nobody asked"
    whole["coverage"] = tables.records_table("coverage", rows)
    write_world(tmp_path, world, whole)
    lake, span = open_lake(tmp_path), (market.ticker, epoch.from_us, epoch.to_us)
    for read in (lake.replay, lake.events_between):
        with pytest.raises(IncompleteTape, match=r"\(trade\) .* dark"):
            read(*span)
    assert len(list(lake.replay(*span, trades=False))) > 1
    marked = [s for s in lake.replay(*span, on_gap="column") if isinstance(s, Missing)]
    assert [(s.channel, s.at_us, s.until_us, s.kind) for s in marked] == [
        ("trade", epoch.from_us, epoch.to_us, "missing")
    ]
    assert marked[0].reason == "nobody asked"


def test_a_gap_is_marked_and_behind_it_is_a_fresh_book(lake: Lake, world: World) -> None:
    """No change is played where nothing is proven, and the book says so meanwhile."""
    for market in world.markets:
        span = (market.ticker, START, world.end_us)
        edges: list[tuple[str, int, str]] = []
        for step in lake.replay(*span, trades=False, on_gap="column"):
            if isinstance(step, Missing):
                assert step.channel == "orderbook"
                edges.append((step.status, step.at_us, step.reason))
                assert (step.book.status, step.book.complete) == (step.status, False)
            elif isinstance(step, Opened):
                edges.append(("complete", step.at_us, ""))
                n, book = next(
                    (n, e.book_after(n))
                    for e in market.epochs if e.from_us == step.at_us
                    for n in [sum(1 for u in np.maximum.accumulate([x.us for x in e.events] or [0])
                                  if e.events and u <= step.at_us)]
                )  # fmt: skip
                assert (step.book.market_seq, step.book.yes_bids) == (n, as_levels(book, 0))
            else:
                assert step.book.complete
        want = [("dark", START, "not subscribed")]
        for i, epoch in enumerate(market.epochs):
            want.append(("complete", epoch.from_us, ""))
            last = i + 1 == len(market.epochs)
            want.append(("dark" if last else "gap", epoch.to_us, "lost"))
        assert edges == want
        silent = list(lake.replay(*span, trades=False, on_gap="ignore"))
        assert not [s for s in silent if isinstance(s, Missing)]
        assert sum(isinstance(s, Opened) for s in silent) == len(market.epochs)


def test_a_trade_in_a_gap_of_the_book_shows_the_last_book_and_that_it_is_not_proven(
    lake: Lake, world: World
) -> None:
    """Trades have a proof of their own; the book beside one may have none."""
    seen = {True: 0, False: 0}
    for step in lake.replay(None, START, world.end_us, on_gap="ignore"):
        if isinstance(step, Traded):
            market = next(m for m in world.markets if m.ticker == step.market)
            inside = any(e.from_us <= step.at_us < e.to_us for e in market.epochs)
            assert step.book.complete == inside
            seen[inside] += 1
    assert sum(seen.values()) == lake.trades(on_gap="ignore").num_rows
    assert all(seen.values())


def test_markets_are_played_together_in_one_order_of_time(tmp_path: Path) -> None:
    """As `events_between` gives them, also within one microsecond."""
    world, whole = crowded_world(4)
    write_world(tmp_path, world, whole)
    lake = open_lake(tmp_path)
    steps_of = lake.replay(None, START, world.end_us, on_gap="ignore")
    played = [(s.at_us, s.market, s.kind) for s in steps_of if not isinstance(s, Opened)]
    rows = lake.events_between(None, START, world.end_us, on_gap="column")
    # Changes of the very microsecond that opens a stretch are in the opening book.
    opening = {(m.ticker, e.from_us) for m in world.markets for e in m.epochs}
    columns = (rows[c].to_pylist() for c in ("market_ticker", "kind", "complete"))
    want = [
        (us, ticker, kind)
        for us, ticker, kind, complete in zip(times_us(rows["at"]).tolist(), *columns, strict=True)
        if kind == "trade" or (complete and (ticker, us) not in opening)
    ]
    assert played == want
    assert len({market for _, market, _ in played}) == 3
    kinds = [b[2] for a, b in pairwise(played) if a[:2] == b[:2] and a[2] == "trade"]
    assert kinds.count("delta") > 10


def test_steps_of_one_market_share_one_book(lake: Lake, world: World) -> None:
    """The documented trap: keep a view, not the book."""
    market = max(world.markets, key=lambda m: max(len(e.events) for e in m.epochs))
    epoch = max(market.epochs, key=lambda e: len(e.events))
    kept = [(s.book, s.book.view()) for s in lake.replay(market.ticker, epoch.from_us, epoch.to_us)]
    assert len({id(book) for book, _ in kept}) == 1
    assert len({view.book_hash for _, view in kept}) > 3
    last = lake.book(market.ticker, epoch.to_us - 1)
    view = kept[-1][1]
    assert (view.yes_bids, view.no_bids, view.book_hash) == (
        last.yes_bids, last.no_bids, last.book_hash)  # fmt: skip
    assert (view.epoch, view.market_seq, view.sources) == (last.epoch, last.market_seq, 7)


def test_tickers_are_played_if_asked(tmp_path: Path) -> None:
    """Whole numbers and None, by the lake's names."""
    world = make_world(11, markets=1, hours=1, events=20)
    market = world.markets[0]
    epoch = max(market.epochs, key=lambda e: e.to_us - e.from_us)
    whole = world_tables(world)
    us = np.array([epoch.from_us + 5, epoch.from_us + 6])
    names = [f.name for f in steps.TABLES["tickers"].schema if f.nullable]
    values = {name: np.array([7, -1]) for name in names}
    whole["tickers"] = tables.tickers_table(
        [market.ticker] * 2, us, us * 1000, np.arange(2), np.full(2, 3), values
    )
    write_world(tmp_path, world, whole)
    span = (market.ticker, epoch.from_us, epoch.to_us)
    told = [s for s in open_lake(tmp_path).replay(*span, tickers=True) if isinstance(s, Told)]
    assert [s.at_us for s in told] == us.tolist()
    assert [set(s.values.values()) for s in told] == [{7}, {None}]
    assert set(told[0].values) == set(names)


def test_a_book_that_does_not_follow_is_refused_at_the_next_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L-43, the control: a change that was altered behind the keyframe it opened from, and another
    keyframe that knows better."""
    worlds = (make_world(seed, markets=1, hours=1, events=60) for seed in range(50))
    world, market, epoch = next(
        (w, w.markets[0], e) for w in worlds for e in w.markets[0].epochs if len(e.events) > 30
    )
    market.epochs[:] = [epoch]
    half = len(epoch.events) // 2
    epoch.keyframes = [0, half]
    write_world(tmp_path, world)
    key = tamper.keys_of(tmp_path, "orderbook_deltas")[0]

    def more(rows):
        at = next(i for i, k in enumerate(rows["kind"].to_pylist()) if k == "delta" and i > 2)
        units = units_of(rows["delta"])
        units[at] += 1
        place = rows.schema.get_field_index("delta")
        valid = np.array(rows["delta"].is_valid().to_pylist())
        column = tables.decimals(units, tables.SIZE, valid)
        return rows.set_column(place, rows.schema.field(place), column)

    tamper.rewrite(tmp_path, key, more, 4)
    monkeypatch.setattr(steps, "SLICE_US", 60_000_000)
    lake = open_lake(tmp_path)
    with pytest.raises(LakeError, match=r"does not follow from the events before it|below zero"):
        list(lake.replay(market.ticker, epoch.from_us, epoch.to_us))


def test_memory_is_that_of_a_slice_whatever_the_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve hours cost what one costs; the control keeps every step."""
    world = make_world(3, markets=1, hours=12, events=3_000)
    market = world.markets[0]
    epoch = max(market.epochs, key=lambda e: e.to_us - e.from_us)
    write_world(tmp_path, world)
    lake = open_lake(tmp_path)

    def peak(played: Iterator[Step]) -> int:
        tracemalloc.start()
        for _ in played:
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    middle = (epoch.from_us + epoch.to_us) // 2
    hour = peak(lake.replay(market.ticker, middle, middle + steps.SLICE_US))
    whole = peak(lake.replay(market.ticker, epoch.from_us, epoch.to_us))
    assert whole < 2 * hour
    monkeypatch.setattr(steps, "SLICE_US", 1 << 60)
    assert peak(lake.replay(market.ticker, epoch.from_us, epoch.to_us)) > 2 * whole


def test_nothing_is_read_hour_by_hour_where_the_lake_ends(lake: Lake, world: World) -> None:
    """An end in a far year costs nothing."""
    far = world.end_us + 10 * 365 * 86_400 * 10**6
    ticker = world.markets[0].ticker
    a = list(lake.replay(ticker, 0, far, on_gap="ignore"))
    b = list(lake.replay(ticker, START, world.end_us, on_gap="ignore"))
    assert [s.at_us for s in a] == [s.at_us for s in b]
    assert times_us(lake.trades(ticker, on_gap="ignore")["exchange_ts"])[-1] <= a[-1].at_us
