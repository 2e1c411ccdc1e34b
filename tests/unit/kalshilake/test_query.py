"""The lake in DuckDB, Polars and pandas."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import boto3
import polars as pl
import pytest
from moto import mock_aws

from kalshilake import open_lake, query
from kalshilake.s3 import S3Store
from kalshilake.schema import TABLES
from kalshilake.store import LocalStore, open_store
from marketdata.errors import LakeError
from tests.lake_world import START, World


@pytest.fixture
def in_s3(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="tape")
        store = open_store("s3://tape/lake")
        for found in LocalStore(pristine).list(""):
            store.put(found.key, LocalStore(pristine).get(found.key))
        yield "s3://tape/lake"


def test_duckdb_sees_the_tables_and_the_status_of_every_row(pristine: Path, world: World) -> None:
    """SQL cannot refuse a gap, so it must be able to see one."""
    lake = open_lake(pristine)
    connection = query.connect(lake)
    events = sum(len(e.events) for m in world.markets for e in m.epochs)
    assert connection.execute("SELECT count(*) FROM orderbook_deltas").fetchone() == (events,)
    marked = lake.deltas(on_gap="column")
    want = sorted(
        zip(marked["market_ticker"].to_pylist(), marked["coverage"].to_pylist(), strict=True)
    )
    got = connection.execute(
        "SELECT market_ticker, coverage FROM orderbook_deltas_covered"
    ).fetchall()
    assert sorted(got) == want
    assert connection.execute(
        "SELECT count(*) FROM orderbook_deltas_covered WHERE complete <> (coverage = 'complete')"
    ).fetchone() == (0,)
    price = connection.execute("SELECT max(price) FROM orderbook_deltas").fetchone()
    assert isinstance(price[0], Decimal)


def test_polars_scans_the_pinned_objects(pristine: Path, world: World) -> None:
    """Push-down is Polars' own; the rows are ours."""
    ticker = world.markets[0].ticker
    frame = query.scan(open_lake(pristine), "orderbook_deltas").collect()
    assert len(frame.filter(frame["market_ticker"] == ticker)) == sum(
        len(e.events) for e in world.markets[0].epochs
    )


@pytest.mark.parametrize("table", sorted(TABLES))
def test_every_table_is_there_in_every_tool(pristine: Path, table: str) -> None:
    """The same rows, prices exact, times in UTC."""
    lake = open_lake(pristine)
    want = lake.rows(table, None, 0, 1 << 60, None)
    keys = list(TABLES[table].key)
    lazy = query.scan(lake, table)
    assert lazy.collect().sort(keys).rows() == query.to_polars(want).rows()
    relation = query.connect(lake).table(table)
    ordered = relation.order(", ".join(keys)).to_arrow_table()
    assert ordered.to_pylist() == want.to_pylist()
    frame = query.to_pandas(want)
    assert len(frame) == want.num_rows
    for name in want.schema.names:
        if "decimal" in str(want.schema.field(name).type) and "list" not in frame[name].dtype.name:
            assert all(isinstance(value, Decimal) for value in frame[name].dropna())
    assert query.to_relation(want).to_arrow_table().to_pylist() == want.to_pylist()


@pytest.mark.parametrize("table", ["orderbook_deltas", "trades"])
def test_a_lazy_frame_can_carry_the_status_and_cannot_refuse(pristine: Path, table: str) -> None:
    """As the methods of Lake mark their rows; nothing is marked complete that they do not."""
    lake = open_lake(pristine)
    read = {"orderbook_deltas": lake.deltas, "trades": lake.trades}[table]
    want = query.to_polars(read(on_gap="column"))
    got = query.scan(lake, table, on_gap="column").collect()
    assert got.columns == want.columns
    assert got.sort(list(TABLES[table].key)).rows() == want.rows()
    assert {True, False} == set(got["complete"].to_list())
    with pytest.raises(LakeError, match="cannot refuse"):
        query.scan(lake, table, on_gap="raise")
    with pytest.raises(LakeError, match="says nothing of markets"):
        query.scan(lake, "markets", on_gap="column")


def test_bounds_of_a_connection_are_those_of_every_read(pristine: Path, world: World) -> None:
    """A directory and S3 alike; coverage is what touches the interval."""
    lake = open_lake(pristine)
    a, b = START + 1_000_000_000, START + 3_000_000_000
    connection = query.connect(lake, a, b)
    for table, read in (("orderbook_deltas", lake.deltas), ("trades", lake.trades)):
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        assert count == read(None, a, b, on_gap="ignore").num_rows
    (count,) = connection.execute("SELECT count(*) FROM coverage").fetchone()
    assert count == lake.coverage(None, a, b).num_rows
    (count,) = connection.execute("SELECT count(*) FROM markets").fetchone()
    assert count == len(world.markets)


def test_pandas_keeps_decimals_exact(pristine: Path) -> None:
    """A float price is not the exchange's price."""
    rows = open_lake(pristine).trades(on_gap="ignore")
    frame = query.to_pandas(rows)
    assert isinstance(frame["yes_price"].iloc[0], Decimal)
    assert frame["yes_price"].to_list() == rows["yes_price"].to_pylist()


def test_from_s3_the_same_questions_have_the_same_answers(
    pristine: Path, in_s3: str, world: World
) -> None:
    """The store is a detail: tables, book, DuckDB, Polars."""
    here, there = open_lake(pristine), open_lake(in_s3)
    assert there.sha256 == here.sha256
    assert there.deltas(on_gap="column").equals(here.deltas(on_gap="column"))
    ticker = world.markets[0].ticker
    assert there.book(ticker) == here.book(ticker)
    sql = "SELECT market_ticker, count(*), sum(complete::int) FROM trades_covered GROUP BY 1"
    answers = [sorted(query.connect(lake).execute(sql).fetchall()) for lake in (here, there)]
    assert answers[0] == answers[1]
    assert query.scan(there, "markets").collect().shape == (3, 9)
    keyframes = query.scan(there, "orderbook_snapshots").collect()
    assert keyframes.height == there.snapshots(on_gap="ignore").num_rows
    for table in TABLES:
        want = query.scan(here, table).collect()
        assert query.scan(there, table).collect().rows() == want.rows()
        if TABLES[table].channel:
            marked = [query.scan(lake, table, on_gap="column").collect() for lake in (here, there)]
            assert marked[0].rows() == marked[1].rows()


def test_a_lazy_frame_over_s3_reads_what_it_is_asked_for(
    in_s3: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the whole table first: counted by the bytes that are fetched."""
    fetched: list[int] = []
    real = S3Store._range

    def counted(self, key, offset, length, condition):
        fetched.append(length)
        return real(self, key, offset, length, condition)

    monkeypatch.setattr(S3Store, "_range", counted)
    lake = open_lake(in_s3)
    frame = query.scan(lake, "orderbook_deltas")
    connection = query.connect(lake)
    assert sum(fetched) == 0
    everything = frame.collect()
    whole, ticker = sum(fetched), world.markets[0].ticker
    fetched.clear()
    mine = frame.filter(pl.col("market_ticker") == ticker).select("price", "delta").collect()
    assert mine.rows() == (
        everything.filter(pl.col("market_ticker") == ticker).select("price", "delta").rows()
    )
    assert 0 < sum(fetched) < whole
    fetched.clear()
    sql = f"SELECT count(*), sum(delta) FROM orderbook_deltas WHERE market_ticker = '{ticker}'"
    count, total = connection.execute(sql).fetchone()
    assert (count, total) == (mine.height, mine["delta"].sum())
    assert 0 < sum(fetched) < whole
