"""`tape deploy trust`, `replace`, `restore`: what hosts need beside releases (docs/deploy.md)."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import boto3

from deploy import addresses, build, host_keys, replace
from deploy.errors import PlanError
from deploy.fleet import Fleet
from deploy.hosts import OverShell
from deploy.replace import Acts, replace_host
from deploy.restoring import restore_production
from deploy.rollout import RealTime
from deploy.shell import Ssh
from tape.deploy_view import View

ACTS: Final = ("trust", "replace", "restore")
CONSOLE_S: Final = 900.0
CONSOLE_POLL_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Ground:
    """What the acts stand on. `fleet`: the hosts, without addresses where nobody gave them;
    `ssh`: a shell to hosts at addresses; `rollout`: the release to one host, its exit code."""

    checkout: Path
    state: Path
    known_hosts: Path
    fleet: Fleet
    ssh: Callable[[Mapping[str, str], Path], Ssh]
    rollout: Callable[[str], Awaitable[int]]


def trust(ground: Ground, made_anew: Sequence[str] = ()) -> int:
    """Learn hosts' keys from their consoles' output, which only the account's owner reads.

    `made_anew`: only these hosts, whose keys may be others than before; all hosts without any."""
    fleet = ground.fleet
    if made_anew:
        chosen = tuple(dataclasses.replace(fleet.host(n), instance="") for n in made_anew)
        fleet = dataclasses.replace(fleet, hosts=chosen)
    fleet = addresses.look(fleet)
    consoles = host_keys.consoles(fleet)
    keys = {name: host_keys.parse(text, name) for name, text in consoles.items()}
    for one in host_keys.trust(ground.known_hosts, keys, fleet.addresses, made_anew):
        sys.stdout.write(f"{one.host}: {one.outcome}, {', '.join(one.fingerprints)}\n")
    return 0


def _only(hosts: Sequence[str]) -> str:
    if len(hosts) != 1:
        raise PlanError("which host?", hint="one --host NAME")
    return hosts[0]


async def replace_one(ground: Ground, hosts: Sequence[str], *, alive: bool) -> int:
    """A new host in a dead one's place; said again, it goes on."""
    name = _only(hosts)
    fleet = ground.fleet

    def unprotect() -> None:
        replace.unprotect(
            boto3.client("ec2", region_name=fleet.region),
            boto3.client("cloudformation", region_name=fleet.region),
            name, fleet.host(name).instance,
        )  # fmt: skip

    acts = Acts(
        unprotect,
        lambda: build.call(replace.destroy_command(name), ground.checkout / "cdk"),
        lambda: build.call(build.infra_command([name]), ground.checkout),
        lambda: _trust_one(ground, name),
        lambda: ground.rollout(name),
    )
    with tempfile.TemporaryDirectory(prefix="kt-", dir="/tmp") as control:
        view = View([host.name for host in fleet.hosts])
        over = OverShell(ground.ssh(Found(fleet), Path(control)), fleet)
        return await replace_host(
            over, fleet, name, ground.state, acts, alive=alive, clock=RealTime(), say=view.say
        )


def _trust_one(ground: Ground, name: str) -> None:
    """A console has its first words minutes after the start."""
    deadline = time.monotonic() + CONSOLE_S
    while True:
        try:
            trust(ground, [name])
        except PlanError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(CONSOLE_POLL_S)
        else:
            return


class Found(Mapping[str, str]):
    """Where hosts are, asked of EC2 for each that has no address: a new host has another one."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def __getitem__(self, name: str) -> str:
        host = self._fleet.host(name)
        if host.address:
            return host.address
        one = dataclasses.replace(host, instance="")  # whichever bears the name now
        return addresses.look(dataclasses.replace(self._fleet, hosts=(one,))).addresses[name]

    def __iter__(self) -> Iterator[str]:
        return iter(host.name for host in self._fleet.hosts)

    def __len__(self) -> int:
        return len(self._fleet.hosts)


async def restore(ground: Ground, name: str) -> int:
    """A backup into production, which has to be empty."""
    fleet = ground.fleet
    with tempfile.TemporaryDirectory(prefix="kt-", dir="/tmp") as control:
        view = View([host.name for host in fleet.hosts])
        shell = ground.ssh(Found(fleet), Path(control))
        await restore_production(shell, fleet, name, clock=RealTime(), say=view.say)
    return 0
