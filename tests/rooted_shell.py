"""A `deploy.shell.Shell` whose host is a folder: the scripts run in a real /bin/sh, below a root.

Absolute paths of the scripts lead into the folder. systemctl, nix, nix-env and the systemd tools
are small stand-ins on PATH: they keep a unit's process as a folder of /proc and write down what
they were told (`calls`). What the real ones do is seen on booted hosts (tests/onhost).
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deploy.shell import Answer

ROOTED: Final = re.compile(r"(?<![\w./-])/(?:etc/|proc/|run/|nix(?:/|\b)|var/lib)")
SYSTEMCTL: Final = r"""#!/bin/sh
echo "systemctl $*" >> "$ROOT/calls"
pid_of() { cat "$ROOT/units/$1" 2>/dev/null || echo 0; }
case $1 in
    show)
        for unit in "$@"; do :; done
        case "$*" in
            *--value*) pid_of "$unit" ;;
            *) printf 'ActiveState=active\nMainPID=%s\nNRestarts=0\nInvocationID=i%s\n' \
                "$(pid_of "$unit")" "$(pid_of "$unit")" ;;
        esac ;;
    restart)
        for unit in "$@"; do :; done
        name=${unit%.service}
        pid=$(($(pid_of "$unit") + 100))
        echo "$pid" > "$ROOT/units/$unit"
        mkdir -p "$ROOT/proc/$pid"
        printf '%s/bin/python3\0-sP\0x\0' "$(readlink -f "$ROOT/nix/var/nix/profiles/$name")" \
            > "$ROOT/proc/$pid/cmdline" ;;
esac
"""
NIX: Final = r"""#!/bin/sh
echo "nix $*" >> "$ROOT/calls"
for path in "$@"; do :; done
[ -e "$path/signed" ] || { echo "path '$path' is untrusted" >&2; exit 2; }
"""
NIX_ENV: Final = r"""#!/bin/sh
echo "nix-env $*" >> "$ROOT/calls"
[ "$3" != --set ] || { mkdir -p "$(dirname "$2")"; ln -sfn "$4" "$2"; }
"""
QUIET: Final = '#!/bin/sh\necho "$(basename "$0") $*" >> "$ROOT/calls"\n'


class RootedShell:
    """One host; every name reaches it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("bin", "units", "etc/kalshi", "proc", "nix/store", "var/lib"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        programs = {"systemctl": SYSTEMCTL, "nix": NIX, "nix-env": NIX_ENV}
        quiet = ("systemd-sysusers", "systemd-tmpfiles", "nix-store", "curl", "journalctl", "pkill")
        for name, text in (programs | dict.fromkeys(quiet, QUIET)).items():
            (root / "bin" / name).write_text(text)
            (root / "bin" / name).chmod(stat.S_IRWXU)

    def path(self, text: str) -> str:
        """An absolute path of the host, as the folder has it; other text as it is."""
        return ROOTED.sub(lambda found: f"{self.root}{found.group()}", text)

    @property
    def calls(self) -> list[str]:
        """What the stand-ins were told."""
        file = self.root / "calls"
        return file.read_text().splitlines() if file.exists() else []

    async def run(
        self, host: str, script: str, *, stdin: bytes = b"", timeout_s: float = 60.0
    ) -> Answer:
        """As Shell.run."""
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-euc", self.path(script),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": f"{self.root}/bin:{os.environ['PATH']}", "ROOT": str(self.root)},
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(stdin), timeout_s)
        assert process.returncode is not None
        return Answer(process.returncode, out.decode(), err.decode())

    async def copy(self, host: str, paths: Sequence[str], *, timeout_s: float = 60.0) -> Answer:
        """As Shell.copy, of paths that begin with the root already."""
        return Answer(0, "", "")
