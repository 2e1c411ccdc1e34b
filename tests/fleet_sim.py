"""A fleet in virtual time behind `deploy.hosts.Hosts`: what hosts, units and revisions do.

Four hosts as the specification has them. A store path behaves as `Nature` says: how long its
service takes until it records (or merges), whether it starts at all, when it crashes. systemd's
part is played: a service that ends is started again a second later, with another invocation.

Faults: the line to a host is cut for a while, a copy or a switch fails, the deploy machine is
killed before or after any act (`Killed`). `capturing_min` is the fewest gatherers that recorded at
any moment at which time passed or an act was done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from deploy.errors import HostRefusedError, UnreachableError
from deploy.fleet import Fleet
from deploy.release import UNITS
from deploy.seen import Seen, Unit

WALL_NS: Final = 1_760_000_000_000_000_000
RESTART_S: Final = 1.0


class Killed(BaseException):
    """The deploy machine lost its power."""


@dataclass(frozen=True, slots=True)
class Nature:
    """What a store path's service does. `ready_s`: from start to recording; None: never."""

    ready_s: float | None = 3.0
    crash_s: float | None = None  # after its start, each time


GOOD: Final = Nature()


@dataclass(slots=True)
class SimHost:
    """One host."""

    name: str
    role: str
    store: set[str] = field(default_factory=set)
    profiles: dict[str, str] = field(default_factory=dict)
    running: dict[str, str] = field(default_factory=dict)  # by closure
    started_s: float = 0.0
    invocation: int = 0
    restarts: int = 0
    lock: str = ""
    missing: tuple[str, ...] = ()
    free: int = 10 << 30
    switches: list[tuple[str, str]] = field(default_factory=list)


class SimFleet:
    """Hosts and time in one; give it to a Rollout as both."""

    def __init__(
        self,
        fleet: Fleet,
        before: Mapping[str, Mapping[str, str]],
        natures: Mapping[str, Nature] | None = None,
    ) -> None:
        """`before`: store path by closure that runs on each host since long ago."""
        self.fleet = fleet
        self.now_s = 10_000.0
        self.natures = dict(natures or {})
        self.hosts: dict[str, SimHost] = {}
        for host in fleet.hosts:
            paths = dict(before.get(host.name, {}))
            self.hosts[host.name] = SimHost(
                host.name, host.role, set(paths.values()), paths, dict(paths)
            )
        self.cut_until_s: dict[str, float] = {}
        self.kill_at: int | None = None  # the act before (even: after) which the power goes
        self.acts = 0
        self.refuse: dict[tuple[str, str], str] = {}  # (act, host): why it fails
        self.capturing_min = len(self.capturing())
        self.histories: dict[str, list[bytes]] = {}

    # ---- time

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self._kill()
        end = self.now_s + seconds
        while self.now_s < end:
            self.now_s = min(end, self.now_s + 0.1)
            for host in self.hosts.values():
                self._systemd(host)
            self._count()

    def _systemd(self, host: SimHost) -> None:
        nature = self._nature(host)
        if nature is None or nature.crash_s is None:
            return
        if self.now_s - host.started_s >= nature.crash_s + RESTART_S:
            host.started_s = self.now_s
            host.invocation += 1
            host.restarts += 1
            host.running[host.role] = host.profiles[host.role]

    def _nature(self, host: SimHost) -> Nature | None:
        path = host.running.get(host.role)
        return None if path is None else self.natures.get(path, GOOD)

    def works(self, name: str) -> bool:
        """Whether a host's service records (or merges) now."""
        host = self.hosts[name]
        nature = self._nature(host)
        if nature is None or nature.ready_s is None:
            return False
        age_s = self.now_s - host.started_s
        return age_s >= nature.ready_s and (nature.crash_s is None or age_s < nature.crash_s)

    def capturing(self) -> list[str]:
        """The gatherers that record now."""
        return [h.name for h in self.fleet.of("gatherer") if self.works(h.name)]

    def _count(self) -> None:
        self.capturing_min = min(self.capturing_min, len(self.capturing()))

    # ---- acts

    def _kill(self) -> None:
        self.acts += 1
        if self.kill_at is not None and self.acts == self.kill_at:
            raise Killed

    def _reach(self, act: str, name: str) -> SimHost:
        self._kill()
        if self.now_s < self.cut_until_s.get(name, 0.0):
            self.now_s += 1.0
            raise UnreachableError(f"{name}: no route")
        if why := self.refuse.get((act, name)):
            raise HostRefusedError(f"{name}: {why}")
        return self.hosts[name]

    def _wall_us(self) -> int:
        return WALL_NS // 1_000 + int(self.now_s * 1e6)

    async def look(self, host: str) -> Seen:
        found = self._reach("look", host)
        works = self.works(host)
        unit = UNITS[found.role, found.role][0]
        path = found.running.get(found.role, "")
        units = {
            name: Unit("active", 4, 0, "0", found.running.get(closure, ""))
            for (role, closure), names in UNITS.items()
            if role == found.role
            for name in names
        }
        units[unit] = Unit(
            "active" if path else "inactive", 7 if path else 0, found.restarts,
            str(found.invocation), path,
        )  # fmt: skip
        health, status = None, None
        if path:
            state = "ok" if works else "starting"
            names = ("capture",) if found.role == "gatherer" else ("production", "merge")
            health = {
                "components": {n: {"state": state, "reason": "not yet"} for n in names},
                "detail": {"lag_ms": 200},
            }
        if path and found.role == "deduplicator":
            gatherers = self.fleet.of("gatherer")
            fresh = works and self.capturing()
            status = {
                "closed_to_us": self._wall_us() - (5_000_000 if fresh else 500_000_000),
                "gaps": 0,
                "gatherers": [
                    {"gatherer": n, "lag_ms": 900 if self.works(g.name) else 90_000, "reason": ""}
                    for n, g in enumerate(gatherers)
                ],
            }
        return Seen(
            found.name, found.role, "aarch64", found.free, found.free, self._wall_us() * 1_000, 0,
            found.lock, dict(found.profiles), units, health, status, found.missing,
        )  # fmt: skip

    async def lock(self, host: str, run: str, *, by_force: bool = False) -> None:
        found = self._reach("lock", host)
        if found.lock not in ("", run) and not by_force:
            raise HostRefusedError(f"{host} is locked by another deploy: {found.lock}")
        found.lock = run
        self._kill()

    async def unlock(self, host: str, run: str) -> None:
        found = self._reach("unlock", host)
        if found.lock == run:
            found.lock = ""
        self._kill()

    async def copy(self, host: str, paths: Mapping[str, str]) -> None:
        found = self._reach("copy", host)
        found.store |= set(paths.values())
        self._kill()

    async def switch(self, host: str, closure: str, path: str) -> list[str]:
        found = self._reach("switch", host)
        if path not in found.store:
            raise HostRefusedError(f"{host}: {path} is not in the store")
        found.profiles[closure] = path
        self._kill()
        if found.running.get(closure) == path:
            return []
        found.running[closure] = path
        found.switches.append((closure, path))
        if closure == found.role:
            found.started_s, found.restarts = self.now_s, 0
            found.invocation += 1
        self._count()
        self._kill()
        return [f"kalshi-{closure}.service"]

    async def last_words(self, host: str, unit: str) -> str:
        self._reach("last_words", host)
        return f"{unit} said nothing"

    async def write_down(self, host: str, line: bytes) -> None:
        self._reach("write_down", host)
        self.histories.setdefault(host, []).append(line)

    async def tidy(self, host: str) -> None:
        self._reach("tidy", host)
