"""Cost: what the templates cost a month, beside the specification's own estimate.

Invariants:
- Every resource type is either priced or listed as free; an unknown one raises PriceError.
- Prices are the dated table prices.json with a source each; nothing is read from the network.
- Exact decimal arithmetic; a line is rounded once, to cents, and the total adds rounded lines.

It is an estimate: usage (usage.toml) is assumed, taxes and support are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from kalshi_infra.assembly import Resource, Template, read, resources, target
from kalshi_infra.errors import PriceError
from kalshi_infra.topology import PROFILES

PRICES_PATH = Path(__file__).with_name("prices.json")
USAGE_PATH = Path(__file__).with_name("usage.toml")
CENT = Decimal("0.01")
FREE_IOPS, FREE_THROUGHPUT = 3000, 125
VCPU = {"t4g.small": 2, "t4g.medium": 2, "t4g.large": 2, "t4g.xlarge": 4, "t4g.2xlarge": 8}
# Share of the processors above the baseline of each size (AWS: 20, 20, 30, 40 and 40 %).
OVER_BASELINE = {
    "t4g.small": Decimal("0.8"),
    "t4g.medium": Decimal("0.8"),
    "t4g.large": Decimal("0.7"),
    "t4g.xlarge": Decimal("0.6"),
    "t4g.2xlarge": Decimal("0.6"),
}
EC2_LINES = ("gatherers", "deduplicator", "production host")
SAVINGS_PLAN = Decimal("0.30")  # the specification's share; a Compute Savings Plan covers EC2 only

FREE_TYPES = frozenset(
    {
        "AWS::Athena::WorkGroup",
        "AWS::Budgets::Budget",
        "AWS::EC2::InternetGateway",
        "AWS::EC2::LaunchTemplate",
        "AWS::EC2::Route",
        "AWS::EC2::RouteTable",
        "AWS::EC2::SecurityGroup",
        "AWS::EC2::SecurityGroupEgress",
        "AWS::EC2::SecurityGroupIngress",
        "AWS::EC2::Subnet",
        "AWS::EC2::SubnetRouteTableAssociation",
        "AWS::EC2::VPC",
        "AWS::EC2::VPCGatewayAttachment",
        "AWS::Glue::Database",
        "AWS::Glue::Table",
        "AWS::IAM::InstanceProfile",
        "AWS::IAM::Role",
        "AWS::IAM::RolePolicy",
        "AWS::Logs::LogGroup",  # by volume: the line CloudWatch
        "AWS::RDS::DBSubnetGroup",
        "AWS::S3::Bucket",  # by volume: the line of objects
        "AWS::SNS::Subscription",
        "AWS::SNS::Topic",
    }
)

# The specification's table: line, its text, its dollars.
SPECIFIED = {
    "gatherers": ("3x EC2 t4g.2xlarge", 510),
    "deduplicator": ("1x EC2 t4g.xlarge", 100),
    "gatherer disks": ("3x EBS gp3 200GB", 60),
    "deduplicator disk": ("1x EBS gp3 50GB", 10),
    "database": ("RDS db.t4g.large", 60),
    "database storage": ("RDS Storage 500GB", 50),
    "objects": ("S3 1TB", 25),
    "telemetry": ("CloudWatch", 20),
}
# How the specification's own sizes are reckoned; other sizes come from a profile or an option.
AS_SPECIFIED = {
    "gatherers": "3x t4g.2xlarge",
    "deduplicator": "1x t4g.xlarge",
    "gatherer disks": "3x 200 GB gp3",
    "deduplicator disk": "1x 50 GB gp3",
    "database": "1x db.t4g.large",
    "database storage": "1x 500 GB gp3",
    "objects": "1x 1024 GB Standard",
}
WHY = {
    "gatherers": "the list price is higher than the table's",
    "deduplicator": "rounded in the table",
    "gatherer disks": "0.08 per GB-month; the table has 0.10, which is gp2",
    "deduplicator disk": "0.08 per GB-month; the table has 0.20",
    "database": "the list price is higher than the table's",
    "database storage": "0.115 per GB-month; the table has 0.10",
    "objects": "1024 GB of Standard, rounded in the table",
    "telemetry": "depends on use: assumed in usage.toml",
    "public addresses": "charged since February 2024; not in the table",
    "managed secrets": "the password of the production database; not in the table",
    "production host": "option production = timescale_ec2",
    "production disk": "option production = timescale_ec2",
    "alarms": "option alarms",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the bill; `monthly` in dollars, rounded to cents; `reckoning` says how."""

    key: str
    reckoning: str
    monthly: Decimal


class Prices:
    """The dated table. A key that it does not have raises PriceError."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._table = table["prices"]
        self.dated = str(table["dated"])
        self.hours = Decimal(table["hours_per_month"])

    def usd(self, key: str) -> Decimal:
        """Dollars for one unit of `key`."""
        if key not in self._table:
            raise PriceError(f"no price for {key!r}: add it with its source to prices.json")
        return Decimal(self._table[key]["usd"])


def load_prices(path: Path = PRICES_PATH) -> Prices:
    """Reads the price table."""
    return Prices(json.loads(path.read_text(encoding="utf-8")))


def load_usage(profile: str, path: Path = USAGE_PATH) -> dict[str, Decimal]:
    """Assumed quantities of a profile."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))[profile]
    return {name: Decimal(str(value)) for name, value in table.items()}


