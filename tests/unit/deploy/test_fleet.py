"""The hosts: order, outputs of the CDK, addresses; what does not fit is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from deploy.errors import PlanError
from deploy.fleet import (
    Fleet,
    at,
    from_topology,
    privately,
    read_addresses,
    stack_of,
    with_outputs,
)
from tests.rules.tree import ROOT

TOPOLOGY = ROOT / "topology.toml"


@pytest.fixture
def fleet() -> Fleet:
    return from_topology(TOPOLOGY)


def outputs(fleet: Fleet) -> dict[str, dict[str, str]]:
    return {
        stack_of(h.name): {"InstanceId": f"i-{n}", "PrivateIp": h.private_address}
        for n, h in enumerate(fleet.hosts)
    }


def test_the_deduplicator_comes_first_and_gatherers_by_number(fleet: Fleet) -> None:
    names = [host.name for host in fleet.hosts]
    assert names == ["deduplicator", "gatherer-1", "gatherer-2", "gatherer-3"]
    assert fleet.topology == hashlib.sha256(TOPOLOGY.read_bytes()).hexdigest()
    assert [h.name for h in fleet.of("gatherer")] == names[1:]
    assert fleet.host("gatherer-2").private_address == "10.0.2.10"
    with pytest.raises(PlanError, match=r"no host is called gatherer-4(.|\n)*there are dedup"):
        fleet.host("gatherer-4")


def test_outputs_of_the_cdk_name_instances_and_which_hosts_there_are(
    fleet: Fleet, tmp_path: Path
) -> None:
    file = tmp_path / "outputs.json"
    made = outputs(fleet)
    del made["KalshiGatherer3"]  # a small profile, or a host that is being replaced
    file.write_text(json.dumps(made))
    found = with_outputs(fleet, file)
    assert [h.name for h in found.hosts] == ["deduplicator", "gatherer-1", "gatherer-2"]
    assert found.host("gatherer-1").instance == "i-1"


def test_outputs_of_another_topology_or_of_nothing_are_refused(
    fleet: Fleet, tmp_path: Path
) -> None:
    file = tmp_path / "outputs.json"
    made = outputs(fleet)
    made["KalshiGatherer2"]["PrivateIp"] = "10.0.2.11"
    file.write_text(json.dumps(made))
    with pytest.raises(PlanError, match=r"gatherer-2 is at 10\.0\.2\.11"):
        with_outputs(fleet, file)
    for text in ("{}", "[]"):
        file.write_text(text)
        with pytest.raises(PlanError, match="tells of no host"):
            with_outputs(fleet, file)
    file.write_text("{")
    with pytest.raises(PlanError, match="cannot be read"):
        with_outputs(fleet, file)


def test_addresses_are_given_or_the_private_ones(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no address of deduplicator, gatherer-1"):
        _ = fleet.addresses
    assert privately(fleet).addresses["gatherer-3"] == "10.0.3.10"
    file = tmp_path / "addresses.json"
    file.write_text('{"gatherer-1": "203.0.113.7"}')
    mixed = at(privately(fleet), read_addresses(file))
    assert mixed.addresses["gatherer-1"] == "203.0.113.7"
    assert mixed.addresses["gatherer-2"] == "10.0.2.10"
    for text in ("[]", '{"gatherer-1": 7}', "{"):
        file.write_text(text)
        with pytest.raises(PlanError):
            read_addresses(file)


def test_a_topology_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be used"):
        from_topology(tmp_path / "topology.toml")
    (tmp_path / "topology.toml").write_text(
        'region = "x"\n[[host]]\nname = "a"\nrole = "b"\naddress = "c"\n'
    )
    with pytest.raises(PlanError, match="unknown role b"):
        from_topology(tmp_path / "topology.toml")
    assert [h.name for h in from_topology(TOPOLOGY, ["gatherer-1"]).hosts] == ["gatherer-1"]
