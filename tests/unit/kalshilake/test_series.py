"""Books on a grid, quotes and joins against a truth that is replayed event by event."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from kalshilake import open_lake, paths
from kalshilake.read import Lake
from kalshilake.series import QUOTE_COLUMNS
from kalshilake.tables import times_us, units_of
from marketdata.errors import IncompleteTape, LakeError
from tests.lake_receipts import heard
from tests.lake_world import START, World, as_levels, make_world, write_world

MINUTE = 60_000_000
Levels = tuple[tuple[int, int], ...]


@pytest.fixture(scope="module")
def lake(pristine: Path) -> Lake:
    return open_lake(pristine)


def ladder(value: list[dict[str, Any]]) -> Levels:
    """A cell of LEVELS as integers."""
    return tuple((int(e["price"] * 10**6), int(e["size"] * 100)) for e in value)


@pytest.mark.parametrize("seed", range(4))
def test_every_row_is_the_truth_at_its_moment(tmp_path: Path, seed: int) -> None:
    """L-20 over epochs, gaps, resets, late keyframes and times that step back."""
    world = make_world(seed, hours=2, events=40)
    write_world(tmp_path, world)
    lake = open_lake(tmp_path)
    rows = lake.books(None, START, world.end_us, every="7s", depth=200, on_gap="column").to_pylist()
    times = len(range(START, world.end_us, 7_000_000))
    assert len(rows) == times * len(world.markets) or len(rows) == (times - 1) * len(world.markets)
    seen = 0
    for row in rows:
        at_us = int(row["at"].timestamp() * 10**6)
        truth = world.book_at(row["market_ticker"], at_us)
        if truth is None:
            assert (row["yes"], row["epoch"], row["complete"]) == (None, None, False)
            assert row["coverage"] in ("dark", "gap")
            continue
        epoch, n, book = truth
        seen += 1
        assert (row["epoch"], row["market_seq"], row["complete"]) == (epoch.number, n, True)
        assert ladder(row["yes"]) == as_levels(book, 0)
        assert ladder(row["no"]) == as_levels(book, 1)
    assert seen > 50


def test_the_top_of_a_row_is_the_best_of_both_sides(lake: Lake, world: World) -> None:
    """An offer of YES is a bid for NO, at one dollar less its price."""
    rows = lake.books(None, START, world.end_us, every="20s", depth=3, on_gap="column").to_pylist()
    both = 0
    for row in rows:
        yes, no = (ladder(row[side] or []) for side in ("yes", "no"))
        assert max(len(yes), len(no)) <= 3
        bid = (int(row["yes_bid"] * 10**6), int(row["yes_bid_size"] * 100)) if yes else None
        assert bid == (yes[0] if yes else None)
        if no:
            assert int(row["yes_ask"] * 10**6) == 10**6 - no[0][0]
            assert int(row["yes_ask_size"] * 100) == no[0][1]
        else:
            assert row["yes_ask"] is None
        both += bool(yes and no)
    assert both


def test_a_grid_over_a_gap_is_refused_unless_asked(lake: Lake, world: World) -> None:
    """The rule of every read; "ignore" gives what `book` gives, nothing where it gives none."""
    market = world.markets[0]
    with pytest.raises(IncompleteTape):
        lake.books(market.ticker, START, world.end_us)
    first = market.epochs[0]
    whole = lake.books(market.ticker, first.from_us, first.to_us, every="30s")
    assert pc.all(whole["complete"]).as_py()
    assert lake.books(market.ticker, every="30s", on_gap="column").num_rows >= whole.num_rows
    rows = lake.books(market.ticker, START, world.end_us, every="60s", depth=200, on_gap="ignore")
    checked = 0
    for row in rows.to_pylist():
        at_us = int(row["at"].timestamp() * 10**6)
        try:
            view = lake.book(market.ticker, at_us, on_gap="ignore")
        except LakeError:
            assert row["yes"] is None or world.book_at(market.ticker, at_us) is None
            continue
        checked += 1
        assert (row["epoch"], row["market_seq"]) == (view.epoch, view.market_seq)
        assert (ladder(row["yes"]), ladder(row["no"])) == (view.yes_bids, view.no_bids)
        assert row["complete"] == view.complete
    assert checked > 20


def truth_quotes(world: World, ticker: str) -> list[tuple[int, int, Levels, Levels]]:
    """(moment, epoch, best yes, best no) wherever the top of the book changes, in each epoch."""
    market = next(m for m in world.markets if m.ticker == ticker)
    found = []
    for epoch in market.epochs:
        last = None
        for n in range(len(epoch.events) + 1):
            book = epoch.book_after(n)
            top = as_levels(book, 0)[:1], as_levels(book, 1)[:1]
            times = [e.us for e in epoch.events[:n]]
            at_us = max([epoch.from_us, *times])
            if at_us >= epoch.to_us:
                break
            starts = n == sum(
                1 for i in range(len(epoch.events))
                if max(e.us for e in epoch.events[: i + 1]) <= epoch.from_us
            )  # fmt: skip
            if n and max(times) <= epoch.from_us and not starts:
                continue  # before the stretch begins
            if n == 0 and not starts:
                continue
            if top != last:
                found.append((at_us, epoch.number, *top))
            last = top
    return found


def test_quotes_are_every_change_of_the_top_and_nothing_else(lake: Lake, world: World) -> None:
    """L-21: also several within one microsecond, and the first moment of each stretch."""
    for market in world.markets:
        rows = lake.quotes(market.ticker, START, world.end_us, on_gap="ignore").to_pylist()
        got = []
        for row in rows:
            bid, ask = row["yes_bid"], row["yes_ask"]
            yes = ((int(bid * 10**6), int(row["yes_bid_size"] * 100)),) if bid is not None else ()
            no = ((10**6 - int(ask * 10**6), int(row["yes_ask_size"] * 100)),) if ask else ()
            got.append((int(row["exchange_ts"].timestamp() * 10**6), row["epoch"], yes, no))
        assert got == truth_quotes(world, market.ticker)
        assert sum(row["opens"] for row in rows) == len(market.epochs)
        for one, two in pairwise(rows):
            assert one["until"] == two["exchange_ts"] or two["opens"]
        ends = [e.to_us for e in market.epochs]
        last = [a for a, b in pairwise([*rows, {"opens": True}]) if b["opens"]]
        assert [int(r["until"].timestamp() * 10**6) for r in last] == ends


def test_rows_get_the_quote_that_was_in_force_before_them(lake: Lake, world: World) -> None:
    """The usual question of a trade: what was quoted just before it."""
    trades = lake.trades(on_gap="ignore")
    joined = lake.asof(trades, on_gap="ignore")
    assert joined.schema.names[: len(trades.schema.names)] == trades.schema.names
    found = 0
    for row in joined.to_pylist():
        at_us = int(row["exchange_ts"].timestamp() * 10**6)
        truth = world.book_at(row["market_ticker"], at_us - 1)
        best = as_levels(truth[2], 0)[:1] if truth else ()
        assert (
            row["yes_bid"] == (best[0][0] / 10**6 if best else None)
            or int(row["yes_bid"] * 10**6) == (best[0][0])
        )
        found += bool(best)
    assert found


def test_the_same_microsecond_counts_only_if_asked(tmp_path: Path) -> None:
    """A trade and the change that it makes have one time: which came first is the caller's word."""
    world = make_world(3, markets=1, hours=1, events=40)
    write_world(tmp_path, world)
    lake = open_lake(tmp_path)
    quotes = lake.quotes(None, on_gap="ignore")
    quotes = quotes.filter(pc.invert(quotes["opens"]))
    times = times_us(quotes["exchange_ts"])
    alone = [i for i in range(1, len(times) - 1) if times[i - 1] < times[i] < times[i + 1]]
    rows = quotes.take(alone).select(["market_ticker", "exchange_ts"])
    own = lake.asof(rows, on_gap="ignore", exact=True)
    before = lake.asof(rows, on_gap="ignore")
    assert own["yes_bid"].equals(quotes.take(alone)["yes_bid"])
    assert own["yes_ask"].equals(quotes.take(alone)["yes_ask"])
    assert not own.select(QUOTE_COLUMNS).equals(before.select(QUOTE_COLUMNS))


