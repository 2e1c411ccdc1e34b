"""`tape export`: one market of a lake as a file of another program's format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from kalshilake import open_lake
from kalshilake.exports.csv_text import export_csv
from kalshilake.exports.hftbacktest import export_hftbacktest
from kalshilake.exports.nautilus import export_nautilus
from marketdata.errors import TapeError
from tape.output import guarded, terminal
from tape.series import Every, From, LakeAt, OnGap, To, Version
from tape.trades import gap_choice

FORMATS: Final = ("csv", "hftbacktest", "nautilus")


def export(
    lake: LakeAt,
    market: Annotated[str, typer.Argument(help="ticker of the market")],
    out: Annotated[Path, typer.Option(help="the file to make, or a catalog's folder")],
    kind: Annotated[str, typer.Option("--format", help="csv, hftbacktest or nautilus")] = "csv",
    start: From = None,
    end: To = None,
    table: Annotated[str, typer.Option(help="of CSV: deltas, trades, tickers or books")] = "deltas",
    times: Annotated[str, typer.Option(help="of CSV: iso, or us since 1970")] = "iso",
    every: Every = "1s",
    depth: Annotated[int, typer.Option(min=1, help="levels of each side of books")] = 10,
    on_gap: OnGap = "raise",
    version: Version = None,
) -> None:
    """Write one market to a CSV file, to the event array that hftbacktest reads, or into a catalog
    of nautilus_trader. A file that exists is not touched."""

    def run() -> None:
        if kind not in FORMATS:
            raise TapeError(f"--format {kind!r} is unknown", hint=", ".join(FORMATS))
        opened, choice = open_lake(lake, version), gap_choice(on_gap)
        if kind == "csv":
            n = export_csv(
                opened, market, out, start, end,
                table=table, times=times, every=every, depth=depth, on_gap=choice,
            )  # fmt: skip
        else:
            write = {"hftbacktest": export_hftbacktest, "nautilus": export_nautilus}[kind]
            n = write(opened, market, out, start, end, on_gap=choice)
        terminal().print(
            f"{n} {table if kind == 'csv' else 'events'} of {market} in {out}", soft_wrap=True
        )

    raise typer.Exit(guarded(run))
