"""`tape demo` refuses plainly what cannot work. Whole runs are in tests/acceptance."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from marketdata.errors import StorageError
from tape import demo as demo_module

APP = typer.Typer()
APP.command()(demo_module.demo)


def output_of(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(APP, list(arguments))
    return done.exit_code, done.output


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    """A demo never writes over anybody's files."""
    (tmp_path / "mine.txt").write_text("keep")
    code, said = output_of("--out", str(tmp_path), "--synthetic", "5")
    assert (code, "not empty" in said) == (2, True)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_a_capture_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    """No traceback for a wrong path."""
    code, said = output_of("--frames", str(tmp_path / "no.jsonl.gz"))
    assert (code, "there is no capture at" in said, "Traceback" in said) == (2, True, False)


@pytest.mark.parametrize("wrong", [("--faults", "some"), ("--merge", "magic")])
def test_a_word_that_is_no_option_is_refused(wrong: tuple[str, str]) -> None:
    """Faults and merge modes are closed lists."""
    code, said = output_of(*wrong, "--synthetic", "5")
    assert (code, "--faults is" in said) == (2, True)


def test_a_full_disk_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven clusters need room; a plain message beats seven broken ones."""
    monkeypatch.setattr(demo_module, "DISK_FREE_BYTES_MIN", 1 << 60)
    with pytest.raises(StorageError, match="free"):
        demo_module.check_place(tmp_path)
