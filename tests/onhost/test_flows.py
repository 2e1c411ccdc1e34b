"""Who reaches whom: every pair and port tried for real, against what the templates allow.

Two controls: without rules everything is open, so a closed flow is the rules' doing; without the
group of the production database the host in no group gets in, so a lost group is noticed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.onhost import flow_probe
from tests.onhost.lab import Lab
from tests.onhost.network import (
    ADMIN,
    ELSEWHERE,
    EXCHANGE,
    PRODUCTION,
    Network,
    expected,
)

pytestmark = [pytest.mark.onhost, pytest.mark.timeout(600)]

PORTS = (22, 443, 5432, 5433, 8080, 9090)
OPEN_S = 5.0  # for a connection that may be made, on a busy machine
GATHERERS = ("gatherer-1", "gatherer-2", "gatherer-3")
Flows = Mapping[tuple[str, str, int], bool]


@pytest.fixture(scope="module")
def network(lab: Lab, tree: Path) -> Iterator[Network]:
    made = Network(lab, tree)
    listeners = [
        subprocess.Popen(
            made.execute(name, sys.executable, flow_probe.__file__, "listen", *map(str, PORTS)),
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in made.plan.places
    ]
    for listener in listeners:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
    yield made
    for listener in listeners:
        listener.kill()
        listener.wait()
        assert listener.stdout is not None
        listener.stdout.close()


def measure(network: Network) -> Flows:
    """Every ordered pair on every port."""
    places = network.plan.places
    probes = {}
    for name in places:
        wanted = [
            f"{network.address(other)}:{p}" for other in places if other != name for p in PORTS
        ]
        probes[name] = subprocess.Popen(
            network.execute(name, sys.executable, flow_probe.__file__, "try", str(OPEN_S), *wanted),
            stdout=subprocess.PIPE,
            text=True,
        )
    names = {network.address(name): name for name in places}
    found = {}
    for source, probe in probes.items():
        said, _ = probe.communicate(timeout=120)
        for place, is_open in json.loads(said).items():
            address, _, port = place.rpartition(":")
            found[source, names[address], int(port)] = is_open
    return found


def test_without_rules_everything_is_open(network: Network) -> None:
    """The positive control: wires, listeners and probes are in order."""
    network.unprotect()
    found = measure(network)
    places = len(network.plan.places)
    assert len(found) == places * (places - 1) * len(PORTS)
    assert [flow for flow, is_open in found.items() if not is_open] == []


def test_with_the_groups_exactly_the_templates_flows_are_open(network: Network) -> None:
    network.protect()
    found = measure(network)
    wanted = expected(network, PORTS)
    assert {flow: found[flow] for flow in wanted} == wanted
    guarded = [found[flow] for flow in wanted]
    print(f"\n{len(found)} flows tried, {len(guarded)} of them guarded: {sum(guarded)} open")


def test_the_specification_in_words(network: Network) -> None:
    """The same, said without the templates: who reads the specification would expect this."""
    network.protect()
    found = measure(network)

    def sources(name: str, port: int) -> set[str]:
        return {a for (a, b, p), is_open in found.items() if is_open and (b, p) == (name, port)}

    assert sources(PRODUCTION, 5432) == {"deduplicator"}
    assert not any(
        is_open for (a, _, _), is_open in found.items() if a == PRODUCTION
    )  # nothing leaves it
    for name in GATHERERS:
        assert sources(name, 5432) == sources(name, 5433) == {"deduplicator"}
        assert sources(name, 22) == {ADMIN}
        assert sources(name, 8080) == set()  # the specification's missing egress row, deviation D03
        assert sources(name, 9090) == {ELSEWHERE}
        assert found[name, EXCHANGE, 443]
    assert sources("deduplicator", 22) == {ADMIN}
    assert sources("deduplicator", 8080) == sources("deduplicator", 9090) == {ELSEWHERE}


def test_a_lost_group_is_noticed(network: Network) -> None:
    """The negative control: the same comparison with the database's group not in force."""
    network.protect(but=[PRODUCTION])
    found = measure(network)
    wanted = expected(network, PORTS)
    wrong = {flow for flow in wanted if found[flow] != wanted[flow]}
    assert (ELSEWHERE, PRODUCTION, 5432) in wrong
    assert all(PRODUCTION in flow for flow in wrong)


def test_a_cut_divides_two_hosts_and_heals(network: Network) -> None:
    network.protect()
    flow, other = ("deduplicator", "gatherer-3", 5432), ("deduplicator", "gatherer-1", 5432)
    network.cut([("deduplicator", "gatherer-3")])  # neighbours in one subnet
    found = measure(network)
    assert (found[flow], found[other]) == (False, True)
    network.heal()
    assert measure(network)[flow]
