"""Flows: who may open a TCP connection to whom on which port, computed from the templates.

A connection from host A to host B is possible when a rule of A's group lets it out, a rule of B's
group lets it in, and both subnets can be reached: inside the VPC always, from and to the internet
only through a route to the gateway. "Elsewhere in the VPC" stands for a host in no group of ours,
with egress of its own: what could reach us if somebody put it there. Groups are stateful, so
replies are not looked at; DNS, time and metadata of the VPC are not filtered by groups at all."""

from __future__ import annotations

import argparse
import ipaddress
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kalshi_infra.assembly import Resource, Template, read, resources, target
from kalshi_infra.errors import TemplateError

# Peer of the rule that lets nothing out (network.py).
NOTHING_PEER = "255.255.255.255/32"
INTERNET, ELSEWHERE, ADMIN = "internet", "elsewhere in the VPC", "admin network"


@dataclass(frozen=True, slots=True)
class GroupRule:
    """One rule as it stands in a template; `peer` is a CIDR or the symbolic name of a group."""

    group: str
    inbound: bool
    protocol: str
    from_port: int
    to_port: int
    peer: str
    description: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Something with an address and a group; `public`: its subnet has a way to the internet."""

    name: str
    address: str
    group: str
    public: bool


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    """`source` may open TCP `port` on `destination`."""

    source: str
    destination: str
    port: int


def group_rules(found: Sequence[Resource]) -> list[GroupRule]:
    """Every rule of every group, from the groups' own bodies and from separate resources."""
    rules = []
    for resource in found:
        values = resource.properties
        if resource.type == "AWS::EC2::SecurityGroup":
            for inbound, key in ((True, "SecurityGroupIngress"), (False, "SecurityGroupEgress")):
                if not inbound and key not in values:
                    raise TemplateError(
                        f"{resource.name} states no egress: AWS would allow all of it"
                    )
                rules += [_rule(resource.name, inbound, row) for row in values.get(key, ())]
        elif resource.type in ("AWS::EC2::SecurityGroupIngress", "AWS::EC2::SecurityGroupEgress"):
            rules.append(
                _rule(target(values["GroupId"]), resource.type.endswith("Ingress"), values)
            )
    return rules


def _rule(group: str, inbound: bool, row: Mapping[str, object]) -> GroupRule:  # noqa: FBT001
    peer = (
        row.get("CidrIp")
        or row.get("SourceSecurityGroupId")
        or row.get("DestinationSecurityGroupId")
    )
    if not isinstance(peer, str):
        raise TemplateError(f"a rule of {group} names no IPv4 network and no group: {dict(row)}")
    return GroupRule(
        group=group,
        inbound=inbound,
        protocol=str(row["IpProtocol"]),
        from_port=int(str(row["FromPort"])),
        to_port=int(str(row["ToPort"])),
        peer=target(peer) if "." in peer and "/" not in peer else peer,
        description=str(row.get("Description", "")),
    )


def endpoints(found: Sequence[Resource]) -> list[Endpoint]:
    """Hosts and databases of the templates."""
    public = _public_subnets(found)
    by_name = {resource.name: resource for resource in found}
    placed = []
    for resource in found:
        values = resource.properties
        if resource.type == "AWS::EC2::Instance":
            (group,) = values["SecurityGroupIds"]
            subnet = target(values["SubnetId"])
            placed.append(
                Endpoint(
                    resource.tag(), values["PrivateIpAddress"], target(group), subnet in public
                )
            )
        elif resource.type == "AWS::RDS::DBInstance":
            (group,) = values["VPCSecurityGroups"]
            subnets = by_name[target(values["DBSubnetGroupName"])].properties["SubnetIds"]
            nets = [by_name[target(s)].properties for s in subnets]
            (net,) = [
                n["CidrBlock"] for n in nets if n["AvailabilityZone"] == values["AvailabilityZone"]
            ]
            reachable = bool(values.get("PubliclyAccessible")) and all(
                target(s) in public for s in subnets
            )
            first = str(next(ipaddress.IPv4Network(net).hosts()))
            placed.append(Endpoint("production", first, target(group), reachable))
    return placed


def _public_subnets(found: Sequence[Resource]) -> set[str]:
    gateways = {r.name for r in found if r.type == "AWS::EC2::InternetGateway"}
    tables = {
        target(r.properties["RouteTableId"])
        for r in found
        if r.type == "AWS::EC2::Route" and target(r.properties.get("GatewayId", "")) in gateways
    }
    return {
        target(r.properties["SubnetId"])
        for r in found
        if r.type == "AWS::EC2::SubnetRouteTableAssociation"
        and target(r.properties["RouteTableId"]) in tables
    }


