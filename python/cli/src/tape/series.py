"""`tape books`, `tape quotes`, `tape timeline`, `tape bars`: what research asks of a lake."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, cast

import typer

from kalshilake import open_lake
from kalshilake.bars import Source
from kalshilake.clocks import Clock
from marketdata.errors import TapeError
from tape.arrow import show
from tape.output import guarded
from tape.trades import gap_choice

SOURCES: Final = ("trades", "bid", "ask")
CLOCKS: Final = ("exchange", "received")

LakeAt = Annotated[str, typer.Argument(help="directory or s3://bucket/prefix")]
Market = Annotated[str | None, typer.Argument(help="one market; without it all")]
From = Annotated[str | None, typer.Option("--from", help="from this moment on (UTC)")]
To = Annotated[str | None, typer.Option("--to", help="up to this moment (UTC)")]
Every = Annotated[str, typer.Option(help="step: 500ms, 1s, 5m, 1h, 1d")]
OnGap = Annotated[str, typer.Option(help="raise, column or ignore")]
Limit = Annotated[int, typer.Option(min=0, help="rows at most; 0: all")]
Version = Annotated[int | None, typer.Option(help="of the lake; without it the newest")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object a line")]
AsCsv = Annotated[bool, typer.Option("--csv")]
Parquet = Annotated[Path | None, typer.Option(help="write all rows to this file instead")]


def books(
    lake: LakeAt,
    market: Market = None,
    start: From = None,
    end: To = None,
    every: Every = "1s",
    depth: Annotated[int, typer.Option(min=1, help="levels of each side")] = 10,
    on_gap: OnGap = "raise",
    limit: Limit = 50,
    version: Version = None,
    as_json: AsJson = False,  # noqa: FBT002
    as_csv: AsCsv = False,  # noqa: FBT002
    parquet: Parquet = None,
) -> None:
    """Print the books on a grid of time; refuses to read over a gap unless told how."""

    def run() -> None:
        found = open_lake(lake, version).books(
            market, start, end, every=every, depth=depth, on_gap=gap_choice(on_gap)
        )
        show(found, as_json=as_json, as_csv=as_csv, parquet=parquet, limit=limit, noun="books")

    raise typer.Exit(guarded(run))


def quotes(
    lake: LakeAt,
    market: Market = None,
    start: From = None,
    end: To = None,
    on_gap: OnGap = "raise",
    limit: Limit = 50,
    version: Version = None,
    as_json: AsJson = False,  # noqa: FBT002
    as_csv: AsCsv = False,  # noqa: FBT002
    parquet: Parquet = None,
) -> None:
    """Print every change of the best bid and offer of YES."""

    def run() -> None:
        found = open_lake(lake, version).quotes(market, start, end, on_gap=gap_choice(on_gap))
        show(found, as_json=as_json, as_csv=as_csv, parquet=parquet, limit=limit, noun="quotes")

    raise typer.Exit(guarded(run))


def timeline(
    lake: LakeAt,
    market: Market = None,
    start: From = None,
    end: To = None,
    trades: Annotated[bool, typer.Option(help="with the trades")] = True,  # noqa: FBT002
    tickers: Annotated[bool, typer.Option(help="with the ticker states")] = False,  # noqa: FBT002
    clock: Annotated[str, typer.Option(help="exchange or received")] = "exchange",
    on_gap: OnGap = "raise",
    limit: Limit = 50,
    version: Version = None,
    as_json: AsJson = False,  # noqa: FBT002
    as_csv: AsCsv = False,  # noqa: FBT002
    parquet: Parquet = None,
) -> None:
    """Print everything that happened, changes of books and trades, in one order of time."""

    def run() -> None:
        if clock not in CLOCKS:
            raise TapeError(f"--clock {clock!r} is unknown", hint=", ".join(CLOCKS))
        found = open_lake(lake, version).events_between(
            market, start, end, trades=trades, tickers=tickers, on_gap=gap_choice(on_gap),
            clock=cast(Clock, clock),
        )  # fmt: skip
        show(found, as_json=as_json, as_csv=as_csv, parquet=parquet, limit=limit, noun="events")

    raise typer.Exit(guarded(run))


def bars(
    lake: LakeAt,
    market: Market = None,
    start: From = None,
    end: To = None,
    every: Every = "1m",
    source: Annotated[str, typer.Option(help="trades, bid or ask")] = "trades",
    on_gap: OnGap = "raise",
    limit: Limit = 50,
    version: Version = None,
    as_json: AsJson = False,  # noqa: FBT002
    as_csv: AsCsv = False,  # noqa: FBT002
    parquet: Parquet = None,
) -> None:
    """Print open, high, low, close and volume of YES for every bar that has any."""

    def run() -> None:
        if source not in SOURCES:
            raise TapeError(f"--source {source!r} is unknown", hint=", ".join(SOURCES))
        found = open_lake(lake, version).bars(
            market, start, end, every=every, source=cast(Source, source), on_gap=gap_choice(on_gap)
        )
        show(found, as_json=as_json, as_csv=as_csv, parquet=parquet, limit=limit, noun="bars")

    raise typer.Exit(guarded(run))
