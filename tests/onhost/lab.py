"""One run of the on-host tests: its folder, its names, and the promise to leave nothing.

Everything a run makes bears the run's name: control groups, network namespaces, files. A reaper, a
process of its own session, waits for the end of the process that opened the lab, however that
comes (Ctrl-C, SIGTERM, SIGKILL), and removes what bears the name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.onhost.image import cache
from tests.rules.tree import ROOT

PREFIX = "kto"  # short: names of network interfaces have fifteen characters
NETNS = Path("/run/netns")
KILL_TIMEOUT_S = 30.0
RUN_S_MAX = 3 * 3600  # the reaper ends a run that nobody ended


@dataclass(frozen=True)
class Hierarchy:
    """One control group hierarchy of this machine; `options` as mount(8) takes them."""

    options: str
    own: Path  # the group that this process is in


def hierarchies() -> list[Hierarchy]:
    """Every mounted hierarchy with a controller or a name, and the unified one (options "").

    Groups of a run are made below the group of this process. Where the unified hierarchy is the
    only one they are made at its root: a group with processes may not share out controllers."""
    mounts = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        name, _, options = kind.split(" ", 2)
        _, _, _, root, place, *_ = fields.split(" ")
        if name in ("cgroup", "cgroup2"):
            known = "" if name == "cgroup2" else options
            mounts[frozenset(known.split(","))] = (root, place)
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, options, path = line.split(":", 2)
        for words, (root, place) in mounts.items():
            fits = words == {""} if not options else set(options.split(",")) <= words
            if fits:
                below = path.removeprefix(root.rstrip("/"))
                found.append(Hierarchy(options, Path(place) / below.lstrip("/")))
                break
    if [h.options for h in found] == [""]:
        return [Hierarchy("", Path(place)) for _, place in mounts.values()]
    return found


def _groups(prefix: str) -> list[Path]:
    """Control groups of a run, the deepest first."""
    tops = [top for h in hierarchies() for top in h.own.glob(f"{prefix}*") if top.is_dir()]
    return sorted(
        (Path(folder) for top in tops for folder, _, _ in os.walk(top)),
        key=lambda path: len(path.parts),
        reverse=True,
    )


def _processes(prefix: str) -> set[int]:
    """Processes in control groups or network namespaces of a run, except this one."""
    found: set[int] = set()
    for group in _groups(prefix):
        with contextlib.suppress(OSError):
            found |= {int(word) for word in (group / "cgroup.procs").read_text().split()}
    for name in _namespaces(prefix):
        asked = subprocess.run(
            ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
        )
        found |= {int(word) for word in asked.stdout.split()}
    return found - {0, os.getpid()}


def _namespaces(prefix: str) -> list[str]:
    return sorted(path.name for path in NETNS.glob(f"{prefix}*"))


def _mounts(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    places = [line.split(" ")[4] for line in lines]
    return sorted((p for p in places if Path(p).is_relative_to(folder)), reverse=True)


def _loops(folder: Path) -> list[str]:
    asked = subprocess.run(
        ["losetup", "--noheadings", "--list", "--output", "NAME,BACK-FILE"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return [line.split()[0] for line in asked.stdout.splitlines() if f"{folder}/" in line]


def leftovers(name: str, folder: Path) -> list[str]:
    """What still bears the name of a run."""
    left = [f"process {pid}" for pid in sorted(_processes(name))]
    left += [f"control group {path}" for path in _groups(name)]
    left += [f"network namespace {space}" for space in _namespaces(name)]
    left += [f"mount {place}" for place in _mounts(folder)]
    left += [f"loop device {loop}" for loop in _loops(folder)]
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=False)
    left += [f"interface {line}" for line in links.stdout.splitlines() if f" {name}" in line]
    return left + ([f"folder {folder}"] if folder.exists() else [])


def kill(pids: set[int]) -> None:
    """SIGKILL; one that is gone already is no fault."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def remove_groups(prefix: str) -> None:
    """Remove the empty control groups of a name."""
    for group in _groups(prefix):
        with contextlib.suppress(OSError):
            group.rmdir()


def sweep(name: str, folder: Path) -> list[str]:
    """End and remove everything of a run; what would not go."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while leftovers(name, folder) and time.monotonic() < deadline:
        kill(_processes(name))
        for space in _namespaces(name):
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)
        for place in _mounts(folder):
            subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)
        remove_groups(name)
        if not _loops(folder):  # a disk in use is looked for by its name
            shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)
    return leftovers(name, folder)


class Lab:
    """A run. Use it as a context; hosts and networks are made through it."""

    def __init__(self) -> None:
        self.name = f"{PREFIX}{secrets.token_hex(2)}"
        self.folder = cache() / "runs" / self.name
        self.folder.mkdir(parents=True)
        self.at_close: list[Callable[[], object]] = []  # called when nothing runs any more
        self._reaper = subprocess.Popen(
            [sys.executable, "-m", "tests.onhost.lab", self.name, str(self.folder)],
            stdin=subprocess.PIPE, start_new_session=True, cwd=ROOT,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ended: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the run. Raises AssertionError if something of it is left."""
        assert self._reaper.stdin is not None
        self._reaper.stdin.close()
        self._reaper.wait()
        for call in self.at_close:
            call()
        left = leftovers(self.name, self.folder)
        assert not left, f"left behind: {left}"


def main() -> int:
    """The reaper: waits until its parent is gone, then sweeps."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def too_long(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(RUN_S_MAX)
    with contextlib.suppress(TimeoutError):
        sys.stdin.buffer.read()
    signal.alarm(0)
    left = sweep(name, folder)
    if NETNS.is_dir() and not any(NETNS.iterdir()):  # ip makes it a mount of its own
        subprocess.run(["umount", str(NETNS)], capture_output=True, check=False)
    if left:
        sys.stderr.write(f"on-host tests: could not remove {left}\n")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
