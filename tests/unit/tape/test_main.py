"""The command `tape`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_without_a_subcommand_it_shows_what_there_is(run) -> None:
    """The first thing anybody types."""
    code, out, _ = run()
    assert code == 0
    for name in ("demo", "coverage", "trades", "book", "verify"):
        assert f"  {name} " in out


def test_faults_of_the_command_line_are_one_line_and_code_two(run) -> None:
    """No usage screen between the user and the word that was wrong."""
    for arguments in (["bok"], ["book"], ["book", "x", "y", "--depth", "-1"], ["verify", "--nope"]):
        code, _, err = run(*arguments)
        assert code == 2
        assert err.count("\n") == 1
        assert err.startswith("tape: ")


def test_every_reading_command_refuses_a_place_without_a_lake(run, tmp_path: Path) -> None:
    """One line, code two, no traceback."""
    for arguments in (["coverage", tmp_path], ["trades", tmp_path], ["verify", tmp_path],
                      ["book", tmp_path, "M"], ["coverage", "s4://x"]):  # fmt: skip
        code, _, err = run(*arguments)
        assert code == 2
        assert err.count("\n") == 1


def test_a_reader_that_stops_early_is_no_error(lake: Path) -> None:
    """`tape trades LAKE | head -1` must not print a traceback."""
    code = (
        "import os, sys; from tape.main import main\n"
        "read, write = os.pipe(); os.close(read); os.dup2(write, 1)\n"
        f"main(['coverage', {str(lake)!r}, '--json'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
