"""How pictures look, light and dark, and how they become files: PNG, or one HTML page.

Purpose: two palettes, and `save`, which writes a figure as PNG or as a page that holds both forms
of it and needs nothing from outside.

Does not do: deciding what is drawn (depth_figure, coverage_figure).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from kalshilake.exports.target import new_file
from marketdata.errors import TapeError

SUFFIXES: Final = (".png", ".html")
DPI: Final = 110


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of one form. `statuses`: of coverage, by name."""

    back: str
    ink: str
    faint: str
    bid: str
    ask: str
    buy: str
    sell: str
    gap: str
    depth: str  # name of a colour map, which begins near `back`
    statuses: dict[str, str]


LIGHT: Final = Palette(
    back="#ffffff", ink="#1b1f24", faint="#d5dae0", bid="#0b5cad", ask="#b3261e",
    buy="#0b7a4b", sell="#7a1fa2", gap="#e7e9ec", depth="YlGnBu",
    statuses={
        "complete": "#2f9e6e", "gap": "#d64545", "dark": "#9aa3ad", "ambiguous": "#e0a020",
        "disputed": "#8e44ad", "unproven": "#6f9fd8",
    },
)  # fmt: skip
DARK: Final = Palette(
    back="#14181d", ink="#e6e9ed", faint="#3a424c", bid="#6fb7ff", ask="#ff8a80",
    buy="#6ee7a8", sell="#e2a6ff", gap="#262c34", depth="cividis",
    statuses={
        "complete": "#3fbf87", "gap": "#ef6b6b", "dark": "#5d6772", "ambiguous": "#f0bb4a",
        "disputed": "#b980d6", "unproven": "#7fb0ea",
    },
)  # fmt: skip

PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0; background: {light}; }}
img {{ display: block; width: 100%; max-width: 1400px; margin: 0 auto; }}
@media (prefers-color-scheme: dark) {{ body {{ background: {dark}; }} }}
</style></head><body><picture>
<source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{night}">
<img alt="{title}" src="data:image/png;base64,{day}">
</picture></body></html>
"""


def png(figure: Figure) -> bytes:
    """The figure as PNG; the same bytes for the same figure."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, facecolor=figure.get_facecolor(), metadata={})
    return out.getvalue()


def save(path: Path, title: str, make: Callable[[Palette], Figure], *, dark: bool) -> None:
    """Draw and write a new file. Raises TapeError for another ending or a file that exists."""
    check_suffix(path)
    with new_file(path) as part:
        if path.suffix == ".png":
            part.write_bytes(png(make(DARK if dark else LIGHT)))
            return
        day, night = (base64.b64encode(png(make(p))).decode() for p in (LIGHT, DARK))
        page = PAGE.format(
            title=escape(title), light=LIGHT.back, dark=DARK.back, day=day, night=night
        )
        part.write_text(page, encoding="utf-8")


def check_suffix(path: Path) -> None:
    """Raises TapeError where the name does not say which form is wanted."""
    if path.suffix not in SUFFIXES:
        raise TapeError(f"{path} is no picture", hint="a name that ends in .png or .html")
