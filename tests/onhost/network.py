"""The specification's network, in namespaces: hosts, router, security groups, faults.

Addresses, subnets, groups and rules come from the CDK templates (the golden ones, which `make
aws-test` compares with what the app makes). Each host has one cable, to the router; the groups are
enforced there, as AWS enforces them outside the hosts: a packet passes its sender's egress and its
receiver's ingress, replies pass by state. The private subnets have no way out.

Around the VPC: an exchange, an object store, the admin and a stranger on the internet, and one
host in the VPC that is in no group.
"""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.onhost.image import run
from tests.onhost.lab import Lab
from tests.rules.tree import ROOT

sys.path.insert(0, str(ROOT / "cdk"))  # kalshi_infra.flows needs nothing but the standard library
from kalshi_infra import flows
from kalshi_infra.assembly import resources

GOLDEN = ROOT / "tests" / "infra" / "golden"
EXCHANGE, STORE, STRANGER = "exchange", "s3", "stranger"
ADMIN, ELSEWHERE, PRODUCTION = "admin", "elsewhere", "production"
# Addresses for documentation (RFC 5737), as nobody's. `elsewhere` is in no group.
OUTSIDE = {EXCHANGE: "203.0.113.10", STORE: "203.0.113.20", STRANGER: "198.51.100.9"}
ELSEWHERE_ADDRESS = "10.0.1.99"


@dataclass(frozen=True)
class Place:
    """Somebody with an address. `group`: the template's name of its security group, or ""."""

    name: str
    address: str
    prefix: int
    gateway: str
    group: str
    public: bool


@dataclass(frozen=True)
class Plan:
    """Who is where, and who may what."""

    vpc: str
    places: dict[str, Place]
    rules: tuple[flows.GroupRule, ...]
    possible: frozenset[flows.Flow]


def plan() -> Plan:
    """The plan of the golden templates, and the people around them."""
    templates = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in GOLDEN.glob("*.json")
    }
    site = tomllib.loads((ROOT / "cdk" / "site.example.toml").read_text(encoding="utf-8"))
    found = resources(templates)
    (vpc,) = [r.properties["CidrBlock"] for r in found if r.type == "AWS::EC2::VPC"]
    subnets = [
        ipaddress.IPv4Network(r.properties["CidrBlock"])
        for r in found
        if r.type == "AWS::EC2::Subnet"
    ]
    places = {}
    for endpoint in flows.endpoints(found):
        # AWS gives a database its address. The reader of templates takes the first of its subnet,
        # which is the router's; here it is where topology.toml would place such a host.
        address = ipaddress.IPv4Address(endpoint.address)
        (subnet,) = [net for net in subnets if address in net]
        if address == subnet[1]:
            address = subnet[30]
        places[endpoint.name] = Place(
            endpoint.name, str(address), subnet.prefixlen, str(subnet[1]), endpoint.group,
            # In the private subnets nothing has a way out, whatever else may be said of it.
            endpoint.public,
        )  # fmt: skip
    outsiders = {**OUTSIDE, ADMIN: str(ipaddress.IPv4Network(site["admin_cidr"])[0])}
    for name, address_text in outsiders.items():
        net = ipaddress.IPv4Network(f"{address_text}/24", strict=False)
        places[name] = Place(name, address_text, 24, str(net[1]), "", public=True)
    places[ELSEWHERE] = Place(
        ELSEWHERE, ELSEWHERE_ADDRESS, 24, str(ipaddress.IPv4Network("10.0.1.0/24")[1]), "", True
    )
    possible = flows.flows(templates, site["admin_cidr"])
    return Plan(vpc, places, tuple(flows.group_rules(found)), frozenset(possible))


