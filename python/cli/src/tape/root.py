"""`tape root`: one hash for each day of a lake, to cite a data set by (kalshilake.roots)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from kalshilake import open_lake
from kalshilake.roots import day_roots
from marketdata.errors import TapeError
from tape.output import guarded, print_rows


def root(
    lake: Annotated[str, typer.Argument(help="directory or s3://bucket/prefix")],
    day: Annotated[str | None, typer.Option(help="YYYY-MM-DD; without it every day")] = None,
    version: Annotated[int | None, typer.Option(help="of the lake; without it the newest")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,  # noqa: FBT002
    as_csv: Annotated[bool, typer.Option("--csv")] = False,  # noqa: FBT002
) -> None:
    """Print the root hash of each day: keep it, and `tape verify --root DAY:SHA256` later."""

    def run() -> None:
        opened = open_lake(lake, version)
        found = [r for r in day_roots(opened) if day in (None, r.day)]
        if not found:
            raise TapeError(
                f"version {opened.version} has nothing of {day or 'any day'}",
                hint="a day is YYYY-MM-DD, UTC; without --day all are listed",
            )
        rows = [{"version": opened.version, **asdict(r)} for r in found]
        print_rows(rows, as_json=as_json, as_csv=as_csv)

    raise typer.Exit(guarded(run))
