"""Public addresses of the fleet's instances, asked of EC2.

Purpose: AWS gives a public address at each start of an instance; the instance of a host is the one
that bears its name, and the one that `cdk deploy` made where that is known.

Does not do: remembering addresses (fleet.read_addresses reads a file of them), reaching hosts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from deploy.errors import PlanError
from deploy.fleet import Fleet, Host

GONE: Final = ("shutting-down", "terminated")  # of an instance that was replaced


def look(fleet: Fleet) -> Fleet:
    """The fleet at its public addresses, with the instances that bear its names.

    Raises:
        PlanError: every host that cannot be reached so, with what it is; or EC2 did not answer.
    """
    found = _instances(fleet)
    faults: list[str] = []
    hosts = []
    for host in fleet.hosts:
        mine = [each for each in found if _name(each) == host.name]
        fault = _fault(host, mine)
        if fault:
            faults.append(f"{host.name}: {fault}")
            continue
        (one,) = mine
        hosts.append(
            Host(
                host.name,
                host.role,
                host.private_address,
                one["PublicIpAddress"],
                one["InstanceId"],
            )
        )
    if faults:
        raise PlanError(
            "not every host has an address:\n" + "\n".join(faults),
            hint="--private reaches them inside the VPC, --addresses FILE names them",
        )
    return Fleet(tuple(hosts), fleet.topology, fleet.region)


def placed(fleet: Fleet, outputs: Path) -> Fleet:
    """The fleet with all addresses, asked of EC2 where one is lacking and it was deployed. Raises
    PlanError as `look` does."""
    lacks = not all(host.address for host in fleet.hosts)
    return look(fleet) if lacks and outputs.exists() else fleet


def _instances(fleet: Fleet) -> list[Mapping[str, Any]]:
    names = [host.name for host in fleet.hosts]
    try:
        client = boto3.client("ec2", region_name=fleet.region)
        pages = client.get_paginator("describe_instances").paginate(
            Filters=[{"Name": "tag:Name", "Values": names}]
        )
        found = [i for page in pages for r in page["Reservations"] for i in r["Instances"]]
    except (BotoCoreError, ClientError) as error:
        raise PlanError(
            f"EC2 in {fleet.region} was not asked: {error}",
            hint="are the account's credentials set (AWS_PROFILE, aws sso login)?",
        ) from None
    return [each for each in found if each["State"]["Name"] not in GONE]


def _name(instance: Mapping[str, Any]) -> str:
    tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", ())}
    return str(tags.get("Name", ""))


def _fault(host: Host, found: list[Mapping[str, Any]]) -> str:
    """Why its address cannot be taken; "" where it can."""
    if not found:
        return "no instance bears this name"
    ids = sorted(each["InstanceId"] for each in found)
    if len(found) > 1:
        return f"{len(found)} instances bear this name: {', '.join(ids)}"
    (one,) = found
    if host.instance and one["InstanceId"] != host.instance:
        return f"{ids[0]} bears this name, cdk deploy made {host.instance}"
    if one.get("PrivateIpAddress") != host.private_address:
        return f"{ids[0]} is at {one.get('PrivateIpAddress')} inside, not {host.private_address}"
    state = one["State"]["Name"]
    if state != "running":
        return f"{ids[0]} is {state}"
    return "" if one.get("PublicIpAddress") else f"{ids[0]} has no public address"
