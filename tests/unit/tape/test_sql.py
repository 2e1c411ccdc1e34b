"""`tape sql`, `tape markets`."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from kalshilake import open_lake
from tests.lake_world import World


def test_sql_sees_every_table_and_its_coverage(run, lake: Path) -> None:
    """Counts by SQL are those of the library."""
    query = (
        "SELECT count(*) AS n, count(*) FILTER (complete) AS proven FROM orderbook_deltas_covered"
    )
    code, out, _ = run("sql", lake, query, "--json")
    found = open_lake(lake).deltas(on_gap="column")
    proven = sum(found["complete"].to_pylist())
    assert (code, json.loads(out)) == (0, {"n": found.num_rows, "proven": proven})
    assert proven > 0
    _, out, _ = run("sql", lake, "SHOW TABLES", "--csv", "--limit", "0")
    assert {"trades", "markets", "coverage", "trades_covered"} <= set(out.split())


def test_prices_and_times_stay_exact(run, lake: Path, tmp_path: Path) -> None:
    """Text on a screen, decimals in a file."""
    query = "SELECT market_ticker, exchange_ts, yes_price FROM trades ORDER BY trade_id LIMIT 2"
    _, out, _ = run("sql", lake, query, "--json")
    target = tmp_path / "two.parquet"
    run("sql", lake, query, "--parquet", target)
    rows, kept = [json.loads(line) for line in out.splitlines()], pq.read_table(target)
    assert [f"{v:.4f}" for v in kept["yes_price"].to_pylist()] == [r["yes_price"] for r in rows]
    assert all(r["exchange_ts"].endswith("Z") for r in rows)


def test_a_wrong_query_is_one_line(run, lake: Path) -> None:
    """Where to look is said."""
    code, out, err = run("sql", lake, "SELECT * FROM nothing")
    assert (code, out) == (2, "")
    assert "DESCRIBE" in err
    assert err.count("\n") == 1


def test_markets_are_found_by_a_part_of_their_name(run, lake: Path, world: World) -> None:
    """Nobody knows a ticker by heart."""
    part = world.markets[0].ticker[3:].lower()
    _, out, _ = run("markets", lake, part, "--json")
    assert [json.loads(line)["market_ticker"] for line in out.splitlines()] == [
        m.ticker for m in world.markets if part in m.ticker.lower()
    ]
    _, out, _ = run("markets", lake)
    assert all(m.ticker in out for m in world.markets)
    assert "body" not in out


def test_events_are_found_by_their_name_title_or_series(run, lake: Path, world: World) -> None:
    """What an event is called is told by one of these; the body only to programs."""
    names = sorted({m.ticker[:4] for m in world.markets})
    _, out, _ = run("events", lake, "--json")
    assert [json.loads(line)["event_ticker"] for line in out.splitlines()] == names
    _, out, _ = run("events", lake, f"about {names[0].lower()}", "--json")
    (found,) = [json.loads(line) for line in out.splitlines()]
    assert (found["event_ticker"], found["body"]) == (names[0], "{}")
    _, out, _ = run("events", lake)
    assert names[0] in out
    assert "body" not in out
