"""Small charts over one another with one time axis, as SVG text. Pure.

Not a plotting library: the one picture here would make every fresh machine fetch one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, PANEL, GAP, LEFT, RIGHT, TOP = 900, 120, 46, 90, 24, 56
INK, LINE, GRID = "#222222", "#1f6fb2", "#dddddd"
FONT = "font-family='DejaVu Sans, Helvetica, Arial, sans-serif'"


@dataclass(frozen=True, slots=True)
class Series:
    """One panel: its name and its points, ascending in x."""

    name: str
    points: Sequence[tuple[float, float]]


def ticks(high: float, count: int = 4) -> list[float]:
    """Round numbers from 0 to `high` or just beyond, at most `count` steps."""
    steps = (base * 10.0**power for power in range(-3, 12) for base in (1, 2, 5))
    step = next(step for step in steps if high / step <= count)
    return [round(n * step, 6) for n in range(math.ceil(high / step) + 1)]


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' {FONT} font-size='{size}' fill='{INK}'"
        f" text-anchor='{anchor}'>{escape(text)}</text>"
    )


def _panel(series: Series, top: float, x_max: float) -> list[str]:
    values = [y for _, y in series.points]
    marks = ticks(max([*values, 1]))
    high = marks[-1]
    wide = WIDTH - LEFT - RIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + wide * x / x_max, top + PANEL * (1 - y / high)

    out = [_text(LEFT, top - 8, series.name, size=13)]
    for mark in marks:
        _, y = place(0, mark)
        out.append(f"<path d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}' stroke='{GRID}'/>")
        out.append(_text(LEFT - 8, y + 4, f"{mark:,.10g}", "end", 11))
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*point) for point in series.points))
    out.append(f"<path d='M{path}' fill='none' stroke='{LINE}' stroke-width='1.5'/>")
    return out


def chart(title: str, x_name: str, series: Sequence[Series]) -> str:
    """All series below one another, each with an axis of its own that begins at 0."""
    x_max = max((x for each in series for x, _ in each.points), default=1) or 1
    height = TOP + len(series) * (PANEL + GAP) + 24
    out = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}'>",
        f"<rect width='{WIDTH}' height='{height}' fill='white'/>",
        _text(LEFT, 26, title, size=16),
    ]
    for number, each in enumerate(series):
        out += _panel(each, TOP + 8 + number * (PANEL + GAP), x_max)
    bottom = TOP + 8 + (len(series) - 1) * (PANEL + GAP) + PANEL
    for mark in ticks(x_max, 6):
        if mark <= x_max:
            x = LEFT + (WIDTH - LEFT - RIGHT) * mark / x_max
            out.append(_text(x, bottom + 18, f"{mark:g}", "middle", 11))
    out.append(_text(WIDTH - RIGHT, bottom + 36, x_name, "end"))
    return "\n".join([*out, "</svg>", ""])
