"""The picture of a market's depth: heat map, best prices, trades, spread, coverage. Pure.

Purpose: `depth_figure` draws a DepthCells: what was read is what is shown, nothing is interpolated.
Where nothing is proven the heat map is hatched and the lines are broken.

Does not do: reading (depth_cells), files (figure_style). Prices are drawn as whole micro-dollars;
only the labels of the axes show cents.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kalshilake.coverage import CoverageInterval
from marketdata.units import PRICE_SCALE, SIZE_SCALE, format_size, format_ts_us
from tape.depth_cells import CENT, MISSING, DepthCells
from tape.figure_style import Palette

MARGIN: Final = 2 * CENT  # of price above and below what is shown
QUIET: Final = 2  # percent of the moments at which a best price may lie outside the picture
_BEHIND: Final[dict[str, Any]] = {"zorder": 0.5}  # the heat map, drawn with on_gap="ignore"
FEW: Final = 300  # so many marks can be large without hiding one another
_MARK: Final[dict[str, Any]] = {"s": 10, "alpha": 0.7, "linewidths": 0, "zorder": 3}
_LARGE: Final[dict[str, Any]] = {"s": 42, "alpha": 0.9, "linewidths": 0.8, "zorder": 3}
DEPTH, SPREAD, COVERAGE = "depth", "spread", "coverage"  # labels of the three parts


def depth_figure(cells: DepthCells, palette: Palette) -> Figure:
    """A new figure of three parts, one above the other, over the same time."""
    figure = Figure(figsize=(12, 7.2), layout="constrained", facecolor=palette.back)
    top, middle, strip = figure.subplots(
        3, 1, sharex=True, gridspec_kw={"height_ratios": [12, 3, 1]}
    )
    for axes, label in zip((top, middle, strip), (DEPTH, SPREAD, COVERAGE), strict=True):
        axes.set_label(label)
        _dress(axes, palette)
    mesh = _heat(top, cells, palette)
    _lines(top, cells, palette)
    _trades(top, cells, palette)
    _spread(middle, cells, palette)
    draw_coverage(strip, cells.coverage, palette)
    top.set_ylabel("price of YES")
    top.set_ylim(*_shown_prices(cells))
    top.set_title(
        f"{cells.market}   {format_ts_us(cells.from_us)} to {format_ts_us(cells.to_us)}",
        loc="left", color=palette.ink, fontsize=12, pad=26,
    )  # fmt: skip
    bar = figure.colorbar(mesh, ax=top, pad=0.01, fraction=0.035)
    bar.set_label("contracts at the price", color=palette.ink)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(_contracts))
    bar.ax.tick_params(colors=palette.ink)
    bar.outline.set_edgecolor(palette.faint)
    strip.set_xlim(*moments([cells.from_us, cells.to_us]))
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    strip.xaxis.set_major_locator(locator)
    strip.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    strip.set_xlabel("exchange time, UTC", color=palette.ink)
    _legend(top, cells, palette)
    return figure


def moments(times_us: Any) -> Any:
    """Microseconds as what matplotlib takes for times."""
    return np.asarray(times_us, np.int64).astype("datetime64[us]")


def draw_coverage(axes: Axes, line: tuple[CoverageInterval, ...], palette: Palette) -> None:
    """A strip of what coverage says, and a legend of what is in it."""
    for part in line:
        axes.axvspan(
            *moments([part.from_us, part.to_us]),
            color=palette.statuses[part.status], lw=0, gid=part.status,
        )  # fmt: skip
    axes.set_yticks([])
    axes.set_ylabel("coverage", rotation=0, ha="right", va="center", color=palette.ink)
    found = [s for s in palette.statuses if s in {part.status for part in line}]
    keys = [Patch(color=palette.statuses[status], label=status) for status in found]
    legend = axes.legend(
        handles=keys, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False,
        labelcolor=palette.ink, fontsize=8, handlelength=1,
    )  # fmt: skip
    legend.set_in_layout(False)  # there is room below the scale of the heat map


def _dress(axes: Axes, palette: Palette) -> None:
    axes.set_facecolor(palette.back)
    axes.tick_params(colors=palette.ink)
    axes.yaxis.label.set_color(palette.ink)
    for spine in axes.spines.values():
        spine.set_color(palette.faint)


def _heat(axes: Axes, cells: DepthCells, palette: Palette) -> Any:
    """The sizes of both sides; nothing where nothing stands, hatched where nothing is proven."""
    total = np.maximum(cells.bids, 0) + np.maximum(cells.asks, 0)
    shown = np.ma.masked_equal(total, 0)
    present = total[total > 0]
    low, high = np.percentile(present, [5, 99.5]) if len(present) else (1, 10)
    rows = cells.low + cells.tick * np.arange(len(total) + 1) - cells.tick // 2
    edges = moments(np.append(cells.times, cells.to_us))
    axes.set_facecolor(palette.back)
    mesh = axes.pcolormesh(
        edges, rows, shown, cmap=palette.depth,
        norm=LogNorm(max(low, 1), max(high, low + 1, 10)), shading="flat", zorder=1,
    )  # fmt: skip
    mesh.set_gid("heat")
    for part in cells.coverage:
        if part.status != "complete":
            axes.axvspan(
                *moments([part.from_us, part.to_us]), facecolor=palette.gap,
                edgecolor=palette.statuses[part.status], hatch="///", lw=0, gid="not proven",
                **_BEHIND,
            )  # fmt: skip
    return mesh


def _lines(axes: Axes, cells: DepthCells, palette: Palette) -> None:
    times = moments(np.append(cells.times, cells.to_us))
    for best, colour, name in (
        (cells.best_bid, palette.bid, "best bid"),
        (cells.best_ask, palette.ask, "best offer"),
    ):
        line = np.ma.masked_equal(_held(best), MISSING)
        axes.step(times, line, where="post", color=colour, lw=1.3, label=name)


def _trades(axes: Axes, cells: DepthCells, palette: Palette) -> None:
    times, price, taker = cells.trades
    for code, colour, mark, name in (
        (0, palette.buy, "^", "taker bought YES"),
        (1, palette.sell, "v", "taker bought NO"),
        (MISSING, palette.ink, ".", "taker not told"),
    ):
        mine = taker == code
        if mine.any():
            axes.scatter(
                moments(times[mine]), price[mine], marker=mark, color=colour, label=name,
                edgecolors=palette.back, **(_LARGE if len(times) <= FEW else _MARK),
            )  # fmt: skip


def _spread(axes: Axes, cells: DepthCells, palette: Palette) -> None:
    both = (cells.best_bid != MISSING) & (cells.best_ask != MISSING)
    spread = np.where(both, cells.best_ask - cells.best_bid, 0)
    line = np.ma.masked_where(~_held(both), _held(spread))
    times = moments(np.append(cells.times, cells.to_us))
    axes.step(times, line, where="post", color=palette.ink, lw=0.9, label="spread")
    axes.set_ylabel("spread")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(_cents))
    axes.grid(axis="y", color=palette.faint, lw=0.5)


def _held(values: Any) -> Any:
    """The last value once more: it stands until the picture ends."""
    return np.append(values, values[-1:])


def _shown_prices(cells: DepthCells) -> tuple[int, int]:
    """From below the usual best bid to above the usual best offer: the far levels say little."""
    best = np.concatenate((cells.best_bid, cells.best_ask, cells.trades[1]))
    best = best[best != MISSING]
    if not len(best):
        return 0, PRICE_SCALE
    low, high = np.percentile(best, [QUIET, 100 - QUIET]).astype(int).tolist()
    wide = max(high - low, 10 * CENT) // 4
    return max(-CENT, low - wide - MARGIN), min(PRICE_SCALE + CENT, high + wide + MARGIN)


def _legend(axes: Axes, cells: DepthCells, palette: Palette) -> None:
    handles, names = axes.get_legend_handles_labels()
    if any(part.status != "complete" for part in cells.coverage):
        handles.append(Patch(facecolor=palette.gap, edgecolor=palette.ink, hatch="///", lw=0))
        names.append("not proven")
    shown = axes.legend(
        handles, names, loc="lower left", bbox_to_anchor=(-0.01, 0.99), ncols=6, frameon=False,
        labelcolor=palette.ink, fontsize=9,
    )  # fmt: skip
    for handle in shown.legend_handles:
        if handle is not None and not isinstance(handle, Line2D):
            handle.set_alpha(1)
    axes.yaxis.set_major_formatter(FuncFormatter(_cents))


def _cents(micros: Any, _place: Any) -> str:
    """A tick in cents, exact to the tenth."""
    whole, tenth = divmod(int(micros) // (CENT // 10), 10)
    return f"{whole}.{tenth}¢" if tenth else f"{whole}¢"


def _contracts(centi: Any, _place: Any) -> str:
    whole = int(centi) // SIZE_SCALE
    return f"{whole:,}" if whole else format_size(int(centi))
