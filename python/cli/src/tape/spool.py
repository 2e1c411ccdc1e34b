"""`tape spool ls | cat | verify | rebuild`: what a gatherer wrote first, looked at by a person.

The work is gatherer.spool_check's and gatherer.spool_rebuild's.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gatherer import spool_check
from gatherer.spool_rebuild import rebuild as rebuild_database
from kalshilake.moments import moment_us
from marketdata import segment
from marketdata.segment_index import ticker_of
from marketdata.units import format_ts_us
from runtime.clock import Clock
from runtime.spool import Position, SpoolReader
from runtime.spool_files import look
from runtime.spool_index import read_index
from tape.output import EXIT_FOUND, guarded, print_rows

NS_PER_US: Final = 1_000

app = typer.Typer(
    name="spool",
    help="Look into a gatherer's spool, check it, make its database again.",
    no_args_is_help=True,
)
Directory = Annotated[Path, typer.Argument(help="the spool's folder (it holds SPOOL.json)")]


def _row(summary: spool_check.SegmentSummary) -> dict[str, Any]:
    row = asdict(summary)
    for name in ("first_ns", "last_ns"):
        nanos = row.pop(name)
        row[name.replace("_ns", "")] = format_ts_us(nanos // NS_PER_US) if nanos else ""
    row["faults"] = "; ".join(summary.faults)
    return row


@app.command("ls")
def list_segments(
    spool: Directory,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,  # noqa: FBT002
    as_csv: Annotated[bool, typer.Option("--csv")] = False,  # noqa: FBT002
) -> None:
    """One line a segment: size, records, frames, first and last receipt."""

    def run() -> None:
        print_rows(
            [_row(each) for each in spool_check.listed(spool)], as_json=as_json, as_csv=as_csv
        )

    raise typer.Exit(guarded(run))


@app.command()
def cat(
    spool: Directory,
    conn: Annotated[int | None, typer.Option(help="only this connection's")] = None,
    market: Annotated[str | None, typer.Option(help="only this market's frames")] = None,
    start: Annotated[str | None, typer.Option("--from", help="received from here on (UTC)")] = None,
    end: Annotated[str | None, typer.Option("--to", help="received before this (UTC)")] = None,
    limit: Annotated[int, typer.Option(min=0, help="lines at most; 0: all")] = 0,
) -> None:
    """Every frame as it was received, one JSON object a line, with the control records between."""

    def run() -> None:
        since = moment_us(start) * NS_PER_US if start else 0
        until = moment_us(end) * NS_PER_US if end else 1 << 63
        for count, line in enumerate(_lines(spool, Wanted(conn, market, since, until))):
            if limit and count >= limit:
                break
            sys.stdout.write(line + "\n")

    raise typer.Exit(guarded(run))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records and frames `cat` prints."""

    conn: int | None
    market: str | None
    since_ns: int
    until_ns: int


def _lines(spool: Path, wanted: Wanted) -> Iterator[str]:
    spool_check.meta_of(spool)
    for number in sorted(look(spool).segments):
        index = read_index(spool, number)
        if index is None or index.may_hold(wanted.market, wanted.since_ns, wanted.until_ns):
            yield from _segment_lines(spool, number, wanted)


def _segment_lines(spool: Path, number: int, wanted: Wanted) -> Iterator[str]:
    reader = SpoolReader(spool, Position(number, 0))
    try:
        while records := reader.read():
            for record in records:
                if record.at.segment != number:
                    return
                if record.kind == segment.KIND_CONTROL and wanted.market is None:
                    yield from _control(record.payload, wanted)
                elif record.kind == segment.KIND_FRAMES:
                    yield from _frames(record.payload, wanted)
    finally:
        for damage in reader.damage:
            sys.stderr.write(f"tape: {damage}\n")
        reader.close()


def _control(payload: memoryview, wanted: Wanted) -> Iterator[str]:
    control = json.loads(payload.tobytes())
    is_wanted = wanted.conn in (None, control.get("conn"))
    if is_wanted and wanted.since_ns <= int(control.get("received_ns", 0)) < wanted.until_ns:
        yield json.dumps({"control": control})


def _frames(payload: memoryview, wanted: Wanted) -> Iterator[str]:
    batch = segment.decode_frames(payload)
    if wanted.conn not in (None, batch.conn):
        return
    for n, (frame, received_ns) in enumerate(zip(batch.frames, batch.received_ns, strict=True)):
        if wanted.since_ns <= received_ns < wanted.until_ns and wanted.market in (
            None,
            ticker_of(frame),
        ):
            head = json.dumps(
                {"conn": batch.conn, "ordinal": batch.ordinal + n, "received_ns": received_ns}
            )
            yield f"{head[:-1]}, {_as_json(frame.tobytes())}}}"


def _as_json(frame: bytes) -> str:
    """The frame itself where it is JSON, byte for byte; else its text as a string."""
    try:
        json.loads(frame)
        text = frame.decode()
    except ValueError:
        return f'"raw": {json.dumps(frame.decode("utf-8", "backslashreplace"))}'
    return f'"frame": {text}' if "\n" not in text else f'"raw": {json.dumps(text)}'


@app.command()
def verify(
    spool: Directory,
    json_line: Annotated[bool, typer.Option("--json", help="one JSON object a segment")] = False,  # noqa: FBT002
) -> None:
    """Checksums, counts, numbers and states of every segment; exit code 1 names what is wrong."""

    def run() -> int:
        faults = segments = frames = 0
        for summary in spool_check.verified(spool):
            segments, frames = segments + 1, frames + summary.frames
            faults += len(summary.faults)
            if json_line:
                sys.stdout.write(json.dumps(asdict(summary)) + "\n")
            for fault in summary.faults if not json_line else ():
                sys.stdout.write(f"{summary.file}: {fault}\n")
        if not json_line:
            verdict = f"{faults} faults" if faults else "nothing found"
            sys.stdout.write(f"{segments} segments, {frames:,} frames: {verdict}\n")
        return EXIT_FOUND if faults else 0

    raise typer.Exit(guarded(run))


@app.command()
def rebuild(
    spool: Directory,
    to: Annotated[str, typer.Option(help="connection string of a new database")],
) -> None:
    """Make the gatherer's database again from the spool; the gatherer must be stopped."""

    def run() -> None:
        done = asyncio.run(rebuild_database(spool, to, Clock(0)))
        sys.stdout.write(json.dumps(asdict(done)) + "\n")

    raise typer.Exit(guarded(run))
