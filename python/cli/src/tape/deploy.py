"""`tape deploy`: build and sign a release, deploy the infrastructure, roll out (docs/deploy.md).

Exit codes: 0 every host runs what was asked for; 1 it failed and every host is back; 2 refused, and
nothing was touched; 3 done, and the tape has a gap from meanwhile; 4 in between: the last lines say
where each host stands, `--resume` goes on.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from deploy import addresses as addresses_of
from deploy import build, campaign, plan, rollout, schema
from deploy.errors import PlanError
from deploy.fleet import Fleet, known
from deploy.hosts import OverShell
from deploy.journal import Journal
from deploy.plan import Wish
from deploy.release import load
from deploy.shell import Ssh
from tape import deploy_acts
from tape.deploy_view import View
from tape.output import guarded

PHASES: Final = ("release", "infra", "rollout")
HOME: Final = Path.home() / ".config" / "kalshi-tape"


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line."""

    checkout: Path
    desk: campaign.Desk
    wish: Wish
    release: Path | None
    outputs: Path
    addresses: Path | None
    private: bool
    show_plan: bool
    rollback: bool
    resume: bool
    break_lock: bool
    alive: bool
    backup: str
    ssh: dict[str, str | Path]

    def fleet(self) -> Fleet:
        """The hosts that there are, with the addresses that were given."""
        return known(self.checkout, self.outputs, self.addresses, private=self.private)

    def placed(self) -> Fleet:
        """The hosts with their addresses, asked of EC2 where nobody gave them."""
        return addresses_of.placed(self.fleet(), self.outputs)

    def shell(self, places: Mapping[str, str], control: Path) -> Ssh:
        """A line to hosts at these places."""
        words = self.ssh
        return Ssh(
            places, Path(words["known_hosts"]), Path(words["identity"]),
            Path(words["deploy_identity"]), control, store=str(words["store"]),
            substitute=bool(words["substitute"]),
        )  # fmt: skip


