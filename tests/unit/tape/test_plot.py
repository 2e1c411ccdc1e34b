"""`tape plot`: pictures as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tape import figure_style
from tests.lake_world import World

WIDE = ["--on-gap", "column"]


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer dots: what is in a picture is judged by the tests of the figures."""
    monkeypatch.setattr(figure_style, "DPI", 30)


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.html", b"<!doctype")])
def test_a_market_becomes_a_picture(
    run, lake: Path, world: World, tmp_path: Path, name: str, begins: bytes
) -> None:
    """And the command says what is in it."""
    ticker, out = world.markets[0].ticker, tmp_path / name
    code, said, err = run("plot", lake, ticker, "--every", "60s", "--out", out, *WIDE)
    assert (code, err) == (0, "")
    assert said.endswith(f"trades of {ticker} in {out}\n")
    assert out.read_bytes().startswith(begins)


def test_coverage_of_the_lake_becomes_a_calendar(
    run, lake: Path, world: World, tmp_path: Path
) -> None:
    out = tmp_path / "a.png"
    code, said, _ = run("plot", lake, "--coverage", "--out", out)
    assert (code, said) == (0, f"1 series, {world.hours} hours in {out}\n")
    assert out.read_bytes().startswith(b"\x89PNG")


def test_bad_input_is_said_in_a_line_and_leaves_no_file(
    run, lake: Path, world: World, tmp_path: Path
) -> None:
    """A gap, an unknown ticker, an empty range, neither market nor coverage, another ending."""
    ticker, out = world.markets[0].ticker, tmp_path / "a.png"
    cases = [
        ([ticker, "--from", "2025-04-30", "--to", "2025-05-02"], 3, "not complete"),
        (["KX-NONE", *WIDE], 2, "knows no market 'KX-NONE'"),
        ([ticker, "--from", "2025-04-30", "--to", "2025-04-30", *WIDE], 2, "holds no moment"),
        ([], 2, "one market, or --coverage"),
        ([ticker, "--coverage"], 2, "one market, or --coverage"),
    ]
    for given, expected, says in cases:
        code, said, err = run("plot", lake, *given, "--out", out)
        assert (code, said) == (expected, "")
        assert says in err
    code, _, err = run("plot", lake, ticker, "--out", tmp_path / "a.svg")
    assert code == 2
    assert "a name that ends in .png or .html" in err
    assert list(tmp_path.iterdir()) == []
    out.write_text("mine")
    assert run("plot", lake, ticker, "--out", out)[0] == 2
    assert out.read_text() == "mine"
