"""Nix for the tests: Debian's nix-bin, an own store in a folder, the stand-in in place of nixpkgs.

Nothing here touches /nix of the machine, and nothing is fetched inside a build: wheels and Debian
packages are put into the store by hash beforehand.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from nix import wheels
from tests.rules.tree import ROOT, tracked

STANDIN = ROOT / "tests" / "nix" / "standin"
FEATURES = ("--extra-experimental-features", "nix-command flakes")
SUITE = "trixie"  # its Python is the closures' minor version
# Output of the stand-in -> the Debian packages that it is unpacked from.
DEBS = {
    "glibc": ("libc6",),
    "gcc-lib": ("libstdc++6", "libgcc-s1"),
    "zlib": ("zlib1g",),
    "python313": (
        *("python3.13-minimal", "libpython3.13-minimal", "libpython3.13-stdlib", "libssl3t64"),
        *("libexpat1", "libffi8", "libbz2-1.0", "liblzma5", "libsqlite3-0", "libuuid1", "libzstd1"),
        *("libreadline8t64", "libncursesw6", "libtinfo6", "libdb5.3t64", "zlib1g", "tzdata"),
    ),
    "shell": ("busybox-static",),
}
FLAKE_PARTS = {
    "flake.nix",
    "flake.lock",
    "nix",
    "pyproject.toml",
    "python",
    "systemd",
    "topology.toml",
}
MACHINE = f"{os.uname().machine}-linux"


def run(
    *command: str | Path, check: bool = True, **options: Any
) -> subprocess.CompletedProcess[str]:
    """A command with its output as text; what it said is in the failure."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )
    if check and done.returncode != 0:
        pytest.fail(f"{command[0]} ended with {done.returncode}: {done.stderr[-4000:]}")
    return done


def require(program: str, package: str) -> None:
    """A host tool, installed if this is root. Never a skip: an unchecked closure is no closure."""
    if shutil.which(program) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        subprocess.run(["apt-get", "install", "-y", "-qq", package], check=False)
    if shutil.which(program) is None:
        pytest.fail(f"{program} is needed\nhint: apt-get install {package}, or run as root")


