"""Beginning, going on with and taking back a rollout: which journal, which steps, which record.

Purpose: what stands between the command line and a Rollout. Everything of a checkout's deploys lies
in one folder (`.deploy/`): `journals/`, and for each revision `releases/<revision>/` with its
manifest and the records of the deploys that brought it.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from deploy import plan
from deploy import seen as judge
from deploy.errors import DeployError, PlanError
from deploy.fleet import Fleet
from deploy.hosts import Hosts
from deploy.journal import SUFFIX, Journal, Outcome, unfinished
from deploy.plan import Wish
from deploy.release import Release
from deploy.rollout import Options, Rollout, Say, Time, record

JOURNALS: Final = "journals"
RELEASES: Final = "releases"
EXIT_CODES: Final[Mapping[Outcome, int]] = {
    "done": 0,
    "rolled back": 1,
    "refused": 2,
    "in between": 4,
}
EXIT_GAP: Final = 3


@dataclass(frozen=True, slots=True)
class Desk:
    """Where deploys are prepared: `state` is the folder, `now` the time of day."""

    state: Path
    now: datetime

    @property
    def journals(self) -> Path:
        """The folder of journals."""
        return self.state / JOURNALS

    def new(self, revision: str) -> Journal:
        """An empty journal, named so that journals sort by time."""
        stamp = self.now.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        return Journal(self.journals / f"{stamp}-{revision[:12]}{SUFFIX}")

    def keep_record(self, revision: str, run: str, line: bytes) -> Path:
        """Put a deploy's record beside its release."""
        place = self.state / RELEASES / revision / f"{run}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(line + b"\n")
        return place


def who() -> str:
    """The person and the machine, as the record names them."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


async def survey(hosts: Hosts, fleet: Fleet) -> tuple[dict[str, list[str]], list[str]]:
    """(the closures that each host has, the gatherers that do not record now).

    Raises UnreachableError where a host does not answer."""
    seen = {host.name: await hosts.look(host.name) for host in fleet.hosts}
    have = {name: list(each.profiles) for name, each in seen.items()}
    names = [host.name for host in fleet.of("gatherer")]
    recording = judge.recording(names, seen)
    return have, [name for name in names if name not in recording]


def _begin(journal: Journal, steps: list[plan.Step], facts: Mapping[str, Any]) -> Journal:
    run = journal.path.name.removesuffix(SUFFIX)
    journal.note("run", run=run, facts=dict(facts), steps=[step.as_json() for step in steps])
    return journal


def begin(
    desk: Desk,
    fleet: Fleet,
    release: Release,
    wish: Wish,
    have: Mapping[str, list[str]],
    ailing: Sequence[str] = (),
) -> Journal:
    """A new rollout's journal with its steps; `have` and `ailing` are a survey's.

    Raises PlanError; then there is no journal."""
    wanted = plan.ailing_first(fleet, plan.targets(fleet, release, wish, have), ailing)
    steps = plan.steps(fleet, wanted, wish)
    facts = {
        "who": who(), "at": desk.now.isoformat(), "revision": release.revision,
        "version": release.version, "system": release.system, "wish": asdict(wish),
    }  # fmt: skip
    return _begin(desk.new(release.revision), steps, facts)


def resumed(desk: Desk) -> Journal:
    """The journal of the run that did not come to an end. Raises PlanError without one."""
    return unfinished(desk.journals)


def taken_back(desk: Desk, fleet: Fleet, wish: Wish) -> Journal:
    """A rollout of what the last one replaced. Raises PlanError where nothing was replaced."""
    for path in sorted(desk.journals.glob(f"*{SUFFIX}"), reverse=True):
        story = Journal(path).story
        if story.outcome == "in between" or (story.run and story.outcome is None):
            raise PlanError(f"{story.run} has not come to an end", hint="--resume first")
        if story.outcome != "done":
            continue
        wanted = {}
        for step in story.steps:
            before = story.before.get(step.host, {}) if step.do == "switch" else {}
            if former := {c: before[c] for c in step.paths if c in before}:
                wanted[step.host] = former
        if not wanted:
            raise PlanError(f"{story.run} was the first: there is nothing to go back to")
        facts = {
            "who": who(), "at": desk.now.isoformat(), "revision": f"before {story.run}",
            "system": story.facts.get("system", ""), "wish": asdict(wish), "takes_back": story.run,
        }  # fmt: skip
        return _begin(desk.new("back"), plan.steps(fleet, wanted, wish), facts)
    raise PlanError(f"no deploy below {desk.journals} was brought to an end")


async def _remember(hosts: Hosts, fleet: Fleet, line: bytes, *, tidy: bool, say: Say) -> None:
    """The record on every host. What fails is told and changes no outcome."""
    for host in fleet.hosts:
        try:
            await hosts.write_down(host.name, line)
            if tidy:
                await hosts.tidy(host.name)
        except DeployError as error:
            say(host.name, f"not written down or not tidied: {error}")


def ended(desk: Desk) -> frozenset[str]:
    """The runs of this desk that came to an end: nothing of theirs goes on."""
    stories = (Journal(path).story for path in desk.journals.glob(f"*{SUFFIX}"))
    return frozenset(s.run for s in stories if s.outcome not in (None, "in between"))


async def carry_out(
    desk: Desk,
    fleet: Fleet,
    hosts: Hosts,
    journal: Journal,
    *,
    by_force: bool = False,
    clock: Time | None = None,
    say: Say,
) -> int:
    """Run a journal to its outcome, keep the record here and on the hosts; the exit code."""
    facts = journal.story.facts
    wish = Wish(**facts["wish"] | {"hosts": tuple(facts["wish"]["hosts"])})
    options = Options(
        facts["system"], gap=wish.gap, by_force=by_force, await_s=wish.await_s, ended=ended(desk)
    )
    rollout = Rollout(hosts, fleet, journal, options, clock=clock, say=say)
    outcome = await rollout.run()
    line = record(journal, rollout, outcome)
    folder = str(facts["revision"]).replace("/", "_")
    kept = desk.keep_record(folder, journal.story.run, line)
    if outcome != "refused":
        await _remember(hosts, fleet, line, tidy=outcome == "done", say=say)
    say("", f"{outcome}; the record is {kept}")
    if outcome == "done" and rollout.tape_gaps:
        return EXIT_GAP
    return EXIT_CODES[outcome]
