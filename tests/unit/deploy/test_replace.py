"""A dead host is replaced step by step, and the command said again goes on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from deploy.errors import DeployError, HostRefusedError, PlanError
from deploy.plan import Wish
from deploy.replace import STEPS, Acts, Notes, destroy_command, replace_host, unprotect
from deploy.seen import Seen
from tests.unit.deploy.test_rollout import FLEET, NEW, OLD, Play

DEAD = "gatherer-2"


class Ground:
    """A fleet with a dead host, and what was done to it."""

    def __init__(self, folder: Path) -> None:
        self.play = Play(folder / "play")
        self.state = folder / "state"
        self.did: list[str] = []
        self.fails = ""
        host = self.play.sim.hosts[DEAD]
        host.running.clear()

    def act(self, name: str) -> None:
        self.did.append(name)
        if name == self.fails:
            raise DeployError(f"{name} failed")
        host = self.play.sim.hosts[DEAD]
        if name == "create":
            host.profiles.clear()
            host.store.clear()
            host.missing = ("/etc/credstore.encrypted/kalshi-key",)

    async def rollout(self) -> int:
        self.act("rollout")
        journal = self.play.journal(NEW, Wish(hosts=(DEAD,)))
        return 0 if await self.play.deploy(journal) == "done" else 1

    async def replace(self, **more: Any) -> int:
        names = ("unprotect", "destroy", "create", "trust")
        acts = Acts(*(partial(self.act, name) for name in names), self.rollout)
        sim = self.play.sim
        return await replace_host(
            sim, FLEET, DEAD, self.state, acts, clock=sim, say=lambda *_: None, **more
        )


async def test_a_dead_host_is_replaced_and_waits_for_its_secrets_on_the_way(
    tmp_path: Path,
) -> None:
    ground = Ground(tmp_path)
    with pytest.raises(HostRefusedError, match="waits for what only you have"):
        await ground.replace()
    assert ground.did == ["unprotect", "destroy", "create", "trust"]
    ground.play.sim.hosts[DEAD].missing = ()
    assert await ground.replace() == 0
    assert ground.did == ["unprotect", "destroy", "create", "trust", "rollout"]
    assert ground.play.sim.works(DEAD)
    assert ground.play.sim.hosts["gatherer-1"].switches == []
    assert list(ground.state.iterdir()) == []


@pytest.mark.parametrize("step", ["unprotect", "destroy", "create", "trust"])
async def test_a_step_that_failed_is_done_again_and_no_other(tmp_path: Path, step: str) -> None:
    ground = Ground(tmp_path)
    ground.fails = step
    with pytest.raises(DeployError, match=f"{step} failed"):
        await ground.replace()
    ground.fails, before = "", list(ground.did)
    with pytest.raises(HostRefusedError, match="waits for"):
        await ground.replace()
    assert ground.did[len(before)] == step
    assert ground.did.count("destroy") == (2 if step == "destroy" else 1)


async def test_a_host_that_works_and_a_fleet_without_cover_are_left_alone(tmp_path: Path) -> None:
    ground = Ground(tmp_path)
    host = ground.play.sim.hosts[DEAD]
    host.running["gatherer"] = OLD.closures["gatherer"]
    with pytest.raises(HostRefusedError, match="gatherer-2 works"):
        await ground.replace()
    with pytest.raises(HostRefusedError, match="waits for"):
        await ground.replace(alive=True)
    uncovered = Ground(tmp_path / "uncovered")
    uncovered.play.sim.hosts["gatherer-3"].running.clear()
    with pytest.raises(HostRefusedError, match="only gatherer-1 of the other gatherers records"):
        await uncovered.replace()
    assert uncovered.did == []


async def test_one_host_at_a_time_and_one_that_never_boots_is_told(tmp_path: Path) -> None:
    ground = Ground(tmp_path)
    Notes(ground.state, "gatherer-3").add("look")
    with pytest.raises(PlanError, match="gatherer-3 is being replaced"):
        await ground.replace()
    silent = Ground(tmp_path / "silent")
    look = silent.play.sim.look

    async def without_role(host: str) -> Seen:
        found = await look(host)
        return replace(found, role="") if host == DEAD else found

    silent.play.sim.look = without_role  # type: ignore[method-assign]
    with pytest.raises(HostRefusedError, match="its first boot did not end"):
        await silent.replace()


def test_protections_are_taken_off_one_stack_and_its_instance() -> None:
    """Against moto's ec2, and cloudformation's own description of its calls."""
    cloudformation = boto3.client("cloudformation", region_name="us-east-1")
    asked = {"StackName": "KalshiGatherer2", "EnableTerminationProtection": False}
    with mock_aws(), Stubber(cloudformation) as stub:
        stub.add_response("update_termination_protection", {}, asked)
        ec2 = boto3.client("ec2", region_name="us-east-1")
        image = ec2.describe_images()["Images"][0]["ImageId"]
        (made,) = ec2.run_instances(
            ImageId=image, MinCount=1, MaxCount=1, DisableApiTermination=True
        )["Instances"]
        unprotect(ec2, cloudformation, DEAD, made["InstanceId"])
        told = ec2.describe_instance_attribute(
            InstanceId=made["InstanceId"], Attribute="disableApiTermination"
        )
        assert told["DisableApiTermination"]["Value"] is False
        stub.assert_no_pending_responses()
        with pytest.raises(PlanError, match="instance of gatherer-2 is not known"):
            unprotect(ec2, cloudformation, DEAD, "")


def test_only_its_own_stack_is_destroyed() -> None:
    assert destroy_command(DEAD)[-3:] == ["--exclusively", "--force", "KalshiGatherer2"]
    assert STEPS.index("destroy") < STEPS.index("create") < STEPS.index("rollout")
