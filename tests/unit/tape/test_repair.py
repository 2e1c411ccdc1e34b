"""The command line of `tape repair`: what it refuses, each in one line. The work: integration."""

from __future__ import annotations

from pathlib import Path

import pytest

from dedup.repair_store import Addition
from tape.main import main
from tape.repair import Asked, Told

NOWHERE = "postgresql://postgres@127.0.0.1:1/none"
TIMES = ("--from", "2026-05-11T13:00Z", "--to", "2026-05-11T14:00Z")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error; the exit code is 2."""
    with pytest.raises(SystemExit) as ended:
        main(["repair", "--production", NOWHERE, *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_nothing_to_repair_from(capsys: pytest.CaptureFixture[str]) -> None:
    """A source is named."""
    assert "--spool N=FOLDER or --rest URL" in refused(capsys, *TIMES)


@pytest.mark.parametrize("text", ["/folder", "0=/folder", "x=/folder", "=/folder"])
def test_a_spool_without_its_gatherer(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Which gatherer it was decides whose proof it is."""
    assert "names no gatherer" in refused(capsys, *TIMES, "--spool", text)


def test_no_moment_no_spool_no_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Before any database is asked."""
    assert "no moment" in refused(capsys, "--from", "soon", "--to", "later", "--spool", "1=x")
    assert "is no spool" in refused(capsys, *TIMES, "--spool", f"1={tmp_path / 'none'}")
    assert "--key-file" in refused(capsys, *TIMES, "--rest", "http://127.0.0.1:1")


def test_facts_are_for_programs() -> None:
    """Counts of what was added, times in words."""
    told = Told(Addition(0, 1_000_000, 5, "why", ["spool"]), notes=["n"])
    facts = told.facts()
    assert facts["from"] == "1970-01-01T00:00:00+00:00"
    assert (facts["events"], facts["repair"], facts["notes"]) == (0, 0, ["n"])
    assert Asked("dsn", 0, 1).apply is False
