"""The file of an export: whole or not there, and nothing is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from kalshilake import open_lake
from kalshilake.exports.target import known, new_file
from marketdata.errors import LakeError, TapeError
from tests.lake_world import World


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    """L-30: until then another name holds it."""
    path = tmp_path / "a.csv"
    with new_file(path) as part:
        part.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    """L-30, with a failure after the first bytes."""

    def fail() -> None:
        with new_file(tmp_path / "a.csv") as part:
            part.write_text("ha")
            raise LakeError("the second half is missing")

    with pytest.raises(LakeError, match="second half"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """Neither what was there nor what came meanwhile."""
    path = tmp_path / "a.csv"

    def overtaken() -> None:
        with new_file(path) as part:
            part.write_text("mine")
            path.write_text("theirs")

    with pytest.raises(TapeError, match="exists"):
        overtaken()
    with pytest.raises(TapeError, match="exists"), new_file(path):
        pass
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """One line, not a traceback."""
    with pytest.raises(TapeError, match="none is no directory"), new_file(tmp_path / "none" / "a"):
        pass


def test_an_unknown_market_is_refused_with_the_near_ones(pristine: Path, world: World) -> None:
    """A mistyped ticker would otherwise be an empty file."""
    lake = open_lake(pristine)
    ticker = world.markets[0].ticker
    known(lake, ticker)
    with pytest.raises(LakeError, match=f"did you mean {ticker}"):
        known(lake, ticker[:-1])
