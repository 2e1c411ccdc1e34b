"""`tape sql`, `tape markets`, `tape events`: the lake as tables, by DuckDB and by name."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import typer

from kalshilake import open_lake
from kalshilake.query import connect
from marketdata.errors import TapeError
from tape.arrow import show
from tape.output import guarded
from tape.series import AsCsv, AsJson, From, LakeAt, Limit, Parquet, To, Version


def sql(
    lake: LakeAt,
    query: Annotated[str, typer.Argument(help="SQL; the tables are views of these names")],
    start: From = None,
    end: To = None,
    limit: Limit = 50,
    version: Version = None,
    as_json: AsJson = False,  # noqa: FBT002
    as_csv: AsCsv = False,  # noqa: FBT002
    parquet: Parquet = None,
) -> None:
    """Ask the lake in SQL: orderbook_deltas, orderbook_snapshots, trades, tickers, coverage,
    markets, and for each that coverage speaks of NAME_covered with the status of every row.

    SQL reads what lies there and refuses no gap. --from and --to bound what the views hold.
    """

    def run() -> None:
        connection = connect(open_lake(lake, version), start, end)
        try:
            found = connection.sql(query)
            rows = pa.table({}) if found is None else found.to_arrow_table()
        except duckdb.Error as error:
            raise TapeError(
                f"SQL: {error}".splitlines()[0], hint="SHOW TABLES; DESCRIBE NAME"
            ) from None
        show(rows, as_json=as_json, as_csv=as_csv, parquet=parquet, limit=limit, noun="rows")

    raise typer.Exit(guarded(run))


def markets(
    lake: LakeAt,
    like: Annotated[str | None, typer.Argument(help="part of a ticker or title")] = None,
    limit: Limit = 50,
    version: Version = None,
    as_json: AsJson = False,  # noqa: FBT002
    as_csv: AsCsv = False,  # noqa: FBT002
    parquet: Parquet = None,
) -> None:
    """Print what is known of the markets: one row each, its newest."""

    def run() -> None:
        found = _matching(open_lake(lake, version).markets(), like, ("market_ticker", "title"))
        _show(found, "markets", limit, as_json=as_json, as_csv=as_csv, parquet=parquet)

    raise typer.Exit(guarded(run))


def events(
    lake: LakeAt,
    like: Annotated[str | None, typer.Argument(help="part of a ticker, title or series")] = None,
    limit: Limit = 50,
    version: Version = None,
    as_json: AsJson = False,  # noqa: FBT002
    as_csv: AsCsv = False,  # noqa: FBT002
    parquet: Parquet = None,
) -> None:
    """Print what is known of the events that markets belong to: one row each, its newest."""

    def run() -> None:
        names = ("event_ticker", "series_ticker", "title", "sub_title")
        found = _matching(open_lake(lake, version).events(), like, names)
        _show(found, "events", limit, as_json=as_json, as_csv=as_csv, parquet=parquet)

    raise typer.Exit(guarded(run))


def _show(
    found: pa.Table, noun: str, limit: int, *, as_json: bool, as_csv: bool, parquet: Path | None
) -> None:
    """To people without what the exchange's answer was, which is long; to programs all of it."""
    if not (as_json or as_csv or parquet):
        found = found.drop_columns(["body"])
    show(found, as_json=as_json, as_csv=as_csv, parquet=parquet, limit=limit, noun=noun)


def _matching(rows: pa.Table, like: str | None, names: tuple[str, ...]) -> pa.Table:
    """Rows with the text in one of these columns."""
    if not like:
        return rows
    hits = [
        pc.match_substring(rows.column(name).fill_null(""), like, ignore_case=True)
        for name in names
    ]
    return rows.filter(functools.reduce(pc.or_, hits))
