"""The lake in DuckDB, Polars and pandas."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from kalshilake import open_lake, query
from kalshilake.store import LocalStore, open_store
from tests.lake_world import World


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
