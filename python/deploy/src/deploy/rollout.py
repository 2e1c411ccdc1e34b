"""Carrying out the steps of a rollout, going back when one fails, and going on after a crash.

Purpose: from a journal with steps to an outcome, over `Hosts`; time is given, so that a simulation
runs the same code.

What holds:
- A gatherer that records is restarted only while at least GATHERERS_MIN others record, looked at
  just before.
- Before a host is moved its former paths are in the journal, and that it is being moved.
- Whatever fails before anything was moved changes nothing. Whatever fails later brings every moved
  host back, the last one first, under the same rule. A host that does not come back is named, and
  the outcome says that the fleet stands in between.
- A journal that ends anywhere can be gone on with: every act may be repeated.

Does not do: deciding what goes where (plan), saying it to hosts (hosts).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from deploy import seen as judge
from deploy.errors import DeployError, HostRefusedError, UnreachableError
from deploy.fleet import GATHERERS_MIN, Fleet
from deploy.hosts import Hosts
from deploy.journal import Journal, Outcome
from deploy.plan import Step
from deploy.release import UNITS
from deploy.seen import Seen

POLL_S: Final = 1.0
RESTARTS_MAX: Final = 3
TROUBLE_S: Final = 5.0  # how long something may be wrong while a host is watched
RETURN_SOAK_S: Final = 5
UNREACHABLE_S: Final = 60.0  # a line that breaks in the middle is tried again for so long

Say = Callable[[str, str], Any]


def _quietly(_host: str, _text: str) -> None:
    """Nobody listens."""


class Time(Protocol):
    """The deploy machine's clock."""

    def monotonic(self) -> float:
        """Seconds since whenever."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class RealTime:
    """The machine's own."""

    def monotonic(self) -> float:
        """Seconds since boot."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Options:
    """`system`: of the release. `gap`: ask for no others that cover. `by_force`: break locks.
    `ended`: runs of this desk that came to an end; a lock of theirs is nobody's."""

    system: str
    gap: bool = False
    by_force: bool = False
    await_s: int = 300
    ended: frozenset[str] = frozenset()


