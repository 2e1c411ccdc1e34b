"""Addresses of instances, asked of a simulated EC2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import boto3
import pytest
from moto import mock_aws

from deploy import addresses
from deploy.errors import PlanError
from deploy.fleet import Fleet, Host

FLEET = Fleet((Host("gatherer-1", "gatherer", "10.0.1.10"),), "", "us-east-1")


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        yield boto3.client("ec2", region_name="us-east-1")


def subnet(ec2: Any) -> str:
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    made = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.1.0/24")["Subnet"]["SubnetId"]
    ec2.modify_subnet_attribute(SubnetId=made, MapPublicIpOnLaunch={"Value": True})
    return str(made)


def instance(ec2: Any, place: str, address: str = "10.0.1.10", *, public: bool = True) -> str:
    ran = ec2.run_instances(
        ImageId="ami-12c6146b", MinCount=1, MaxCount=1, InstanceType="t4g.micro",
        NetworkInterfaces=[{"DeviceIndex": 0, "SubnetId": place, "PrivateIpAddress": address,
                            "AssociatePublicIpAddress": public}],
        TagSpecifications=[{"ResourceType": "instance",
                            "Tags": [{"Key": "Name", "Value": "gatherer-1"}]}],
    )  # fmt: skip
    return str(ran["Instances"][0]["InstanceId"])


def test_a_host_is_at_the_public_address_of_the_instance_of_its_name(ec2: Any) -> None:
    place = subnet(ec2)
    former = instance(ec2, place, "10.0.1.9")
    ec2.terminate_instances(InstanceIds=[former])  # a host that was replaced is no second one
    made = instance(ec2, place)
    (host,) = addresses.look(FLEET).hosts
    described = ec2.describe_instances(InstanceIds=[made])["Reservations"][0]["Instances"][0]
    assert (host.instance, host.address) == (made, described["PublicIpAddress"])
    assert (host.role, host.private_address) == ("gatherer", "10.0.1.10")


def refused(fleet: Fleet = FLEET) -> str:
    with pytest.raises(PlanError, match="not every host has an address") as caught:
        addresses.look(fleet)
    return str(caught.value)


def test_what_has_no_address_says_why(ec2: Any) -> None:
    place = subnet(ec2)
    assert "gatherer-1: no instance bears this name" in refused()
    one = instance(ec2, place)
    ec2.stop_instances(InstanceIds=[one])
    assert f"gatherer-1: {one} is stopped" in refused()
    two = instance(ec2, place, "10.0.1.11")
    assert "gatherer-1: 2 instances bear this name" in refused()
    ec2.terminate_instances(InstanceIds=[one])
    assert f"{two} is at 10.0.1.11 inside, not 10.0.1.10" in refused()
    known = Fleet((replace(FLEET.hosts[0], instance=one),), "", "us-east-1")
    assert f"{two} bears this name, cdk deploy made {one}" in refused(known)


def test_an_instance_without_a_public_address_is_refused(
    ec2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = instance(ec2, subnet(ec2))
    found = addresses._instances(FLEET)
    monkeypatch.setattr(
        addresses, "_instances",
        lambda _: [{k: v for k, v in each.items() if k != "PublicIpAddress"} for each in found],
    )  # fmt: skip
    assert f"gatherer-1: {made} has no public address" in refused()


def test_every_fault_is_told_at_once(ec2: Any) -> None:
    fleet = Fleet((*FLEET.hosts, Host("gatherer-2", "gatherer", "10.0.2.10")), "", "us-east-1")
    told = refused(fleet)
    assert "gatherer-1: no instance" in told
    assert "gatherer-2: no instance" in told


def test_an_account_that_does_not_answer_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(PlanError, match="EC2 in us-east-1 was not asked"):
        addresses.look(FLEET)
