"""`tape root`: one hash for each day of a lake, to cite a data set by (kalshilake.roots)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from kalshilake.roots import day_roots
from kalshilake.store import open_store
from kalshilake.write import load_head, load_version
from marketdata.errors import LakeError, TapeError
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
        store = open_store(lake)
        head = load_head(store) if version is None else load_version(store, version)
        if head is None:
            raise LakeError(f"{lake} holds no lake: it has no manifest/v*.json")
        found = [r for r in day_roots(head.version) if day in (None, r.day)]
        if not found:
            raise TapeError(
                f"version {head.version.version} has nothing of {day or 'any day'}",
                hint="a day is YYYY-MM-DD, UTC; without --day all are listed",
            )
        rows = [{"version": head.version.version, **asdict(r)} for r in found]
        print_rows(rows, as_json=as_json, as_csv=as_csv)

    raise typer.Exit(guarded(run))
