"""The whole state of a host, flat, so that two moments can be compared line by line.

What is left out is named in VOLATILE: it differs between two readings of one idle host, or it is a
cache or a log. Files below /etc are compared with their inode and their time too, because a file
that is written again with the same content was still touched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from tests.onhost.machine import Machine

VOLATILE = (
    *("/dev", "/proc", "/run", "/sys", "/tmp", "/var/tmp", "/.disk", "/.old", "/root/.cache"),
    *("/var/log", "/var/cache", "/var/lib/systemd", "/var/lib/apt", "/var/lib/chrony"),
    *("/var/lib/private", "/nix/var/nix/db", "/nix/var/nix/gc.lock", "/etc/.pwd.lock"),
    "/nix/var/nix/daemon-socket",
)
UNITS = (
    *("ssh.service", "chrony.service", "nix-daemon.socket", "nix-daemon.service"),
    *("systemd-journald.service", "unattended-upgrades.service"),
    *("apt-daily.timer", "apt-daily-upgrade.timer"),
)
# Runs inside the host, on its own Python: standard library only.
READER = r"""
import hashlib, json, os, shutil, stat, subprocess, sys
volatile, units = json.loads(sys.argv[1]), json.loads(sys.argv[2])
state = {}

def said(*command):
    if shutil.which(command[0]) is None:
        return []
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else []

for folder, folders, files in os.walk("/"):
    folders[:] = [f for f in folders if os.path.join(folder, f) not in volatile]
    for name in folders + files:
        path = os.path.join(folder, name)
        if path in volatile:
            continue
        seen = os.lstat(path)
        words = [stat.filemode(seen.st_mode), str(seen.st_uid), str(seen.st_gid)]
        if stat.S_ISLNK(seen.st_mode):
            words.append(os.readlink(path))
        elif stat.S_ISREG(seen.st_mode):
            with open(path, "rb") as handle:
                words.append(hashlib.file_digest(handle, "sha256").hexdigest())
            if path.startswith("/etc/"):
                words += [str(seen.st_mtime_ns), str(seen.st_ino)]
        state["file " + path] = " ".join(words)
for base in ("passwd", "group", "shadow", "gshadow"):
    for line in said("getent", base):
        state[f"{base} {line.split(':')[0]}"] = line
for line in said("systemctl", "list-unit-files", "--no-legend", "--plain"):
    state["unit file " + line.split()[0]] = line.split()[1]
for unit in units:
    shown = said("systemctl", "show", "--property=ActiveState,SubState,UnitFileState", unit)
    state["unit " + unit] = " ".join(shown)
for line in said("dpkg-query", "-W", "-f", "${Package}:${Architecture} ${Status} ${Version}\n"):
    state["package " + line.split()[0]] = line
for line in said("nix", "--extra-experimental-features", "nix-command", "config", "show"):
    state["nix " + line.split(" = ")[0]] = line
for user in ("root", "deploy", "admin"):
    for line in said("/usr/sbin/sshd", "-T", "-C", f"user={user},host=x,addr=203.0.113.7"):
        state[f"sshd {user} {line}"] = "yes"
for number, line in enumerate(said("apt-config", "dump")):
    state[f"apt {number}"] = line
state["host name"] = os.uname().nodename
json.dump(state, sys.stdout)
"""


def read(host: Machine) -> dict[str, str]:
    """The state of a booted host."""
    asked = host.run(
        *("python3", "-", json.dumps(VOLATILE), json.dumps(UNITS)), input=READER, timeout_s=300
    )
    state: dict[str, str] = json.loads(asked.stdout)
    return state


def differences(
    before: Mapping[str, str], after: Mapping[str, str], *, touched: bool = True
) -> list[str]:
    """What is not the same, one line each. Without `touched`, times and inodes do not count."""

    def seen(state: Mapping[str, str], name: str) -> str | None:
        line = state.get(name)
        if line is not None and name.startswith("file /etc/") and line[0] == "-" and not touched:
            return line.rsplit(" ", 2)[0]
        return line

    return [
        f"{name}: {seen(before, name)!r} became {seen(after, name)!r}"
        for name in sorted(before.keys() | after.keys())
        if seen(before, name) != seen(after, name)
    ]
