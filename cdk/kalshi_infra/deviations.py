"""Deviations: where the specification cannot or should not be deployed as written, and what we add
to it.

Each entry quotes the specification, says what we do and why, and names the option that changes it.
Cells listed here are the only ones that the conformance test accepts as different, and only with
exactly this value."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass, field

# (section path, row, column)
Cell = tuple[str, str, str]

_RDS = "Database / Production RDS"
_COST = "Cost Estimate"


@dataclass(frozen=True, slots=True)
class Deviation:
    """`cells` maps cells of the specification to what is there instead."""

    key: str
    section: str
    specified: str
    ours: str
    why: str
    option: str = "none"
    cells: dict[Cell, str] = field(default_factory=dict)


DEVIATIONS = (
    Deviation(
        "D01",
        _RDS,
        "Engine: PostgreSQL 16 + TimescaleDB",
        "PostgreSQL 16; the production schema uses native range partitions by day under the same table names",
        "RDS does not offer the TimescaleDB extension. The schema asks the server at start and uses hypertables where they exist.",
        'production = "timescale_ec2": PostgreSQL 16 with TimescaleDB on a host of our own in private subnet a, reached by SSH through the deduplicator (two rules for port 22); without RDS backups, so the nightly dump carries them alone',
        {(_RDS, "Engine", "Value"): "PostgreSQL 16"},
    ),
    Deviation(
        "D02",
        f"{_RDS} / Storage",
        "gp3, 500 GB, 3000 IOPS, 125 MB/s",
        "gp3, 500 GB; IOPS and throughput are not stated",
        "From 400 GB on RDS for PostgreSQL stripes gp3: its baseline is 12,000 IOPS and 500 MB/s, and smaller explicit values are refused; under 400 GB any explicit value is refused. One gets more than the table says, at no extra charge.",
        "none",
        {
            (f"{_RDS} / Storage", "gp3", "IOPS"): "not stated",
            (f"{_RDS} / Storage", "gp3", "Throughput"): "not stated",
        },
    ),
    Deviation(
        "D03",
        "Security Groups",
        "sg-gatherer inbound 8080 from sg-deduplicator, but no outbound 8080 of sg-deduplicator",
        "as written: health checks from the deduplicator are dropped at its own group",
        "The tables decide. The deduplicator judges gatherers by their rows over 5432.",
        "dedup_health_egress = true: one row, outbound 8080 to sg-gatherer",
    ),
    Deviation(
        "D04",
        "Security Groups",
        "inbound 9090 from VPC CIDR; no Prometheus host anywhere",
        "as written",
        "Whoever puts a scraper into the VPC gives it a group of its own with outbound 9090.",
    ),
    Deviation(
        "D05",
        "Security Groups",
        "outbound 443 only",
        "as written; package mirrors are switched to https on first boot, time comes from the hypervisor",
        "DNS, time and metadata inside the VPC are not filtered by groups; port 80 is closed, so nothing may need it.",
    ),
    Deviation(
        "D06",
        "Security Groups",
        "Source: Admin IP",
        "a required value, admin_cidr; wider than /24 is refused before a template exists",
        "The specification gives no address.",
    ),
    Deviation(
        "D07",
        "Network / Route Tables",
        "S3 (via VPC endpoint); two routes in the public table",
        "a gateway endpoint on the public table, which adds a third route (AWS's prefix list of S3)",
        "A gateway endpoint works through a route. 443 stays open to 0.0.0.0/0 because the APIs of CloudWatch have no gateway endpoint.",
    ),
    Deviation(
        "D08",
        "IAM",
        "no right to read secrets",
        "secrets are brought over SSH as systemd credentials, encrypted to the host (docs/aws.md, step 7)",
        "The gatherer needs the exchange's key, the deduplicator the database's password; the two roles can read neither.",
        "secrets_manager = true: an empty secret for the API key, and GetSecretValue on two named secrets in policies beside the specification's",
    ),
    Deviation(
        "D09",
        "IAM",
        "logs:CreateLogStream, logs:PutLogEvents",
        "the log groups are made here, with retention",
        "Without logs:CreateLogGroup the services could not make them.",
    ),
    Deviation(
        "D10",
        "IAM",
        "cloudwatch:PutMetricData in the namespace Kalshi",
        "as written; the namespace and the metrics are in topology.toml (publishing them is planned)",
        "The defaults of other publishers use other namespaces and would be refused.",
    ),
    Deviation(
        "D11",
        "IAM",
        "s3:PutObject, GetObject, ListBucket",
        "as written; objects are put whole under deterministic names",
        "No right to abort uploads or delete: a failed multipart upload would stay. Not being able to delete is a virtue of an archive.",
        "abort_multipart_days = 7: a lifecycle rule ends unfinished uploads, without any right",
    ),
    Deviation(
        "D12",
        "Storage / S3 Bucket",
        "Versioning: Enabled",
        "as written",
        "Superseded versions are kept and paid for ever; the table's transitions act on current ones.",
        "noncurrent_days = 30",
    ),
    Deviation(
        "D13",
        "Storage / S3 Bucket / Lifecycle Policies",
        "parquet/ to Intelligent-Tiering at 0 days",
        "as written",
        "Transitions cost a request each; an object uploaded in that class gets there free, which the exporter may do.",
    ),
    Deviation(
        "D14",
        "Storage / S3 Bucket / Lifecycle Policies",
        "parquet/ to Glacier at 365 days",
        "as written: after a year an object must be restored before anything can query it",
        "Athena and Spark do not see archived objects.",
        "glacier_ir = true: Glacier Instant Retrieval instead, for parquet/ only",
    ),
    Deviation(
        "D15",
        "Storage / S3 Bucket / Lifecycle Policies",
        "transitions by prefix",
        "as written; one object per table and hour",
        "S3 does not move objects under 128 KB: small hours stay in Standard.",
    ),
    Deviation(
        "D16",
        "Storage / S3 Bucket",
        "backups/rds/",
        "the place for a nightly dump by the deduplicator, whose role may write it (planned)",
        "RDS's own backups never land in one's bucket.",
    ),
    Deviation(
        "D17",
        _RDS,
        "Single-AZ; maintenance Sun 04:00",
        "as written",
        "Merging stops then; capture does not depend on it, and the deduplicator catches up.",
    ),
    Deviation(
        "D18",
        "Overview",
        "RDS in private subnet a, deduplicator in public subnet c",
        "as written",
        "Every merged byte crosses zones (see make cost).",
        'rds_zone = "c"',
    ),
    Deviation(
        "D19",
        "Network / Route Tables / Private Route Table",
        "local only",
        "as written",
        "Enough for RDS. A host there (D01) gets its software through the deduplicator.",
    ),
    Deviation(
        "D20",
        "Compute",
        "t4g (burstable)",
        "AWS's default, unlimited: above 40 % of the processors the surplus costs 0.04 USD per vCPU-hour",
        "The table does not say which.",
        'cpu_credits = "standard" | "unlimited"; alarms = true watches the surplus',
    ),
    Deviation(
        "D21",
        "Storage / S3 Bucket",
        "Name: kalshi-data-prod",
        "as written",
        "Bucket names are world wide; somebody else may own it.",
        "bucket_name; the role's policy follows it",
    ),
    Deviation(
        "D22",
        "Compute / Storage",
        "gp3, 3000 IOPS, 125 MB/s",
        "as written, in a launch template of the host",
        "AWS::EC2::Instance cannot state throughput.",
    ),
    Deviation(
        "D23",
        _COST,
        "~$835; about 30 % less with a plan, ~$600",
        "$949.00; $742.97 with a plan",
        "List prices of the date in prices.json; a Compute Savings Plan covers EC2 alone. make cost prints each line.",
        'profile = "small"',
        {
            (_COST, "3x EC2 t4g.2xlarge", "Monthly"): "$588.67",
            (_COST, "1x EC2 t4g.xlarge", "Monthly"): "$98.11",
            (_COST, "3x EBS gp3 200GB", "Monthly"): "$48.00",
            (_COST, "1x EBS gp3 50GB", "Monthly"): "$4.00",
            (_COST, "RDS db.t4g.large", "Monthly"): "$94.17",
            (_COST, "RDS Storage 500GB", "Monthly"): "$57.50",
            (_COST, "S3 1TB", "Monthly"): "$23.55",
            (_COST, "CloudWatch", "Monthly"): "$20.00",
            (_COST, "Total", "Monthly"): "$949.00",
        },
    ),
    Deviation(
        "D24",
        "Security Groups",
        "groups named sg-gatherer, sg-deduplicator, sg-rds",
        "these names as the Name tag; the group names are kalshi-gatherer, kalshi-deduplicator, kalshi-rds",
        "AWS refuses group names that begin with sg-.",
    ),
    Deviation(
        "D25",
        "Compute / Gatherer Instances (3x)",
        "EBS Bandwidth: Up to 2.75 Gbps",
        "the instance type has what it has",
        "EC2 itself says 2,780 Mbit/s for t4g.2xlarge; nothing can be set.",
        "none",
        {
            ("Compute / Gatherer Instances (3x)", "EBS Bandwidth", "Value"): "Up to 2.78 Gbps",
        },
    ),
)

# What is in the templates and not in the specification, each for a reason.
ADDITIONS = (
    (
        "disks and database encrypted at rest",
        "costs nothing; cannot be switched on later without a copy",
    ),
    (
        "instance metadata by token only (IMDSv2), one hop",
        "a request forged through a service cannot read the role",
    ),
    (
        "termination protection of hosts and stacks, deletion protection of the database",
        "a slip must not cost a recording",
    ),
    ("disks, bucket and logs stay when a stack goes; the database leaves a snapshot", "the same"),
    ("public access to the bucket blocked", "the lake is nobody else's"),
    (
        "password of the database made by RDS in Secrets Manager",
        "no template holds it (0.40 USD a month)",
    ),
    ("log groups /kalshi/gatherer and /kalshi/deduplicator, 30 days", "D09"),
    ("S3 gateway endpoint", "the specification's own purpose text asks for it (D07)"),
    ("EC2 key pair, first-boot script", "SSH from the admin network is the only way in"),
)


def text(width: int = 110) -> str:
    """Both lists for a reader."""
    out = ["Deviations from the infrastructure specification", ""]
    for entry in DEVIATIONS:
        out.append(f"{entry.key}  {entry.section}")
        for name in ("specified", "ours", "why", "option"):
            out += textwrap.wrap(
                getattr(entry, name),
                width,
                initial_indent=f"     {name + ':':<11}",
                subsequent_indent=" " * 16,
            )
    out += ["", "Added to the specification", ""]
    out += [f"  + {what}: {why}" for what, why in ADDITIONS]
    return "\n".join(out)


def main() -> int:
    """Prints the lists. Returns the exit code."""
    print(text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
