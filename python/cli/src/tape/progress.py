"""Progress of long work on standard error: a bar on a terminal, else a plain line now and then.

Does not do: results, which go to standard output.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_S: Final = 10.0  # between two plain lines
Told = Callable[[int, int], None]


@contextmanager
def steps(what: str, clock: Callable[[], float] = time.monotonic) -> Iterator[Told]:
    """Call what it gives with (done, of all); `what` names the steps: "hours checked"."""
    if not sys.stderr.isatty():
        yield _lines(what, clock)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as screen:
        bar = screen.add_task(what, total=None)
        yield lambda done, of: screen.update(bar, completed=done, total=of)


def _lines(what: str, clock: Callable[[], float]) -> Told:
    shown_s = clock()

    def tell(done: int, of: int) -> None:
        nonlocal shown_s
        if clock() - shown_s >= LINE_S:
            shown_s = clock()
            sys.stderr.write(f"{done:,} of {of:,} {what}\n")
            sys.stderr.flush()

    return tell
