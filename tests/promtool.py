"""Prometheus' own checker and its server: from the path, or unpacked from Debian's package.

Into a cache; nothing is installed. Where there is neither, what needs it is skipped and says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

PLACE: Final = Path(os.environ.get("KT_PROMTOOL_CACHE", "/var/tmp/kalshi-tape-promtool"))
FETCH_S: Final = 300


@cache
def promtool() -> str | None:
    """Where it is; None where it cannot be had."""
    return _program("promtool")


@cache
def prometheus() -> str | None:
    """The server, of the same package."""
    return _program("prometheus")


def _program(name: str) -> str | None:
    found = shutil.which(name)
    if found:
        return found
    kept = PLACE / "usr" / "bin" / name
    if not kept.exists():
        _unpack()
    return str(kept) if kept.exists() else None


def _unpack() -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(
                ["apt-get", "-q", "download", "prometheus"], cwd=folder, check=True,
                capture_output=True, timeout=FETCH_S,
            )  # fmt: skip
            (package,) = Path(folder).glob("prometheus_*.deb")
            subprocess.run(["dpkg-deb", "-x", str(package), f"{folder}/tree"], check=True)
            PLACE.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(f"{folder}/tree", PLACE, dirs_exist_ok=True, symlinks=True)
        except (subprocess.SubprocessError, OSError, ValueError):
            return  # no archive, no network: the tests say that they were skipped


def run(*arguments: str, cwd: Path) -> tuple[int, str]:
    """(exit code, everything it said)."""
    program = promtool()
    assert program is not None, "asked for without it"
    done = subprocess.run(
        [program, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr
