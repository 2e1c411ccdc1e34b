"""A child of a service; killing and starting again are tested with the services' own children."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from runtime import children
from runtime.children import Child, inherited


def test_a_child_has_ports_of_its_own_and_not_the_service_managers_words() -> None:
    """Else it would tell systemd that the service is ready."""
    given = inherited({"NOTIFY_SOCKET": "/run/x", "PATH": "/bin", "KT_BIND": "0.0.0.0"}, (1, 2))
    assert given == {
        "PATH": "/bin", "KT_BIND": "127.0.0.1", "KT_HEALTH_PORT": "1", "KT_METRICS_PORT": "2",
    }  # fmt: skip


async def test_a_child_that_hears_no_signal_is_ended_by_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop has an end, and a stopped child is not started again."""
    monkeypatch.setattr(children, "RESTART_S", 0)
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\ntrap '' TERM\necho x >> {tmp_path}/runs\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    child = Child(1)
    running = asyncio.create_task(child.run())
    async with asyncio.timeout(20):
        while not (tmp_path / "runs").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await child.stop(0.2)
        await running
    assert (tmp_path / "runs").read_text() == "x\n"
    assert (child.restarts, child.finished) == (0, False)
