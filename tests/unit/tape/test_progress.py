"""Progress of long work."""

from __future__ import annotations

import io
import sys

import pytest

from tape import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_log_there_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    """And none of short work: a log of a cron job stays empty."""
    now = 0.0
    with progress.steps("hours checked", lambda: now) as tell:
        for done in range(1, 26):
            now = float(done)
            tell(done, 1_000)
    out, said = capsys.readouterr()
    assert out == ""
    assert said == "10 of 1,000 hours checked\n20 of 1,000 hours checked\n"


def test_on_a_terminal_there_is_a_bar_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    with progress.steps("hours checked") as tell:
        tell(3, 12)
        tell(12, 12)
    assert "hours checked" in screen.getvalue()
    assert "12/12" in screen.getvalue()
