"""`tape plot`: pictures as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tape import figure_style
from tests.lake_world import World
from tests.rules.tree import ROOT

WIDE = ["--on-gap", "column"]


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer dots: what is in a picture is judged by the tests of the figures."""
    monkeypatch.setattr(figure_style, "DPI", 30)


def test_the_commands_of_the_document_are_true(
    run, lake: Path, world: World, tmp_path: Path
) -> None:
    """Every `tape plot` of docs/plots.md, as it stands there: PNG, page and calendar."""
    ticker = world.markets[0].ticker
    text = (ROOT / "docs" / "plots.md").read_text(encoding="utf-8")
    commands = [line.split()[1:] for line in text.splitlines() if line.startswith("tape plot ")]
    told = {"DIR/lake": str(lake), "MARKET": ticker}
    made = []
    for words in commands:
        out = tmp_path / words[words.index("--out") + 1]
        given = [str(out) if w == out.name else told.get(w, w) for w in words]
        code, said, err = run(*given)
        assert (code, err) == (0, "")
        what = f"1 series, {world.hours} hours" if "--coverage" in words else f"trades of {ticker}"
        assert said.endswith(f"{what} in {out}\n")
        made.append((out.suffix, out.read_bytes()[:4]))
    assert made == [(".png", b"\x89PNG"), (".html", b"<!do"), (".png", b"\x89PNG")]


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
