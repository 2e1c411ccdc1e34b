"""Every row of the specification in all three places, and forty mutations that must be caught."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import applier
import conform
import moto_account
import pytest
import spec_tables
import views
from facts import Facts
from kalshi_infra import assembly, cost, topology
from kalshi_infra.assembly import Template
from kalshi_infra.deviations import DEVIATIONS
from kalshi_infra.site import Site
from kalshi_infra.topology import Topology
from test_topology import changed

SPEC_ROWS = 94  # rows of all tables, the diagram, the prefix tree and the IAM statements


@pytest.fixture(scope="module")
def places(wanted: Topology, chosen: Site, templates: Mapping[str, Template]) -> list[Facts]:
    """The three places, from the specification as written."""
    lines = cost.bill(templates, cost.load_prices(), cost.load_usage("full"))
    with moto_account.account():
        applier.apply(templates)
        return [
            views.of_configuration(wanted, chosen.admin_cidr),
            views.of_template(
                templates, chosen.admin_cidr, moto_account.REGION, cost.monthly_by_line(lines)
            ),
            views.of_account(chosen.admin_cidr),
        ]


def test_every_cell_of_the_specification_is_equal_or_a_listed_deviation(
    places: list[Facts],
) -> None:
    """The promise of the AWS side, in one line."""
    wrong = [verdict for verdict in conform.compare(places) if not verdict.right]
    assert wrong == []


def test_every_row_of_the_specification_has_a_verdict(places: list[Facts]) -> None:
    """A row that the parser lost would be right by silence."""
    verdicts = conform.compare(places)
    seen = {(verdict.path, verdict.row) for verdict in verdicts}
    wanted_rows = {(t.path, t.row_key(row)) for t in conform.specified_tables() for row in t.rows}
    assert seen == wanted_rows
    assert len(seen) == SPEC_ROWS


def test_the_parser_finds_every_table_line_of_the_text() -> None:
    """Counted in the raw text, without the parser's rules."""
    lines = spec_tables.SPEC_PATH.read_text(encoding="utf-8").splitlines()
    bars = [line for line in lines if line.startswith("|")]
    rules = [line for line in bars if set(line) <= set("|-: ")]
    tables, _ = spec_tables.specification()
    assert len(tables) == len(rules)
    assert sum(len(table.rows) for table in tables) == len(bars) - 2 * len(rules)


def test_every_listed_deviation_is_still_one(places: list[Facts]) -> None:
    """A deviation that has become unnecessary must leave the list."""
    used = {v.verdict.removeprefix("deviation ") for v in conform.compare(places)}
    cells = {(v.path, v.row, v.column) for v in conform.compare(places)}
    for entry in DEVIATIONS:
        for cell in entry.cells:
            assert cell in cells, cell
        if entry.cells:
            assert entry.key in used


# (path in topology.toml, value, section of the specification, row)
MUTATIONS = [
    ("vpc/dns_hostnames", False, "Network / VPC", "DNS Hostnames"),
    ("vpc/dns_resolution", False, "Network / VPC", "DNS Resolution"),
    ("vpc/cidr", "10.0.0.0/17", "Network / VPC", "CIDR"),
    ("subnet/0/cidr", "10.0.1.0/25", "Network / Subnets", "public-a"),
    ("subnet/1/zone", "us-east-1d", "Network / Subnets", "public-b"),
    ("subnet/2/public", False, "Network / Subnets", "public-c"),
    ("subnet/3/cidr", "10.0.101.0/25", "Network / Subnets", "private-a"),
    ("subnet/4/cidr", "10.0.104.0/24", "Network / Subnets", "private-b"),
    ("subnet/5/name", "private-d", "Network / Subnets", "private-c"),
    (
        "route/0/destination",
        "8.0.0.0/8",
        "Network / Route Tables / Public Route Table",
        "0.0.0.0/0",
    ),
    ("route/0/table", "private", "Network / Route Tables / Private Route Table", "0.0.0.0/0"),
    ("ports/timescale", 5434, "Database / Production RDS / Networking", "Port"),
    ("ports/postgres", 5435, "Database / Local Databases (per Gatherer)", "PostgreSQL"),
    ("ports/health", 8081, "Security Groups / sg-deduplicator", "Inbound Health check"),
    ("ports/metrics", 9091, "Security Groups / sg-gatherer", "Inbound Prometheus metrics"),
    ("ports/ssh", 2222, "Security Groups / sg-gatherer", "Inbound SSH"),
    ("ports/https", 8443, "Security Groups / sg-gatherer", "Outbound Kalshi API"),
    ("rule/0/peer", "vpc", "Security Groups / sg-gatherer", "Inbound TimescaleDB access"),
    ("rule/2/peer", "0.0.0.0/0", "Security Groups / sg-gatherer", "Inbound SSH"),
    (
        "rule/9/peer",
        "sg-deduplicator",
        "Security Groups / sg-deduplicator",
        "Outbound Gatherer TimescaleDB",
    ),
    ("rule/13/purpose", "Access", "Security Groups / sg-rds", "Inbound Database access"),
    ("rule/13/peer", "sg-gatherer", "Security Groups / sg-rds", "Inbound Database access"),
    ("role/gatherer/instance_type", "t4g.xlarge", "Compute / Gatherer Instances (3x)", "vCPU"),
    ("role/gatherer/disk/iops", 4000, "Compute / Gatherer Instances (3x) / Storage", "Root"),
    (
        "role/gatherer/disk/throughput_mbps",
        250,
        "Compute / Gatherer Instances (3x) / Storage",
        "Root",
    ),
    ("role/gatherer/disk/size_gib", 100, "Compute / Gatherer Instances (3x) / Storage", "Root"),
    (
        "role/deduplicator/disk/type",
        "gp2",
        "Compute / Deduplicator Instance (1x) / Storage",
        "Root",
    ),
    (
        "role/deduplicator/instance_type",
        "t4g.large",
        "Compute / Deduplicator Instance (1x)",
        "Memory",
    ),
    ("host/1/address", "10.0.2.11", "Compute / Gatherer Instances (3x) / Placement", "Gatherer 2"),
    ("host/3/subnet", "public-b", "Overview", "Deduplicator"),
    ("production/backup_days", 1, "Database / Production RDS / Backups", "Retention Period"),
    (
        "production/backup_window",
        "05:00-06:00",
        "Database / Production RDS / Backups",
        "Backup Window",
    ),
    (
        "production/maintenance_window",
        "mon:04:00-mon:05:00",
        "Database / Production RDS / Backups",
        "Maintenance Window",
    ),
    ("production/multi_az", True, "Database / Production RDS", "Multi-AZ"),
    ("production/engine_version", "15", "Database / Production RDS", "Engine"),
    (
        "production/publicly_accessible",
        True,
        "Database / Production RDS / Networking",
        "Publicly Accessible",
    ),
    ("production/zone", "us-east-1b", "Overview", "Production RDS"),
    ("production/instance_class", "db.t4g.medium", "Database / Production RDS", "Instance Class"),
    ("production/storage/size_gib", 400, "Database / Production RDS / Storage", "gp3"),
    ("bucket/name", "kalshi-data-test", "Storage / S3 Bucket", "Name"),
    ("bucket/versioning", False, "Storage / S3 Bucket", "Versioning"),
    ("bucket/encryption", "aws:kms", "Storage / S3 Bucket", "Encryption"),
    ("lifecycle/1/days", 364, "Storage / S3 Bucket / Lifecycle Policies", "parquet/ Glacier"),
    (
        "lifecycle/0/storage_class",
        "STANDARD_IA",
        "Storage / S3 Bucket / Lifecycle Policies",
        "parquet/ Intelligent-Tiering",
    ),
    (
        "lifecycle/2/prefix",
        "backup/",
        "Storage / S3 Bucket / Lifecycle Policies",
        "backups/ Glacier",
    ),
    ("logs/metric_namespace", "Other", "IAM / Gatherer Role", "2"),
    ("logs/prefix", "/", "IAM / Deduplicator Role", "2"),
]

# A host cannot be moved without its address; one topology needs two values.
_TOGETHER = {"host/3/subnet": ("host/3/address", "10.0.2.20")}


def _mutated(path: str, value: Any) -> Topology:
    raw = changed(path, value)
    if together := _TOGETHER.get(path):
        other, fitting = together
        *parents, last = [int(part) if part.isdigit() else part for part in other.split("/")]
        node: Any = raw
        for part in parents:
            node = node[part]
        node[last] = fitting
    return topology.from_mapping(raw)


def test_there_are_at_least_forty_mutations_of_forty_different_values() -> None:
    """The size of the control is part of the promise."""
    assert len({path for path, *_ in MUTATIONS}) >= 40


@pytest.mark.parametrize(("path", "value", "section", "row"), MUTATIONS)
def test_a_mutated_value_is_caught_with_its_row_named(
    path: str, value: Any, section: str, row: str, chosen: Site, places: list[Facts]
) -> None:
    """Configuration and template both carry the mutation, so both must be reported, by row."""
    mutated = _mutated(path, value)
    templates, region = conform.synthesize(mutated, chosen)
    lines_of_original = places[1].monthly
    seen = [
        views.of_configuration(mutated, chosen.admin_cidr),
        views.of_template(templates, chosen.admin_cidr, region, lines_of_original),
        places[2],
    ]
    wrong = [v for v in conform.compare(seen) if not v.right and (v.path, v.row) == (section, row)]
    assert wrong, "nobody noticed"
    text = "; ".join(verdict.verdict for verdict in wrong)
    beyond = [place for verdict in wrong for place in verdict.seen]
    assert "configuration" in text or "configuration" in beyond
    assert "template" in text or "template" in beyond
    if "in configuration" in text:
        assert "in account" not in text


