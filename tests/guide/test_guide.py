"""docs/guide.md does what it says: its blocks are run, in order, over a lake with gaps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.lake_world import make_world, write_world

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[str]:
    return BLOCK.findall(GUIDE.read_text(encoding="utf-8"))


def run(lines: list[str]) -> dict[str, Any]:
    """The names that are known after all blocks."""
    known: dict[str, Any] = {}
    for number, text in enumerate(lines, 1):
        exec(compile(text, f"{GUIDE.name}, block {number}", "exec"), known)
    return known


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the guide's reader stands."""
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path / "tape" / "lake", make_world(11, markets=3, hours=2, events=60))
    return tmp_path


def test_every_block_of_the_guide_runs(folder: Path) -> None:
    known = run(blocks())
    assert len(blocks()) >= 14
    assert known["whole"].num_rows > 10
    assert known["quotes"].num_rows > 1
    assert known["trades"].num_rows > 1
    assert known["ladders"].num_rows > 1
    assert known["happened"].num_rows >= known["changes"] > 10
    assert known["late"].max() == 7_000
    assert known["informed"].num_rows == known["heard"].num_rows
    assert known["then"].clock == "received"
    assert 0 < known["proven_only"].height < known["trades"].num_rows
    assert sum(n for _, n in known["per_kind"]) == known["happened"].num_rows
    assert len(known["busiest"]) == known["per_market"].height == 3
    assert known["grid"]["yes_bid"].isna().any(), "the picture has a hole where nothing is proven"
    assert (folder / "price.png").stat().st_size > 5_000


def test_a_block_that_is_wrong_is_found(folder: Path) -> None:
    """The control: a method that is not there, in the last block."""
    with pytest.raises(AttributeError, match="bokos"):
        run([*blocks(), "lake.bokos(market)\n"])