def bill(
    templates: Mapping[str, Template], prices: Prices, usage: Mapping[str, Decimal]
) -> list[Line]:
    """The lines that the templates cause: the specification's in its order, then the others."""
    found = resources(templates)
    by_name = {resource.name: resource for resource in found}
    sums: dict[str, Decimal] = {}
    counts: dict[str, list[str]] = {}

    def add(key: str, usd: Decimal, what: str) -> None:
        sums[key] = sums.get(key, Decimal(0)) + usd
        counts.setdefault(key, []).append(what)

    for resource in found:
        if resource.type == "AWS::EC2::Instance":
            _instance(resource, by_name, prices, add)
        elif resource.type == "AWS::RDS::DBInstance":
            _database(resource, prices, add)
        elif resource.type == "AWS::SecretsManager::Secret":
            add("managed secrets", prices.usd("secret"), "secret")
        elif resource.type == "AWS::CloudWatch::Alarm":
            add("alarms", prices.usd("alarm"), "alarm")
        elif resource.type == "AWS::EC2::VPCEndpoint":
            if resource.properties["VpcEndpointType"] != "Gateway":
                raise PriceError(f"{resource.name}: only gateway endpoints are free")
        elif resource.type not in FREE_TYPES:
            raise PriceError(
                f"{resource.name}: {resource.type} is neither priced nor known as free"
            )
    stored = usage["s3_standard_gb"]
    add("objects", stored * prices.usd("s3.standard"), f"{stored} GB Standard")
    add("telemetry", usage["cloudwatch_usd"], "assumed")
    order = [*SPECIFIED, *(key for key in WHY if key not in SPECIFIED)]
    return [
        Line(key, _count(counts[key]), sums[key].quantize(CENT, ROUND_HALF_UP))
        for key in order
        if key in sums
    ]


def _count(items: Sequence[str]) -> str:
    kinds = dict.fromkeys(items)
    return ", ".join(f"{items.count(kind)}x {kind}" for kind in kinds)


def _instance(
    resource: Resource,
    by_name: Mapping[str, Resource],
    prices: Prices,
    add: Any,
) -> None:
    values = resource.properties
    role = {"deduplicator": "deduplicator", "production": "production host"}.get(
        resource.tag(), "gatherers"
    )
    kind = values["InstanceType"]
    add(role, prices.usd(f"ec2.{kind}") * prices.hours, kind)
    disk_line = {"gatherers": "gatherer disks", "deduplicator": "deduplicator disk"}.get(
        role, "production disk"
    )
    launch = by_name[target(values["LaunchTemplate"]["LaunchTemplateId"])]
    for mapping in launch.properties["LaunchTemplateData"]["BlockDeviceMappings"]:
        add(disk_line, *_disk(mapping["Ebs"], prices))
    subnet = by_name[target(values["SubnetId"])]
    if subnet.properties["MapPublicIpOnLaunch"]:
        add("public addresses", prices.usd("ipv4") * prices.hours, "IPv4 address")


def _disk(disk: Mapping[str, Any], prices: Prices) -> tuple[Decimal, str]:
    kind, size = disk["VolumeType"], disk["VolumeSize"]
    usd = prices.usd(f"ebs.{kind}") * size
    usd += prices.usd(f"ebs.{kind}.iops") * max(0, disk["Iops"] - FREE_IOPS)
    usd += prices.usd(f"ebs.{kind}.throughput") * max(0, disk["Throughput"] - FREE_THROUGHPUT)
    return usd, f"{size} GB {kind}"


def _database(resource: Resource, prices: Prices, add: Any) -> None:
    values = resource.properties
    factor = 2 if values["MultiAZ"] else 1
    kind, size = values["DBInstanceClass"], int(values["AllocatedStorage"])
    add("database", factor * prices.usd(f"rds.{kind}") * prices.hours, kind)
    storage = values["StorageType"]
    add("database storage", factor * prices.usd(f"rds.{storage}") * size, f"{size} GB {storage}")
    if values.get("ManageMasterUserPassword"):
        add("managed secrets", prices.usd("secret"), "secret")


def total(lines: Sequence[Line]) -> Decimal:
    """Dollars a month."""
    return sum((line.monthly for line in lines), Decimal(0))


def monthly_by_line(lines: Sequence[Line]) -> dict[str, str]:
    """`$588.67` by line, and the total."""
    printed = {line.key: f"${line.monthly}" for line in lines}
    return {**printed, "total": f"${total(lines)}"}