class Rollout:
    """One run; `say(host, text)` hears what is going on."""

    def __init__(
        self,
        hosts: Hosts,
        fleet: Fleet,
        journal: Journal,
        options: Options,
        *,
        clock: Time | None = None,
        say: Say = _quietly,
    ) -> None:
        self._hosts, self._fleet, self._journal = hosts, fleet, journal
        self._options, self._say = options, say
        self._clock: Time = clock or RealTime()
        self.tape_gaps: int | None = None  # of the tape while this ran, once confirmed

    async def run(self) -> Outcome:
        """Carry out what is not carried out yet; the outcome is in the journal."""
        story = self._journal.story
        if not story.back:
            failed = await self._forward(story.steps)
            if not failed:
                return self._end("done")
            if not story.moved:
                self._say("", failed)
                await self._unlock()
                return self._end("refused", why=failed)
            self._journal.note("back", why=failed)
        self._say("", f"going back: {story.back}")
        return await self._back()

    def _end(self, outcome: Outcome, **facts: Any) -> Outcome:
        self._journal.note("outcome", outcome=outcome, **facts)
        return outcome

    async def _forward(self, steps: Sequence[Step]) -> str:
        """Why it cannot go on, "" when all is done."""
        ended = self._journal.story.ended
        for step in steps:
            if step.number in ended and step.do != "lock":  # somebody may have broken it since
                continue
            if step.do == "check" and step.number + 1 in ended:
                continue
            self._journal.note("begin", step=step.number, do=step.do, host=step.host)
            began = self._clock.monotonic()
            try:
                await self._do(step)
            except DeployError as error:
                told = str(error)
                self._journal.note("failed", step=step.number, host=step.host, why=told)
                return told
            seconds = round(self._clock.monotonic() - began, 3)
            self._journal.note("end", step=step.number, do=step.do, host=step.host, seconds=seconds)
        return ""

    async def _do(self, step: Step) -> None:
        self._say(step.host, step.told())
        host = step.host
        if step.do == "preflight":
            await self._preflight()
        elif step.do == "lock":
            await self._lock()
        elif step.do == "copy":
            await self._hosts.copy(host, step.paths)
        elif step.do == "check":
            await self._check(host)
        elif step.do == "switch":
            self._journal.note("moving", host=host)
            await self._switch(host, step.paths)
        elif step.do == "await":
            await self._await(host, self._wanted(host), step.seconds)
        elif step.do == "soak":
            await self._soak(host, self._wanted(host), step.seconds)
        elif step.do == "confirm":
            await self._confirm(step.seconds)
        else:
            await self._unlock()

    def _wanted(self, host: str) -> dict[str, str]:
        for step in self._journal.story.steps:
            if step.do == "switch" and step.host == host:
                return dict(step.paths)
        return {}

    # ---- looks

    async def _look(self, host: str) -> Seen:
        """A look; a broken line is tried again for UNREACHABLE_S."""
        deadline = self._clock.monotonic() + UNREACHABLE_S
        while True:
            try:
                return await self._hosts.look(host)
            except UnreachableError:
                if self._clock.monotonic() >= deadline:
                    raise
                await self._clock.sleep(POLL_S)

    async def _look_or_none(self, host: str) -> Seen | None:
        try:
            return await self._hosts.look(host)
        except DeployError:
            return None

    async def _all(self) -> dict[str, Seen]:
        names = [host.name for host in self._fleet.hosts]
        found = await asyncio.gather(*map(self._look, names))
        return dict(zip(names, found, strict=True))

    async def _recording(self, but: str = "") -> list[str]:
        """The gatherers, but one, that record everything now."""
        names = [host.name for host in self._fleet.of("gatherer") if host.name != but]
        found = await asyncio.gather(*map(self._look_or_none, names))
        seen = {name: each for name, each in zip(names, found, strict=True) if each}
        return judge.recording(names, seen)

    async def _until(self, reason: Callable[[], Awaitable[str]], seconds: float, what: str) -> None:
        """Wait until there is no reason left. Raises HostRefusedError with the last one."""
        deadline = self._clock.monotonic() + seconds
        while why := await reason():
            if self._clock.monotonic() >= deadline:
                raise HostRefusedError(f"{what}: still not so after {seconds:.0f} s: {why}")
            await self._clock.sleep(POLL_S)

    # ---- steps

    async def _preflight(self) -> None:
        """Raises HostRefusedError with every host that is not fit, and why."""
        seen = await self._all()
        why = [
            f"{host.name}: {reason}"
            for host in self._fleet.hosts
            for reason in judge.not_fit(seen[host.name], host.name, host.role, self._options.system)
        ]
        if why:
            raise HostRefusedError("\n".join(("not fit for a release:", *why)))
        if not self._journal.story.before:
            self._journal.note(
                "before",
                paths={name: dict(each.profiles) for name, each in seen.items()},
                gaps=judge.gaps(seen.values()),
                recording=judge.recording((h.name for h in self._fleet.of("gatherer")), seen),
            )

    async def _check(self, host: str) -> None:
        """That nothing is lost when this host is restarted now."""

        async def reason() -> str:
            if self._fleet.host(host).role != "gatherer":
                return ""
            mine = await self._look_or_none(host)
            if mine is None:
                return f"{host} does not answer"
            if judge.not_capturing(mine) or self._options.gap:
                return ""  # nothing to lose here
            others = await self._recording(but=host)
            if len(others) < GATHERERS_MIN:
                return f"only {', '.join(others) or 'none'} of the other gatherers records"
            return await self._tape()

        await self._until(reason, self._options.await_s, f"{host} may be restarted")

    async def _tape(self) -> str:
        """Why the tape does not follow the gatherers that record."""
        for host in self._fleet.of("deduplicator"):
            seen = await self._look_or_none(host.name)
            if seen is None:
                return f"{host.name} does not answer"
            why = judge.not_merging(seen) or judge.not_fresh(seen)
            if why:
                return f"{host.name} {why}"
        return ""

    async def _switch(self, host: str, paths: dict[str, str] | Any) -> None:
        """Tried again while the line breaks: what was said may have been heard."""
        deadline = self._clock.monotonic() + UNREACHABLE_S
        for closure, path in paths.items():
            while True:
                try:
                    units = await self._hosts.switch(host, closure, path)
                    break
                except UnreachableError:
                    if self._clock.monotonic() >= deadline:
                        raise
                    await self._clock.sleep(POLL_S)
            if units:
                self._say(host, f"restarted {', '.join(units)}")

    def _service(self, host: str) -> tuple[str, str]:
        """(closure, unit) of what a host is there for."""
        role = self._fleet.host(host).role
        return role, UNITS[role, role][0]

    async def _unwell(self, host: str, seen: Seen, paths: dict[str, str]) -> str:
        """Why a host that was moved is not what it should be."""
        closure, unit = self._service(host)
        if closure in paths and seen.units[unit].running != paths[closure]:
            return f"{unit} does not run from {paths[closure]}"
        if self._fleet.host(host).role == "gatherer":
            return judge.not_capturing(seen) or judge.not_caught_up(seen)
        why = judge.not_merging(seen)
        if not why and len(await self._recording()) >= GATHERERS_MIN:
            why = judge.not_fresh(seen)
        return why

    async def _await(self, host: str, paths: dict[str, str], seconds: float) -> None:
        """Raises HostRefusedError when it does not become well, sooner when it ends again and
        again."""
        _, unit = self._service(host)
        first: int | None = None

        async def reason() -> str:
            nonlocal first
            seen = await self._look(host)
            restarts = seen.units[unit].restarts
            first = restarts if first is None else min(first, restarts)
            if restarts - first >= RESTARTS_MAX:
                words = await self._hosts.last_words(host, unit)
                raise HostRefusedError(f"{host}: {unit} ends again and again: {words}")
            return await self._unwell(host, seen, paths)

        await self._until(reason, seconds, f"{host} works")

    async def _soak(self, host: str, paths: dict[str, str], seconds: float) -> None:
        """Raises HostRefusedError when it ends, or is unwell for longer than TROUBLE_S."""
        _, unit = self._service(host)
        began = well = self._clock.monotonic()
        invocation = (await self._look(host)).units[unit].invocation
        while self._clock.monotonic() - began < seconds:
            await self._clock.sleep(POLL_S)
            seen = await self._look(host)
            if seen.units[unit].invocation != invocation:
                words = await self._hosts.last_words(host, unit)
                raise HostRefusedError(f"{host}: {unit} ended while it was watched: {words}")
            why = await self._unwell(host, seen, paths)
            now = self._clock.monotonic()
            if not why:
                well = now
            elif now - well > TROUBLE_S:
                raise HostRefusedError(f"{host}: unwell while it was watched: {why}")

    async def _confirm(self, seconds: float) -> None:
        """The whole fleet, as it will be left: what was moved, and what was well before."""
        gatherers = self._fleet.of("gatherer")
        expected = {*self._journal.story.moved, *self._journal.story.recording}

        async def reason() -> str:
            recording = await self._recording()
            lacking = [h.name for h in gatherers if h.name in expected and h.name not in recording]
            if lacking:
                return f"{', '.join(lacking)} does not record everything"
            for host in self._fleet.of("deduplicator"):
                seen = await self._look_or_none(host.name)
                if seen is None:
                    return f"{host.name} does not answer"
                for number, gatherer in enumerate(gatherers):
                    if gatherer.name not in expected:
                        continue
                    if why := judge.not_heard(seen, number):
                        return f"{gatherer.name}: {why}"
            return await self._tape()

        await self._until(reason, seconds, "the fleet is well")
        before, now = self._journal.story.gaps, judge.gaps((await self._all()).values())
        if before is not None and now is not None:
            self.tape_gaps = now - before

    async def _lock(self) -> None:
        for host in self._fleet.hosts:
            if self._options.ended:
                # A host that did not answer when its run ended still has that run's lock.
                held = (await self._look(host.name)).lock
                if held in self._options.ended:
                    await self._hosts.unlock(host.name, held)
            await self._hosts.lock(
                host.name, self._journal.story.run, by_force=self._options.by_force
            )

    async def _unlock(self) -> None:
        for host in self._fleet.hosts:
            try:
                await self._hosts.unlock(host.name, self._journal.story.run)
            except DeployError as error:
                self._say(host.name, f"still locked: {error}")

    # ---- back

    async def _back(self) -> Outcome:
        """Every moved host to its former paths, the last one first."""
        story = self._journal.story
        lacking = []
        for host in reversed(story.moved):
            if host in story.returned:
                continue
            former = {
                closure: path
                for closure, path in story.before.get(host, {}).items()
                if closure in self._wanted(host)
            }
            try:
                if not former:
                    raise HostRefusedError(f"{host} had no revision before: it stays on this one")
                self._say(host, "goes back to " + ", ".join(former))
                await self._check(host)
                await self._switch(host, former)
                await self._await(host, former, self._options.await_s)
                await self._soak(host, former, RETURN_SOAK_S)
            except DeployError as error:
                self._say(host, str(error))
                self._journal.note("stays", host=host, why=str(error))
                lacking.append(host)
                continue
            self._journal.note("returned", host=host)
        if lacking:
            return self._end("in between", lacking=lacking)
        await self._unlock()
        return self._end("rolled back", why=story.back)


async def stand(hosts: Hosts, fleet: Fleet) -> dict[str, dict[str, str]]:
    """Where each host stands: what its service runs from, or why nobody knows."""
    found: dict[str, dict[str, str]] = {}
    for host in fleet.hosts:
        try:
            seen = await hosts.look(host.name)
        except DeployError as error:
            found[host.name] = {"unknown": str(error)}
            continue
        unit = seen.units.get(UNITS[host.role, host.role][0])
        found[host.name] = {
            "profile": seen.profiles.get(host.role, ""),
            "running": unit.running if unit else "",
            "state": judge.not_capturing(seen)
            if host.role == "gatherer"
            else judge.not_merging(seen),
        }
    return found


def record(journal: Journal, rollout: Rollout, outcome: Outcome) -> bytes:
    """The deploy record: who, what, which paths, how long, how many gaps."""
    story = journal.story
    told = {
        "run": story.run,
        "outcome": outcome,
        **story.facts,
        "paths": {s.host: dict(s.paths) for s in story.steps if s.do == "switch"},
        "before": story.before,
        "seconds": story.seconds,
        "gaps": rollout.tape_gaps,
        "why": story.back,
    }
    return json.dumps(told, sort_keys=True).encode()