class Nix:
    """A flake in a folder, a package set in place of nixpkgs, and a store in a folder."""

    def __init__(self, store: Path, flake: Path, packages: Path = STANDIN) -> None:
        require("nix", "nix-bin")
        self.store = store
        self.source = flake
        self.flake = f"path:{flake}"
        self.packages = packages

    def __call__(
        self, *arguments: str | Path, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """`nix ...` on the flake, without network and without touching flake.lock."""
        options = ("--offline", "--no-write-lock-file", "--option", "build-users-group", "")
        override = ("--override-input", "nixpkgs", f"path:{self.packages}")
        return run(
            *("nix", *FEATURES, *arguments, "--store", self.store, *options, *override),
            check=check,
            env={**os.environ, "XDG_CACHE_HOME": str(self.store / "cache")},
        )

    def evaluate(self, attribute: str, *options: str) -> str:
        """The text of one attribute of the flake."""
        return self("eval", "--raw", f"{self.flake}#{attribute}", *options).stdout

    def names(self, attribute: str) -> list[str]:
        """The attribute names below one attribute."""
        apply = 'set: builtins.concatStringsSep " " (builtins.attrNames set)'
        return self.evaluate(attribute, "--apply", apply).split()

    def query(self, *arguments: str | Path) -> list[str]:
        """`nix-store --query ...`, one answer a line."""
        return run("nix-store", "--store", self.store, "--query", *arguments).stdout.split()

    def add(self, files: Iterable[Path]) -> None:
        """Put files into the store by their SHA-256."""
        for file in files:
            run("nix-store", "--store", self.store, "--add-fixed", "sha256", file)

    def build(self, *attributes: str) -> list[str]:
        """Build in a sandbox that shows the host's tools; the store paths."""
        sandbox = (
            "--option",
            "sandbox",
            "true",
            "--option",
            "sandbox-paths",
            "/bin /usr /lib /lib64",
        )
        self(
            *("build", "--no-link", "--max-jobs", "1", *sandbox),
            *(f"{self.flake}#{attribute}" for attribute in attributes),
        )
        # Nix 2.8 answers in an order of its own, so each path is asked for by name.
        return [self.evaluate(f"{attribute}.outPath") for attribute in attributes]

    def real(self, path: str) -> Path:
        """Where a store path lies on this machine."""
        return self.store / path.lstrip("/")


def snapshot(folder: Path) -> Path:
    """What the flake reads, copied: a test may change it, and nobody changes it under a test."""
    for path in tracked(ROOT):
        name = path.relative_to(ROOT)
        if name.parts[0] in FLAKE_PARTS:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return folder


def locked_wheels(folder: Path, system: str = MACHINE) -> list[Path]:
    """The wheel files of wheels.json, fetched by pip and checked against their hashes."""
    lock = json.loads((ROOT / "nix" / "wheels.json").read_text(encoding="utf-8"))
    wanted = {
        wheel["sha256"]: wheel
        for service in lock["services"].values()
        for wheel in service["wheels"][system]
    }
    folder.mkdir(parents=True, exist_ok=True)
    requirements = folder / "requirements.txt"
    requirements.write_text(
        "".join(f"{w['name']}=={w['version']} --hash=sha256:{h}\n" for h, w in wanted.items())
    )
    abis = [part for abi in ("cp313", "abi3", "none") for part in ("--abi", abi)]
    places = [part for name in wheels.platforms(system) for part in ("--platform", name)]
    run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
        *("--only-binary", ":all:", "--implementation", "cp", "--python-version", lock["python"]),
        *(*abis, *places, "--requirement", str(requirements), "--dest", str(folder)),
    )
    files = sorted(folder.glob("*.whl"))
    assert {hashlib.sha256(file.read_bytes()).hexdigest() for file in files} == set(wanted)
    return files


def debian_site() -> str:
    """The Debian archive that this machine uses."""
    listed = run("apt-get", "indextargets", "--format", "$(ORIGIN) $(SITE)").stdout
    sites = [line.split()[1] for line in listed.splitlines() if line.startswith("Debian ")]
    if not sites:
        pytest.fail("no Debian archive is set up for apt\nhint: these tests run on Debian")
    return sites[0]


def fetch_debs(folder: Path) -> list[Path]:
    """The Debian packages of DEBS, signature checked by apt, without installing any."""
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    sources = folder / "sources.list"
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    sources.write_text(f"deb [signed-by={keyring}] {debian_site()} {SUITE} main\n")
    settings: dict[str, str | Path] = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State": folder,
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "APT::Sandbox::User": "root",
    }
    options: list[str] = [part for k, v in settings.items() for part in ("-o", f"{k}={v}")]
    names = sorted({name for group in DEBS.values() for name in group})
    run("apt-get", *options, "update", "-qq")
    run(
        *("apt-get", *options, "install", "-y", "-qq", "--download-only"),
        *("--no-install-recommends", *names),
    )
    return sorted((folder / "archives").glob("*.deb"))


def full_standin(folder: Path) -> tuple[Path, list[Path]]:
    """A copy of the stand-in that can build, and the files that its store must hold."""
    require("patchelf", "patchelf")
    files = {}
    for deb in fetch_debs(folder / "apt"):
        # The store allows fewer characters in a name than Debian does.
        file = deb.rename(deb.with_name(re.sub(r"[^A-Za-z0-9+._=-]", "-", deb.name)))
        files[file.name.split("_")[0]] = file
    listed = {
        group: [
            {
                "file": files[name].name,
                "sha256": hashlib.sha256(files[name].read_bytes()).hexdigest(),
            }
            for name in names
        ]
        for group, names in DEBS.items()
    }
    packages = folder / "standin"
    shutil.copytree(STANDIN, packages)
    (packages / "debs.json").write_text(json.dumps(listed, indent=2))
    return packages, list(files.values())
