"""What hosts need beside releases: where they are, whose key is believed, one host at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from deploy import addresses, host_keys
from deploy.errors import PlanError, UnreachableError
from deploy.fleet import Fleet, privately
from deploy.shell import Ssh
from tape import deploy_acts
from tape.deploy_acts import Found, Ground, replace_one, restore, trust
from tests.unit.deploy.test_rollout import FLEET

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 42


def ground(folder: Path, fleet: Fleet = FLEET) -> Ground:
    async def rollout(_host: str) -> int:
        return 0

    def ssh(places: Mapping[str, str], control: Path) -> Ssh:
        return Ssh(places, folder / "known", folder / "a", folder / "d", control)

    return Ground(folder, folder / "state", folder / "known", fleet, ssh, rollout)


def test_addresses_are_asked_for_when_they_are_needed() -> None:
    """A host without one costs only itself."""
    with mock_aws():
        ec2 = boto3.client("ec2", region_name=FLEET.region)
        image = ec2.describe_images()["Images"][0]["ImageId"]
        tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "gatherer-1"}]}]
        (made,) = ec2.run_instances(
            ImageId=image, MinCount=1, MaxCount=1, TagSpecifications=tags,
            PrivateIpAddress="10.0.1.10",
        )["Instances"]  # fmt: skip
        found = Found(FLEET)
        told = ec2.describe_instances(InstanceIds=[made["InstanceId"]])
        public = told["Reservations"][0]["Instances"][0]["PublicIpAddress"]
        assert found["gatherer-1"] == public
        with pytest.raises(PlanError, match="gatherer-2"):
            found["gatherer-2"]
    assert list(found) == [host.name for host in FLEET.hosts]
    assert len(found) == 4
    assert Found(privately(FLEET))["gatherer-2"] == "10.0.2.10"


def test_keys_come_from_the_console_and_another_one_needs_the_hosts_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    consoles = {"gatherer-1": KEY + "B"}
    monkeypatch.setattr(addresses, "look", privately)
    monkeypatch.setattr(
        host_keys, "consoles", lambda fleet: {h.name: consoles[h.name] for h in fleet.hosts}
    )
    monkeypatch.setattr(host_keys, "parse", lambda text, _: (host_keys.HostKey(*text.split()[:2]),))
    one = dataclasses.replace(FLEET, hosts=(FLEET.host("gatherer-1"),))
    place = ground(tmp_path, one)
    assert trust(place) == 0
    assert "gatherer-1: added" in capsys.readouterr().out
    assert "gatherer-1,10.0.1.10 ssh-ed25519" in place.known_hosts.read_text()
    consoles["gatherer-1"] = KEY + "C"
    with pytest.raises(PlanError, match="known with other keys"):
        trust(place)
    assert trust(place, ["gatherer-1"]) == 0
    assert "gatherer-1: replaced" in capsys.readouterr().out


async def test_one_host_is_replaced_at_a_time_and_only_by_name(tmp_path: Path) -> None:
    for names in ((), ("gatherer-1", "gatherer-2")):
        with pytest.raises(PlanError, match="which host"):
            await replace_one(ground(tmp_path), names, alive=False)
    with pytest.raises(PlanError, match="no host is called"):
        await replace_one(ground(tmp_path), ["gatherer-9"], alive=False)


async def test_a_restore_goes_to_the_deduplicator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text('#!/bin/sh\necho "$*" >&2; exit 255\n')
    ssh.chmod(0o700)
    monkeypatch.setenv("PATH", str(ssh.parent), prepend=":")
    with pytest.raises(UnreachableError, match=r"admin@10\.0\.3\.20"):
        await restore(ground(tmp_path, privately(FLEET)), "")
    assert deploy_acts.ACTS == ("trust", "replace", "restore")
