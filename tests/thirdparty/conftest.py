"""Says what a run compared: a green run of nothing would look the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_LINES: list[str] = []


@pytest.fixture
def say() -> Callable[[str], None]:
    """A line for the end of the run."""
    return _LINES.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _LINES:
        terminalreporter.section("compared with the exchange's truth")
        for line in _LINES:
            terminalreporter.write_line(line)
