"""A lake in other people's tools: DuckDB, Polars, pandas.

Purpose: thin bridges. `connect` gives a DuckDB connection with a view per table over the very
objects of the pinned version, and for each table that coverage speaks of a view `<table>_covered`
with the status of every row; `connect(lake).table("trades")` is a relation. `scan` gives a Polars
LazyFrame of a table. `to_pandas`, `to_polars` and `to_relation` take any table of a Lake: a read
that was refused or marked over its gaps keeps what was decided there. All keep prices and sizes as
exact decimals.

What on_gap means: the methods of Lake know their interval and can refuse it; a view or a lazy frame
is filtered after it was made, so it cannot. Views read what lies there (as on_gap="ignore") and
stand beside `_covered` ones (as "column"); `scan` has on_gap="ignore" or "column".

Push-down: columns and row groups, by statistics. Pages: docs/guide.md says what was measured.

Does not do: refusing gaps. Needs the packages it bridges to: `kalshilake[duckdb]`, polars, pandas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from kalshilake.clocks import OnGap, check_on_gap
from kalshilake.dataset import dataset
from kalshilake.moments import Moment
from kalshilake.objects import MAX_US
from kalshilake.places import bounds
from kalshilake.read import Lake
from kalshilake.schema import TABLES, spec_of
from kalshilake.store import LocalStore
from marketdata.errors import LakeError

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
    """A DuckDB connection (in memory) with the lake's tables as views, and `<table>_covered`.

    Nothing is read before it is asked for: a directory is read by DuckDB where it lies, S3 through
    pyarrow with DuckDB's columns and filters pushed down (dataset). With bounds the views hold the
    rows of [start, end) by the exchange's clock; of coverage what touches it, of markets all. A
    market has a row in `markets` for each state; `Lake.markets` gives the newest. Raises LakeError.
    """
    import duckdb  # noqa: PLC0415

    connection: duckdb.DuckDBPyConnection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    within = bounds(start, end)
    for name, spec in TABLES.items():
        paths = local_paths(lake, name)
        if paths:
            listed = ", ".join("'" + p.replace("'", "''") + "'" for p in paths)
            source = f"read_parquet([{listed}], hive_partitioning = false)"
        else:
            source = f"{name}_objects"
            connection.register(source, dataset(lake, name))
        where = _where(name, spec.time, within)
        connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {source}{where}")  # noqa: S608
    for name, spec in TABLES.items():
        if spec.channel is not None:
            connection.execute(_COVERED.format(table=name, time=spec.time, channel=spec.channel))
    return connection


def _where(table: str, time: str, within: tuple[int, int]) -> str:
    if table in ("markets", "events") or within == (-MAX_US, MAX_US):
        return ""
    begins = "to_ts >" if table == "coverage" else f"{time} >="
    ends = f"{time} <"
    told = []
    if within[0] > -MAX_US:
        told.append(f"{begins} make_timestamptz({within[0]}::BIGINT)")
    if within[1] < MAX_US:
        told.append(f"{ends} make_timestamptz({within[1]}::BIGINT)")
    return " WHERE " + " AND ".join(told)


def scan(lake: Lake, table: str, *, on_gap: OnGap = "ignore") -> pl.LazyFrame:
    """A Polars LazyFrame over the objects of one table; nothing is read before it is collected.

    A directory is read by Polars where it lies: an hour that is exported anew between `scan` and
    `collect` is read in its new form. S3 is read through pyarrow (dataset), columns and filters
    pushed down. on_gap="column" adds `coverage` and `complete` as `Lake.deltas` does. A lazy frame
    has no interval yet, so "raise" is refused. Raises LakeError.
    """
    import polars as pl  # noqa: PLC0415

    check_on_gap(on_gap)
    if on_gap == "raise":
        raise LakeError(
            "a lazy frame cannot refuse a gap: it is filtered after it was made",
            hint='on_gap="column", or read the interval with a method of Lake and to_polars()',
        )
    spec = spec_of(table)
    paths = local_paths(lake, table)
    rows = (
        pl.scan_parquet(paths, hive_partitioning=False)
        if paths
        else pl.scan_pyarrow_dataset(dataset(lake, table))
    )
    if on_gap == "ignore":
        return rows
    if spec.channel is None:
        raise LakeError(f"coverage says nothing of {table}", hint='on_gap="ignore"')
    cover = lake.coverage()
    cover = cover.filter(pc.equal(cover.column("channel"), spec.channel))
    claims = to_polars(cover.select(["market_ticker", "from_ts", "to_ts", "status"])).lazy()
    # Objects are in time order and sorted by market and time: each market's times ascend.
    joined = rows.join_asof(
        claims, left_on=spec.time, right_on="from_ts", by="market_ticker", check_sortedness=False
    )
    held = pl.when(pl.col(spec.time) < pl.col("to_ts")).then(pl.col("status"))
    return (
        joined.with_columns(held.fill_null("dark").alias("coverage"))
        .with_columns((pl.col("coverage") == "complete").alias("complete"))
        .select([*spec.schema.names, "coverage", "complete"])
    )


def to_pandas(rows: pa.Table) -> pd.DataFrame:
    """Any table of a Lake as pandas; prices and sizes stay exact (Arrow-backed decimals)."""
    import pandas as pd  # noqa: PLC0415

    frame: pd.DataFrame = rows.to_pandas(types_mapper=pd.ArrowDtype)
    return frame


def to_polars(rows: pa.Table) -> pl.DataFrame:
    """Any table of a Lake as Polars; prices and sizes stay exact (Polars' Decimal)."""
    import polars as pl  # noqa: PLC0415

    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame), "a table gives a frame"
    return frame


def to_relation(rows: pa.Table, connection: Any = None) -> Any:
    """Any table of a Lake as a DuckDB relation of `connection` (None: of one of its own); prices
    and sizes stay exact (DECIMAL)."""
    import duckdb  # noqa: PLC0415

    if connection is None:
        connection = duckdb.connect()
        connection.execute("SET TimeZone = 'UTC'")
    return connection.from_arrow(rows)


def local_paths(lake: Lake, table: str) -> list[str]:
    """Files of the pinned version, in time order; none for a store that is no directory."""
    if not isinstance(lake.store, LocalStore):
        return []
    return [
        f"{lake.store.location}/{lake.reader.pinned_key(record)}" for record in lake.records(table)
    ]
