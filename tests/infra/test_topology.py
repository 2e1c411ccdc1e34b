"""topology.toml and the site: every fault is found before a template exists."""

from __future__ import annotations

import copy
import tomllib
from typing import Any

import pytest
from kalshi_infra import site, topology
from kalshi_infra.effective import effective
from kalshi_infra.errors import SettingsError
from kalshi_infra.site import Site
from kalshi_infra.topology import Topology

RAW = tomllib.loads(topology.TOPOLOGY_PATH.read_text(encoding="utf-8"))
EXAMPLE = {
    "admin_cidr": "203.0.113.7/32",
    "ami_id": "ami-0123456789abcdef0",
    "key_pair": "kalshi-admin",
    "deploy_ssh_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample deploy",
    "nix_public_key": "kalshi-tape:" + "A" * 43 + "=",
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The raw file with one value replaced; a number in the path is an index."""
    raw = copy.deepcopy(RAW)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    node: Any = raw
    for part in parents:
        node = node[part]
    node[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("format", 2, "format: 1 is needed"),
        ("vpc/cidr", "10.0.0.0/33", "is no IPv4 network"),
        ("vpc/cidr", "10.1.0.0/16", "is outside the VPC"),
        ("vpc/dns_hostnames", "yes", "bool is needed"),
        ("vpc/dns", True, "'dns' is not known"),
        ("subnet/1/cidr", "10.0.1.0/25", "overlaps"),
        ("subnet/1/name", "public-a", "same name"),
        ("host/0/address", "10.0.2.10", "is not in public-a"),
        ("host/0/subnet", "public-d", "does not exist"),
        ("host/3/address", "10.0.3.10", "same address"),
        ("host/0/role", "reader", "role 'reader' does not exist"),
        ("rule/0/port", "http", "is not in [ports]"),
        ("rule/0/direction", "in", "inbound or outbound"),
        ("rule/0/peer", "sg-nobody", "no group, admin, vpc or CIDR"),
        ("rule/9/peer", "sg-rds", "stands twice"),
        ("role/gatherer/security_group", "sg-none", "no rule names"),
        ("route/0/target", "nat", "is not known"),
        ("production/zone", "us-east-1d", "has no private subnet"),
        ("metric/0/alarm", "near", "is not known"),
        ("subnet", "public", "a list is needed"),
        ("vpc", 1, "a table is needed"),
    ],
)
def test_a_fault_in_the_topology_is_named(path: str, value: Any, said: str) -> None:
    """A wrong value must end here, not in a half-made network."""
    with pytest.raises(SettingsError, match=said.replace("[", r"\[")):
        topology.from_mapping(changed(path, value))


def test_a_missing_key_is_named_and_has_no_default() -> None:
    """A silent default would be deployed."""
    raw = copy.deepcopy(RAW)
    del raw["vpc"]["dns_resolution"]
    with pytest.raises(SettingsError, match="'dns_resolution' is missing"):
        topology.from_mapping(raw)


def test_the_small_profile_has_one_gatherer_and_the_rest_of_the_network() -> None:
    """The profile lies over the file: what it does not name stays."""
    full, small = topology.load(), topology.load(profile="small")
    assert [host.name for host in small.host] == ["gatherer-1", "deduplicator"]
    assert small.subnet == full.subnet
    assert small.rule == full.rule
    assert small.role["gatherer"].disk.iops == full.role["gatherer"].disk.iops
    assert small.role["gatherer"].instance_type != full.role["gatherer"].instance_type


def test_an_unknown_profile_is_refused_with_the_known_ones() -> None:
    """A typing slip must not deploy the full size."""
    with pytest.raises(SettingsError, match="full, small"):
        topology.load(profile="smal")


@pytest.mark.parametrize("cidr", ["203.0.113.7/32", "203.0.113.0/24", "10.9.8.0/25"])
def test_an_admin_network_of_24_bits_or_more_is_taken(cidr: str) -> None:
    """An office network is a common case."""
    assert site.from_mapping({**EXAMPLE, "admin_cidr": cidr}).admin_cidr == cidr


@pytest.mark.parametrize(
    "cidr",
    [
        "0.0.0.0/0",
        "203.0.0.0/16",
        "203.0.112.0/23",
        "203.0.113.7",
        "203.0.113.7/24",
        "::/0",
        "x",
        "",
    ],
)
def test_a_wide_or_unclear_admin_network_is_refused(cidr: str) -> None:
    """Port 22 opened to the world is the commonest mistake on AWS."""
    with pytest.raises(SettingsError, match="admin_cidr"):
        site.from_mapping({**EXAMPLE, "admin_cidr": cidr})


def test_all_faults_of_a_site_are_told_together() -> None:
    """Nobody wants to find five missing values one deploy after another."""
    with pytest.raises(SettingsError) as caught:
        site.from_mapping({"account": "12", "colour": "red", "options": {"alarms": True, "x": 1}})
    said = "\n".join(caught.value.faults)
    for name in (*EXAMPLE, "account", "colour", "'x'", "alarm_email"):
        assert name in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rds_zone", "d"),
        ("production", "aurora"),
        ("profile", "tiny"),
        ("alarms", "maybe"),
        ("noncurrent_days", "-1"),
        ("noncurrent_days", "soon"),
        ("noncurrent_days", True),
        ("cpu_credits", "infinite"),
    ],
)
def test_an_option_with_an_unknown_value_is_refused(name: str, value: Any) -> None:
    """An option that is silently off is worse than none."""
    with pytest.raises(SettingsError, match=name):
        site.from_mapping({**EXAMPLE, "options": {name: value}})


def test_the_command_line_wins_over_the_file(tmp_path: Any) -> None:
    """`-c option=value` is how one tries something."""
    path = tmp_path / "site.toml"
    lines = [f'{name} = "{value}"' for name, value in EXAMPLE.items()]
    path.write_text("\n".join([*lines, "[options]", "noncurrent_days = 30"]), encoding="utf-8")
    read = site.load({"noncurrent_days": "7", "key_pair": "other"}, path)
    assert (read.options.noncurrent_days, read.key_pair) == (7, "other")
    assert site.load({}, path).options.noncurrent_days == 30


def test_a_site_file_that_is_named_must_exist() -> None:
    """A misspelt path must not mean `no values`."""
    with pytest.raises(SettingsError, match="does not exist"):
        site.load({"site": "/nowhere/site.toml"})


def test_without_options_the_effective_topology_is_the_file(wanted: Topology, chosen: Site) -> None:
    """The default deploys the specification, nothing more."""
    assert effective(wanted, chosen) == wanted


def test_the_example_site_file_has_every_value_and_option() -> None:
    """The example is the only list that an owner reads."""
    text = (site.SITE_PATH.parent / "site.example.toml").read_text(encoding="utf-8")
    for name in (*Site.__dataclass_fields__, *site.Options.__dataclass_fields__):
        assert f"{name} =" in text or name == "options", name
