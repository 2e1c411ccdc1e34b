"""Topology: topology.toml as frozen values.

Invariants:
- Every key of the file is known and every known key is present: a misspelt key is an error, not a
  default.
- Addresses lie in their subnet, subnets in the VPC, no two overlap, and every name that is referred
  to exists.

It does not know CloudFormation, an account, or an option.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import itertools
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kalshi_infra.errors import SettingsError

FORMAT = 1
PROFILES = ("full", "small")
TOPOLOGY_PATH = Path(__file__).resolve().parents[2] / "topology.toml"
NAMED_PEERS = ("admin", "vpc")


@dataclass(frozen=True, slots=True)
class Vpc:
    cidr: str
    dns_hostnames: bool
    dns_resolution: bool


@dataclass(frozen=True, slots=True)
class Subnet:
    name: str
    cidr: str
    zone: str
    public: bool


@dataclass(frozen=True, slots=True)
class Route:
    """One route of the table `table` (public or private) besides the VPC's own."""

    table: str
    destination: str
    target: str


@dataclass(frozen=True, slots=True)
class Ports:
    timescale: int
    postgres: int
    health: int
    metrics: int
    ssh: int
    https: int

    def number(self, name: str) -> int:
        """The number of the port `name`."""
        return typing.cast(int, getattr(self, name))


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of a security group table; `peer` is a group, admin, vpc or a CIDR; TCP always."""

    group: str
    direction: str
    port: str
    peer: str
    purpose: str


@dataclass(frozen=True, slots=True)
class Disk:
    """`iops` per second, `throughput_mbps` in MB/s."""

    type: str
    size_gib: int
    iops: int
    throughput_mbps: int


@dataclass(frozen=True, slots=True)
class Role:
    instance_type: str
    architecture: str
    security_group: str
    disk: Disk


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    role: str
    subnet: str
    address: str


@dataclass(frozen=True, slots=True)
class LocalDatabase:
    name: str
    port: str
    purpose: str


@dataclass(frozen=True, slots=True)
class DatabaseStorage:
    type: str
    size_gib: int


@dataclass(frozen=True, slots=True)
class Production:
    """The production database on RDS. Windows are UTC in the form that the RDS API takes."""

    identifier: str
    database: str
    owner: str
    engine: str
    engine_version: str
    instance_class: str
    multi_az: bool
    publicly_accessible: bool
    zone: str
    security_group: str
    port: str
    storage: DatabaseStorage
    backup_days: int
    backup_window: str
    maintenance_window: str


@dataclass(frozen=True, slots=True)
class ProductionHost:
    """The production database on a host of our own (option production = timescale_ec2)."""

    instance_type: str
    architecture: str
    subnet: str
    address: str
    disk: Disk


@dataclass(frozen=True, slots=True)
class Bucket:
    name: str
    versioning: bool
    encryption: str
    tables: tuple[str, ...]
    parquet_prefix: str
    backup_prefix: str
    rds_backup_prefix: str
    partition: str


@dataclass(frozen=True, slots=True)
class Lifecycle:
    prefix: str
    storage_class: str
    days: int


@dataclass(frozen=True, slots=True)
class Logs:
    prefix: str
    groups: tuple[str, ...]
    retention_days: int
    metric_namespace: str


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that a service publishes and its alarm; `alarm` is above or below `threshold`."""

    name: str
    role: str
    unit: str
    statistic: str
    alarm: str
    threshold: int
    minutes: int
    meaning: str


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything that topology.toml says, for one profile."""

    format: int
    project: str
    region: str
    vpc: Vpc
    subnet: tuple[Subnet, ...]
    route: tuple[Route, ...]
    ports: Ports
    rule: tuple[Rule, ...]
    role: Mapping[str, Role]
    host: tuple[Host, ...]
    local_database: tuple[LocalDatabase, ...]
    production: Production
    production_host: ProductionHost
    bucket: Bucket
    lifecycle: tuple[Lifecycle, ...]
    logs: Logs
    metric: tuple[Metric, ...]

    def subnet_named(self, name: str) -> Subnet:
        """The subnet `name`, which validation has proven to exist."""
        return next(subnet for subnet in self.subnet if subnet.name == name)

    def groups(self) -> tuple[str, ...]:
        """Names of the security groups, in the order of their first rule."""
        return tuple(dict.fromkeys(rule.group for rule in self.rule))

    def hosts_of(self, role: str) -> tuple[Host, ...]:
        """The hosts with the given role, in the order of the file."""
        return tuple(host for host in self.host if host.role == role)


def load(path: Path = TOPOLOGY_PATH, *, profile: str = "full") -> Topology:
    """Reads and checks the file. Raises SettingsError with every fault found."""
    return from_mapping(tomllib.loads(path.read_text(encoding="utf-8")), profile=profile)


def from_mapping(raw: Mapping[str, Any], *, profile: str = "full") -> Topology:
    """Checks parsed TOML. `full` is the file as it stands; other profiles lie over it."""
    values = {key: value for key, value in raw.items() if key != "profile"}
    if profile != "full":
        profiles = raw.get("profile", {})
        if profile not in profiles:
            known = ", ".join(("full", *profiles))
            raise SettingsError([f"profile {profile!r} is not known: use one of {known}"])
        values = _overlay(values, profiles[profile])
    faults: list[str] = []
    topology = _build(Topology, values, "topology", faults)
    if faults:
        raise SettingsError(faults)
    assert isinstance(topology, Topology)
    faults = _inconsistencies(topology)
    if faults:
        raise SettingsError(faults)
    return topology


def _overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if key == "hosts":
            merged["host"] = [host for host in base["host"] if host["name"] in value]
        elif isinstance(value, Mapping):
            merged[key] = _overlay(base.get(key, {}), value)
        else:
            merged[key] = value
    return merged


def _build(kind: Any, value: Any, where: str, faults: list[str]) -> Any:
    """Turns parsed TOML into `kind`, writing faults instead of raising."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where, faults)
    if origin is tuple:
        if not isinstance(value, list):
            faults.append(f"{where}: a list is needed, {value!r} was found")
            return ()
        return tuple(_build(arguments[0], v, f"{where}[{i}]", faults) for i, v in enumerate(value))
    if origin is not None:
        if not isinstance(value, Mapping):
            faults.append(f"{where}: a table is needed, {value!r} was found")
            return {}
        built = {k: _build(arguments[1], v, f"{where}.{k}", faults) for k, v in value.items()}
        return types.MappingProxyType(built)
    if type(value) is not kind:
        faults.append(f"{where}: {kind.__name__} is needed, {value!r} was found")
    return value


