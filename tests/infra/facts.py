"""Facts: what one place says about the deployment, and how that reads in the specification's
tables.

Three places are read (views.py): the configuration, the synthesized template, and the account after
the assembly was applied. None of them sees the specification; each fills these values, and `tables`
prints them in the specification's words, so that cells can be compared as text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, str | None]
Tables = dict[str, list[Row]]

_TYPE_NAMES = {"arm64": "ARM64 (Graviton2)"}
_STORAGE_CLASSES = {
    "INTELLIGENT_TIERING": "Intelligent-Tiering",
    "GLACIER": "Glacier",
    "GLACIER_IR": "Glacier Instant Retrieval",
}


@dataclass(frozen=True, slots=True)
class SubnetFact:
    name: str
    cidr: str
    zone: str
    public: bool


@dataclass(frozen=True, slots=True)
class RuleFact:
    """`peer` is a group's row name or a CIDR."""

    group: str
    inbound: bool
    protocol: str
    port: str
    peer: str
    purpose: str


@dataclass(frozen=True, slots=True)
class TypeFact:
    """What AWS says about an instance type; bandwidths in Mbit/s, memory in MiB."""

    vcpu: int
    memory_mib: int
    network: str
    ebs_mbps_max: int


@dataclass(frozen=True, slots=True)
class HostFact:
    name: str
    instance_type: str
    architecture: str
    zone: str
    subnet: str
    address: str
    groups: tuple[str, ...]
    disk_type: str
    disk_gib: int
    disk_iops: int
    disk_throughput: int
    facts: TypeFact


@dataclass(frozen=True, slots=True)
class DatabaseFact:
    """`iops` and `throughput` are None where none is stated."""

    engine: str
    version: str
    instance_class: str
    facts: TypeFact
    multi_az: bool
    storage_type: str
    storage_gib: int
    iops: int | None
    throughput: int | None
    subnets: tuple[str, ...]
    zone: str
    public: bool
    port: int
    groups: tuple[str, ...]
    backup_days: int
    backup_window: str
    maintenance_window: str


@dataclass(frozen=True, slots=True)
class LifecycleFact:
    prefix: str
    storage_class: str
    days: int


@dataclass(frozen=True, slots=True)
class BucketFact:
    """`prefixes` is None where the place does not name them."""

    name: str
    region: str
    versioning: bool
    encryption: str
    lifecycle: tuple[LifecycleFact, ...]
    prefixes: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class LocalDatabaseFact:
    name: str
    port: int
    purpose: str | None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that one place says.

    `monthly` is dollars by cost line, where the place has prices.
    """

    admin_cidr: str
    vpc_cidr: str
    dns_hostnames: bool
    dns_resolution: bool
    subnets: tuple[SubnetFact, ...]
    routes: Mapping[str, Sequence[tuple[str, str]]]
    rules: tuple[RuleFact, ...]
    hosts: tuple[HostFact, ...]
    database: DatabaseFact
    local_databases: tuple[LocalDatabaseFact, ...]
    bucket: BucketFact
    policies: Mapping[str, Mapping[str, Any]]
    monthly: Mapping[str, str] | None


def tables(facts: Facts) -> Tables:
    """The facts as the specification's tables, by section path."""
    gatherers = [host for host in facts.hosts if host.name.startswith("gatherer-")]
    deduplicators = [host for host in facts.hosts if host.name == "deduplicator"]
    printed: Tables = {}
    for hosts, title, ebs in (
        (gatherers, "Gatherer Instances ({}x)", True),
        (deduplicators, "Deduplicator Instance ({}x)", False),
    ):
        path = "Compute / " + title.format(len(hosts))
        printed[path] = _compute(hosts, ebs=ebs)
        printed[f"{path} / Storage"] = _disks(hosts)
        printed[f"{path} / Placement"] = [
            {
                "Instance": host.name.replace("-", " ").capitalize(),
                "Availability Zone": host.zone,
                "Private IP": host.address,
            }
            for host in hosts
        ]
    printed |= _database(facts.database, facts.subnets)
    printed["Database / Local Databases (per Gatherer)"] = [
        {"Database": local.name, "Port": str(local.port), "Purpose": local.purpose}
        for local in facts.local_databases
    ]
    printed |= _bucket(facts.bucket)
    printed |= _network(facts)
    printed |= _groups(facts)
    printed |= _policies(facts.policies)
    printed["Overview"] = _overview(facts)
    printed["Cost Estimate"] = _cost(facts, gatherers, deduplicators)
    return printed


