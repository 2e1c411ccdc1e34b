"""`tape trades`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from kalshilake import open_lake
from marketdata.errors import TapeError
from marketdata.units import format_ts_us
from tape.trades import gap_choice, trade_rows


def test_a_read_over_gaps_is_refused_with_the_intervals_and_the_way_around(run, lake: Path) -> None:
    """The product's promise, at the command line."""
    code, out, err = run("trades", lake)
    assert (code, out) == (3, "")
    assert " gap (lost)" in err
    assert "--on-gap column" in err


def test_rows_over_a_gap_are_marked_on_request(run, lake: Path) -> None:
    """Every row says whether the tape around it is proven."""
    code, out, _ = run("trades", lake, "--on-gap", "column", "--json", "--limit", "0")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert len(rows) == 15
    assert {r["coverage"] for r in rows} >= {"complete", "dark"}
    assert all(len(r["trade_id"]) == 32 for r in rows)


def test_a_proven_interval_reads_without_a_word(run, lake: Path, world) -> None:
    """The normal case needs no option."""
    market = world.markets[0]
    epoch = max(market.epochs, key=lambda e: e.to_us - e.from_us)
    bounds = ["--from", format_ts_us(epoch.from_us), "--to", format_ts_us(epoch.to_us)]
    code, out, err = run("trades", lake, market.ticker, *bounds, "--json")
    assert (code, err) == (0, "")
    found = open_lake(lake).trades(market.ticker, epoch.from_us, epoch.to_us)
    assert [json.loads(line) for line in out.splitlines()] == list(trade_rows(found))
    assert found.num_rows > 0


def test_a_bare_number_is_no_moment(run, lake: Path) -> None:
    """Seconds, milliseconds or microseconds? Nobody can tell."""
    code, _, err = run("trades", lake, "--from", 1746000799)
    assert code == 2
    assert "no moment" in err


def test_a_limit_is_told_and_csv_has_a_header(run, lake: Path) -> None:
    """Rows that are not shown are counted."""
    _, out, _ = run("trades", lake, "--on-gap", "ignore", "--limit", "4")
    assert "and 11 more trades" in out
    _, out, _ = run("trades", lake, "--on-gap", "ignore", "--csv", "--limit", "0")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 15
    assert {len(r["yes_price"].split(".")[1]) for r in rows} == {4}


def test_an_unknown_word_for_gaps_is_refused(run, lake: Path) -> None:
    """`--on-gap skip` must not mean ignore."""
    with pytest.raises(TapeError):
        gap_choice("skip")
    assert run("trades", lake, "--on-gap", "skip")[0] == 2
