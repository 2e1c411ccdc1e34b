"""`tape root`: printed for people and machines, checked later by `tape verify`."""

from __future__ import annotations

import json
from pathlib import Path


def test_the_root_of_a_day_is_printed_and_checked_later(run, lake: Path) -> None:
    """Cited in a paper, checked by its reader."""
    code, out, _ = run("root", lake, "--json")
    said = json.loads(out)
    assert (code, said["version"]) == (0, 2)
    assert run("root", lake, "--day", said["day"], "--version", 2, "--json")[1] == out
    assert said["sha256"] in run("root", lake)[1]
    cited = f"{said['day']}:{said['sha256']}"
    assert run("verify", lake, "--root", cited)[0] == 0
    code, out, _ = run("verify", lake, "--root", f"{said['day']}:{'0' * 64}")
    assert code == 1
    assert "no version has the root" in out


def test_a_root_that_cannot_be_given_is_refused(run, lake: Path, tmp_path: Path) -> None:
    for arguments in (("root", lake, "--day", "1999-01-01"), ("root", tmp_path),
                      ("verify", lake, "--root", "2026-05-13")):  # fmt: skip
        code, _, said = run(*arguments)
        assert code == 2
        assert said.startswith("tape: ")
