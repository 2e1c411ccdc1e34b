"""What a rollout does, as data: which host, what, in which order.

Purpose: from the fleet, a release and wishes to a list of steps that can be printed, kept in the
journal and carried out or gone on with. Pure.

The order: look at all; lock all; copy to all (what cannot be copied, is not signed or has no room
is known before anything moves); then host by host, the deduplicator first, the first gatherer (or
one that does not record anyway) as canary: check the others, switch, await, soak; at the end
confirm the fleet, unlock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from deploy.errors import PlanError
from deploy.fleet import GATHERERS_MIN, Fleet
from deploy.release import DATABASES, Release

Do = Literal["preflight", "lock", "copy", "check", "switch", "await", "soak", "confirm", "unlock"]
SOAK_S: Final = 10
CANARY_SOAK_S: Final = 30
AWAIT_S: Final = 300


@dataclass(frozen=True, slots=True)
class Step:
    """One step; `host` "" means all. `paths`: store path by closure."""

    number: int
    do: Do
    host: str = ""
    paths: Mapping[str, str] = field(default_factory=dict)
    seconds: int = 0

    def as_json(self) -> dict[str, Any]:
        """Without what is empty."""
        return {key: value for key, value in asdict(self).items() if value not in ("", {}, 0)}

    def told(self) -> str:
        """For people."""
        words = {
            "preflight": "look at every host; nothing is touched where one is not fit",
            "lock": "lock every host against a second deploy",
            "copy": "copy " + ", ".join(self.paths),
            "check": "check that the others record and the tape follows",
            "switch": "switch " + ", ".join(self.paths) + ", restart what runs from another path",
            "await": "wait until it records (or merges) and has caught up",
            "soak": f"watch it for {self.seconds} s",
            "confirm": "see the whole fleet well, and no gap on the tape",
            "unlock": "unlock every host",
        }
        return words[self.do]


def step_of(told: Mapping[str, Any]) -> Step:
    """The step that `as_json` wrote."""
    return Step(
        told["number"], told["do"], told.get("host", ""), dict(told.get("paths", {})),
        told.get("seconds", 0),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for. `hosts`: only these; () for all. `gap`: a fleet with too few gatherers to
    cover for each other may be moved all the same."""

    hosts: tuple[str, ...] = ()
    databases: bool = False
    gap: bool = False
    soak_s: int = SOAK_S
    canary_soak_s: int = CANARY_SOAK_S
    await_s: int = AWAIT_S


def targets(
    fleet: Fleet, release: Release, wish: Wish, installed: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, str]]:
    """Store path by closure for each host that is asked for, in the fleet's order.

    `installed`: the closures that each host has a profile of: databases go to a host that has none,
    whatever was asked for.

    Raises:
        PlanError: the release is of another topology, or a host is not known.
    """
    if release.topology != fleet.topology:
        raise PlanError(
            "the release was made from another topology.toml than this checkout's",
            hint="deploy the infrastructure first, then build the release from the same checkout",
        )
    for name in wish.hosts:
        fleet.host(name)
    return {
        host.name: release.paths(
            host.role,
            databases=wish.databases or DATABASES not in installed.get(host.name, ()),
        )
        for host in fleet.hosts
        if not wish.hosts or host.name in wish.hosts
    }


def ailing_first(
    fleet: Fleet, wanted: Mapping[str, Mapping[str, str]], ailing: Sequence[str]
) -> dict[str, Mapping[str, str]]:
    """Gatherers that do not record before those that do: the release may be what mends them, and
    until they record nobody else may be restarted."""

    def place(name: str) -> tuple[bool, bool]:
        is_gatherer = fleet.host(name).role == "gatherer"
        return is_gatherer, is_gatherer and name not in ailing

    return {name: wanted[name] for name in sorted(wanted, key=place)}


def steps(fleet: Fleet, wanted: Mapping[str, Mapping[str, str]], wish: Wish) -> list[Step]:
    """The steps that bring these hosts to these paths.

    Raises:
        PlanError: no gatherers that could cover for the one that is moved, and no leave for a gap.
    """
    gatherers = fleet.of("gatherer")
    moved = [host for host in gatherers if host.name in wanted]
    if moved and len(gatherers) <= GATHERERS_MIN and not wish.gap:
        raise PlanError(
            f"{len(gatherers)} gatherers cannot cover for one that restarts",
            hint="--accept-gap moves them all the same; coverage then shows the gap",
        )
    made: list[Step] = []

    def add(
        do: Do, host: str = "", paths: Mapping[str, str] | None = None, seconds: int = 0
    ) -> None:
        made.append(Step(len(made) + 1, do, host, dict(paths or {}), seconds))

    add("preflight")
    add("lock")
    for name, paths in wanted.items():
        add("copy", name, paths)
    seen: set[str] = set()  # roles: the first host of each is the canary for what it runs
    for name, paths in wanted.items():
        role = fleet.host(name).role
        add("check", name)
        add("switch", name, paths)
        add("await", name, seconds=wish.await_s)
        add("soak", name, seconds=wish.soak_s if role in seen else wish.canary_soak_s)
        seen.add(role)
    add("confirm", seconds=wish.await_s)
    add("unlock")
    return made