def _same(values: Sequence[str]) -> str:
    """One value if all hosts agree, else all of them, so that a stray one shows."""
    return " and ".join(dict.fromkeys(values))


def _key_values(title: str, pairs: Mapping[str, str | None]) -> list[Row]:
    return [{title: key, "Value": value} for key, value in pairs.items()]


def _gigabytes(mib: int) -> str:
    return f"{mib / 1024:g} GB"


def _compute(hosts: Sequence[HostFact], *, ebs: bool) -> list[Row]:
    pairs: dict[str, str | None] = {
        "Instance Type": _same([h.instance_type for h in hosts]),
        "Architecture": _same([_TYPE_NAMES.get(h.architecture, h.architecture) for h in hosts]),
        "vCPU": _same([str(h.facts.vcpu) for h in hosts]),
        "Memory": _same([_gigabytes(h.facts.memory_mib) for h in hosts]),
        "Network": _same([h.facts.network.replace("Gigabit", "Gbps") for h in hosts]),
    }
    if ebs:
        pairs["EBS Bandwidth"] = _same(
            [f"Up to {h.facts.ebs_mbps_max / 1000:g} Gbps" for h in hosts]
        )
    return _key_values("Specification", pairs)


def _disks(hosts: Sequence[HostFact]) -> list[Row]:
    return [
        {
            "Volume": "Root",
            "Type": _same([h.disk_type for h in hosts]),
            "Size": _same([f"{h.disk_gib} GB" for h in hosts]),
            "IOPS": _same([str(h.disk_iops) for h in hosts]),
            "Throughput": _same([f"{h.disk_throughput} MB/s" for h in hosts]),
        }
    ]


def _database(database: DatabaseFact, subnets: Sequence[SubnetFact]) -> Tables:
    path = "Database / Production RDS"
    engine = {"postgres": "PostgreSQL"}.get(database.engine, database.engine)
    by_name = {subnet.name: subnet for subnet in subnets}
    private = not any(by_name[name].public for name in database.subnets)
    windows = re.fullmatch(r"(\w{3}):(\d\d:\d\d)-(\w{3}):(\d\d:\d\d)", database.maintenance_window)
    assert windows is not None, database.maintenance_window
    day, start, end_day, end = windows.groups()
    maintenance = f"{day.capitalize()} {start}-{'' if day == end_day else end_day + ' '}{end} UTC"
    return {
        path: _key_values(
            "Specification",
            {
                "Engine": f"{engine} {database.version}",
                "Instance Class": database.instance_class,
                "vCPU": str(database.facts.vcpu),
                "Memory": _gigabytes(database.facts.memory_mib),
                "Multi-AZ": "Yes (Multi-AZ)" if database.multi_az else "No (Single-AZ)",
            },
        ),
        f"{path} / Storage": [
            {
                "Type": database.storage_type,
                "Size": f"{database.storage_gib} GB",
                "IOPS": str(database.iops) if database.iops else "not stated",
                "Throughput": f"{database.throughput} MB/s"
                if database.throughput
                else "not stated",
            }
        ],
        f"{path} / Networking": _key_values(
            "Specification",
            {
                "Subnet Group": "Private subnets only" if private else ", ".join(database.subnets),
                "Publicly Accessible": "Yes" if database.public else "No",
                "Port": str(database.port),
            },
        ),
        f"{path} / Backups": _key_values(
            "Setting",
            {
                "Automated Backups": "Enabled" if database.backup_days else "Disabled",
                "Retention Period": f"{database.backup_days} days",
                "Backup Window": f"{database.backup_window} UTC",
                "Maintenance Window": maintenance,
            },
        ),
    }


def _bucket(bucket: BucketFact) -> Tables:
    path = "Storage / S3 Bucket"
    printed: Tables = {
        path: _key_values(
            "Specification",
            {
                "Name": bucket.name,
                "Region": bucket.region,
                "Versioning": "Enabled" if bucket.versioning else "Suspended",
                "Encryption": {"AES256": "SSE-S3"}.get(bucket.encryption, bucket.encryption),
            },
        ),
        f"{path} / Lifecycle Policies": [
            {
                "Prefix": row.prefix,
                "Transition": _STORAGE_CLASSES.get(row.storage_class, row.storage_class),
                "Days": str(row.days),
            }
            for row in bucket.lifecycle
        ],
    }
    if bucket.prefixes is not None:
        printed[f"{path} / Structure"] = [{"Prefix": prefix} for prefix in bucket.prefixes]
    return printed