def test_by_receipt_a_row_gets_the_quote_that_had_been_received(tmp_path: Path) -> None:
    """Not the one that was in force at the exchange, which nobody here knew yet."""
    found = heard(tmp_path, make_world(23, markets=2, hours=2, events=150))
    lake, differ, checked = open_lake(tmp_path), 0, 0
    rows = lake.deltas(on_gap="ignore").select(["market_ticker", "received_at", "exchange_ts"])
    joined = lake.asof(rows, on_gap="ignore", clock="received").to_pylist()
    known = lake.asof(rows, on_gap="ignore").to_pylist()
    markets = {m.ticker: m for m in found.world.markets}
    for row, other in zip(joined, known, strict=True):
        at_us = paths.to_us(row["received_at"])
        truth = found.book_at(markets[row["market_ticker"]], at_us - 1)
        yes, no = (as_levels(truth[2], side)[:1] if truth else () for side in (0, 1))
        assert row["yes_bid"] == (Decimal(yes[0][0]).scaleb(-6) if yes else None)
        assert row["yes_ask"] == (Decimal(10**6 - no[0][0]).scaleb(-6) if no else None)
        checked += bool(yes)
        differ += row["yes_bid"] != other["yes_bid"]
    assert checked > 50
    assert differ > 5
    with pytest.raises(LakeError, match="no column 'received_at'"):
        lake.asof(rows.drop_columns(["received_at"]), clock="received")
    with pytest.raises(IncompleteTape):
        lake.asof(rows, clock="received")


def test_joining_nothing_gives_nothing(lake: Lake) -> None:
    """An empty table keeps its columns and gets the new ones."""
    made = lake.asof(lake.trades(on_gap="ignore").slice(0, 0))
    assert made.num_rows == 0
    assert made.schema.names[-4:] == ["yes_bid", "yes_bid_size", "yes_ask", "yes_ask_size"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"every": "fast"}, "no step"),
        ({"every": 0}, "no step"),
        ({"depth": 0}, "shows nothing"),
        ({"on_gap": "maybe"}, "is unknown"),
        ({"start": START + 5, "end": START + 5}, "no moment"),
        ({"start": START, "end": START + MINUTE * 60 * 24 * 200, "every": 1}, "more than"),
    ],
)
def test_what_makes_no_sense_is_refused(
    lake: Lake, world: World, asked: dict[str, Any], words: str
) -> None:
    """One clear word each."""
    with pytest.raises(LakeError, match=words):
        lake.books(world.markets[0].ticker, **{"on_gap": "ignore", **asked})


def test_an_unknown_market_is_named(lake: Lake) -> None:
    """Not an empty table."""
    for read in (lake.books, lake.quotes, lake.bars):
        with pytest.raises(LakeError, match="knows no market"):
            read("KX-NOBODY")


def test_units_are_those_of_the_lake(lake: Lake, world: World) -> None:
    """Decimals that add up exactly."""
    rows = lake.books(None, START, world.end_us, every="60s", depth=1, on_gap="column")
    assert rows.schema.field("yes_bid").type == pa.decimal128(9, 6)
    good = rows.filter(rows["yes_bid"].is_valid())
    assert (units_of(good["yes_bid"]) % 10_000 == 0).all()
