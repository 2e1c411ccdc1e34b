"""One seed, one world: build it, play it in virtual time, let it come to rest, judge it.

Purpose: wire exchange, gatherers, databases and deduplicator; carry out the plan's timed faults;
stop everything properly at the end; hand what is left to the checkers.

How real code meets simulated parts: the names `connect`, `migrate`, `LoopThread`, `SpoolReader` and
the like are replaced in the modules that use them for as long as the world plays (`replaced`).

Does not do: judging (checkers).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import dedup.flow
import dedup.pipeline
import dedup.publish
import dedup.readers
import dedup.union
import gatherer.feed
import gatherer.hot_database
import gatherer.intake
import gatherer.sink
import runtime.postgres
from dedup.readers import GathererReader
from exchange.synthetic import START_US
from runtime.partitions import Partitions
from tests.sim.deduplicator import DedupHost
from tests.sim.disk import SimReader
from tests.sim.gatherer import Host, InlineThread
from tests.sim.network import Exchange, dial
from tests.sim.plan import FaultPlan
from tests.sim.production import ProductionServer
from tests.sim.sql import Server, SimConnection
from tests.sim.virtual import SimClock, Story, VirtualLoop

REST_S = 5.0  # after the play, before everything is stopped
CLOSE_POLL_S = 1.0
LAST_S = 900.0  # virtual seconds after the play in which the tape must be finished


@dataclass
class World:
    """What is left of a world when it has come to rest."""

    plan: FaultPlan
    story: Story
    exchange: Exchange
    hosts: list[Host]
    production: ProductionServer
    dedup: DedupHost
    ended: bool = False
    broken: list[str] = field(default_factory=list)  # found while it played


class _NoPartitions(Partitions):
    """The simulated databases need none."""

    async def ensure(self, *_: Any) -> None:
        return


class _Silent:
    """A logger that says nothing."""

    def bind(self, **_: Any) -> _Silent:
        return self

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class _Builder:
    """Makes the parts of one world and plays it."""

    def __init__(self, seed: int, loop: VirtualLoop) -> None:
        plan = FaultPlan.draw(seed)
        begin_ns = START_US * 1000
        clock = SimClock(loop, begin_ns, 0)
        self.loop = loop
        self.story = Story(clock.true_ns, begin_ns)
        self.rng = random.Random(f"{seed}/world")
        self.servers: dict[str, Server] = {}
        self.exchange = Exchange(plan, clock, self.story, loop)
        self.hosts = [
            Host(n, plan, self.exchange, self.story, loop, self.servers)
            for n in range(len(plan.gatherers))
        ]
        self.production = ProductionServer(
            "production", 99, random.Random(f"{seed}/production"), self.story
        )
        self.servers["production"] = self.production
        self.dedup = DedupHost(plan, self.story, loop)
        self.dedup.watch.hot = lambda gatherer: self.hosts[gatherer].database
        self.dedup.may_finish = lambda: all(host.settled for host in self.hosts)
        self.world = World(plan, self.story, self.exchange, self.hosts, self.production, self.dedup)

    # -- stand-ins for what the product imports

    async def connect(self, dsn: str, *, tries_max: int | None = None, **_: Any) -> SimConnection:
        """As runtime.postgres.connect. `dsn`: database|process."""
        name, _, asker = dsn.partition("|")
        while True:
            server = self.servers[name]
            process, fates = self._asker(asker, name)
            await asyncio.sleep(self.rng.randint(1, 20) / 1000)
            if not server.is_down and not process.dead:
                return SimConnection(server, process, fates)
            if tries_max is not None or process.dead:
                raise runtime.postgres.StorageError(f"no connection to {name}")
            await asyncio.sleep(0.3)

    def _asker(self, name: str, server: str) -> Any:
        if name.startswith("dedup"):
            number = int(name.partition(".")[2])
            fates = self.dedup.fates if server == "production" else self.dedup.read_fates
            return self.dedup.processes[number - 1], fates
        host = self.hosts[int(name[1])]
        assert host.process is not None
        return host.process, host.fates

    async def dial(
        self, _kind: str, url: str, headers: Any, on_frames: Any, wall_ns: Any, **_: Any
    ) -> Any:
        """As gatherer.transport.connect."""
        host = self.hosts[int(url.partition("|")[2][1])]
        assert host.process is not None
        return await dial(host.network, host.process, headers, on_frames, wall_ns)

    # -- the play

    async def play(self) -> None:
        world, plan = self.world, self.world.plan
        tasks = [asyncio.create_task(self.exchange.run()), asyncio.create_task(self._discover())]
        for host in self.hosts:
            host.at_rest = self._at_rest
            self.loop.call_later(host.plan.start_s, host.start)
            self._time_faults(host)
        self.loop.call_later(plan.dedup.start_s, self.dedup.start)
        self._dedup_faults()
        await asyncio.sleep(plan.seconds + REST_S)
        for after_s in plan.dedup.crashes_at_end:
            self.loop.call_later(after_s, self.dedup.kill, "dedup_crash_at_end")
        for host in self.hosts:
            host.off_until_s = 0.0
        for _ in range(int(LAST_S / CLOSE_POLL_S)):
            for host in self.hosts:
                if not host.settled:
                    host.start()
                    host.stop_cleanly(for_good=True)
            await asyncio.sleep(CLOSE_POLL_S)
            if self.dedup.finished and all(host.settled for host in self.hosts):
                world.ended = True
                break
        for task in tasks:
            task.cancel()
        self.dedup.finished = True
        for process in (*self.dedup.processes, *(h.process for h in self.hosts)):
            if process is not None:
                process.kill("the world ends")

    async def _discover(self) -> None:
        """Each gatherer learns of markets, and that they are over, with its own delay."""
        known = 0
        over: set[int] = set()
        while True:
            markets = self.exchange.venue.markets
            for number in range(known, len(markets)):
                for host in self.hosts:
                    wait_s = host.rng.uniform(0.5, 6) if known else 0.0
                    self.loop.call_later(wait_s, host.learn, number)
            known = len(markets)
            for market in markets:
                if market.status == "finalized" and market.number not in over:
                    over.add(market.number)
                    if self.world.plan.drop_finished:
                        for host in self.hosts:
                            wait_s = host.rng.uniform(0.1, 4)
                            self.loop.call_later(wait_s, host.forget, market.number)
            await asyncio.sleep(0.25)

    def _time_faults(self, host: Host) -> None:
        plan, at = host.plan, self.loop.call_at
        for when in plan.crashes_at:
            at(when, host.kill, "crash_at_time")
        for when in plan.clean_stops:
            at(when, lambda: host.stop_cleanly(for_good=False))
        for when in plan.silent_cuts:
            at(when, host.network.cut_silently)
        for when, by_ms in plan.clock_steps:
            at(when, self._step_clock, host, by_ms)
        for when, market, wait_s in plan.moves:
            at(when, host.move, market, wait_s)
        for low, high in plan.partitions:
            at(low, self.story.fault, "partition", host.name, f"{high - low:.1f} s")
        for _ in range(plan.lost_bursts):
            at(self.rng.uniform(0.05, 0.95) * self.world.plan.seconds, host.network.drop_burst)
        for low, high in plan.database_down:
            at(low, self._down, host, high)
        if plan.away is not None:
            at(plan.away[0], self._away, host, plan.away[1])
        if plan.replaced_at is not None:
            at(plan.replaced_at, host.replace)
        if plan.spool_lost_at is not None:
            at(plan.spool_lost_at, host.lose_spool)
        if plan.start_s:
            self.story.happened["late_start"] += 1
        if plan.clock_offset_ms:
            self.story.happened["clock_offset"] += 1

    def _step_clock(self, host: Host, by_ms: int) -> None:
        self.story.fault("clock_step", host.name, f"{by_ms} ms")
        host.clock.offset_ns += by_ms * 1_000_000

    def _down(self, host: Host, until_s: float) -> None:
        server = host.database
        self.story.fault("hot_database_down", host.name, f"{until_s - self.loop.time():.1f} s")
        server.go_down()
        self.loop.call_at(until_s, setattr, server, "is_down", False)

    def _away(self, host: Host, until_s: float) -> None:
        self.story.fault("host_away", host.name, f"{until_s - self.loop.time():.1f} s")
        host.off_until_s = until_s
        host.kill("host_off")
        server = host.database
        server.go_down()
        self.loop.call_at(until_s, setattr, server, "is_down", False)

    def _at_rest(self) -> None:
        """A gatherer has stopped for good; behind the last one the deduplicator may still die."""
        if all(host.settled for host in self.hosts):
            self.dedup.doom(self.world.plan.dedup.crashes_at_rest)

    def _dedup_faults(self) -> None:
        plan, at = self.world.plan.dedup, self.loop.call_at
        for server in self.hosts:
            server.database.answer_ms = plan.read_ms
        for when in plan.crashes_at:
            at(when, self.dedup.kill, "dedup_crash_at_time")
        for low, high in plan.production_down:
            at(low, self._production_down, high)
        if plan.restore is not None:
            at(plan.restore[0], self.production.take_backup)
            at(plan.restore[1], self._restore)
        if plan.second_at is not None:
            at(plan.second_at, self._second)
        if plan.lock_lost_at is not None:
            at(plan.lock_lost_at, self._lose_lock)

    def _production_down(self, until_s: float) -> None:
        self.story.fault("production_down", "production")
        self.production.go_down()
        self.loop.call_at(until_s, setattr, self.production, "is_down", False)

    def _restore(self) -> None:
        self.story.fault("production_restored", "production")
        self.production.restore()

    def _second(self) -> None:
        self.story.fault("second_deduplicator", "dedup")
        self.dedup.start(again=False)

    def _lose_lock(self) -> None:
        """The server forgets the merger's lock, and somebody starts another merger."""
        self.story.fault("lock_lost", "production")
        self.production.forget_lock()
        self.dedup.start(again=False)