class Network:
    """The plan, laid out in a lab. `protect` puts the rules in force."""

    def __init__(self, lab: Lab, tree: Path) -> None:
        self.lab, self.tree = lab, tree
        self.plan = plan()
        self._numbers = {name: number for number, name in enumerate(sorted(self.plan.places))}
        self._router = f"{lab.name}-router"
        for name in (self._router, *map(self.namespace, self.plan.places)):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        self._set("net/ipv4/ip_forward", "1")
        gateways = {(p.gateway, p.prefix) for p in self.plan.places.values()}
        for gateway, _ in sorted(gateways):
            run("ip", "-n", self._router, "address", "add", f"{gateway}/32", "dev", "lo")
        for place in self.plan.places.values():
            self._cable(place)

    def namespace(self, name: str) -> str:
        """The network namespace of somebody."""
        return f"{self.lab.name}-{name}"

    def address(self, name: str) -> str:
        """Somebody's address."""
        return self.plan.places[name].address

    def execute(self, name: str, *words: str | Path) -> list[str]:
        """The command line that runs a command of this machine in somebody's network."""
        return ["ip", "netns", "exec", self.namespace(name), *map(str, words)]

    def _cable(self, place: Place) -> None:
        space, port = self.namespace(place.name), self._port(place.name)
        run(
            *("ip", "link", "add", "eth0", "netns", space, "type", "veth"),
            *("peer", "name", port, "netns", self._router),
        )
        run("ip", "-n", space, "address", "add", f"{place.address}/{place.prefix}", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        run("ip", "-n", space, "route", "add", "default", "via", place.gateway)
        run("ip", "-n", self._router, "link", "set", port, "up")
        run("ip", "-n", self._router, "route", "add", f"{place.address}/32", "dev", port)
        # The router answers for neighbours too, so that nothing goes past it.
        self._set(f"net/ipv4/conf/{port}/proxy_arp", "1")
        self._set(f"net/ipv4/neigh/{port}/proxy_delay", "0")

    def _port(self, name: str) -> str:
        return f"port{self._numbers[name]}"

    def _set(self, setting: str, value: str) -> None:
        script = f"echo {value} > /proc/sys/{setting}"
        run("ip", "netns", "exec", self._router, "/bin/sh", "-c", script)

    def nft(self, rules: str) -> None:
        """Load rules into the router, with the tree's own nft."""
        done = subprocess.run(
            ["ip", "netns", "exec", self._router, "chroot", str(self.tree), "nft", "-f", "-"],
            input=rules, capture_output=True, text=True, check=False,
            env={**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )  # fmt: skip
        assert done.returncode == 0, f"nft: {done.stderr}\n{rules}"

    # ---- security groups

    def protect(self, but: Sequence[str] = ()) -> None:
        """Put routes and groups in force; `but`: without the group of these hosts (a control)."""
        guarded = [p for p in self.plan.places.values() if p.group and p.name not in but]
        chains = [text for place in guarded for text in self._chains(place)]
        out = ", ".join(f'"{self._port(p.name)}" : jump out_{self._word(p)}' for p in guarded)
        into = ", ".join(f'"{self._port(p.name)}" : jump in_{self._word(p)}' for p in guarded)
        self.nft(
            "\n".join(
                (
                    *self._empty("vpc"),
                    "table ip vpc {",
                    *chains,
                    "chain forward {",
                    "type filter hook forward priority 0; policy accept;",
                    "ct state established,related accept",
                    *self._routes(),
                    f"iifname vmap {{ {out} }}",
                    f"oifname vmap {{ {into} }}",
                    "}",
                    "}\n",
                )
            )
        )

    def unprotect(self) -> None:
        """No routes' rules, no groups: everybody reaches everybody (the positive control)."""
        self.nft("\n".join(self._empty("vpc")) + "\n")

    @staticmethod
    def _empty(table: str) -> Iterable[str]:
        return (f"table ip {table} {{ }}", f"delete table ip {table}")

    @staticmethod
    def _word(place: Place) -> str:
        return place.name.replace("-", "_")

    def _routes(self) -> Iterable[str]:
        """The private route table: the VPC and nothing else."""
        for place in self.plan.places.values():
            if not place.public:
                yield f"ip saddr {place.address} ip daddr != {self.plan.vpc} drop"
                yield f"ip daddr {place.address} ip saddr != {self.plan.vpc} drop"

    def _chains(self, place: Place) -> Iterable[str]:
        for inbound, name in ((True, "in"), (False, "out")):
            yield f"chain {name}_{self._word(place)} {{"
            for rule in self.plan.rules:
                if rule.group == place.group and rule.inbound == inbound:
                    yield self._match(rule)
            yield "drop"
            yield "}"

    def _match(self, rule: flows.GroupRule) -> str:
        side = "saddr" if rule.inbound else "daddr"
        peers = [rule.peer] if "/" in rule.peer else self._members(rule.peer)
        what = f"ip {side} {{ {', '.join(peers)} }}"
        if rule.protocol == "icmp":
            return f"{what} icmp type {rule.from_port} icmp code {rule.to_port} return"
        assert rule.protocol == "tcp", f"no translation for {rule}"
        return f"{what} tcp dport {rule.from_port}-{rule.to_port} return"

    def _members(self, group: str) -> list[str]:
        return [p.address for p in self.plan.places.values() if p.group == group]

    # ---- faults

    def cut(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Nothing passes between the members of each pair, in either direction, until `heal`."""
        both = [pair for one, other in pairs for pair in ((one, other), (other, one))]
        self._fault(f"ip saddr {self.address(a)} ip daddr {self.address(b)} drop" for a, b in both)

    def silence(self, listener: str, speaker: str) -> None:
        """The listener hears nothing more of the speaker, and nobody tells it why; the speaker is
        told at once that its connection is gone, so that it does not wait for this listener."""
        here, there = self.address(listener), self.address(speaker)
        self._fault(
            (
                f"ip saddr {there} ip daddr {here} ip protocol tcp reject with tcp reset",
                f"ip saddr {here} ip daddr {there} drop",
            )
        )

    def _fault(self, rules: Iterable[str]) -> None:
        self.nft(
            "\n".join(
                (
                    *self._empty("fault"),
                    "table ip fault {",
                    "chain forward {",
                    "type filter hook forward priority -10; policy accept;",
                    *rules,
                    "}",
                    "}\n",
                )
            )
        )

    def heal(self) -> None:
        """End every fault."""
        self.nft("\n".join(self._empty("fault")) + "\n")


def expected(network: Network, ports: Iterable[int]) -> Mapping[tuple[str, str, int], bool]:
    """May `source` open `port` on `destination`, for each pair with a host in a group."""
    known = {flows.ADMIN: (ADMIN,), flows.ELSEWHERE: (ELSEWHERE,), flows.INTERNET: tuple(OUTSIDE)}
    open_ = set()
    for flow in network.plan.possible:
        for source in known.get(flow.source, (flow.source,)):
            for destination in known.get(flow.destination, (flow.destination,)):
                open_.add((source, destination, flow.port))
            if flow.destination == flows.INTERNET:  # the admin is a part of it
                open_.add((source, ADMIN, flow.port))
    places = network.plan.places
    return {
        (a, b, port): (a, b, port) in open_
        for a in places
        for b in places
        for port in ports
        if a != b and (places[a].group or places[b].group)
    }
