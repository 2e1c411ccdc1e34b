"""One gatherer's host and its processes, one after the other.

Purpose: put the real parts together as `gatherer.service` does: spool, intake, sink, feeds. The
host (disk, database, clock, network) outlives its processes; a new host may take its place.

What is imitated: discovery (each gatherer learns of a new market some seconds later), the plan of
markets to connections (by number), signing, the thread of the sink.

Does not do: deciding anything that the product decides.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from gatherer.feed import FeedConnection, FeedSettings
from gatherer.intake import LiveIntake, recover
from gatherer.service import id_base
from gatherer.sink import Sink, SinkSettings
from marketdata.session import SessionSettings
from runtime.spool_files import SpoolMeta
from tests.sim.disk import SimDisk, SimSpool
from tests.sim.hot import HotServer
from tests.sim.network import Exchange, Network
from tests.sim.plan import FaultPlan
from tests.sim.sql import Fates
from tests.sim.virtual import NS_PER_S, Process, SimClock, Story, VirtualLoop

SIGNATURE = "KALSHI-ACCESS-SIGNATURE"


class InlineThread:
    """Stands for runtime.loop_thread.LoopThread: the work is done in the one loop."""

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self) -> None:
        """Nothing."""

    async def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await work

    async def stop(self) -> None:
        """Nothing."""


class SimSigner:
    """Names each upgrade attempt."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0

    def headers(self, *_: Any) -> dict[str, str]:
        self.count += 1
        return {SIGNATURE: f"{self.name}/{self.count}"}


class Host:
    """A gatherer's machine. `number` is its bit in `sources`."""

    def __init__(
        self, number: int, plan: FaultPlan, exchange: Exchange, story: Story, loop: VirtualLoop,
        servers: dict[str, Any],
    ) -> None:  # fmt: skip
        self.number = number
        self.name = f"g{number}"
        self.world = plan
        self.plan = plan.gatherers[number]
        self.exchange = exchange
        self.story = story
        self.loop = loop
        self.servers = servers
        self.rng = random.Random(f"{plan.seed}/host{number}")
        self.clock = SimClock(loop, exchange.clock.true_ns(), self.plan.clock_offset_ms * 1_000_000)
        self.network = Network(
            self.name, self.plan, exchange, random.Random(f"{plan.seed}/net{number}"), story
        )
        self.signer = SimSigner(self.name)
        self.disks: list[SimDisk] = []
        self.databases: list[HotServer] = []
        self.lives = 0
        self.process: Process | None = None
        self.feeds: list[FeedConnection] = []
        self.wanted: dict[int, int] = {}  # market -> feed
        self.moved: set[int] = set()
        self.off_until_s = 0.0
        self.closing = False
        self.settled = False
        self.at_rest: Callable[[], None] = lambda: None  # called when it has settled
        self.failures: list[BaseException] = []
        self.fates: dict[int, tuple[str, bool]] = _fates(
            self.plan.crashes_step, self.plan.line_cuts
        )
        self.new_disk()
        self.new_database()

    # -- hardware

    def new_disk(self) -> None:
        """An empty disk for the spool. Ids of two spools of one minute would be the same (see
        gatherer.service.id_base): a minute passes for each that went before."""
        created_ns = self.clock.wall_ns()
        meta = SpoolMeta(
            uuid.UUID(int=self.rng.getrandbits(128)),
            created_ns,
            id_base(created_ns + 60 * NS_PER_S * len(self.disks)),
        )
        disk = SimDisk(meta, self.rng, self.story, self.name)
        disk.sync_ms, disk.errors = self.plan.disk_ms, self.plan.disk_errors
        self.disks.append(disk)

    def new_database(self) -> None:
        """An empty cluster."""
        rng = random.Random(f"{self.world.seed}/hot{self.number}/{len(self.databases)}")
        identifier = 7_000_000 + 1_000 * self.number + len(self.databases)
        server = HotServer(f"hot{self.number}", identifier, rng, self.story)
        server.slow_commit_s = self.plan.slow_commits
        self.databases.append(server)
        self.servers[f"hot{self.number}"] = server

    @property
    def database(self) -> HotServer:
        return self.databases[-1]

    # -- processes

    def start(self) -> None:
        """A new process, unless the host is off."""
        if self.settled:
            return
        if self.off_until_s > self.loop.time():
            self.loop.call_at(self.off_until_s, self.start)
            return
        if self.process is not None and not self.process.dead:
            return
        self.lives += 1
        process = self.process = Process(f"{self.name}.{self.lives}", self.story)
        process.on_death.append(self._died)
        self.story.tell(process.name, "starts")
        _Life(self, process).begin()

    def _died(self) -> None:
        self.feeds = []
        if self.process is not None:
            self.failures += self.process.failures
        self.loop.call_later(self.plan.down_s * self.rng.uniform(0.5, 1.5), self.start)

    def kill(self, name: str) -> None:
        """The process dies here and now."""
        if self.process is not None and not self.process.dead:
            self.story.fault(name, self.process.name)
            self.process.kill(name)

    def replace(self) -> None:
        """Another machine: nothing is left of the disk nor of the database."""
        self.kill("host_replaced")
        self.database.go_down()
        self.new_disk()
        self.new_database()

    def lose_spool(self) -> None:
        """The spool's disk is new and empty; the database is as it was."""
        self.kill("spool_lost")
        self.new_disk()

    def stop_cleanly(self, *, for_good: bool) -> None:
        """Ask the process to end properly."""
        self.closing = self.closing or for_good
        if self.process is not None and not self.process.dead:
            life = self.process.life  # type: ignore[attr-defined]
            if not life.stopping:
                self.story.fault("clean_stop", self.process.name)
                life.stop()

    # -- which markets

    def feed_of(self, market: int) -> int:
        return market % self.plan.book_feeds

    def learn(self, market: int) -> None:
        """Discovery has told of a market."""
        if market not in self.wanted:
            self.wanted[market] = self.feed_of(market)
            self._change(market, add=True)

    def forget(self, market: int) -> None:
        """The market is over."""
        if market in self.wanted:
            self._change(market, add=False)
            del self.wanted[market]

    def move(self, market: int, wait_s: float) -> None:
        """Drop a market and take it up again later on the next feed; each market once. Where there
        is one feed only it is not taken up again (see docs/simulation.md)."""
        if market not in self.wanted or market in self.moved:
            return
        self.moved.add(market)
        self.story.fault("market_moved", self.name, f"market {market}, {wait_s:.1f} s")
        self.forget(market)
        if self.plan.book_feeds < 2:
            return

        def back() -> None:
            self.wanted[market] = (self.feed_of(market) + 1) % self.plan.book_feeds
            self._change(market, add=True)

        self.loop.call_later(wait_s, back)

    def _change(self, market: int, *, add: bool) -> None:
        if self.feeds:
            tickers = [self.ticker(market)]
            feed = self.feeds[self.wanted[market]]
            feed.change(tickers if add else (), () if add else tickers)

    def ticker(self, market: int) -> str:
        return self.exchange.venue.markets[market].spec.ticker


