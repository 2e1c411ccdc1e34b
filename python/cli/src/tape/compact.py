"""`tape compact`: join the hours of days that are over into fewer objects (kalshilake.compact).

Purpose: an option for whoever may delete in the lake; the services never do. Without --apply it
tells what it would join and changes nothing.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kalshilake import paths
from kalshilake.compact import JOINED_BYTES, Compaction, Span, plan
from kalshilake.compact import compact as join
from kalshilake.moments import moment_us
from kalshilake.store import open_store
from kalshilake.write import load_head
from marketdata.errors import LakeError
from tape.output import guarded, print_rows
from tape.progress import steps

MIB: int = 1 << 20


def compact(
    lake: Annotated[str, typer.Argument(help="directory or s3://bucket/prefix")],
    before: Annotated[
        str | None, typer.Option(help="days that end by then; without it a week before the end")
    ] = None,
    most_mib: Annotated[
        int, typer.Option(min=1, help="of the hours that one object joins, as they are stored")
    ] = JOINED_BYTES // MIB,
    apply: Annotated[  # noqa: FBT002
        bool, typer.Option("--apply", help="do it; without it nothing is changed")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,  # noqa: FBT002
    as_csv: Annotated[bool, typer.Option("--csv")] = False,  # noqa: FBT002
) -> None:
    """Join the hours of days that are over into fewer, larger objects; dry run unless --apply.

    No row and no pinned reader's answer changes: what is replaced is kept under superseded/.
    Needs the right to delete (s3:DeleteObject), which the services do not have.
    """

    def run() -> None:
        store = open_store(lake)
        before_us = None if before is None else moment_us(before)
        if not apply:
            head = load_head(store)
            if head is None:
                raise LakeError(f"{lake} holds no lake", hint="it has no manifest/v*.json")
            spans = plan(head.version, before_us, most_mib * MIB)
            print_rows([_planned(span) for span in spans], as_json=as_json, as_csv=as_csv)
            sys.stderr.write(
                "dry run: nothing was changed; --apply does it\n" if spans else "nothing to join\n"
            )
            return
        with steps("parts of days joined") as tell:
            made = join(store, before_us, most_bytes=most_mib * MIB, progress=tell)
        print_rows([_done(made)], as_json=as_json, as_csv=as_csv)

    raise typer.Exit(guarded(run))


def _planned(span: Span) -> dict[str, object]:
    return {
        "from": f"{paths.at(span.hour_us):%Y-%m-%dT%H:%MZ}",
        "hours": span.hours,
        "tables": len(span.tables),
        "objects": len(span.parts),
        "bytes": span.bytes,
    }


def _done(made: Compaction) -> dict[str, object]:
    return {
        "version": made.commit.version.version,
        "sha256": made.commit.sha256,
        "joined": made.joined,
        "removed": made.removed,
    }
