"""A root directory that holds a Nix store, one static shell and nothing else; no network but lo.

What runs in it proves that its closure is whole: there is no other Python, no C library and no
/usr that it could have leaned on.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.nix.host import require, run

# The shell is for initdb, which starts the server through one; hosts have theirs.
ENTER = """
set -eu
mount --make-rprivate /
mount --bind "$STORE" "$ROOT/nix/store"
mount -o remount,bind,ro "$ROOT/nix/store"
mount -t proc proc "$ROOT/proc"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/dev/shm"
for device in null zero urandom random; do
  : > "$ROOT/dev/$device"
  mount --bind "/dev/$device" "$ROOT/dev/$device"
done
ip link set lo up
exec env -i PATH=/bin HOME=/tmp LC_ALL=C.UTF-8 "$@"
"""


class BareRoot:
    """Made in a folder; each command runs in namespaces of its own and leaves nothing running."""

    def __init__(self, folder: Path, store: Path, shell_deb: Path) -> None:
        for program, package in (("unshare", "util-linux"), ("ip", "iproute2")):
            require(program, package)
        self.root = folder / "root"
        self.store = store / "nix" / "store"
        for name in ("nix/store", "proc", "dev/shm", "tmp", "etc", "bin"):
            (self.root / name).mkdir(parents=True)
        (self.root / "tmp").chmod(0o1777)
        (self.root / "etc" / "passwd").write_text(
            "root:x:0:0::/tmp:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/sh\n"
        )
        (self.root / "etc" / "group").write_text("root:x:0:\nnogroup:x:65534:\n")
        (self.root / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
        run("dpkg-deb", "-x", shell_deb, folder / "shell")
        shutil.copy(folder / "shell" / "usr" / "bin" / "busybox", self.root / "bin" / "sh")

    def run(
        self, *command: str, environment: dict[str, str] | None = None, timeout_s: float = 300.0
    ) -> subprocess.CompletedProcess[str]:
        """One command in the root; whatever it started is killed with it."""
        settings = [f"{name}={value}" for name, value in (environment or {}).items()]
        chroot = shutil.which("chroot") or "/usr/sbin/chroot"
        return subprocess.run(
            [
                *("unshare", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork"),
                *("--kill-child", "/bin/sh", "-c", ENTER, "enter"),
                *(*settings, chroot, str(self.root), *command),
            ],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "ROOT": str(self.root),
                "STORE": str(self.store),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
