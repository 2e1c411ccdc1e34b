"""A release: the store path of every closure, and what it was made of.

Purpose: `manifest.json` of `nix build .#release` (nix/release.nix), read and checked; which of its
closures a host runs, under which profile, and which units stand on each.

Does not do: building or signing (build), hosts (fleet).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.errors import PlanError

FORMAT: Final = 2
STORE_PATH: Final = re.compile(r"/nix/store/[0-9a-z]{32}-[0-9A-Za-z+._?=-]{1,200}")
PROFILES: Final = "/nix/var/nix/profiles"
CLOSURES: Final = ("gatherer", "deduplicator", "cloudwatch", "postgres")

# What a role runs, in the order in which a host takes it. The databases' closure goes only where
# it is asked for, or where there is none yet.
SERVICES: Final[Mapping[str, tuple[str, ...]]] = {
    "gatherer": ("gatherer", "cloudwatch"),
    "deduplicator": ("deduplicator", "cloudwatch"),
}
DATABASES: Final = "postgres"
# The units whose running programs a closure holds; the first is the one that records or merges.
UNITS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("gatherer", "gatherer"): ("kalshi-gatherer.service",),
    ("gatherer", "cloudwatch"): ("kalshi-cloudwatch.service",),
    ("gatherer", "postgres"): ("kalshi-timescaledb.service", "kalshi-postgres.service"),
    ("deduplicator", "deduplicator"): ("kalshi-deduplicator.service",),
    ("deduplicator", "cloudwatch"): ("kalshi-cloudwatch.service",),
    ("deduplicator", "postgres"): (),  # pg_dump for the nightly backup: nothing of it runs
}


def profile(closure: str) -> str:
    """Where a host's units look for a closure."""
    return f"{PROFILES}/kalshi-{closure}"


@dataclass(frozen=True, slots=True)
class Release:
    """`closures`: store path by name; `topology`: SHA-256 of the topology.toml in the units."""

    version: str
    system: str
    revision: str
    topology: str
    closures: Mapping[str, str]

    def paths(self, role: str, *, databases: bool) -> dict[str, str]:
        """Store path by closure for a host of this role, in the order in which it takes them."""
        names = (*SERVICES[role], *((DATABASES,) if databases else ()))
        return {name: self.closures[name] for name in names}

    def as_json(self) -> dict[str, Any]:
        """As `manifest.json` has it."""
        return {
            "format": FORMAT,
            "version": self.version,
            "system": self.system,
            "revision": self.revision,
            "topology": self.topology,
            "closures": dict(self.closures),
        }


def parse(text: str | bytes, whence: str) -> Release:
    """A manifest's text. Raises PlanError with every fault; `whence` names the file in it."""
    try:
        found = json.loads(text)
    except ValueError as e:
        raise PlanError(f"{whence} is not JSON: {e}", hint="nix build .#release makes it") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        form = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise PlanError(
            f"{whence} has format {form}, this program reads {FORMAT}",
            hint="build the release with the checkout that deploys it",
        )
    faults = [
        f"{key} is {found.get(key)!r}"
        for key in ("version", "system", "revision", "topology")
        if not isinstance(found.get(key), str) or not found[key]
    ]
    given = found.get("closures")
    closures: dict[str, Any] = given if isinstance(given, dict) else {}
    for name in CLOSURES:
        path = closures.get(name)
        if not isinstance(path, str) or not STORE_PATH.fullmatch(path):
            faults.append(f"closure {name} is {path!r}, not a store path")
    if faults:
        raise PlanError(f"{whence}: {'; '.join(faults)}", hint="nix build .#release makes it")
    return Release(
        found["version"], found["system"], found["revision"], found["topology"], dict(closures)
    )


def load(path: Path) -> Release:
    """The release of a file, or of a directory with a `manifest.json`. Raises PlanError."""
    file = path / "manifest.json" if path.is_dir() else path
    try:
        return parse(file.read_bytes(), str(file))
    except OSError as e:
        raise PlanError(
            f"no release at {path}: {e.strerror}", hint="tape deploy release builds one"
        ) from None
