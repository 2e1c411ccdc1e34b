"""`tape books`, `tape quotes`, `tape timeline`, `tape bars`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kalshilake import open_lake
from marketdata.units import format_ts_us
from tape.arrow import plain_rows
from tests.lake_world import World


@pytest.mark.parametrize("command", ["books", "quotes", "timeline", "bars"])
def test_a_read_over_gaps_is_refused_with_the_way_around(run, lake: Path, command: str) -> None:
    """Every command that reads the tape keeps its promise."""
    code, out, err = run(command, lake)
    assert (code, out) == (3, "")
    assert "--on-gap column" in err


def test_books_are_those_of_the_library(run, lake: Path, world: World) -> None:
    """The same rows, exact text."""
    held_in = [
        (market, epoch)
        for market in world.markets
        for epoch in market.epochs
        if epoch.to_us - epoch.from_us > 600 * 10**6
        and any(side == 0 for side, _ in epoch.book_after(len(epoch.events) // 2))
    ]
    market, epoch = held_in[0]
    bounds = ["--from", format_ts_us(epoch.from_us), "--to", format_ts_us(epoch.to_us)]
    more = ["--every", "30s", "--depth", "4", "--limit", "0", "--json"]
    code, out, err = run("books", lake, market.ticker, *bounds, *more)
    assert (code, err) == (0, "")
    found = open_lake(lake).books(market.ticker, epoch.from_us, epoch.to_us, every="30s", depth=4)
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows == plain_rows(found)
    assert rows
    assert all(len(row["yes"]) <= 4 for row in rows)
    held = next(row for row in rows if row["yes"])
    assert held["yes"][0] == [held["yes_bid"], held["yes_bid_size"]]


def test_quotes_as_a_table_are_limited_and_say_so(run, lake: Path) -> None:
    """A terminal shows some, and how many it does not."""
    code, out, _ = run("quotes", lake, "--on-gap", "ignore", "--limit", "5")
    assert code == 0
    assert len(out.splitlines()) == 7
    assert "more quotes (--limit)" in out


def test_events_are_those_of_the_library(run, lake: Path, world: World) -> None:
    """In its order, by both clocks; what a kind does not have is absent."""
    market = world.markets[0]
    epoch = max(market.epochs, key=lambda e: e.to_us - e.from_us)
    a, b = epoch.from_us + 10**7, epoch.to_us - 10**7
    bounds = [market.ticker, "--from", format_ts_us(a), "--to", format_ts_us(b), "--limit", "0"]
    opened = open_lake(lake)
    for more, asked in (
        ([], {}),
        (["--clock", "received"], {"clock": "received"}),
        (["--no-trades", "--tickers"], {"trades": False, "tickers": True}),
    ):
        code, out, err = run("timeline", lake, *bounds, *more, "--json")
        assert (code, err) == (0, "")
        rows = [json.loads(line) for line in out.splitlines()]
        assert rows == plain_rows(opened.events_between(market.ticker, a, b, **asked))
        assert rows
    changes = [row for row in rows if row["kind"] == "delta"]
    assert changes[0]["yes_price"] is None
    assert "ticker_yes_bid" in changes[0]


def test_bars_go_to_csv_and_to_parquet(run, lake: Path, tmp_path: Path) -> None:
    """The file keeps types and all rows, whatever the limit."""
    _, out, _ = run("bars", lake, "--on-gap", "ignore", "--every", "10m", "--csv", "--limit", "0")
    rows = list(csv.DictReader(io.StringIO(out)))
    target = tmp_path / "bars.parquet"
    code, said, _ = run(
        "bars", lake, "--on-gap", "ignore", "--every", "10m", "--parquet", target, "--limit", "1"
    )
    kept = pq.read_table(target)
    assert (code, kept.num_rows) == (0, len(rows))
    assert str(target) in said.replace("\n", "")
    found = open_lake(lake).bars(on_gap="ignore", every="10m")
    assert kept.schema.types == found.schema.types
    assert kept.to_pylist() == found.to_pylist()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bars", "--source", "mid"], "trades, bid, ask"),
        (["timeline", "--clock", "local"], "exchange, received"),
        (["books", "--every", "often"], "no step"),
        (["quotes", "--on-gap", "maybe"], "raise, column, ignore"),
        (["bars", "--parquet", "x", "--json"], "without --json"),
    ],
)
def test_wrong_words_are_one_clear_line(run, lake: Path, arguments: list[str], words: str) -> None:
    """And nothing is printed or written."""
    command, *rest = arguments
    code, out, err = run(command, lake, *rest, *(["--on-gap", "ignore"] * ("x" in rest)))
    assert (code, out) == (2, "")
    assert words in err
