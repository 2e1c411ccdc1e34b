"""A test host: Debian 13 with its own systemd, on a disk of its own, in namespaces.

Boot, run commands inside, switch off, cut the power, boot again. The disk is a file with ext4 that
only the host mounts: `power_cut` stops that file system without a flush, so what was not synced is
lost as it would be, and then kills everything at once.

Limits are enforced through control groups below the group of the process that boots the host: of
version 1 where they have the memory controller, else of version 2 (see docs/onhost.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.onhost.image import run
from tests.onhost.lab import Hierarchy, Lab, hierarchies, remove_groups

INIT = Path(__file__).with_name("init.sh")
BOOT_S = 120.0
POWEROFF_S = 120.0
GONE_S = 60.0
COMMAND_S = 120.0
EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NO_LOG_FLUSH = 2  # nothing more reaches the disk, the journal included
# The real machine's clock is out of reach, for commands that come from outside as well.
NO_CLOCK = ("setpriv", "--bounding-set=-sys_time", "--inh-caps=-sys_time")
JOIN = """
set -eu
for group in $GROUPS_OF_HOST; do echo $$ > "$group/cgroup.procs"; done
exec "$@"
"""


class MachineError(Exception):
    """A host did not do what was asked; says what its log said last."""


class Machine:
    """One host of a lab. Made switched off; `boot` it."""

    def __init__(
        self,
        lab: Lab,
        name: str,
        tree: Path,
        *,
        layers: Sequence[Path] = (),
        namespace: str | None = None,
        disk_mib: int = 4096,
    ) -> None:
        """`tree`: image(). `layers`: folders laid over it, topmost first (a Nix store, say).
        `namespace`: a network namespace to live in; without one the host has only its loopback."""
        self.lab, self.name, self.tree, self.namespace = lab, name, tree, namespace
        self.layers = tuple(layers)
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self.folder = lab.folder / name
        self.seed = self.folder / "seed"  # files of `write` before the first boot
        self.seed.mkdir(parents=True)
        self.seed.chmod(0o755)
        (self.folder / "root").mkdir()
        self.write("/etc/hostname", f"{name}\n")
        self.write("/etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
        self.disk = self.folder / "disk"
        with self.disk.open("wb") as disk:
            disk.truncate(disk_mib << 20)
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard", self.disk)
        lab.at_close.append(self._collect)

    # ---- power

    def boot(self, timeout_s: float = BOOT_S) -> None:
        """Switch on and wait until systemd says `running`. Raises MachineError with the units that
        failed, and leaves the host on for whoever wants to look."""
        self.power_on()
        state = self.wait(
            lambda: self._state() in ("running", "degraded"), timeout_s, "systemd to be running"
        )
        assert state
        if self._state() != "running":
            failed = self.run("systemctl", "--failed", "--no-legend", "--plain", check=False)
            raise MachineError(f"{self.name}: units failed at boot: {failed.stdout}")

    def power_on(self) -> None:
        """Start the host's process 1; `boot` without the waiting."""
        assert self._process is None, f"{self.name} is on"
        found = hierarchies()
        if not any(h.options == "memory" for h in found):
            self._share_out(found)
        groups = []
        for hierarchy in found:
            group = hierarchy.own / f"{self.lab.name}-{self.name}"
            group.mkdir()
            for setting in ("cpuset.cpus", "cpuset.mems"):
                if (group / setting).exists():
                    (group / setting).write_text((group.parent / setting).read_text())
            groups.append(str(group))
        enter = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        own_network = [] if self.namespace else ["--net"]
        with (self.folder / "console").open("ab") as console:
            self._process = subprocess.Popen(
                [
                    *("/bin/sh", "-c", JOIN, "join", *enter),
                    *("unshare", "--mount", "--uts", "--ipc", "--pid", "--cgroup", *own_network),
                    *("--fork", "--kill-child", "--propagation", "private"),
                    *("/bin/sh", str(INIT)),
                ],
                env={
                    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                    "GROUPS_OF_HOST": " ".join(groups),
                    "NAME": self.name,
                    "ROOT": str(self.folder / "root"),
                    "DISK": str(self.disk),
                    "LOWER": ":".join(map(str, (self.seed, *self.layers, self.tree))),
                    "CGROUPS": " ".join(h.options for h in found if h.options),
                },
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,  # Ctrl-C is for the tests, not for the hosts
            )
        self.wait(self._find_init, GONE_S, "its process 1 to be systemd")

    @staticmethod
    def _share_out(found: Sequence[Hierarchy]) -> None:
        """Unified hierarchy only: hand controllers to the groups below its root."""
        root = next((h.own for h in found if not h.options), None)
        has = (root / "cgroup.controllers").read_text().split() if root else []
        if root is None or "memory" not in has:
            raise MachineError(
                "no control group hierarchy of this machine has the memory controller: limits"
                f" would be accepted and not enforced (found {found})"
            )
        for controller in {"cpu", "io", "memory", "pids"} & set(has):
            (root / "cgroup.subtree_control").write_text(f"+{controller}")

    def power_off(self) -> None:
        """An orderly shutdown."""
        if self.is_on:
            self.run("systemctl", "poweroff", "--no-block", check=False)
            self._wait_off(POWEROFF_S)

    def power_cut(self) -> None:
        """Everything stops at once; what was not synced to the disk is lost."""
        if not self.is_on:
            return
        disk = os.open(self.path("/.disk"), os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(disk, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(disk)
        self.kill()

    def kill(self) -> None:
        """End every process of the host at once; its disk keeps what was written."""
        if self._process is not None:
            self._process.kill()  # --kill-child ends process 1, and with it everything
            self._wait_off(GONE_S)

    @property
    def is_on(self) -> bool:
        """Is its process 1 running?"""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The host's process 1, as this machine numbers it."""
        return self._pid

    def _find_init(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise MachineError(f"{self.name} did not start: {self.console()}")
        outer = self._process.pid
        with contextlib.suppress(OSError, ValueError):
            children = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
            self._pid = int(children[0]) if children else 0
            return bool(children) and Path(f"/proc/{self._pid}/comm").read_text() == "systemd\n"
        return False

    def _collect(self) -> None:
        """The lab has ended the host: take note of it."""
        if self._process is not None:
            self._process.wait(GONE_S)
            self._process, self._pid = None, 0

    def _wait_off(self, timeout_s: float) -> None:
        assert self._process is not None
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise MachineError(f"{self.name} is still on after {timeout_s:.0f} s") from None
        name = f"{self.lab.name}-{self.name}"
        self._process, self._pid = None, 0
        deadline = time.monotonic() + GONE_S
        while any((h.own / name).exists() for h in hierarchies()):
            remove_groups(name)
            if time.monotonic() > deadline:
                raise MachineError(f"{self.name}: control groups would not go")
            time.sleep(0.05)

    # ---- inside

    def command(self, *words: str) -> list[str]:
        """The command line that runs a command inside the host, as its root."""
        assert self._pid, f"{self.name} is off"
        target = ("nsenter", f"--target={self._pid}", "--mount", "--uts", "--ipc", "--net", "--pid")
        return [*NO_CLOCK, *target, "--cgroup", "--root", "--wd", "--", *words]

    def run(
        self,
        *words: str,
        check: bool = True,
        input: str | None = None,  # noqa: A002 - as in subprocess
        timeout_s: float = COMMAND_S,
    ) -> subprocess.CompletedProcess[str]:
        """A command inside the host. Raises MachineError if it fails, unless `check` is False."""
        done = subprocess.run(
            self.command(*words),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"},
            capture_output=True, text=True, check=False, timeout=timeout_s,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise MachineError(
                f"{self.name}: {' '.join(words)} ended with {done.returncode}:"
                f" {(done.stderr or done.stdout)[-3000:]}"
            )
        return done

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """A file of the host's root, before or after it is booted the first time."""
        base = self.path("/") if self.is_on else self.seed
        target = base / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        target.chmod(mode)

    def path(self, path: str) -> Path:
        """Where a file of the running host can be read from outside."""
        assert self._pid, f"{self.name} is off"
        return Path("/proc", str(self._pid), "root", path.lstrip("/"))

    def wait(self, true: Callable[[], bool], timeout_s: float, what: str) -> bool:
        """Until something is true. Raises MachineError that says what was waited for."""
        deadline = time.monotonic() + timeout_s
        while not true():
            if time.monotonic() > deadline:
                said = self.console()
                raise MachineError(f"{self.name}: waited {timeout_s:.0f} s for {what}: {said}")
            time.sleep(0.1)
        return True

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit, as systemd says them."""
        asked = self.run("systemctl", "show", unit, *(f"--property={name}" for name in properties))
        return dict(line.split("=", 1) for line in asked.stdout.splitlines())

    def journal(self, unit: str, *options: str) -> str:
        """What a unit said since boot."""
        return self.run(
            "journalctl", "--no-pager", "--boot", "--output=cat", f"--unit={unit}", *options
        ).stdout

    def console(self) -> str:
        """The end of what was said before and without a journal."""
        with contextlib.suppress(OSError):
            return (self.folder / "console").read_text(errors="replace")[-2000:]
        return ""

    def _state(self) -> str:
        if not self.is_on:
            raise MachineError(f"{self.name} went off while it booted: {self.console()}")
        return self.run("systemctl", "is-system-running", check=False).stdout.strip()