@contextlib.contextmanager
def replaced(builder: _Builder, seed: int) -> Iterator[None]:
    """The simulated parts under the names that the product's modules use."""
    jitter = random.Random(f"{seed}/jitter")
    uuids = random.Random(f"{seed}/uuids")
    loop = builder.loop

    def backoff_s(attempt: int, base_s: float = 0.1, cap_s: float = 5.0) -> float:
        return jitter.uniform(0, min(cap_s, base_s * 2 ** min(attempt, 10)))

    async def migrate(*_: Any) -> list[int]:
        return []

    def uuid4() -> uuid.UUID:
        return uuid.UUID(int=uuids.getrandbits(128))

    class SimGathererReader(GathererReader):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(
                *args, monotonic=loop.time, max_rows=builder.world.plan.dedup.pull_rows, **more
            )

    stand_ins: list[tuple[Any, str, Any]] = [
        (gatherer.feed, "connect", builder.dial),
        (gatherer.feed, "uuid", SimpleNamespace(uuid4=uuid4)),
        (gatherer.feed, "log", _Silent()),
        (gatherer.hot_database, "connect", builder.connect),
        (gatherer.hot_database, "migrate", migrate),
        (gatherer.hot_database, "Partitions", _NoPartitions),
        (gatherer.intake, "SpoolReader", SimReader),
        (gatherer.sink, "LoopThread", InlineThread),
        (gatherer.sink, "backoff_s", backoff_s),
        (runtime.postgres, "backoff_s", backoff_s),
        (dedup.readers, "connect", builder.connect),
        (dedup.readers, "backoff_s", backoff_s),
        (dedup.publish, "connect", builder.connect),
        (dedup.publish, "migrate", migrate),
        (dedup.publish, "Partitions", _NoPartitions),
        (dedup.publish, "log", _Silent()),
        (dedup.pipeline, "log", _Silent()),
        (dedup.pipeline, "GathererReader", SimGathererReader),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in stand_ins]
    for module, name, stand_in in stand_ins:
        setattr(module, name, stand_in)
    try:
        yield
    finally:
        for module, name, real in before:
            setattr(module, name, real)


