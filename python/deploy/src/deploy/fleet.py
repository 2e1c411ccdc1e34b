"""The hosts: what topology.toml says of them, what `cdk deploy` made of it, and where they are.

Does not do: asking AWS for public addresses (addresses), reaching hosts (shell).
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from deploy.errors import PlanError

# The consumer first: a newer reader understands older rows. Then gatherers, the first as canary.
ROLES: Final = ("deduplicator", "gatherer")
GATHERERS_MIN: Final = 2  # so many always record; with fewer a rollout would be a gap


@dataclass(frozen=True, slots=True)
class Host:
    """One host. `address`: where it is reached, "" where nobody said; `instance`: of EC2."""

    name: str
    role: str
    private_address: str
    address: str = ""
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Fleet:
    """All hosts in the order in which they take a release; `topology`: the file's SHA-256."""

    hosts: tuple[Host, ...]
    topology: str
    region: str

    def host(self, name: str) -> Host:
        """The host of a name. Raises PlanError with the names there are."""
        for host in self.hosts:
            if host.name == name:
                return host
        names = ", ".join(host.name for host in self.hosts)
        raise PlanError(f"no host is called {name}", hint=f"there are {names}")

    def of(self, role: str) -> tuple[Host, ...]:
        """The hosts of a role."""
        return tuple(host for host in self.hosts if host.role == role)

    @property
    def addresses(self) -> dict[str, str]:
        """Where each host is reached. Raises PlanError where nobody said."""
        without = [host.name for host in self.hosts if not host.address]
        if without:
            raise PlanError(
                f"no address of {', '.join(without)} is known",
                hint="give --addresses FILE, or --private to use those of topology.toml",
            )
        return {host.name: host.address for host in self.hosts}


def _order(host: Host) -> tuple[int, str]:
    return ROLES.index(host.role), host.name


def from_topology(path: Path, names: Sequence[str] = ()) -> Fleet:
    """The hosts of topology.toml, or those of these names (a small profile has fewer)."""
    try:
        raw = path.read_bytes()
        found = tomllib.loads(raw.decode())
        hosts = [Host(h["name"], h["role"], h["address"]) for h in found["host"]]
        region = str(found["region"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise PlanError(f"{path} cannot be used: {e!r}", hint="run this in a checkout") from None
    chosen = [host for host in hosts if not names or host.name in names]
    if strange := sorted({host.role for host in chosen} - set(ROLES)):
        raise PlanError(f"{path} has hosts of the unknown role {', '.join(strange)}")
    digest = hashlib.sha256(raw).hexdigest()
    return Fleet(tuple(sorted(chosen, key=_order)), digest, region)


def stack_of(host: str) -> str:
    """`gatherer-1` is in the stack `KalshiGatherer1` (cdk/kalshi_infra/names.py)."""
    return "Kalshi" + "".join(part.capitalize() for part in host.split("-"))


def with_outputs(fleet: Fleet, path: Path) -> Fleet:
    """The hosts that an outputs file of `cdk deploy` tells of, with their instances.

    Raises PlanError where it has none of them, or one at another address than topology.toml.
    """
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as e:
        raise PlanError(
            f"{path} cannot be read: {e}", hint="cdk deploy --all --outputs-file writes it"
        ) from None
    made = []
    for host in fleet.hosts:
        outputs = found.get(stack_of(host.name)) if isinstance(found, dict) else None
        if not isinstance(outputs, dict):
            continue
        if outputs.get("PrivateIp") != host.private_address:
            raise PlanError(
                f"{host.name} is at {outputs.get('PrivateIp')} by {path}, "
                f"and at {host.private_address} by topology.toml",
                hint="deploy the infrastructure of this checkout first",
            )
        made.append(replace(host, instance=str(outputs.get("InstanceId", ""))))
    if not made:
        raise PlanError(f"{path} tells of no host", hint="cdk deploy --all makes them")
    return replace(fleet, hosts=tuple(made))


def at(fleet: Fleet, addresses: Mapping[str, str]) -> Fleet:
    """The fleet with these addresses; hosts that are not named keep theirs."""
    return replace(
        fleet,
        hosts=tuple(replace(h, address=addresses.get(h.name, h.address)) for h in fleet.hosts),
    )


def privately(fleet: Fleet) -> Fleet:
    """Reached inside the VPC: over a VPN, or from a host of its own there."""
    return at(fleet, {host.name: host.private_address for host in fleet.hosts})


def read_addresses(path: Path) -> dict[str, str]:
    """A JSON object from host name to address. Raises PlanError."""
    try:
        found: Any = json.loads(path.read_bytes())
    except (OSError, ValueError) as e:
        raise PlanError(f"{path} cannot be read: {e}") from None
    if not isinstance(found, dict) or not all(isinstance(v, str) and v for v in found.values()):
        raise PlanError(f'{path} must be like {{"gatherer-1": "203.0.113.7"}}')
    return found


def known(
    checkout: Path, outputs: Path, addresses: Path | None = None, *, private: bool = False
) -> Fleet:
    """The hosts of a checkout that an outputs file tells of, with the addresses that were given:
    those inside the VPC, or of a file, whose word goes first. Raises PlanError."""
    fleet = from_topology(checkout / "topology.toml")
    if outputs.exists():
        fleet = with_outputs(fleet, outputs)
    if private:
        fleet = privately(fleet)
    return at(fleet, read_addresses(addresses)) if addresses else fleet