# The options, one name each: what they are for is what --help prints.
Phases = Annotated[
    list[str] | None,
    typer.Argument(
        help="release, infra, rollout; all three without any; or trust, replace, restore alone"
    ),
]
ShowPlan = Annotated[
    bool, typer.Option("--plan", help="print the rollout's steps as JSON lines; touch nothing")
]
Host = Annotated[list[str] | None, typer.Option(help="only this host; again for more")]
Rollback = Annotated[bool, typer.Option("--rollback", help="back to what the last deploy replaced")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with a deploy that was cut off")]
Databases = Annotated[
    bool, typer.Option("--databases", help="PostgreSQL and its settings too, one host at a time")
]
AcceptGap = Annotated[
    bool, typer.Option("--accept-gap", help="also with too few gatherers to cover")
]
BreakLock = Annotated[bool, typer.Option("--break-lock", help="ignore another deploy's lock")]
Release = Annotated[
    Path | None, typer.Option(help="a manifest.json; the last built one without it")
]
Outputs = Annotated[Path, typer.Option(help="of cdk deploy")]
Addresses = Annotated[
    Path | None, typer.Option(help="JSON: address by host; before those of --outputs")
]
Private = Annotated[
    bool, typer.Option("--private", help="reach hosts at their addresses inside the VPC")
]
Identity = Annotated[Path, typer.Option(help="SSH key of the user admin")]
DeployIdentity = Annotated[Path, typer.Option(help="SSH key of the user deploy")]
KnownHosts = Annotated[Path, typer.Option(help="the hosts' keys")]
SigningKey = Annotated[Path, typer.Option(help="signs closures")]
Store = Annotated[str, typer.Option(help="Nix store to copy from; the machine's own")]
Substitute = Annotated[bool, typer.Option(help="hosts take public paths from the public cache")]
System = Annotated[str, typer.Option(help="of the hosts")]
State = Annotated[Path, typer.Option(help="releases, journals, records")]
Checkout = Annotated[Path, typer.Option(help="of this project")]
Alive = Annotated[bool, typer.Option("--alive", help="of replace: even a host that works")]
Backup = Annotated[str, typer.Option(help="of restore: which; the newest without it")]
SoakS = Annotated[int, typer.Option(help="how long a host is watched")]
CanarySoakS = Annotated[int, typer.Option(help="the deduplicator and the first gatherer")]
AwaitS = Annotated[int, typer.Option(help="how long a host may take until it works")]


def deploy(
    phases: Phases = None,
    *,
    show_plan: ShowPlan = False,
    host: Host = None,
    rollback: Rollback = False,
    resume: Resume = False,
    databases: Databases = False,
    accept_gap: AcceptGap = False,
    break_lock: BreakLock = False,
    release: Release = None,
    outputs: Outputs = Path("cdk/outputs.json"),
    addresses: Addresses = None,
    private: Private = False,
    identity: Identity = HOME / "admin",
    deploy_identity: DeployIdentity = HOME / "deploy",
    known_hosts: KnownHosts = HOME / "known_hosts",
    signing_key: SigningKey = HOME / "signing.secret",
    store: Store = "",
    substitute: Substitute = True,
    system: System = build.HOSTS_SYSTEM,
    state: State = Path(".deploy"),
    alive: Alive = False,
    backup: Backup = "",
    checkout: Checkout = Path(),
    soak_s: SoakS = plan.SOAK_S,
    canary_soak_s: CanarySoakS = plan.CANARY_SOAK_S,
    await_s: AwaitS = plan.AWAIT_S,
) -> None:
    """Bring this checkout to every host, one after the other, while the others record."""
    asked = Asked(
        checkout.resolve(),
        campaign.Desk(state.resolve(), datetime.now(UTC)),
        Wish(tuple(host or ()), databases, accept_gap, soak_s, canary_soak_s, await_s),
        release, outputs, addresses, private, show_plan, rollback, resume, break_lock, alive,
        backup,
        {
            "identity": identity, "deploy_identity": deploy_identity, "known_hosts": known_hosts,
            "store": store, "substitute": "1" if substitute else "",
        },
    )  # fmt: skip

    def run() -> int:
        chosen = list(phases or ())
        if len(chosen) == 1 and chosen[0] in deploy_acts.ACTS:
            return asyncio.run(_act(asked, chosen[0]))
        if strange := sorted(set(chosen) - set(PHASES)):
            raise PlanError(
                f"no phase is called {', '.join(strange)}",
                hint=f"{', '.join(PHASES)}; or {', '.join(deploy_acts.ACTS)} alone",
            )
        if not chosen:
            chosen = ["rollout"] if rollback or resume or show_plan else list(PHASES)
        if "release" in chosen:
            made = build.build(asked.checkout, asked.desk.state, system, signing_key)
            sys.stdout.write(f"release {made.revision} is built and signed\n")
        if "infra" in chosen:
            build.call(build.infra_command(asked.wish.hosts), asked.checkout)
        return asyncio.run(_rollout(asked)) if "rollout" in chosen else 0

    raise typer.Exit(guarded(run))


async def _act(asked: Asked, act: str) -> int:
    """One of the acts beside releases."""

    async def rollout(host: str) -> int:
        wish = dataclasses.replace(asked.wish, hosts=(host,))
        return await _rollout(dataclasses.replace(asked, wish=wish))

    ground = deploy_acts.Ground(
        asked.checkout, asked.desk.state, Path(asked.ssh["known_hosts"]), asked.fleet(),
        asked.shell, rollout,
    )  # fmt: skip
    if act == "trust":
        return deploy_acts.trust(ground, asked.wish.hosts)
    if act == "replace":
        return await deploy_acts.replace_one(ground, asked.wish.hosts, alive=asked.alive)
    return await deploy_acts.restore(ground, asked.backup)


async def _rollout(asked: Asked) -> int:
    if asked.show_plan:
        return await _print_plan(asked, asked.fleet())
    fleet = asked.placed()
    # Short: a socket's path has about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="kt-", dir="/tmp") as control:
        shell = asked.shell(fleet.addresses, Path(control))
        hosts = OverShell(shell, fleet)
        journal = await _journal(asked, fleet, shell, hosts)
        with View([host.name for host in fleet.hosts]) as view:
            code = await campaign.carry_out(
                asked.desk, fleet, hosts, journal, by_force=asked.break_lock, say=view.say
            )
        if code == campaign.EXIT_CODES["in between"]:
            for name, told in (await rollout.stand(hosts, fleet)).items():
                sys.stdout.write(f"{name}: {json.dumps(told, sort_keys=True)}\n")
        return code


async def _journal(asked: Asked, fleet: Fleet, shell: Ssh, hosts: OverShell) -> Journal:
    if asked.resume:
        return campaign.resumed(asked.desk)
    if asked.rollback:
        return campaign.taken_back(asked.desk, fleet, asked.wish)
    have, ailing = await campaign.survey(hosts, fleet)
    release = load(_manifest(asked))
    moved = plan.targets(fleet, release, asked.wish, have)
    await schema.beside(shell, fleet, release, moved, str(asked.ssh["store"]))
    return campaign.begin(asked.desk, fleet, release, asked.wish, have, ailing)


def _manifest(asked: Asked) -> Path:
    return asked.release or asked.desk.state / campaign.RELEASES / "latest"


async def _print_plan(asked: Asked, fleet: Fleet) -> int:
    """Without a look at the hosts: as if each had its databases already."""
    if asked.resume:
        done = campaign.resumed(asked.desk).story
        steps = [step for step in done.steps if step.number not in done.ended]
    else:
        have = {host.name: ["postgres"] for host in fleet.hosts}
        release = load(_manifest(asked))
        wanted = plan.targets(fleet, release, asked.wish, have)
        steps = plan.steps(fleet, wanted, asked.wish)
    for step in steps:
        sys.stdout.write(json.dumps(step.as_json() | {"told": step.told()}) + "\n")
    return 0
