"""Children of the demo: restarted after a kill, stopped cleanly, never left behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tape.children import Child

FOREVER = "import time\nwhile True: time.sleep(0.05)\n"


def child(tmp_path: Path, code: str, **more: object) -> Child:
    (tmp_path / "sleeper.py").write_text(code)
    environment = {"PYTHONPATH": str(tmp_path)}
    return Child("sleeper", "sleeper", environment, tmp_path / "log", **more)  # type: ignore[arg-type]


async def test_a_killed_child_is_started_again_and_stops_on_request(tmp_path: Path) -> None:
    """The demo's kills rely on it, as the hosts rely on Restart=always."""
    one = child(tmp_path, FOREVER)
    await one.start()
    while not one.alive:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.01)
    assert one.kill()
    while one.restarts == 0 or not one.alive:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.01)
    await one.stop(timeout_s=10)
    assert (one.alive, one.finished, one.restarts) == (False, True, 1)


async def test_a_child_that_ends_by_itself_with_success_is_not_restarted(tmp_path: Path) -> None:
    """The deduplicator of a demo ends when everything is merged."""
    one = child(tmp_path, "print('bye')\n")
    await one.start()
    assert await one.wait(20) == 0
    assert (one.restarts, "bye" in one.log_tail()) == (0, True)


def test_children_die_with_a_demo_that_is_killed(tmp_path: Path) -> None:
    """kill -9 of the demo itself must leave no process behind."""
    (tmp_path / "sleeper.py").write_text(
        f"import os\nopen('pid', 'w').write(str(os.getpid()))\n{FOREVER}"
    )
    parent = (
        "import asyncio, pathlib\n"
        "from tape.children import Child\n"
        "async def main():\n"
        "    await Child('s', 'sleeper', {}, pathlib.Path('log')).start()\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    demo = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, env=environment)
    pid_file = tmp_path / "pid"
    deadline = time.monotonic() + 30
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    pid = int(pid_file.read_text())
    demo.kill()
    demo.wait()
    while time.monotonic() < deadline and psutil.pid_exists(pid):
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_a_child_that_dies_at_every_start_is_given_up(tmp_path: Path, monkeypatch) -> None:
    """A fault must be told, not hidden behind restarts for ever."""
    monkeypatch.setattr("tape.children.RESTART_DELAY_S", 0.01)
    one = child(tmp_path, "raise SystemExit(7)\n")
    await one.start()
    assert await one.wait(60) == 7
    assert one.restarts == 6
