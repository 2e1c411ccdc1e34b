"""Building and signing a release, and deploying the infrastructure: the commands, and running them.

What is signed is what hosts take; a path that was built here bears no signature of itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from deploy.campaign import RELEASES
from deploy.errors import DeployError, PlanError
from deploy.release import CLOSURES, Release, load

NIX: Final = ("nix", "--extra-experimental-features", "nix-command flakes")
HOSTS_SYSTEM: Final = "aarch64-linux"
UNCOMMITTED: Final = "uncommitted"  # flake.nix


def build_command(checkout: Path, system: str, link: Path) -> list[str]:
    """`link` becomes a link to the release, which also keeps it from being collected."""
    attribute = f"{checkout}#packages.{system}.release"
    return [*NIX, "build", attribute, "--out-link", str(link), "--print-build-logs"]


def sign_command(release: Release, key: Path) -> list[str]:
    """Signs the closures that hosts take, with all they need."""
    paths = [release.closures[name] for name in CLOSURES]
    return [*NIX, "store", "sign", "--recursive", "--key-file", str(key), *paths]


def infra_command(hosts: Sequence[str]) -> list[str]:
    """The change guard, then `cdk deploy --all --outputs-file` (cdk/cdk.mk)."""
    if len(hosts) > 1:
        raise PlanError(
            "the infrastructure of several hosts was asked for",
            hint="the change guard lets one host be disturbed at a time: one --host",
        )
    return ["make", "aws-deploy", *(f"HOST={host}" for host in hosts)]


def call(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Run a command with the caller's terminal. Raises DeployError with its exit code."""
    if shutil.which(command[0]) is None:
        raise PlanError(f"{command[0]} is not installed here", hint="docs/deploy.md, what you need")
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **(environment or {})}, check=False
    )
    if done.returncode != 0:
        raise DeployError(f"{' '.join(command[:4])} ... ended with {done.returncode}")


def build(checkout: Path, state: Path, system: str, key: Path) -> Release:
    """Build and sign the release of a checkout; its manifest is kept below `state`.

    Raises:
        PlanError: the key cannot be read, nix is not there, or the release is none.
        DeployError: a command failed.
    """
    if not os.access(key, os.R_OK):
        raise PlanError(
            f"the signing key {key} cannot be read",
            hint="nix key generate-secret makes one; hosts trust its public half (cdk/site.toml)",
        )
    (state / RELEASES).mkdir(parents=True, exist_ok=True)
    link = state / RELEASES / "result"
    call(build_command(checkout, system, link), checkout)
    release = load(link)
    if release.revision == UNCOMMITTED:
        raise PlanError(
            "the checkout has changes that are not committed: the release has no name",
            hint="commit them; what runs on hosts must be found again",
        )
    call(sign_command(release, key), checkout)
    home = state / RELEASES / release.revision
    home.mkdir(exist_ok=True)
    # A link that is moved protects nothing from being collected: this makes another.
    call([*NIX, "build", str(link.readlink()), "--out-link", str(home / "result")], checkout)
    shutil.copyfile(home / "result" / "manifest.json", home / "manifest.json")
    latest = state / RELEASES / "latest.new"
    latest.unlink(missing_ok=True)
    latest.symlink_to(release.revision)
    latest.replace(state / RELEASES / "latest")
    return release
