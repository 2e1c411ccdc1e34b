"""`tape ddl`: the statements that make the lake's tables in Athena or Trino."""

from __future__ import annotations

from typing import Annotated

import typer

from kalshilake import ddl as texts
from tape.output import guarded


def ddl(
    lake: Annotated[str, typer.Argument(help="s3://bucket/prefix; nothing is read")],
    engine: Annotated[str, typer.Option("--for", help="athena or trino")] = "athena",
    schema: Annotated[str, typer.Option(help="database (Athena), schema (Trino)")] = "kalshi",
) -> None:
    """Print the statements that make the lake's tables in a query engine.

    Partitions are computed from the path: nothing has to be registered when an hour is written.
    """

    def run() -> None:
        typer.echo(texts.ddl(engine, lake, schema), nl=False)

    raise typer.Exit(guarded(run))
