"""CSV read back by the csv module and by DuckDB, against the same lake."""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from kalshilake import open_lake
from kalshilake.exports.csv_text import export_csv, write_rows
from kalshilake.read import Lake
from kalshilake.tables import tickers_table
from marketdata.errors import IncompleteTape, LakeError
from tests.lake_world import START, World, as_levels


@pytest.fixture(scope="module")
def lake(pristine: Path) -> Lake:
    return open_lake(pristine)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, strict=True))


@pytest.mark.parametrize("table", ["deltas", "trades"])
def test_duckdb_reads_back_what_the_lake_holds(
    lake: Lake, world: World, tmp_path: Path, table: str
) -> None:
    """Every value of every row, by another program and as the types of the lake."""
    ticker = world.markets[0].ticker
    path = tmp_path / "out.csv"
    n = export_csv(lake, ticker, path, table=table, on_gap="column")
    truth = getattr(lake, table)(ticker, on_gap="column")
    assert n == truth.num_rows > 0
    types = {
        "market_ticker": "VARCHAR", "exchange_ts": "TIMESTAMPTZ", "received_at": "TIMESTAMPTZ",
        "epoch": "INTEGER", "market_seq": "BIGINT", "kind": "VARCHAR", "side": "VARCHAR",
        "price": "DECIMAL(9,6)", "delta": "DECIMAL(18,2)", "trade_id": "VARCHAR",
        "yes_price": "DECIMAL(9,6)", "no_price": "DECIMAL(9,6)", "count": "DECIMAL(18,2)",
        "taker_side": "VARCHAR", "is_block_trade": "BOOLEAN", "sources": "SMALLINT",
        "flags": "SMALLINT", "coverage": "VARCHAR", "complete": "BOOLEAN",
    }  # fmt: skip
    columns = {name: types[name] for name in truth.schema.names}
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    query = "SELECT * FROM read_csv(?, header = true, columns = ?)"
    found = connection.sql(query, params=[str(path), columns]).to_arrow_table()
    assert found.cast(truth.schema).to_pylist() == truth.to_pylist()
    # Negative control: one changed digit is seen.
    text = path.read_text()
    digit = text.index("0.", text.index("\n"))
    path.write_text(text[:digit] + "1" + text[digit + 1 :])
    again = connection.sql(query, params=[str(path), columns]).to_arrow_table()
    assert again.cast(truth.schema).to_pylist() != truth.to_pylist()


def test_times_are_iso_or_microseconds(lake: Lake, world: World, tmp_path: Path) -> None:
    """Both tell the same moment to the microsecond."""
    ticker = world.markets[0].ticker
    for times in ("iso", "us"):
        export_csv(lake, ticker, tmp_path / times, times=times, on_gap="ignore")
    iso, us = read(tmp_path / "iso"), read(tmp_path / "us")
    assert len(iso) == len(us) > 5
    for a, b in zip(iso, us, strict=True):
        assert len(a["exchange_ts"]) == len("2025-01-01T00:00:00.000000Z")
        told = duckdb.execute("SELECT epoch_us(?::TIMESTAMPTZ)", [a["exchange_ts"]]).fetchone()
        assert told == (int(b["exchange_ts"]),)


def test_books_are_the_truth_level_by_level(lake: Lake, world: World, tmp_path: Path) -> None:
    """Bids for NO stand as offers of YES; a moment of a gap has no levels and says why."""
    market = world.markets[0]
    path = tmp_path / "books.csv"
    export_csv(
        lake, market.ticker, path, START, world.end_us,
        table="books", every="20s", depth=12, times="us", on_gap="column",
    )  # fmt: skip
    levels, gaps = 0, 0
    for row in read(path):
        truth = world.book_at(market.ticker, int(row["at"]))
        if truth is None:
            gaps += 1
            assert (row["coverage"], row["complete"]) in (("dark", "false"), ("gap", "false"))
            assert {row[k] for k in row if k.startswith(("bid_", "ask_"))} == {""}
            continue
        for name, side in (("bid", 0), ("ask", 1)):
            shown = [
                (int(Decimal(row[f"{name}_{i}_price"]) * 10**6), int(Decimal(size) * 100))
                for i in range(1, 13)
                if (size := row[f"{name}_{i}_size"])
            ]
            told = as_levels(truth[2], side)[:12]
            assert shown == [(10**6 - p if side else p, q) for p, q in told]
            levels += len(shown)
    assert levels > 100
    assert gaps > 10


def test_the_form_is_rfc_4180() -> None:
    """CRLF, quotes where a value needs them and doubled inside, nothing for an absent value."""
    rows = pa.table(
        {"market_ticker": ['KX,"A"', "KX\nB"], "side": pa.array([None, "no"], pa.string())}
    )
    out = io.StringIO()
    write_rows(rows, out, "iso")
    assert out.getvalue() == 'market_ticker,side\r\n"KX,""A""",\r\n"KX\nB",no\r\n'


def test_tickers_keep_absent_values_and_whole_numbers(tmp_path: Path) -> None:
    """A price that is absent is empty, never 0; a key of 64 bits stays a whole number."""
    names = (
        "price", "yes_bid", "yes_ask", "volume", "open_interest", "yes_bid_size", "yes_ask_size",
        "last_trade_size", "dollar_volume", "dollar_open_interest",
    )  # fmt: skip
    made = tickers_table(
        ["KX"], [1_000_001], [2_000_001_000], [2**64 - 1], [3], {n: [-1] for n in names[1:]}
        | {"price": [1]},
    )  # fmt: skip
    out = io.StringIO(newline="")
    write_rows(made, out, "iso")
    (row,) = csv.DictReader(io.StringIO(out.getvalue(), newline=""))
    assert row["price"] == "0.000001"
    assert [row[n] for n in names[1:]] == [""] * 9
    assert row["payload_key"] == str(2**64 - 1)
    assert row["exchange_ts"] == "1970-01-01T00:00:01.000001Z"


def test_the_same_lake_gives_the_same_bytes(lake: Lake, world: World, tmp_path: Path) -> None:
    """L-31."""
    for name in ("a", "b"):
        export_csv(lake, world.markets[1].ticker, tmp_path / name, on_gap="ignore")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bad_input_leaves_no_file(lake: Lake, world: World, tmp_path: Path) -> None:
    """Unknown table, market and times, an empty range, a gap."""
    ticker = world.markets[0].ticker
    path = tmp_path / "out.csv"
    with pytest.raises(LakeError, match="deltas, trades, tickers, books"):
        export_csv(lake, ticker, path, table="coverage")
    with pytest.raises(LakeError, match="iso, us"):
        export_csv(lake, ticker, path, times="ns")
    with pytest.raises(LakeError, match="no market 'KX-NONE'"):
        export_csv(lake, "KX-NONE", path, on_gap="ignore")
    with pytest.raises(LakeError, match="holds no moment"):
        export_csv(lake, ticker, path, START + 5, START + 5, on_gap="ignore")
    with pytest.raises(IncompleteTape):
        export_csv(lake, ticker, path, START, world.end_us)
    assert list(tmp_path.iterdir()) == []
