"""`tape coverage`: what a lake can prove, as a heat map of markets and time.

Every cell shows the worst status of its stretch of time, so a gap of a millisecond is seen in a
day. Letters carry the meaning; colour only helps.
"""

from __future__ import annotations

from typing import Annotated, Final

import typer

from kalshilake import CoverageMap, open_lake
from kalshilake.moments import moment_us
from marketdata.errors import TapeError
from marketdata.units import format_ts_us
from tape.output import guarded, interval_row, letters, print_rows, terminal

# Worst last: a cell shows the last of those that touch it.
SEVERITY: Final = ("complete", "unproven", "dark", "ambiguous", "disputed", "gap")
LETTERS: Final = {
    "complete": "#", "unproven": "u", "dark": ".", "ambiguous": "a", "disputed": "d", "gap": "G",
}  # fmt: skip
COLOURS: Final = {
    "#": "green", "u": "cyan", ".": "bright_black", "a": "yellow", "d": "magenta", "G": "red",
}  # fmt: skip
CHANNELS: Final = ("orderbook", "trade", "ticker")
CELLS_MIN: Final = 10
SHARE_COLUMNS: Final = 9


def coverage(
    lake: Annotated[str, typer.Argument(help="directory or s3://bucket/prefix")],
    market: Annotated[str | None, typer.Argument(help="one market; without it all")] = None,
    start: Annotated[str | None, typer.Option("--from", help="from this moment on (UTC)")] = None,
    end: Annotated[str | None, typer.Option("--to", help="up to this moment (UTC)")] = None,
    channel: Annotated[str, typer.Option(help="orderbook, trade or ticker")] = "orderbook",
    limit: Annotated[int, typer.Option(min=1, help="markets in the heat map")] = 50,
    version: Annotated[int | None, typer.Option(help="of the lake; without it the newest")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,  # noqa: FBT002
    as_csv: Annotated[bool, typer.Option("--csv")] = False,  # noqa: FBT002
) -> None:
    """Show per market and time whether the tape is complete."""

    def run() -> None:
        if channel not in CHANNELS:
            raise TapeError(f"channel {channel!r} is unknown", hint=", ".join(CHANNELS))
        opened = open_lake(lake, version)
        cover = opened.coverage_map(market, start, end)
        markets = [m for m in cover.markets if cover.intervals(m, channel)]
        if market is not None and not markets:
            raise TapeError(f"the lake says nothing about the {channel} of {market!r} there")
        a, b = _span(cover, markets, channel, start, end)
        if as_json or as_csv:
            found = [i for m in markets for i in cover.filled(m, channel, a, b)]
            print_rows([interval_row(i) for i in found], as_json=as_json, as_csv=as_csv)
            return
        _print_map(cover, markets, channel, (a, b), limit)

    raise typer.Exit(guarded(run))


def cells(cover: CoverageMap, market: str, channel: str, a: int, b: int, n: int) -> str:
    """[a, b) in n letters, each the worst status of its stretch."""
    worst = [0] * n
    for found in cover.filled(market, channel, a, b):
        first, last = ((t - a) * n // (b - a) for t in (found.from_us, found.to_us - 1))
        level = SEVERITY.index(found.status)
        for i in range(first, last + 1):
            worst[i] = max(worst[i], level)
    return "".join(LETTERS[SEVERITY[level]] for level in worst)


def share_complete(cover: CoverageMap, market: str, channel: str, a: int, b: int) -> str:
    """How much of [a, b) is complete, in per cent; 100 only if all of it is."""
    good = sum(
        i.to_us - i.from_us for i in cover.filled(market, channel, a, b) if i.status == "complete"
    )
    hundredths = good * 10_000 // (b - a)  # rounded down: a gap must not vanish
    return f"{hundredths // 100}.{hundredths % 100:02d}%"


def _span(
    cover: CoverageMap, markets: list[str], channel: str, start: str | None, end: str | None
) -> tuple[int, int]:
    found = [i for m in markets for i in cover.intervals(m, channel)]
    a = moment_us(start) if start else min((i.from_us for i in found), default=0)
    b = moment_us(end) if end else max((i.to_us for i in found), default=a + 1)
    return a, max(b, a + 1)


def _print_map(
    cover: CoverageMap, markets: list[str], channel: str, span: tuple[int, int], limit: int
) -> None:
    console = terminal()
    a, b = span
    if not markets:
        console.print(f"the lake says nothing about {channel} there")
        return
    shown = markets[:limit]
    wide = max(len(m) for m in shown)
    n = max(CELLS_MIN, console.width - wide - SHARE_COLUMNS - 2)
    console.print(f"{channel}  {format_ts_us(a)}  to  {format_ts_us(b)}")
    for name in shown:
        line = letters(cells(cover, name, channel, a, b, n), COLOURS, coloured=console.is_terminal)
        share = share_complete(cover, name, channel, a, b)
        console.print(f"{name:<{wide}} {line} {share:>{SHARE_COLUMNS - 1}}", no_wrap=True)
    if len(markets) > limit:
        console.print(f"and {len(markets) - limit} more markets (--limit)")
    console.print("  ".join(f"{LETTERS[s]} {s}" for s in SEVERITY) + "; a cell shows its worst")