def _build_dataclass(kind: Any, value: Any, where: str, faults: list[str]) -> Any:
    if not isinstance(value, Mapping):
        faults.append(f"{where}: a table is needed, {value!r} was found")
        return None
    hints = typing.get_type_hints(kind)
    faults.extend(f"{where}: {key!r} is not known" for key in value if key not in hints)
    missing = [key for key in hints if key not in value]
    faults.extend(f"{where}: {key!r} is missing" for key in missing)
    if missing:
        return None
    return kind(**{k: _build(hint, value[k], f"{where}.{k}", faults) for k, hint in hints.items()})


def _inconsistencies(topology: Topology) -> list[str]:
    if topology.format != FORMAT:
        return [f"format: {FORMAT} is needed, {topology.format} was found"]
    faults = _address_faults(topology)
    if faults:
        return faults
    faults += _rule_faults(topology)
    groups = topology.groups()
    for name, role in topology.role.items():
        if role.security_group not in groups:
            faults.append(f"role.{name}: no rule names the group {role.security_group!r}")
    if topology.production.security_group not in groups:
        faults.append(f"production: no rule names {topology.production.security_group!r}")
    for route in topology.route:
        if route.table not in ("public", "private") or route.target != "internet-gateway":
            faults.append(f"route: {route.table!r} to {route.target!r} is not known")
    for metric in topology.metric:
        if metric.role not in topology.role or metric.alarm not in ("above", "below"):
            faults.append(
                f"metric {metric.name}: role {metric.role!r} or alarm {metric.alarm!r} is not known"
            )
    zones = {subnet.zone for subnet in topology.subnet if not subnet.public}
    if topology.production.zone not in zones:
        faults.append(f"production.zone: {topology.production.zone} has no private subnet")
    return faults


def _rule_faults(topology: Topology) -> list[str]:
    faults = []
    groups = topology.groups()
    seen = set()
    for index, rule in enumerate(topology.rule):
        row = (rule.group, rule.direction, rule.port, rule.peer)
        if row in seen:
            faults.append(f"rule[{index}] of {rule.group}: the same rule stands twice")
        seen.add(row)
        where = f"rule[{index}] of {rule.group}"
        if rule.port not in Ports.__dataclass_fields__:
            faults.append(f"{where}: port {rule.port!r} is not in [ports]")
        if rule.direction not in ("inbound", "outbound"):
            faults.append(
                f"{where}: direction is inbound or outbound, {rule.direction!r} was found"
            )
        if rule.peer not in (*groups, *NAMED_PEERS) and not _is_network(rule.peer):
            faults.append(f"{where}: peer {rule.peer!r} is no group, admin, vpc or CIDR")
    return faults


def _address_faults(topology: Topology) -> list[str]:
    written = [("vpc.cidr", topology.vpc.cidr)]
    written += [(f"subnet {subnet.name}", subnet.cidr) for subnet in topology.subnet]
    faults = [
        f"{where}: {cidr!r} is no IPv4 network" for where, cidr in written if not _is_network(cidr)
    ]
    if faults:
        return faults
    vpc = ipaddress.IPv4Network(topology.vpc.cidr)
    nets = {subnet.name: ipaddress.IPv4Network(subnet.cidr) for subnet in topology.subnet}
    if len(nets) != len(topology.subnet):
        faults.append("subnet: two have the same name")
    faults += [
        f"subnet {n}: {net} is outside the VPC {vpc}"
        for n, net in nets.items()
        if not net.subnet_of(vpc)
    ]
    ordered = sorted(nets.items(), key=lambda item: item[1])
    for (first, left), (second, right) in itertools.pairwise(ordered):
        if left.overlaps(right):
            faults.append(f"subnet {second}: {right} overlaps {first} {left}")
    placed = [(h.name, h.subnet, h.address) for h in topology.host]
    placed.append(
        ("production_host", topology.production_host.subnet, topology.production_host.address)
    )
    for name, subnet, address in placed:
        if subnet not in nets:
            faults.append(f"host {name}: subnet {subnet!r} does not exist")
        elif ipaddress.IPv4Address(address) not in nets[subnet]:
            faults.append(f"host {name}: {address} is not in {subnet} ({nets[subnet]})")
    if len({address for _, _, address in placed}) != len(placed):
        faults.append("host: two have the same address")
    faults += [
        f"host {h.name}: role {h.role!r} does not exist"
        for h in topology.host
        if h.role not in topology.role
    ]
    return faults


def _is_network(text: str) -> bool:
    try:
        ipaddress.IPv4Network(text)
    except ValueError:
        return False
    return True
