"""How commands speak: tables on a terminal, plain text in a pipe, JSON and CSV on request.

Exit codes of every command: 0 done; 1 something was found (verify) or not proven (demo); 2 the
command cannot be carried out as given; 3 the tape is not complete where it was read.

Does not do: reading lakes.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kalshilake.coverage import CoverageInterval
from marketdata.errors import IncompleteTape, TapeError
from marketdata.units import format_ts_us

EXIT_FOUND: Final = 1
EXIT_REFUSED: Final = 2
EXIT_INCOMPLETE: Final = 3
PLAIN_COLUMNS: Final = 100  # width of output that goes to no terminal
WIDEST: Final = 1_000  # a table in a pipe is as wide as it needs to be
CELL_GAP: Final = 2  # between the columns of a table
SHOWN_INTERVALS: Final = 20
WITNESSES: Final = 16  # bits of `sources`

Write = Callable[[str], Any]


def terminal() -> Console:
    """Standard output; colours only on a terminal, and a width that does not depend on one."""
    width = shutil.get_terminal_size((PLAIN_COLUMNS, 40)).columns
    return Console(width=None if sys.stdout.isatty() else width, highlight=False, soft_wrap=False)


def guarded(action: Callable[[], int | None]) -> int:
    """Run a command; the expected failures become one line on standard error and an exit code."""
    try:
        code = action()
        sys.stdout.flush()
    except IncompleteTape as e:
        _say(_intervals(e))
        return EXIT_INCOMPLETE
    except TapeError as e:
        _say(str(e).replace("\nhint: ", " - hint: "))
        return EXIT_REFUSED
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Nothing may be written at exit any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code or 0


def print_rows(
    rows: Sequence[Mapping[str, Any]], *, as_json: bool, as_csv: bool, hidden: Sequence[str] = ()
) -> None:
    """Rows of equal keys as JSON lines, CSV or a table; `hidden` columns are left out of tables."""
    if as_json:
        for row in rows:
            sys.stdout.write(json.dumps(row) + "\n")
        return
    if as_csv:
        if rows:
            writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return
    rows = [{k: v for k, v in row.items() if k not in hidden} for row in rows]
    notes: list[str] = []
    if sys.stdout.isatty():
        rows, notes = fitted(rows, terminal().width)
    table = Table(box=None, pad_edge=False)
    for name in rows[0] if rows else ():
        numeric = isinstance(rows[0][name], (int, float)) or name in {"price", "count", "size"}
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(_text(v)) for v in row.values()))
    console = Console(width=None if sys.stdout.isatty() else WIDEST, highlight=False)
    for note in notes:
        console.print(f"[dim]{escape(note)}[/dim]")
    console.print(table)


def fitted(
    rows: Sequence[Mapping[str, Any]], width: int
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """(rows that fit into so many columns of a terminal, what is told above them).

    A value that is cut is no value: what is the same in all rows is told once, and columns that
    still do not fit are named, from the right.
    """
    notes: list[str] = []
    widths = (
        {k: max(len(k), *(len(_text(row[k])) for row in rows)) for k in rows[0]} if rows else {}
    )

    def wide(names: Iterable[str]) -> bool:
        return sum(widths[n] + CELL_GAP for n in names) - CELL_GAP > width

    kept = list(widths)
    if wide(kept) and len(rows) > 1:
        same = [k for k in kept if len({_text(row[k]) for row in rows}) == 1]
        if len(same) < len(kept):
            kept = [k for k in kept if k not in same]
            told = [f"{k} {_text(rows[0][k]) or '(none)'}" for k in same]
            notes += ["in all rows: " + ", ".join(told)] if told else []
    left = []
    while len(kept) > 1 and wide(kept):
        left.append(kept.pop())
    if left:
        notes.append(f"too wide: {', '.join(reversed(left))} (--json, --csv or a wider terminal)")
    return [{k: row[k] for k in kept} for row in rows], notes


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def interval_row(found: CoverageInterval) -> dict[str, Any]:
    """A coverage interval as a plain row."""
    return {
        "market": found.market,
        "channel": found.channel,
        "from": format_ts_us(found.from_us),
        "to": format_ts_us(found.to_us),
        "status": found.status,
        "reason": found.reason,
        "gatherers": witnesses(found.sources),
        "audits": found.audits,
        "epoch": found.epoch,
    }


def witnesses(sources: int) -> str:
    """Gatherers of a mask, counted from 1: 5 is "1 3"."""
    return " ".join(str(g + 1) for g in range(WITNESSES) if sources >> g & 1)


def _intervals(error: IncompleteTape) -> str:
    """An incomplete read: every interval on a line, and how to read all the same."""
    lines = [f"the tape is not complete in {len(error.intervals)} interval(s):"]
    for market, start, end, status, reason in error.intervals[:SHOWN_INTERVALS]:
        text = f"  {market}  {format_ts_us(start)} to {format_ts_us(end)}  {status}"
        lines.append(text + (f" ({reason})" if reason else ""))
    if len(error.intervals) > SHOWN_INTERVALS:
        lines.append(f"  and {len(error.intervals) - SHOWN_INTERVALS} more")
    lines.append(
        "hint: --on-gap column marks every row, --on-gap ignore reads as if nothing were missing; "
        "tape coverage shows where it is complete"
    )
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"tape: {text}\n")


def letters(found: Iterable[str], colours: Mapping[str, str], *, coloured: bool) -> str:
    """A line of letters; with colour, runs of equal letters in rich markup."""
    if not coloured:
        return "".join(found)
    line, before = "", ""
    for letter in found:
        colour = colours.get(letter, "")
        if colour != before:
            line += (f"[/{before}]" if before else "") + (f"[{colour}]" if colour else "")
            before = colour
        line += letter
    return line + (f"[/{before}]" if before else "")
