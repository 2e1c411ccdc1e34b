"""The applier is strict, and every option can be played into an account."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import applier
import moto_account
import pytest
from infra_fixtures import Synthesized
from kalshi_infra.assembly import Template
from taken import Taken, UnmappedError

LAKE_TABLES = {
    "orderbook_deltas", "orderbook_snapshots", "trades", "tickers", "coverage", "markets", "events",
}  # fmt: skip


@pytest.mark.parametrize(
    ("stack", "logical_id", "path", "value"),
    [
        ("KalshiNetwork", "Vpc", "InstanceTenancy", "default"),
        ("KalshiNetwork", "SubnetPublicA", "AssignIpv6AddressOnCreation", True),
        ("KalshiNetwork", "SgGatherer", "SecurityGroupIngress/0/CidrIpv6", "::/0"),
        ("KalshiStorage", "Lake", "LifecycleConfiguration/Rules/0/ExpirationDate", "2030-01-01"),
        ("KalshiStorage", "Lake", "AccessControl", "PublicRead"),
        ("KalshiDatabase", "Production", "MonitoringInterval", 60),
        ("KalshiGatherer1", "Instance", "Monitoring", True),
        ("KalshiGatherer1", "Disk", "LaunchTemplateData/UserData", "eA=="),
        ("KalshiIdentity", "GathererRole", "ManagedPolicyArns", ["arn:aws:iam::aws:policy/x"]),
    ],
)
def test_a_property_that_nobody_maps_is_an_error(
    stack: str, logical_id: str, path: str, value: Any, templates: Mapping[str, Template]
) -> None:
    """A property that is dropped on the way would make the read-back a proof of nothing."""
    changed = copy.deepcopy(dict(templates))
    node: Any = changed[stack]["Resources"][logical_id]["Properties"]
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in parents:
        node = node[part]
    node[last] = value
    with moto_account.account(), pytest.raises(UnmappedError, match=str(last)):
        applier.apply(changed)


def test_a_type_that_nobody_maps_is_an_error(templates: Mapping[str, Template]) -> None:
    """A whole resource must not be passed over either."""
    changed = copy.deepcopy(dict(templates))
    changed["KalshiStorage"]["Resources"]["Queue"] = {"Type": "AWS::SQS::Queue", "Properties": {}}
    with moto_account.account(), pytest.raises(UnmappedError, match="SQS"):
        applier.apply(changed)


def test_what_is_left_over_at_any_depth_is_named() -> None:
    """The message has to say which property of which row."""
    taken = Taken({"Rows": [{"A": 1, "B": 2}]}, "S.R")
    (row,) = taken.rows("Rows")
    row.plain("A")
    with pytest.raises(UnmappedError, match=r"S\.R\.Rows\[0\]: nobody took \['B'\]"):
        taken.finish()


OPTIONS: list[dict[str, Any]] = [
    {"dedup_health_egress": True, "secrets_manager": True, "cpu_credits": "unlimited"},
    {"noncurrent_days": 30, "abort_multipart_days": 7, "glacier_ir": True, "rds_zone": "c"},
    {"production": "timescale_ec2", "alarms": True},
    {"profile": "small", "lake_catalog": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids="+".join)
def test_every_option_can_be_applied_and_leaves_the_hosts_it_promises(
    options: dict[str, Any], synthesized: Synthesized
) -> None:
    """A template that synthesizes may still be refused by the services."""
    made = synthesized(**options)
    with moto_account.account():
        applier.apply(made)
        ec2 = moto_account.client("ec2")
        addresses = {
            i["PrivateIpAddress"]
            for r in ec2.describe_instances()["Reservations"]
            for i in r["Instances"]
        }
        tables: set[str] = set()
        if options.get("lake_catalog"):
            glue = moto_account.client("glue")
            tables = {t["Name"] for t in glue.get_tables(DatabaseName="kalshi")["TableList"]}
    wanted = {"10.0.1.10", "10.0.3.20"}
    if options.get("profile") != "small":
        wanted |= {"10.0.2.10", "10.0.3.10"}
    if options.get("production") == "timescale_ec2":
        wanted.add("10.0.101.30")
    assert addresses == wanted
    assert tables == (LAKE_TABLES if options.get("lake_catalog") else set())


def test_a_taken_address_is_refused_as_ec2_refuses_it(templates: Mapping[str, Template]) -> None:
    """Why a host is replaced by destroy and deploy: two instances cannot have one address."""
    changed = copy.deepcopy(dict(templates))
    properties = changed["KalshiGatherer2"]["Resources"]["Instance"]["Properties"]
    first = changed["KalshiGatherer1"]["Resources"]["Instance"]["Properties"]
    properties["SubnetId"] = first["SubnetId"]
    properties["PrivateIpAddress"] = first["PrivateIpAddress"]
    with moto_account.account(), pytest.raises(Exception, match=r"(?i)in use"):
        applier.apply(changed)