def flows(templates: Mapping[str, Template], admin_cidr: str) -> set[Flow]:
    """Every possible connection on every port that any rule names, and on one that none names."""
    found = resources(templates)
    rules = group_rules(found)
    placed = endpoints(found)
    (vpc,) = [r.properties["CidrBlock"] for r in found if r.type == "AWS::EC2::VPC"]
    ports = _interesting_ports(rules)
    possible = set()
    outside = _outsiders(vpc, admin_cidr, [e.address for e in placed])
    for port in ports:
        for source in placed:
            for destination in placed:
                if source != destination and _allowed(rules, source, destination, port):
                    possible.add(Flow(source.name, destination.name, port))
        for name, addresses in outside.items():
            for endpoint in placed:
                if name != ELSEWHERE and not endpoint.public:
                    continue
                if any(_in(rules, endpoint, port, a) for a in addresses):
                    possible.add(Flow(name, endpoint.name, port))
                if name != ADMIN and any(_out(rules, endpoint, port, a) for a in addresses):
                    possible.add(Flow(endpoint.name, name, port))
    return possible


def _interesting_ports(rules: Iterable[GroupRule]) -> list[int]:
    """Ends of every port range and their neighbours: between two of them nothing changes."""
    edges = {1, 65535}
    for rule in rules:
        if rule.protocol in ("tcp", "6", "-1"):
            edges |= {rule.from_port - 1, rule.from_port, rule.to_port, rule.to_port + 1}
    return sorted(port for port in edges if 1 <= port <= 65535)


def _outsiders(vpc: str, admin_cidr: str, taken: Sequence[str]) -> dict[str, list[str]]:
    """Sample addresses outside our groups: both ends of the admin network, free ones, the world."""
    admin = ipaddress.IPv4Network(admin_cidr)
    inside = ipaddress.IPv4Network(vpc)
    free = [
        str(a)
        for a in (inside[260], inside[-2], *(inside[256 * n + 99] for n in (1, 2, 3, 101)))
        if str(a) not in taken
    ]
    world = [
        a for a in ("8.8.8.8", "52.0.0.1", "198.51.100.9") if ipaddress.IPv4Address(a) not in admin
    ]
    return {ADMIN: [str(admin[0]), str(admin[-1])], ELSEWHERE: free, INTERNET: world}


def _matches(rule: GroupRule, port: int) -> bool:
    if rule.protocol == "-1":
        return True
    return rule.protocol in ("tcp", "6") and rule.from_port <= port <= rule.to_port


def _covers(peer: str, address: str, group: str) -> bool:
    if "/" in peer:
        return ipaddress.IPv4Address(address) in ipaddress.IPv4Network(peer)
    return peer == group


def _in(rules: Iterable[GroupRule], to: Endpoint, port: int, address: str, group: str = "") -> bool:
    return any(
        r.inbound and r.group == to.group and _matches(r, port) and _covers(r.peer, address, group)
        for r in rules
    )


def _out(
    rules: Iterable[GroupRule], source: Endpoint, port: int, address: str, group: str = ""
) -> bool:
    return any(
        not r.inbound
        and r.group == source.group
        and _matches(r, port)
        and _covers(r.peer, address, group)
        for r in rules
    )


def _allowed(
    rules: Sequence[GroupRule], source: Endpoint, destination: Endpoint, port: int
) -> bool:
    return _out(rules, source, port, destination.address, destination.group) and _in(
        rules, destination, port, source.address, source.group
    )


def matrix(possible: Iterable[Flow]) -> str:
    """The flows as a table: a line per source and destination, ports in it."""
    cells: dict[tuple[str, str], list[int]] = {}
    for flow in sorted(possible):
        cells.setdefault((flow.source, flow.destination), []).append(flow.port)
    width = max((len(source) for source, _ in cells), default=0)
    return "\n".join(
        f"{source:<{width}} -> {destination:<{width}} {', '.join(map(str, ports))}"
        for (source, destination), ports in cells.items()
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the matrix of a cloud assembly. Returns the exit code."""
    parser = argparse.ArgumentParser(description="who may reach whom, from a cloud assembly")
    parser.add_argument("assembly", type=Path)
    parser.add_argument("--admin-cidr", required=True)
    chosen = parser.parse_args(arguments)
    print(matrix(flows(read(chosen.assembly), chosen.admin_cidr)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
