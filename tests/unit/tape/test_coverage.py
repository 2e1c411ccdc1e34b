"""`tape coverage`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from kalshilake import open_lake
from kalshilake.coverage import CoverageMap
from kalshilake.tables import records_table
from tape.coverage import SEVERITY, cells, share_complete
from tests.lake_world import World


def cover(*rows: tuple[int, int, str]) -> CoverageMap:
    return CoverageMap(
        records_table(
            "coverage",
            [
                {"market_ticker": "M", "channel": "orderbook", "from_ts": a, "to_ts": b,
                 "status": status, "reason": "", "sources": 7, "audits": 0, "epoch": 1}
                for a, b, status in rows
            ],
        )
    )  # fmt: skip


def test_a_cell_shows_the_worst_that_touches_it() -> None:
    """A gap of one microsecond must be seen in the map of a day."""
    made = cover((0, 499, "complete"), (499, 500, "gap"), (500, 1000, "complete"))
    assert cells(made, "M", "orderbook", 0, 1000, 10) == "####G#####"
    assert cells(made, "M", "orderbook", 0, 1000, 1) == "G"
    assert cells(made, "M", "orderbook", 0, 2000, 4) == "G#.."


def test_a_share_is_rounded_down_so_that_a_gap_never_shows_as_all() -> None:
    """99.999 % is not 100 %."""
    made = cover((0, 999_999, "complete"), (999_999, 1_000_000, "gap"))
    assert share_complete(made, "M", "orderbook", 0, 1_000_000) == "99.99%"
    assert share_complete(made, "M", "orderbook", 0, 999_999) == "100.00%"


def test_the_map_has_a_line_a_market_and_says_what_letters_mean(
    run, lake: Path, world: World
) -> None:
    """It must work without colour."""
    code, out, _ = run("coverage", lake)
    assert code == 0
    lines = out.splitlines()
    for i, market in enumerate(world.markets, 1):
        assert lines[i].startswith(market.ticker)
        assert "#" in lines[i]
        assert lines[i].endswith("%")
    for status in SEVERITY:
        assert status in lines[-1]
    assert "\x1b" not in out


def test_json_and_csv_hold_every_interval(run, lake: Path, world: World) -> None:
    """What a script reads is what the lake says, joined over hours."""
    ticker = world.markets[0].ticker
    _, out, _ = run("coverage", lake, ticker, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    complete = [r for r in rows if r["status"] == "complete"]
    assert [r["epoch"] for r in complete] == [e.number for e in world.markets[0].epochs]
    want = open_lake(lake).coverage_map(ticker).intervals(ticker, "orderbook")
    assert len(rows) == len(want)
    _, out, _ = run("coverage", lake, ticker, "--csv", "--channel", "trade")
    assert len(list(csv.DictReader(io.StringIO(out)))) == len(want)


def test_limits_intervals_and_unknown_names_are_told(run, lake: Path) -> None:
    """Nothing is left out in silence."""
    _, out, _ = run("coverage", lake, "--limit", "1")
    assert "and 2 more markets" in out
    for wrong in (["nope"], ["--channel", "x"], ["--from", "never"], ["--version", "99"],
                  ["--from", "2026-01-02", "--to", "2026-01-01"]):  # fmt: skip
        code, _, err = run("coverage", lake, *wrong)
        assert code == 2
        assert err.count("\n") == 1
    _, out, _ = run("coverage", lake, "--from", "2031-01-01", "--to", "2031-01-02")
    assert "says nothing" in out