def by_use(
    templates: Mapping[str, Template], prices: Prices, usage: Mapping[str, Decimal]
) -> list[Line]:
    """What depends on use and is in no total."""
    found = resources(templates)
    zones = {
        r.name: r.properties["AvailabilityZone"] for r in found if r.type == "AWS::EC2::Subnet"
    }
    instances = [r for r in found if r.type == "AWS::EC2::Instance"]
    zone_of = {r.tag(): zones[target(r.properties["SubnetId"])] for r in instances}
    for database in (r for r in found if r.type == "AWS::RDS::DBInstance"):
        zone_of["production"] = database.properties["AvailabilityZone"]
    home = zone_of["deduplicator"]
    away = sum(1 for name, zone in zone_of.items() if name.startswith("gatherer") and zone != home)
    both_sides = 2 * 30 * prices.usd("cross-az")
    crossing = away * both_sides * usage["captured_gb_per_day"]
    merged = usage["merged_gb_per_day"] if zone_of["production"] != home else Decimal(0)
    burst = sum((_burst(r, prices) for r in instances), Decimal(0))
    items = [
        (
            "between zones: capture",
            f"{away} gatherers in other zones, {usage['captured_gb_per_day']} GB a day each",
            crossing,
        ),
        (
            "between zones: merged",
            f"{merged} GB a day from the deduplicator to production",
            both_sides * merged,
        ),
        (
            "internet egress",
            f"{usage['egress_gb_per_month']} GB; the first 100 GB of an account are free",
            max(Decimal(0), usage["egress_gb_per_month"] - 100) * prices.usd("egress"),
        ),
        (
            "Intelligent-Tiering",
            f"{usage['objects_thousand']} thousand objects watched",
            usage["objects_thousand"] * prices.usd("intelligent-tiering"),
        ),
        (
            "snapshots",
            f"{usage['snapshot_gb']} GB",
            usage["snapshot_gb"] * prices.usd("snapshot"),
        ),
        ("burst credits, worst case", "all processors busy all month, unlimited mode", burst),
    ]
    return [Line(key, how, usd.quantize(CENT, ROUND_HALF_UP)) for key, how, usd in items]


def _burst(instance: Resource, prices: Prices) -> Decimal:
    """The surplus of a host that is busy all month; in standard mode it is slowed instead."""
    mode = instance.properties.get("CreditSpecification", {}).get("CPUCredits", "unlimited")
    kind = instance.properties["InstanceType"]
    if mode == "standard":
        return Decimal(0)
    if kind not in VCPU:
        raise PriceError(f"{instance.name}: the baseline of {kind} is not known")
    return VCPU[kind] * OVER_BASELINE[kind] * prices.usd("burst") * prices.hours


def report(title: str, lines: Sequence[Line], use: Sequence[Line], dated: str) -> str:
    """The printed comparison."""
    out = [f"{title} (prices of {dated}, USD a month)", ""]
    out.append(
        f"{'line':<20} {'specification':>24} {'':>5} {'computed':>10} {'difference':>11}  why"
    )
    for line in lines:
        text, dollars = SPECIFIED.get(line.key, ("-", 0))
        difference = line.monthly - dollars
        out.append(
            f"{line.key:<20} {text:>24} {dollars:>5} {line.monthly:>10} {difference:>+11}  "
            f"{_why(line)} ({line.reckoning})"
        )
    missing = [key for key in SPECIFIED if key not in {line.key for line in lines}]
    for key in missing:
        text, dollars = SPECIFIED[key]
        out.append(
            f"{key:<20} {text:>24} {dollars:>5} {'-':>10} {-dollars:>+11}  not in the template"
        )
    sums = total(lines)
    specified = sum(dollars for _, dollars in SPECIFIED.values())
    out.append(f"{'total':<20} {'':>24} {specified:>5} {sums:>10} {sums - specified:>+11}")
    compute = sum((line.monthly for line in lines if line.key in EC2_LINES), Decimal(0))
    saved = (compute * SAVINGS_PLAN).quantize(CENT, ROUND_HALF_UP)
    out.append(
        f"with a 1-year Compute Savings Plan: specification ~600, computed {sums - saved} "
        f"(30 % of EC2 alone, {saved}; it covers neither disks nor RDS nor S3)"
    )
    out += ["", "by use, in no total:"]
    out += [f"  {line.key:<26} {line.monthly:>8}  {line.reckoning}" for line in use]
    return "\n".join(out)


def _why(line: Line) -> str:
    if line.reckoning != AS_SPECIFIED.get(line.key, line.reckoning):
        return "another size, by profile or option"
    return WHY[line.key]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the comparison of one cloud assembly. Returns the exit code."""
    parser = argparse.ArgumentParser(description="monthly cost of a cloud assembly")
    parser.add_argument("assembly", type=Path)
    parser.add_argument("--profile", choices=PROFILES, default="full")
    parser.add_argument("--title", default="")
    chosen = parser.parse_args(arguments)
    prices, usage = load_prices(), load_usage(chosen.profile)
    templates = read(chosen.assembly)
    try:
        lines = bill(templates, prices, usage)
        use = by_use(templates, prices, usage)
    except PriceError as error:
        print(f"cannot reckon: {error}", file=sys.stderr)
        return 1
    title = chosen.title or f"profile {chosen.profile}"
    print(report(title, lines, use, prices.dated))
    return 0


if __name__ == "__main__":
    sys.exit(main())