def _network(facts: Facts) -> Tables:
    def enabled(flag: bool) -> str:
        return "Enabled" if flag else "Disabled"

    printed: Tables = {
        "Network / VPC": _key_values(
            "Specification",
            {
                "CIDR": facts.vpc_cidr,
                "DNS Hostnames": enabled(facts.dns_hostnames),
                "DNS Resolution": enabled(facts.dns_resolution),
            },
        ),
        "Network / Subnets": [
            {
                "Name": subnet.name,
                "CIDR": subnet.cidr,
                "AZ": subnet.zone,
                "Type": "Public" if subnet.public else "Private",
            }
            for subnet in facts.subnets
        ],
    }
    for name, routes in facts.routes.items():
        path = f"Network / Route Tables / {name.capitalize()} Route Table"
        printed[path] = [{"Destination": d, "Target": t} for d, t in routes]
    return printed


def _groups(facts: Facts) -> Tables:
    words = {facts.admin_cidr: "Admin IP", facts.vpc_cidr: "VPC CIDR"}
    printed: Tables = {}
    for rule in facts.rules:
        printed.setdefault(f"Security Groups / {rule.group}", []).append(
            {
                "Direction": "Inbound" if rule.inbound else "Outbound",
                "Protocol": rule.protocol.upper(),
                "Port": rule.port,
                "Source/Dest": words.get(rule.peer, rule.peer),
                "Purpose": rule.purpose,
            }
        )
    return printed


def _policies(policies: Mapping[str, Mapping[str, Any]]) -> Tables:
    import json

    return {
        f"IAM / {role.capitalize()} Role": [
            {"Statement": "Version", "JSON": document["Version"]},
            *(
                {"Statement": str(index), "JSON": json.dumps(statement)}
                for index, statement in enumerate(document["Statement"], start=1)
            ),
        ]
        for role, document in policies.items()
    }


def _overview(facts: Facts) -> list[Row]:
    subnets = {subnet.name: subnet for subnet in facts.subnets}

    def words(subnet: SubnetFact) -> str:
        kind, letter = subnet.name.split("-")
        return f"{kind.capitalize()} Subnet {letter}: {subnet.cidr}"

    rows: list[Row] = [
        {"Node": host.name.replace("-", " ").capitalize(), "Place": words(subnets[host.subnet])}
        for host in facts.hosts
    ]
    own = [s for s in facts.subnets if s.name in facts.database.subnets]
    (place,) = [s for s in own if s.zone == facts.database.zone]
    return [*rows, {"Node": "Production RDS", "Place": words(place)}]


def _cost(facts: Facts, gatherers: Sequence[HostFact], dedups: Sequence[HostFact]) -> list[Row]:
    """The table's first two columns from what is there; dollars where the place has prices."""
    types = _same([h.instance_type for h in gatherers]), _same([h.instance_type for h in dedups])
    sizes = _same([str(h.disk_gib) for h in gatherers]), _same([str(h.disk_gib) for h in dedups])
    disk = _same([h.disk_type for h in gatherers]), _same([h.disk_type for h in dedups])
    database = facts.database
    lines = (
        (f"{len(gatherers)}x EC2 {types[0]}", "On-Demand", "gatherers"),
        (f"{len(dedups)}x EC2 {types[1]}", "On-Demand", "deduplicator"),
        (f"{len(gatherers)}x EBS {disk[0]} {sizes[0]}GB", "Gatherer storage", "gatherer disks"),
        (f"{len(dedups)}x EBS {disk[1]} {sizes[1]}GB", "Deduplicator storage", "deduplicator disk"),
        (f"RDS {database.instance_class}", "Single-AZ", "database"),
        (f"RDS Storage {database.storage_gib}GB", database.storage_type, "database storage"),
        ("S3 1TB", "Standard", "objects"),
        ("CloudWatch", "Logs + Metrics", "telemetry"),
        ("Total", "", "total"),
    )
    monthly = facts.monthly
    return [
        {"Service": service, "Specification": what, "Monthly": monthly[key] if monthly else None}
        for service, what, key in lines
    ]
