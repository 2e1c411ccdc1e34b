"""`tape export`: files in other programs' formats."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from kalshilake import open_lake
from kalshilake.exports.hftbacktest import events
from tests.lake_world import World
from tests.rules.tree import ROOT


@pytest.mark.parametrize("table", ["deltas", "trades", "tickers", "books"])
def test_every_table_goes_to_csv(run, lake: Path, world: World, tmp_path: Path, table: str) -> None:
    """As many rows as the command says, and as many as the lake has."""
    ticker, out = world.markets[0].ticker, tmp_path / "out.csv"
    more = ["--table", table, "--on-gap", "ignore", "--every", "30s"]
    code, said, err = run("export", lake, ticker, "--out", out, *more)
    assert (code, err) == (0, "")
    with out.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    grid = {"every": "30s"} if table == "books" else {}
    truth = getattr(open_lake(lake), table)(ticker, on_gap="ignore", **grid)
    assert len(rows) == truth.num_rows
    assert said == f"{len(rows)} {table} of {ticker} in {out}\n"
    assert {row["market_ticker"] for row in rows} <= {ticker}
    assert rows or table == "tickers"  # this lake has none


def test_hftbacktest_gets_its_array(run, lake: Path, world: World, tmp_path: Path) -> None:
    """The same as the library gives."""
    ticker, out = world.markets[0].ticker, tmp_path / "out.npz"
    code, said, _ = run(
        "export", lake, ticker, "--format", "hftbacktest", "--out", out, "--on-gap", "ignore"
    )
    with np.load(out) as held:
        data = held["data"]
    assert (code, said) == (0, f"{len(data)} events of {ticker} in {out}\n")
    assert data.tobytes() == events(open_lake(lake), ticker, on_gap="ignore").tobytes()


def test_nautilus_gets_its_catalog(run, lake: Path, world: World, tmp_path: Path) -> None:
    """Several markets in one folder; a second time, and where a file stands, it is refused."""
    how = ["--format", "nautilus", "--on-gap", "ignore"]
    for market in world.markets:
        out = tmp_path / "catalog"
        code, said, _ = run("export", lake, market.ticker, *how, "--out", out)
        n = sum(
            pq.read_metadata(path).num_rows
            for kind in ("order_book_delta", "trade_tick")
            for path in (out / "data" / kind).glob(f"{market.ticker}.KALSHI/*.parquet")
        )
        assert (code, said) == (0, f"{n} events of {market.ticker} in {out}\n")
    files = sorted(p.name for p in (tmp_path / "catalog" / "data" / "binary_option").iterdir())
    assert files == [f"{m.ticker}.KALSHI" for m in world.markets]
    code, _, err = run("export", lake, world.markets[0].ticker, *how, "--out", tmp_path / "catalog")
    assert code == 2
    assert "has files" in err
    (tmp_path / "file").write_text("mine")
    code, _, err = run("export", lake, world.markets[0].ticker, *how, "--out", tmp_path / "file")
    assert (code, (tmp_path / "file").read_text()) == (2, "mine")
    assert "cannot be made" in err


@pytest.mark.parametrize("kind", ["csv", "hftbacktest"])
def test_bad_input_is_one_line_and_no_file(
    run, lake: Path, world: World, tmp_path: Path, kind: str
) -> None:
    """A gap, an unknown ticker, an empty range, a file that exists."""
    ticker, out = world.markets[0].ticker, tmp_path / "out.npz"
    asked = ["--format", kind, "--out", out]
    wide = ["--from", "2025-04-30", "--to", "2025-05-02"]
    cases = [
        ([ticker, *wide], 3, "not complete"),
        (["KX-NONE", "--on-gap", "ignore"], 2, "knows no market 'KX-NONE'"),
        ([ticker, "--from", "2025-04-30", "--to", "2025-04-30"], 2, "holds no moment"),
        ([ticker, "--on-gap", "perhaps"], 2, "'perhaps' is unknown"),
    ]
    for given, expected, says in cases:
        code, said, err = run("export", lake, *given, *asked)
        assert (code, said) == (expected, "")
        assert says in err
        assert len(err.splitlines()) == 1 or expected == 3
        assert list(tmp_path.iterdir()) == []
    out.write_text("mine")
    code, _, err = run("export", lake, ticker, "--on-gap", "ignore", *asked)
    assert (code, out.read_text()) == (2, "mine")
    assert "exists" in err


def test_an_unknown_format_names_the_known_ones(
    run, lake: Path, world: World, tmp_path: Path
) -> None:
    """And makes nothing."""
    code, _, err = run(
        "export", lake, world.markets[0].ticker, "--format", "xml", "--out", tmp_path / "a"
    )
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert "csv, hftbacktest" in err


def test_the_commands_of_the_document_are_true(
    run, lake: Path, world: World, tmp_path: Path
) -> None:
    """Every `tape export` of docs/exports.md, as it stands there."""
    told = {"DIR/lake": str(lake), "MARKET": world.markets[0].ticker}
    text = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
    commands = [line.split()[1:] for line in text.splitlines() if line.startswith("tape export ")]
    for words in commands:
        out = tmp_path / words[-1]
        code, _, err = run(*(told.get(word, word) for word in words[:-1]), out)
        assert (code, err) == (0, "")
        assert out.stat().st_size > 100
    assert len(commands) == 4