# (stack, logical id, path in Properties, value, section, row): the account gets what the template
# says.
ACCOUNT_MUTATIONS = [
    ("KalshiNetwork", "Vpc", "EnableDnsHostnames", False, "Network / VPC", "DNS Hostnames"),
    (
        "KalshiNetwork",
        "SubnetPublicB",
        "MapPublicIpOnLaunch",
        False,
        "Network / Subnets",
        "public-b",
    ),
    (
        "KalshiNetwork",
        "SgGathererInbound5432SgDeduplicator",
        "ToPort",
        5440,
        "Security Groups / sg-gatherer",
        "Inbound TimescaleDB access",
    ),
    (
        "KalshiNetwork",
        "SgRds",
        "SecurityGroupEgress/0/CidrIp",
        "0.0.0.0/0",
        "Security Groups / sg-rds",
        "Outbound Nothing may leave",
    ),
    (
        "KalshiStorage",
        "Lake",
        "VersioningConfiguration/Status",
        "Suspended",
        "Storage / S3 Bucket",
        "Versioning",
    ),
    (
        "KalshiStorage",
        "Lake",
        "LifecycleConfiguration/Rules/0/Transitions/1/TransitionInDays",
        30,
        "Storage / S3 Bucket / Lifecycle Policies",
        "parquet/ Glacier",
    ),
    (
        "KalshiStorage",
        "Lake",
        "LifecycleConfiguration/Rules/1/Status",
        "Disabled",
        "Storage / S3 Bucket / Lifecycle Policies",
        "backups/ Glacier",
    ),
    (
        "KalshiDatabase",
        "Production",
        "BackupRetentionPeriod",
        3,
        "Database / Production RDS / Backups",
        "Retention Period",
    ),
    ("KalshiDatabase", "Production", "Iops", 3000, "Database / Production RDS / Storage", "gp3"),
    (
        "KalshiGatherer2",
        "Disk",
        "LaunchTemplateData/BlockDeviceMappings/0/Ebs/Throughput",
        200,
        "Compute / Gatherer Instances (3x) / Storage",
        "Root",
    ),
    (
        "KalshiGatherer3",
        "Instance",
        "InstanceType",
        "t4g.large",
        "Compute / Gatherer Instances (3x)",
        "Instance Type",
    ),
    (
        "KalshiIdentity",
        "DeduplicatorRole",
        "Policies/0/PolicyDocument/Statement/0/Action/2",
        "s3:DeleteObject",
        "IAM / Deduplicator Role",
        "1",
    ),
]


@pytest.fixture(scope="module")
def read_back_of_all_mutations(templates: Mapping[str, Template], chosen: Site) -> list[Any]:
    """All of them applied into one account, once: they touch different rows."""
    mutated = copy.deepcopy(dict(templates))
    for stack, logical_id, path, value, *_ in ACCOUNT_MUTATIONS:
        node: Any = mutated[stack]["Resources"][logical_id]["Properties"]
        *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        for part in parents:
            node = node[part]
        node[last] = value
    with moto_account.account():
        applier.apply(mutated)
        facts = views.of_account(chosen.admin_cidr)
    return conform.compare([facts, facts, facts])


@pytest.mark.parametrize(
    ("stack", "logical_id", "path", "section", "row"),
    [(s, i, p, section, row) for s, i, p, _, section, row in ACCOUNT_MUTATIONS],
)
def test_a_value_that_went_wrong_on_its_way_is_caught_in_the_read_back(
    stack: str, logical_id: str, path: str, section: str, row: str, read_back_of_all_mutations: Any
) -> None:
    """The read-back must depend on the account, not on what we meant to deploy."""
    wrong = [v for v in read_back_of_all_mutations if (v.path, v.row) == (section, row)]
    assert any(not verdict.right for verdict in wrong), (stack, logical_id, path)


def test_a_template_that_cannot_be_read_whole_is_refused() -> None:
    """An intrinsic function that the reader does not know must not become an empty value."""
    templates: dict[str, Template] = {"S": {"Resources": {}}}
    with pytest.raises(assembly.TemplateError, match="Fn::Select"):
        assembly.resolve({"Fn::Select": [0, []]}, "S", templates, assembly.symbol)
    with pytest.raises(assembly.TemplateError, match="no stack exports"):
        assembly.resolve({"Fn::ImportValue": "x"}, "S", templates, assembly.symbol)
    with pytest.raises(assembly.TemplateError, match="does not have"):
        assembly.resolve({"Ref": "Gone"}, "S", templates, assembly.symbol)
