"""The calendar of a lake's coverage: market series by hour. Pure but for one read.

Purpose: `coverage_cells` sums coverage rows to one number a series and hour, `coverage_figure`
draws them. A cell is the proven part of all the time that coverage speaks of: time in which a
market was not recorded counts as not proven, whether or not there was anything to record.

Does not do: intervals (tape coverage lists them), channels without proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from kalshilake import Lake, paths
from kalshilake.moments import Moment
from kalshilake.tables import times_us
from marketdata.errors import TapeError
from marketdata.units import format_ts_us
from tape.figure_style import Palette

NO_CELL: Final = -1
SERIES_MAX: Final = 60
LABELS_MAX: Final = 24


@dataclass(frozen=True, slots=True)
class CoverageCells:
    """Proven parts per thousand, [series, hour]; NO_CELL where coverage says nothing."""

    channel: str
    hours: npt.NDArray[Any]  # their beginnings, microseconds
    series: tuple[str, ...]
    markets: tuple[int, ...]  # of each series
    proven: npt.NDArray[Any]
    lost: npt.NDArray[Any]  # bool: something is a gap, ambiguous or disputed


def coverage_cells(
    lake: Lake,
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    channel: str = "orderbook",
) -> CoverageCells:
    """Coverage rows of [start, end) (whole rows, as they lie) by series and hour."""
    rows = lake.coverage(None, start, end)
    rows = rows.filter(pc.equal(rows.column("channel"), channel))
    if not rows.num_rows:
        raise TapeError(f"no coverage of {channel} is in the interval", hint="tape coverage LAKE")
    tickers = rows.column("market_ticker").to_pylist()
    named = [ticker.partition("-")[0] for ticker in tickers]
    series, place = np.unique(np.array(named), return_inverse=True)
    begun, ended = (times_us(rows.column(c)) for c in ("from_ts", "to_ts"))
    hour = begun // paths.US_PER_HOUR
    first = int(hour.min())
    shape = (len(series), int(hour.max()) - first + 1)
    status = np.array(rows.column("status").to_pylist(), object)
    whole, proven, lost = (np.zeros(shape, np.int64) for _ in range(3))
    at = (place, hour - first)
    np.add.at(whole, at, ended - begun)
    np.add.at(proven, at, np.where(status == "complete", ended - begun, 0))
    np.add.at(lost, at, ~np.isin(status, ("complete", "dark", "unproven")))
    held = {(name, ticker) for name, ticker in zip(named, tickers, strict=True)}
    counts = [sum(name == one for one, _ in held) for name in series.tolist()]
    return CoverageCells(
        channel=channel,
        hours=(np.arange(shape[1]) + first) * paths.US_PER_HOUR,
        series=tuple(series.tolist()),
        markets=tuple(counts),
        proven=np.where(whole > 0, proven * 1000 // np.maximum(whole, 1), NO_CELL),
        lost=lost > 0,
    )


def coverage_figure(cells: CoverageCells, palette: Palette) -> Figure:
    """A new figure: a row a series, a column an hour, a dot where something was lost."""
    shown = min(len(cells.series), SERIES_MAX)
    width = min(16, 7 + len(cells.hours) // 6)
    figure = Figure(figsize=(width, 2 + shown // 3), layout="constrained", facecolor=palette.back)
    axes = figure.subplots()
    axes.set_label("calendar")
    axes.set_facecolor(palette.gap)
    part = np.ma.masked_equal(cells.proven[:shown], NO_CELL)
    mesh = axes.pcolormesh(
        part, cmap="RdYlGn", vmin=0, vmax=1000, edgecolors=palette.back, linewidth=1
    )
    mesh.set_gid("calendar")
    _marks(axes, cells.lost[:shown], palette)
    names = zip(cells.series, cells.markets, strict=True)
    axes.set_yticks(
        np.arange(shown) + 0.5, [f"{s} ({n})" for s, n in names][:shown], color=palette.ink
    )
    step = -(-len(cells.hours) // LABELS_MAX)
    axes.set_xticks(
        np.arange(0, len(cells.hours), step) + 0.5,
        [format_ts_us(us)[5:16].replace("T", " ") for us in cells.hours[::step].tolist()],
        rotation=45, ha="right", color=palette.ink,
    )  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlabel("hour, UTC", color=palette.ink)
    more = f" (first {shown} of {len(cells.series)} series)" if shown < len(cells.series) else ""
    axes.set_title(
        f"{cells.channel}: proven part of the time, by series and hour{more}",
        loc="left", color=palette.ink, fontsize=11, pad=22,
    )  # fmt: skip
    for spine in axes.spines.values():
        spine.set_color(palette.faint)
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, fraction=0.04)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(_percent))
    bar.ax.tick_params(colors=palette.ink)
    return figure


def _marks(axes: Axes, lost: npt.NDArray[Any], palette: Palette) -> None:
    """A dot in the middle of every cell in which something was lost."""
    row, column = np.nonzero(lost)
    if not len(row):
        return
    axes.plot(
        column + 0.5, row + 0.5, ls="", marker="o", ms=4, color="#1b1f24",
        label="a gap, or doubt", gid="lost",
    )  # fmt: skip
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.01, 0.99), frameon=False,
        labelcolor=palette.ink, fontsize=9,
    )  # fmt: skip


def _percent(thousandth: Any, _place: Any) -> str:
    return f"{int(thousandth) // 10} %"
