"""The view of a rollout: lines in a log, a table on a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from tape.deploy_view import View


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_plain_lines_with_times() -> None:
    out, now = io.StringIO(), [5.0]
    with View(["gatherer-1"], out=out, monotonic=lambda: now[0]) as view:
        now[0] = 17.25
        view.say("gatherer-1", "copy [gatherer]")
        view.say("", "done")
    assert out.getvalue() == (
        "   12.2 s  gatherer-1    copy [gatherer]\n   12.2 s  fleet         done\n"
    )


def test_a_terminal_gets_a_table_of_hosts_too() -> None:
    out, now = Terminal(), [0.0]
    with View(["gatherer-1"], out=out, monotonic=lambda: now[0]) as view:
        view.say("gatherer-1", "wait until it records")
        now[0] = 9.0
        shown = Console(file=io.StringIO(), width=80)
        shown.print(view.table())
        told = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "gatherer-1" in told
    assert "wait until it records" in told
    assert "9 s" in told
    assert "wait until it records" in out.getvalue()
