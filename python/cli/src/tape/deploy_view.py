"""The live view of a rollout: a table on a terminal, plain lines with times in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

FLEET = "fleet"


class View:
    """Hears what a rollout says. Use it as a context."""

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        out: TextIO | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = out or sys.stdout
        self._monotonic = monotonic
        self._began_s = monotonic()
        self._since_s = dict.fromkeys((FLEET, *hosts), self._began_s)
        self._told = dict.fromkeys((FLEET, *hosts), "waits")
        self._live: Live | None = None
        if self._out.isatty():
            console = Console(file=self._out, highlight=False)
            self._live = Live(console=console, get_renderable=self.table, refresh_per_second=2)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def table(self) -> Table:
        """Each host, what it is at, and since when."""
        now_s = self._monotonic()
        made = Table(title=f"deploy, {now_s - self._began_s:.0f} s")
        for column in ("host", "is at", "since"):
            made.add_column(column, justify="right" if column == "since" else "left")
        for host, told in self._told.items():
            made.add_row(host, told, f"{now_s - self._since_s[host]:.0f} s")
        return made

    def say(self, host: str, text: str) -> None:
        """What a host is at now ("" for the fleet); in a log a line."""
        name, now_s = host or FLEET, self._monotonic()
        self._told[name], self._since_s[name] = text, now_s
        line = f"{now_s - self._began_s:7.1f} s  {name:<13} {text}"
        if self._live is not None:
            self._live.console.print(line, markup=False)
        else:
            self._out.write(line + "\n")
            self._out.flush()
