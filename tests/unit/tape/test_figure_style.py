"""Figures as files: PNG, and a page that needs nothing from outside."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from marketdata.errors import TapeError
from tape.figure_style import DARK, LIGHT, Palette, png, save


def drawn(palette: Palette) -> Figure:
    figure = Figure(figsize=(2, 1), facecolor=palette.back)
    figure.subplots().plot([1, 2], color=palette.ink)
    return figure


def test_a_png_is_light_or_dark(tmp_path: Path) -> None:
    save(tmp_path / "light.png", "t", drawn, dark=False)
    save(tmp_path / "dark.png", "t", drawn, dark=True)
    assert (tmp_path / "light.png").read_bytes() == png(drawn(LIGHT))
    assert (tmp_path / "dark.png").read_bytes() == png(drawn(DARK))
    assert png(drawn(LIGHT)) != png(drawn(DARK))


def test_a_page_holds_both_forms_and_asks_for_nothing(tmp_path: Path) -> None:
    """No address of any kind, and the title cannot break out of its place."""
    save(tmp_path / "a.html", 'KX "<b>', drawn, dark=False)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    held = [base64.b64decode(x) for x in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    assert held == [png(drawn(DARK)), png(drawn(LIGHT))]
    assert "prefers-color-scheme: dark" in page
    rest = re.sub(r"data:image/png;base64,[^\"]+", "", page)
    assert not re.search(r"https?:|//|url\(|<script|<link", rest)
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


def test_another_ending_and_a_file_that_exists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TapeError, match=r"\.png or \.html"):
        save(tmp_path / "a.svg", "t", drawn, dark=False)
    (tmp_path / "a.png").write_text("mine")
    with pytest.raises(TapeError, match="exists"):
        save(tmp_path / "a.png", "t", drawn, dark=False)
    assert (tmp_path / "a.png").read_text() == "mine"
