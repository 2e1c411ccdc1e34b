"""`tape plot`: the depth of a market, or the coverage of a whole lake, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kalshilake import open_lake
from kalshilake.exports.target import known, refuse_existing
from marketdata.errors import TapeError
from tape.output import guarded, terminal
from tape.series import From, LakeAt, Market, OnGap, To, Version
from tape.trades import gap_choice

Calendar = Annotated[bool, typer.Option("--coverage", help="instead: market series by hour")]
Dark = Annotated[bool, typer.Option("--dark", help="PNG for a dark page")]


def plot(
    lake: LakeAt,
    out: Annotated[Path, typer.Option(help="the file to make: .png, or .html on its own")],
    market: Market = None,
    start: From = None,
    end: To = None,
    every: Annotated[
        str | None, typer.Option(help="step: 1s, 5m; without it one that fits")
    ] = None,
    coverage: Calendar = False,  # noqa: FBT002
    dark: Dark = False,  # noqa: FBT002
    on_gap: OnGap = "raise",
    version: Version = None,
) -> None:
    """Draw a market's depth, best prices, trades, spread and coverage over time."""

    def run() -> None:
        # matplotlib takes a second to load: the other commands do not wait for it.
        from tape.figure_style import check_suffix, save  # noqa: PLC0415

        if coverage == (market is not None):
            raise TapeError("one market, or --coverage for all", hint="tape plot LAKE TICKER")
        check_suffix(out)
        refuse_existing(out)
        opened, choice = open_lake(lake, version), gap_choice(on_gap)
        if market is None:
            from tape.coverage_figure import coverage_cells, coverage_figure  # noqa: PLC0415

            calendar = coverage_cells(opened, start, end)
            save(out, "coverage", lambda palette: coverage_figure(calendar, palette), dark=dark)
            told = f"{len(calendar.series)} series, {len(calendar.hours)} hours"
        else:
            from tape.depth_cells import depth_cells  # noqa: PLC0415
            from tape.depth_figure import depth_figure  # noqa: PLC0415

            known(opened, market)
            cells = depth_cells(opened, market, start, end, every=every, on_gap=choice)
            save(out, market, lambda palette: depth_figure(cells, palette), dark=dark)
            told = f"{len(cells.times)} moments, {len(cells.trades[0])} trades of {market}"
        terminal().print(f"{told} in {out}", soft_wrap=True)

    raise typer.Exit(guarded(run))
