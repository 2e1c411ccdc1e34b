"""Who may reach whom: computed from the templates, compared with a table that a person can read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
from infra_fixtures import Synthesized
from kalshi_infra import flows
from kalshi_infra.assembly import Template
from kalshi_infra.errors import TemplateError
from kalshi_infra.flows import Flow
from kalshi_infra.site import Site

# The specification's security, in full. What is not here is impossible.
EXPECTED = """
admin network        -> deduplicator         22
admin network        -> gatherer-1           22
admin network        -> gatherer-2           22
admin network        -> gatherer-3           22
deduplicator         -> elsewhere in the VPC 443
deduplicator         -> gatherer-1           5432, 5433
deduplicator         -> gatherer-2           5432, 5433
deduplicator         -> gatherer-3           5432, 5433
deduplicator         -> internet             443
deduplicator         -> production           5432
elsewhere in the VPC -> deduplicator         8080, 9090
elsewhere in the VPC -> gatherer-1           9090
elsewhere in the VPC -> gatherer-2           9090
elsewhere in the VPC -> gatherer-3           9090
gatherer-1           -> elsewhere in the VPC 443
gatherer-1           -> internet             443
gatherer-2           -> elsewhere in the VPC 443
gatherer-2           -> internet             443
gatherer-3           -> elsewhere in the VPC 443
gatherer-3           -> internet             443
"""


@pytest.fixture(scope="module")
def possible(templates: Mapping[str, Template], chosen: Site) -> set[Flow]:
    """Every possible connection of the specification as written."""
    return flows.flows(templates, chosen.admin_cidr)


def test_the_matrix_is_the_expected_table(possible: set[Flow]) -> None:
    """Line by line; a new line is a new way in or out."""
    assert flows.matrix(possible).splitlines() == EXPECTED.strip().splitlines()


def test_the_production_database_is_reached_by_the_deduplicator_only(possible: set[Flow]) -> None:
    """W3, said again without the table."""
    assert {f for f in possible if f.destination == "production"} == {
        Flow("deduplicator", "production", 5432)
    }
    assert not any(f.source == "production" for f in possible)


def test_the_gatherers_databases_are_reached_by_the_deduplicator_only(possible: set[Flow]) -> None:
    """A gatherer does not even reach another gatherer."""
    for flow in possible:
        if flow.destination.startswith("gatherer") and flow.port in (5432, 5433):
            assert flow.source == "deduplicator"


def test_port_22_is_reached_from_the_admin_network_only(possible: set[Flow]) -> None:
    """And the admin network reaches nothing else."""
    assert {f.source for f in possible if f.port == 22} == {flows.ADMIN}
    assert {f.port for f in possible if f.source == flows.ADMIN} == {22}
    assert not any(f.source == flows.INTERNET for f in possible)


def test_the_arrows_of_the_specifications_diagram_are_possible(possible: set[Flow]) -> None:
    """The diagram promises these five."""
    for name in ("gatherer-1", "gatherer-2", "gatherer-3", "deduplicator"):
        assert Flow(name, flows.INTERNET, 443) in possible
    assert Flow("deduplicator", "production", 5432) in possible


def changed(templates: Mapping[str, Template], logical_id: str, path: str, value: Any) -> Any:
    """The templates with one property of the network replaced; a value of None removes it."""
    made = copy.deepcopy(dict(templates))
    node: Any = made["KalshiNetwork"]["Resources"][logical_id]["Properties"]
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in parents:
        node = node[part]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return made


@pytest.mark.parametrize(
    ("logical_id", "path", "value", "new"),
    [
        (
            "SgGatherer",
            "SecurityGroupIngress/0/CidrIp",
            "0.0.0.0/0",
            Flow("internet", "gatherer-1", 22),
        ),
        (
            "SgGatherer",
            "SecurityGroupIngress/1/ToPort",
            9200,
            Flow("elsewhere in the VPC", "gatherer-2", 9200),
        ),
        (
            "SgRds",
            "SecurityGroupEgress/0",
            {"IpProtocol": "-1", "FromPort": -1, "ToPort": -1, "CidrIp": "0.0.0.0/0"},
            Flow("production", "elsewhere in the VPC", 443),
        ),
        (
            "SgDeduplicatorOutbound5432SgRds",
            "ToPort",
            6000,
            Flow("deduplicator", "production", 5432),
        ),
        (
            "SgRdsInbound5432SgDeduplicator",
            "SourceSecurityGroupId",
            {"Fn::GetAtt": ["SgGatherer", "GroupId"]},
            None,
        ),
    ],
)
def test_a_widened_rule_changes_the_matrix(
    logical_id: str,
    path: str,
    value: Any,
    new: Flow | None,
    templates: Mapping[str, Template],
    possible: set[Flow],
    chosen: Site,
) -> None:
    """The control: the computation sees what it is for."""
    made = flows.flows(changed(templates, logical_id, path, value), chosen.admin_cidr)
    if new is None:
        assert Flow("deduplicator", "production", 5432) not in made
    else:
        assert new in made
    if logical_id != "SgDeduplicatorOutbound5432SgRds":
        assert made != possible


def test_a_group_without_egress_is_refused_because_aws_would_open_it(
    templates: Mapping[str, Template], chosen: Site
) -> None:
    """Leaving the list out means `allow all` on AWS."""
    with pytest.raises(TemplateError, match="states no egress"):
        flows.flows(changed(templates, "SgRds", "SecurityGroupEgress", None), chosen.admin_cidr)


def test_a_database_in_public_subnets_would_show_the_internet(
    templates: Mapping[str, Template], chosen: Site
) -> None:
    """Reaching the internet is a matter of routes, not only of groups."""
    made = copy.deepcopy(dict(templates))
    network = made["KalshiNetwork"]["Resources"]
    for letter in "ABC":
        public = network["RoutesPublicA"]["Properties"]["RouteTableId"]
        network[f"RoutesPrivate{letter}"]["Properties"]["RouteTableId"] = public
    made["KalshiDatabase"]["Resources"]["Production"]["Properties"]["PubliclyAccessible"] = True
    network["SgRds"]["Properties"]["SecurityGroupIngress"] = [
        {
            "IpProtocol": "tcp",
            "FromPort": 5432,
            "ToPort": 5432,
            "CidrIp": "0.0.0.0/0",
            "Description": "x",
        }
    ]
    assert Flow("internet", "production", 5432) in flows.flows(made, chosen.admin_cidr)


def test_dedup_health_egress_adds_three_flows(
    possible: set[Flow], synthesized: Synthesized, chosen: Site
) -> None:
    """D03: the one row that the specification's own health check lacks."""
    made = flows.flows(synthesized(dedup_health_egress=True), chosen.admin_cidr)
    assert made - possible == {Flow("deduplicator", f"gatherer-{n}", 8080) for n in (1, 2, 3)}
    assert possible < made


def test_timescale_ec2_adds_ssh_from_the_deduplicator_and_nothing_else(
    possible: set[Flow], synthesized: Synthesized, chosen: Site
) -> None:
    """D01: the host in the private subnet is reached through the deduplicator."""
    made = flows.flows(synthesized(production="timescale_ec2"), chosen.admin_cidr)
    assert made - possible == {Flow("deduplicator", "production", 22)}
    assert possible < made
