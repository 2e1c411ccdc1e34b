"""The rendered units as tests read them: what nix/units.nix says, parsed, and the systemd tools."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

from tests.rules.tree import ROOT

SYSTEMD: Final = ROOT / "systemd"
SHARE: Final = "/nix/var/nix/profiles/kalshi-postgres/share/kalshi/"
HOST_UNITS: Final = Path("/lib/systemd/system")  # targets that ours refer to
RENDER: Final = ("nix-instantiate", "--eval", "--strict", "--json", "--readonly-mode")

Unit = dict[str, list[tuple[str, str]]]


def install(package: str) -> None:
    """Install a Debian package, if this is Debian; the caller sees whether it is there."""
    if shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", package]):
            subprocess.run(command, check=False, capture_output=True, env=environment, timeout=240)


def need(tool: str, package: str) -> None:
    """Have a tool: root installs its Debian package; nobody skips quietly."""
    if shutil.which(tool) is None and os.geteuid() == 0:
        install(package)
    if shutil.which(tool) is None:
        pytest.fail(f"{tool} is not here; as root: apt-get install {package}")


def render(expression: Path = ROOT / "nix" / "units.nix") -> dict[str, str]:
    """File name -> text, evaluated by Nix."""
    need("nix-instantiate", "nix-bin")
    done = subprocess.run([*RENDER, str(expression)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rendered: dict[str, str] = json.loads(done.stdout)
    return rendered


def topology() -> dict[str, Any]:
    """topology.toml."""
    return tomllib.loads((ROOT / "topology.toml").read_text(encoding="utf-8"))


def text(name: str) -> str:
    """A file of systemd/."""
    return (SYSTEMD / name).read_text(encoding="utf-8")


def names(pattern: str = "*.service") -> list[str]:
    """Names of the files in systemd/ that match."""
    return sorted(path.name for path in SYSTEMD.glob(pattern))


def parse(body: str) -> Unit:
    """Section -> its settings in order; comments left out."""
    unit: Unit = {}
    section = ""
    for line in body.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
            unit.setdefault(section, [])
        elif line and not line.startswith("#"):
            key, separator, value = line.partition("=")
            assert separator, f"no setting: {line}"
            unit[section].append((key, value))
    return unit


def values(unit: Unit, section: str, key: str) -> list[str]:
    """Every value of a setting."""
    return [value for name, value in unit.get(section, []) if name == key]


def value(unit: Unit, section: str, key: str) -> str:
    """The one value of a setting."""
    (found,) = values(unit, section, key)
    return found


def specified(word: str, unit_name: str, *, host: str = "gatherer-1") -> str:
    """A value with systemd's specifiers replaced, as on a host of that name."""
    known = {
        "S": "/var/lib",
        "t": "/run",
        "d": f"/run/credentials/{unit_name}",
        "l": host,
        "%": "%",
    }
    return re.sub(r"%(.)", lambda found: known[found[1]], word)


def environment(body: str, unit_name: str) -> dict[str, str]:
    """What a unit sets by Environment=."""
    words = [
        word for line in values(parse(body), "Service", "Environment") for word in shlex.split(line)
    ]
    pairs = [specified(word, unit_name).partition("=") for word in words]
    return {name: content for name, _, content in pairs}


def example(name: str) -> dict[str, str]:
    """An environment file, read as systemd reads it."""
    lines = [line for line in text(name).splitlines() if line and not line.startswith("#")]
    pairs = [line.partition("=") for line in lines]
    return {key: content.strip("'") for key, _, content in pairs}


def programs(body: str) -> list[str]:
    """The executables that a unit starts."""
    return [
        content.split()[0]
        for key, content in parse(body).get("Service", [])
        if key.startswith("Exec")
    ]


def root_tree(root: Path, units: dict[str, str]) -> Path:
    """A file system root for `systemd-analyze verify`: our units, the host's, empty programs."""
    need("systemd-analyze", "systemd")
    shutil.copytree(HOST_UNITS, root / "usr/lib/systemd/system", symlinks=True)
    (root / "lib").symlink_to("usr/lib")
    ours = root / "etc/systemd/system"
    ours.mkdir(parents=True)
    for name, body in units.items():
        (ours / name).write_text(body)
        for program in programs(body):
            path = root / program.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("#!/bin/sh\n")
            path.chmod(0o755)
    return ours


def verify(root: Path, ours: Path) -> str:
    """What `systemd-analyze verify` has to say; empty when all is well.

    Its exit code is 0 for a setting it does not know, so the words count.
    """
    files = sorted(map(str, ours.iterdir()))
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--root={root}", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    return said or ("" if done.returncode == 0 else f"exit code {done.returncode}")


def exposure(directory: Path, name: str, body: str) -> tuple[float, set[str]]:
    """The overall exposure, and the checks that a unit does not pass."""
    need("systemd-analyze", "systemd")
    path = directory / name
    path.write_text(body)
    command = ["systemd-analyze", "security", "--offline=yes"]
    told = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told.stdout)
    assert found is not None, told.stdout + told.stderr
    listed = subprocess.run(
        [*command, "--json=short", str(path)], capture_output=True, text=True, check=False
    )
    failed = {check["json_field"] for check in json.loads(listed.stdout) if check["exposure"]}
    return float(found[1]), failed