LIMITS = ((dedup.union, "MEMORY_WINDOWS"), (dedup.flow, "PUBLISH_WINDOWS"))


@contextlib.contextmanager
def limits_kept() -> Iterator[None]:
    """The product's limits are afterwards what they were, though worlds were played."""
    before = [getattr(module, name) for module, name in LIMITS]
    try:
        yield
    finally:
        for (module, name), real in zip(LIMITS, before, strict=True):
            setattr(module, name, real)


def play(seed: int) -> World:
    """The world of a seed, at rest. Its limits stay, for checkers merge once more: `limits_kept`
    around both."""
    loop = VirtualLoop()
    limits = FaultPlan.draw(seed).dedup
    dedup.union.MEMORY_WINDOWS = limits.memory_windows  # type: ignore[misc]
    dedup.flow.PUBLISH_WINDOWS = limits.publish_windows  # type: ignore[misc]
    gc.disable()  # what is dropped is dropped at the same place every time
    try:
        builder = _Builder(seed, loop)
        with replaced(builder, seed):
            loop.run_until_complete(builder.play())
            loop.run_until_complete(_drain(loop))
        return builder.world
    finally:
        loop.close()
        gc.enable()


async def _drain(loop: VirtualLoop) -> None:
    """Whatever is still waiting is ended."""
    me = asyncio.current_task()
    for _ in range(3):
        others = [task for task in asyncio.all_tasks() if task is not me]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
