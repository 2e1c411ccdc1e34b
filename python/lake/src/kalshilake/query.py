"""A lake in other people's tools: DuckDB, Polars, pandas.

Purpose: thin bridges. `connect` gives a DuckDB connection with a view per table over the very
objects of the pinned version, and for each table that coverage speaks of a view `<table>_covered`
with the status of every row. `scan` gives a Polars LazyFrame, `to_pandas` a frame with exact
decimals.

Does not do: refusing gaps. SQL reads what lies there; where it matters use the `_covered` views or
the methods of Lake. Needs the packages it bridges to: `kalshilake[duckdb]`, polars, pandas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from kalshilake.moments import Moment
from kalshilake.read import Lake
from kalshilake.schema import TABLES, spec_of
from kalshilake.store import LocalStore

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import polars as pl

_COVERED: Final = """
CREATE VIEW {table}_covered AS
SELECT rows.*, coalesce(CASE WHEN rows.{time} < c.to_ts THEN c.status END, 'dark') AS coverage,
       coverage = 'complete' AS complete
FROM {table} AS rows
ASOF LEFT JOIN (SELECT * FROM coverage WHERE channel = '{channel}') AS c
  ON rows.market_ticker = c.market_ticker AND rows.{time} >= c.from_ts
"""


def connect(lake: Lake, start: Moment | None = None, end: Moment | None = None) -> Any:
    """A DuckDB connection (in memory) with the lake's tables as views.

    A directory is read by DuckDB where it lies, with its own push-down. From S3 the rows of
    [start, end) are read first: give bounds there.
    """
    import duckdb  # noqa: PLC0415

    connection: duckdb.DuckDBPyConnection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    for name in TABLES:
        paths = local_paths(lake, name)
        if paths:
            listed = ", ".join("'" + p.replace("'", "''") + "'" for p in paths)
            source = f"read_parquet([{listed}], hive_partitioning = false)"
            connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {source}")  # noqa: S608
        else:
            connection.register(name, _arrow(lake, name, start, end))
    for name, spec in TABLES.items():
        if spec.channel is not None:
            connection.execute(_COVERED.format(table=name, time=spec.time, channel=spec.channel))
    return connection


def scan(lake: Lake, table: str) -> pl.LazyFrame:
    """A Polars LazyFrame over the objects of one table; from S3 the rows are read at once."""
    import polars as pl  # noqa: PLC0415

    paths = local_paths(lake, table)
    if paths:
        return pl.scan_parquet(paths, hive_partitioning=False)
    frame = pl.from_arrow(_arrow(lake, table, None, None))
    assert isinstance(frame, pl.DataFrame), "a table gives a frame"
    return frame.lazy()


def to_pandas(rows: pa.Table) -> pd.DataFrame:
    """Any table of a Lake as pandas; prices and sizes stay exact (Arrow-backed decimals)."""
    import pandas as pd  # noqa: PLC0415

    frame: pd.DataFrame = rows.to_pandas(types_mapper=pd.ArrowDtype)
    return frame


def local_paths(lake: Lake, table: str) -> list[str]:
    """Files of the pinned version, in time order; none for a store that is no directory."""
    if not isinstance(lake.store, LocalStore):
        return []
    return [
        f"{lake.store.location}/{lake.reader.pinned_key(record)}" for record in lake.records(table)
    ]


def _arrow(lake: Lake, table: str, start: Moment | None, end: Moment | None) -> pa.Table:
    readers: dict[str, Callable[[], pa.Table]] = {
        "orderbook_deltas": lambda: lake.deltas(None, start, end, on_gap="ignore"),
        "orderbook_snapshots": lambda: lake.snapshots(None, start, end, on_gap="ignore"),
        "trades": lambda: lake.trades(None, start, end, on_gap="ignore"),
        "tickers": lambda: lake.tickers(None, start, end, on_gap="ignore"),
        "coverage": lambda: lake.coverage(None, start, end),
        "markets": lake.markets,
        "events": lake.events,
    }
    return readers[spec_of(table).name]()
