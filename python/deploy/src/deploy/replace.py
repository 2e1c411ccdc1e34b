"""A new host in the place of a dead one: the steps, remembered, so that the command is said again.

Purpose: take the protections off one host's stack, destroy it, deploy it anew behind the change
guard, learn the new host's key, wait for its first boot and for its credentials, roll the release
out to it alone, see the whole fleet well. What the host had on its disk stays on the old volume.

What holds:
- Only a host that does not record (or merge) is replaced, unless that is said; only while two other
  gatherers record; one host at a time.
- What is done is written down before the next step, so that the command, said again, never destroys
  the host that it made.

Does not do: setting credentials (`tape secrets set`: they are the owner's), filling the new host's
databases: what was recorded meanwhile is on the tape by the others, trades come by `tape repair`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from deploy import seen as judge
from deploy.errors import DeployError, HostRefusedError, PlanError
from deploy.fleet import GATHERERS_MIN, Fleet, stack_of
from deploy.hosts import Hosts
from deploy.rollout import Say, Time

STEPS: Final = ("look", "unprotect", "destroy", "create", "trust", "boot", "secrets", "rollout")
BOOT_S: Final = 1800.0
POLL_S: Final = 5.0


class Aws(Protocol):
    """The two protections of a host, by boto3 clients of this shape."""

    def modify_instance_attribute(self, **words: Any) -> Any:
        """ec2: DisableApiTermination."""

    def update_termination_protection(self, **words: Any) -> Any:
        """cloudformation: EnableTerminationProtection."""


@dataclass(frozen=True, slots=True)
class Acts:
    """What a replacement does outside of hosts; each may be repeated.

    `unprotect`, `destroy`, `create`: of the host's stack; `trust`: learns the new host's key;
    `rollout`: the release to this host alone, its exit code."""

    unprotect: Callable[[], None]
    destroy: Callable[[], None]
    create: Callable[[], None]
    trust: Callable[[], None]
    rollout: Callable[[], Awaitable[int]]


class Notes:
    """Which steps are done, in a file of the desk; gone when all are."""

    def __init__(self, state: Path, host: str) -> None:
        self.path = state / f"replacing-{host}.json"
        others = [p for p in state.glob("replacing-*.json") if p != self.path]
        if others:
            raise PlanError(
                f"{others[0].stem.removeprefix('replacing-')} is being replaced",
                hint="one host at a time: say that command again until it is done",
            )
        self.done: list[str] = json.loads(self.path.read_text()) if self.path.exists() else []

    def add(self, step: str) -> None:
        """Written in one piece."""
        self.done.append(step)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.done))
        new.replace(self.path)

    def end(self) -> None:
        """All is done."""
        self.path.unlink(missing_ok=True)


def unprotect(ec2: Aws, cloudformation: Aws, host: str, instance: str) -> None:
    """Let one host be terminated and its stack be deleted."""
    if not instance:
        raise PlanError(f"the instance of {host} is not known", hint="give --outputs of cdk deploy")
    ec2.modify_instance_attribute(InstanceId=instance, DisableApiTermination={"Value": False})
    cloudformation.update_termination_protection(
        StackName=stack_of(host), EnableTerminationProtection=False
    )


def destroy_command(host: str) -> list[str]:
    """`cdk destroy` of one stack, in cdk/."""
    return ["npx", "--no-install", "cdk", "destroy", "--exclusively", "--force", stack_of(host)]


async def _may_be_replaced(hosts: Hosts, fleet: Fleet, name: str, *, alive: bool) -> None:
    """Raises HostRefusedError with the reason why not."""
    seen = {}
    for host in fleet.hosts:
        try:
            seen[host.name] = await hosts.look(host.name)
        except DeployError:
            continue
    role = fleet.host(name).role
    mine = seen.get(name)
    works = mine is not None and not (
        judge.not_capturing(mine) if role == "gatherer" else judge.not_merging(mine)
    )
    if works and not alive:
        raise HostRefusedError(
            f"{name} works: it would be destroyed", hint="--alive replaces it all the same"
        )
    others = (host.name for host in fleet.of("gatherer") if host.name != name)
    recording = judge.recording(others, seen)
    if len(recording) < GATHERERS_MIN:
        raise HostRefusedError(
            f"only {', '.join(recording) or 'none'} of the other gatherers records",
            hint="mend them first: a replacement takes many minutes",
        )


async def _booted(hosts: Hosts, fleet: Fleet, name: str, clock: Time) -> None:
    """Wait until the first boot wrote the host's role, which is the last thing that it does."""
    deadline = clock.monotonic() + BOOT_S
    why = "does not answer"
    while clock.monotonic() < deadline:
        try:
            if (await hosts.look(name)).role == fleet.host(name).role:
                return
            why = "its first boot did not end (docs/aws.md, section 6)"
        except DeployError as error:
            why = str(error)
        await clock.sleep(POLL_S)
    raise HostRefusedError(f"{name} is not ready after {BOOT_S:.0f} s: {why}")


async def _has_secrets(hosts: Hosts, name: str) -> None:
    missing = (await hosts.look(name)).missing
    if missing:
        raise HostRefusedError(
            f"{name} waits for what only you have: {', '.join(missing)}",
            hint=f"tape secrets set, for {name}; then say this command again",
        )


async def replace_host(
    hosts: Hosts,
    fleet: Fleet,
    name: str,
    state: Path,
    acts: Acts,
    *,
    alive: bool = False,
    clock: Time,
    say: Say,
) -> int:
    """Carry out what is not done yet; the exit code of the rollout at its end.

    Raises:
        PlanError: the host is not known, or another one is being replaced.
        HostRefusedError, DeployError: a step could not be done; the command may be said again.
    """
    fleet.host(name)
    notes = Notes(state, name)

    async def rollout() -> None:
        code = await acts.rollout()
        if code != 0:
            raise DeployError(f"the rollout to {name} ended with {code}")

    todo: Mapping[str, tuple[str, Callable[[], Any]]] = {
        "look": (
            "see that it is dead and two others record",
            lambda: _may_be_replaced(hosts, fleet, name, alive=alive),
        ),
        "unprotect": ("take its protections off", acts.unprotect),
        "destroy": (f"destroy {stack_of(name)}", acts.destroy),
        "create": (f"deploy {stack_of(name)} behind the change guard", acts.create),
        "trust": ("learn its new key from the console's output", acts.trust),
        "boot": ("wait for its first boot", lambda: _booted(hosts, fleet, name, clock)),
        "secrets": ("see that it has its credentials", lambda: _has_secrets(hosts, name)),
        "rollout": ("bring the release to it alone", rollout),
    }
    for step in STEPS:
        if step in notes.done:
            continue
        told, act = todo[step]
        say(name, told)
        answer = act()
        if answer is not None:
            await answer
        notes.add(step)
    notes.end()
    say(name, "replaced; its old disk stays until you delete the volume")
    return 0
