"""The checks of `make aarch64` one by one, and how the run ends where it cannot be made.

`python -m pytest tests/aarch64 -m aarch64` as root; `-k control` for the negative controls.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.aarch64 import place
from tests.aarch64.__main__ import main
from tests.aarch64.checks import CHECKS
from tests.aarch64.trial import FailedError, Trial, expect

pytestmark = [pytest.mark.aarch64, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("name", CHECKS)
def test_shown(trial: Trial, name: str) -> None:
    print(CHECKS[name](trial))


def test_a_check_that_does_not_hold_fails() -> None:
    with pytest.raises(FailedError, match="seen"):
        expect([], "seen")


def command(cache: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.aarch64"],
        cwd=place.ROOT,
        env={**os.environ, "KT_AARCH64_CACHE": str(cache), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(child: subprocess.Popen[str]) -> tuple[int, list[str]]:
    _, said = child.communicate(timeout=600)
    return child.returncode, said.splitlines()


def test_without_an_index_it_says_so_and_ends(tmp_path: Path) -> None:
    """A proxy that is not there cuts apt off; pip would be next."""
    closed = "http://127.0.0.1:9/"
    code, said = ended(command(tmp_path, http_proxy=closed, https_proxy=closed))
    assert code == 2
    assert said[0].startswith("cannot run: the package index cannot be reached")
    assert not (tmp_path / "run").exists()


def test_without_root_it_says_so_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KT_AARCH64_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main() == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "cannot run: namespaces and chroot need root"
    assert not (tmp_path / "none").exists()


def test_a_cache_that_others_can_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tree and its qemu are run as root."""
    monkeypatch.setenv("KT_AARCH64_CACHE", str(tmp_path))
    assert place.cache() == tmp_path
    tmp_path.chmod(0o777)
    with pytest.raises(place.CannotRunError, match="can be written by others"):
        place.cache()
    tmp_path.chmod(0o755)
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(place.CannotRunError, match="can be written by others"):
        place.cache()


def test_two_runs_at_once_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KT_AARCH64_CACHE", str(tmp_path))
    with place.locked():
        code, said = ended(command(tmp_path))
    assert (code, said[0]) == (2, f"cannot run: another run uses {tmp_path}")


def descendants(folder: Path) -> list[str]:
    """Command lines of processes that name the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in text:
            found.append(text)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_process_and_no_mount(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Stopped in the middle of an emulated program; the cache is this machine's, linked."""
    here = place.cache()
    for kept in here.iterdir():
        if kept.name not in ("run", "lock"):
            (tmp_path / kept.name).symlink_to(kept)
    child = command(tmp_path)
    deadline = time.monotonic() + 600
    while not any("side_machine" in line for line in descendants(tmp_path)):
        assert child.poll() is None, ended(child)
        assert time.monotonic() < deadline
        time.sleep(0.1)
    child.send_signal(number)
    code, _ = ended(child)
    assert code == (-number if number == signal.SIGKILL else 130)
    deadline = time.monotonic() + 10
    while left := descendants(tmp_path):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    # After kill -9 the folder is there until the next run, which begins by removing it.
    assert (tmp_path / "run").exists() == (number == signal.SIGKILL)