class _Life:
    """One process: the parts and their tasks (as gatherer.service.Gatherer)."""

    def __init__(self, host: Host, process: Process) -> None:
        self.host = host
        self.process = process
        self.stopping = False
        process.life = self  # type: ignore[attr-defined]

    def begin(self) -> None:
        self.process.start(self._run())

    async def _run(self) -> None:
        host, process = self.host, self.process
        self.spool = SimSpool(
            host.disks[-1], process, state=self._state,
            segment_bytes=host.plan.segment_bytes,
        )  # fmt: skip
        self._check_disk()
        self.decoding = recover(self.spool)
        self.intake = LiveIntake(self.spool, self.decoding, queue_rows_max=2_000)
        self.intake.bury(host.clock.wall_ns())
        self.sink = SimSink(
            SinkSettings(f"hot{host.number}|{process.name}", flush_ms=host.plan.flush_ms),
            self.spool, self.intake, host.clock,
        )  # fmt: skip
        process.start(self.spool.run())
        process.start(self.sink.run(), self._drained)
        host.feeds = self._feeds()
        self.feed_tasks = [process.start(feed.run()) for feed in host.feeds]

    def _state(self) -> bytes:
        return self.decoding.state()

    def _check_disk(self) -> None:
        gone = self.host.disks[-1].lost()
        if gone:
            self.host.story.tell(self.process.name, gone)
            raise AssertionError(f"spool: {gone}")

    def _feeds(self) -> list[FeedConnection]:
        host = self.host
        feeds = []
        for number in range(host.plan.book_feeds):
            channels = ("trade", "ticker") if number == 0 else ()
            feed = FeedConnection(
                f"books-{number}",
                FeedSettings(
                    f"sim|{self.process.name}",
                    reconnect_base_ms=250,
                    reconnect_cap_ms=4_000,
                    gatherer=host.name,
                ),
                SessionSettings(
                    channels=channels,
                    ack_timeout_ns=5 * NS_PER_S,
                    snapshot_timeout_ns=5 * NS_PER_S,
                    data_timeout_ns=8 * NS_PER_S,
                    probe_timeout_ns=4 * NS_PER_S,
                    audit_interval_ns=host.world.audit_s * NS_PER_S,
                    audit_phase_permille=333 * (host.number + 1),
                ),
                host.signer,  # type: ignore[arg-type]
                self.spool,
                self.intake,
                host.clock,  # type: ignore[arg-type]
            )
            feed._rng = random.Random(f"{host.world.seed}/feed/{self.process.name}/{number}")
            feed.want([host.ticker(m) for m, at in sorted(host.wanted.items()) if at == number])
            feeds.append(feed)
        return feeds

    def stop(self) -> None:
        """A clean stop, in the order of gatherer.service."""
        self.stopping = True
        self.process.start(self._stop())

    async def _stop(self) -> None:
        if not hasattr(self, "feed_tasks"):
            self.process.kill("stopped before it had begun")
            return
        feeds, self.host.feeds = self.host.feeds, []
        for feed in feeds:
            await feed.stop()
        await asyncio.wait(self.feed_tasks, timeout=30)
        self.intake.end()
        self.sink.drain()

    def _drained(self) -> None:
        host = self.host
        if host.closing:
            host.settled = True
            self.process.on_death.remove(host._died)
            host.story.tell(self.process.name, "has committed everything and ends")
            host.at_rest()
        self.process.kill("a clean end")


class SimSink(Sink):
    """The real sink; only the answer of a database is not waited for in another task."""

    async def _answer(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await work


def _fates(crashes: tuple[tuple[int, bool], ...], cuts: tuple[tuple[int, bool], ...]) -> Fates:
    made: Fates = {n: ("cut", after) for n, after in cuts}
    made.update({n: ("crash", after) for n, after in crashes})
    return made


fates = _fates

__all__ = ["Host", "InlineThread", "fates"]
