"""`tape verify`: check a lake without trusting the code that wrote it (kalshilake.verify)."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kalshilake.verify import NoLakeError, as_json, cited_roots, describe
from kalshilake.verify import verify as check
from marketdata.errors import TapeError
from tape.output import EXIT_FOUND, guarded
from tape.progress import steps


def verify(
    lake: Annotated[str, typer.Argument(help="directory or s3://bucket/prefix")],
    sha256: Annotated[
        str | None, typer.Option(help="SHA-256 of a version that was kept elsewhere")
    ] = None,
    root: Annotated[
        list[str] | None, typer.Option(help="DAY:SHA256 of `tape root` that was kept elsewhere")
    ] = None,
    coverage: Annotated[bool, typer.Option("--coverage", help="tell what is claimed, too")] = False,  # noqa: FBT002
    json_line: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,  # noqa: FBT002
) -> None:
    """Check every object, list, event and claim; exit code 1 names what is wrong."""

    def run() -> int:
        try:
            with steps("stretches checked") as tell:
                report = check(
                    lake, sha256=sha256, roots=cited_roots(root or []), coverage=coverage,
                    progress=tell,
                )  # fmt: skip
        except (NoLakeError, OSError, ValueError) as e:
            raise TapeError(str(e)) from e
        for line in [as_json(report)] if json_line else describe(report):
            sys.stdout.write(line + "\n")
        return 0 if report.ok else EXIT_FOUND

    raise typer.Exit(guarded(run))
