"""The exchange in virtual time, and the lines between it and the gatherers.

Purpose: drive the real pure `exchange.venue` with its own fault plan and truth ledger; carry its
frames over lines that are slow, lose, hold back, break, or die without a word. `dial` stands for
`gatherer.transport.connect`.

Invariants: SIM-9 a line keeps the order of its frames (it is TCP); lines differ in delay, so frames
of different connections pass each other.

Does not do: WebSocket framing, REST.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from exchange.commands import carry_out
from exchange.connection import Connection
from exchange.faults import FaultLevel, FaultPlan
from exchange.synthetic import SyntheticSource
from exchange.truth import Ledger
from exchange.venue import Venue
from gatherer.auth import handshake_of
from gatherer.transport import Closed, UpgradeRefusedError
from tests.sim.plan import FaultPlan as WorldPlan
from tests.sim.plan import GathererPlan
from tests.sim.virtual import Process, SimClock, Story

TICK_S = 0.05
DEAD_LINE_S = 20.0  # after so long the exchange gives up a connection that nobody reads
LOST_MEAN = 4
LOSABLE = (b'{"type":"orderbook', b'{"type":"trade', b'{"type":"ticker')


class Exchange:
    """The venue, played along virtual time."""

    def __init__(self, plan: WorldPlan, clock: SimClock, story: Story, loop: Any) -> None:
        level = FaultLevel(plan.exchange_level)
        self.source = SyntheticSource(
            markets=plan.markets, seconds=plan.seconds, seed=plan.seed,
            events_per_s=plan.events_per_s, level=level,
        )  # fmt: skip
        self.ledger = Ledger()
        faults = FaultPlan(
            level, plan.seed, self.source.start_us, self.source.end_us, self.source.events_expected
        )
        self.venue = Venue(self.source, faults, crew=0, ledger=self.ledger)
        self.clock = clock
        self.story = story
        self.lines: dict[int, Line] = {}
        self.loop = loop
        self._told: dict[str, int] = {}

    async def run(self) -> None:
        """Tick until the play is over, and then go on answering."""
        while True:
            self.attend()
            await asyncio.sleep(TICK_S)

    def attend(self) -> None:
        """Bring the venue up to now and put its frames on the lines."""
        venue = self.venue
        until_us = self.clock.true_ns() // 1000
        while not venue.done:
            venue.play(10_000, until_us)
            if venue.now_us >= until_us:
                break
        for line in list(self.lines.values()):
            if line.at_venue.commands:
                carry_out(venue, line.at_venue)
            line.flush()
        for kind, count in venue.faults.items():
            before = self._told.get(kind, 0)
            if count > before:
                self._told[kind] = count
                for _ in range(count - before):
                    self.story.fault(f"exchange_{kind}", "exchange")

    def open(self, handshake: str) -> Connection:
        """A new connection at the venue."""
        return self.venue.open(handshake, self.clock.true_ns())

    def left(self, connection: Connection) -> None:
        """The client is gone, as far as the venue can tell."""
        if self.lines.pop(connection.number, None) is not None:
            self.venue.closed(connection)


@dataclass(eq=False)
class Network:
    """One gatherer's network: what all its lines share."""

    name: str
    plan: GathererPlan
    exchange: Exchange
    rng: random.Random
    story: Story
    lines: set[Line] = field(default_factory=set)
    lose: int = 0  # frames still to be lost on the next line that has some

    def held_until(self, now_s: float) -> float:
        """The end of the partition that is on now; 0: none is."""
        return max((b for a, b in self.plan.partitions if a <= now_s < b), default=0.0)

    def cut_silently(self) -> None:
        """The lines die without a word to either end."""
        for line in sorted(self.lines, key=lambda line: line.at_venue.number):
            if not line.over:
                line.silent = True
                self.story.fault("silent_cut", self.name)
                self.exchange.loop.call_later(DEAD_LINE_S, self.exchange.left, line.at_venue)

    def drop_burst(self) -> None:
        """The next frames are lost without a word."""
        self.lose += 1 + int(self.rng.expovariate(1 / LOST_MEAN))


class Line:
    """One WebSocket as the gatherer's feed sees it (gatherer.transport.Connection)."""

    def __init__(self, network: Network, process: Process, on_frames: Any, wall_ns: Any) -> None:
        self.network = network
        self.process = process
        self.local = f"{network.name}:{network.rng.randrange(30_000, 60_000)}"
        self.silent = False
        self.over = False
        self.paused: list[list[bytes]] | None = None
        self.at_venue: Connection
        self._on_frames = on_frames
        self._wall_ns = wall_ns
        self._loop = network.exchange.loop
        self._last_s = 0.0
        self._on_way: deque[Any] = deque()
        self._unread: list[bytes] = []  # commands that the exchange has not looked at yet
        self._closed: asyncio.Future[Closed] = self._loop.create_future()

    def _delay_s(self) -> float:
        return self.network.rng.randint(*self.network.plan.delay_ms) / 1000

    def opened(self, handshake: str) -> None:
        self.at_venue = self.network.exchange.open(handshake)
        self.network.exchange.lines[self.at_venue.number] = self
        self.network.lines.add(self)

    # -- from the exchange

    def flush(self) -> None:
        """Take what the venue has put out onto the way; carry out a cut."""
        connection = self.at_venue
        frames, connection.out = connection.out, []
        if frames and not self.silent:
            self._send_on(self._without_lost(frames))
        if connection.closing is not None:
            self.network.exchange.left(connection)
            if not self.silent:
                how = "reset" if connection.closing == "reset" else "closed_by_peer"
                forget = how == "reset" and self.network.rng.random() < 0.5
                self._arrive(lambda: self._end(Closed(how)), at_once=forget)

    def _without_lost(self, frames: list[bytes]) -> list[bytes]:
        network = self.network
        if not network.lose:
            return frames
        kept = []
        for frame in frames:  # replies are not lost: an exchange that is late drops market data
            if network.lose and frame.startswith(LOSABLE):
                network.lose -= 1
                network.story.happened["frames_lost"] += 1
            else:
                kept.append(frame)
        if len(kept) < len(frames):
            told = f"{len(frames) - len(kept)} frames are lost on {self.at_venue.number}"
            network.story.tell(network.name, told)
        return kept

    def _arrive(self, act: Any, *, at_once: bool = False) -> None:
        """Do `act` when what is sent now arrives; `at_once`: what is on its way is forgotten."""
        now_s = self._loop.time()
        at_s = now_s + self._delay_s()
        held_s = self.network.held_until(now_s)
        if held_s > at_s:
            at_s = held_s + self._delay_s()
            self.network.story.happened["partition_held"] += 1
        if at_once:
            self._on_way.clear()
        at_s = self._last_s = max(at_s, self._last_s)
        self._on_way.append(act)
        self._loop.call_at(at_s, self._next)

    def _next(self) -> None:
        """Whichever timer comes first brings what was sent first."""
        if self._on_way:
            act = self._on_way.popleft()
            if not self.over and not self.silent and not self.process.dead:
                act()

    def _send_on(self, frames: list[bytes]) -> None:
        if frames:
            self._arrive(lambda: self._deliver(frames))

    def _deliver(self, frames: list[bytes]) -> None:
        if self.paused is not None:
            self.paused.append(frames)
            return
        self._on_frames(frames, self._wall_ns())

    # -- the feed's side

    def send(self, message: bytes) -> None:
        """A command, on its way."""
        if self.silent or self.over:
            return

        def at_exchange() -> None:
            if self._unread and self.at_venue.number in self.network.exchange.lines:
                self.at_venue.commands += self._unread  # several at once come in any order
                self._unread.clear()
                self.network.exchange.attend()

        def arrives() -> None:
            self._unread.append(message)
            if self.network.plan.answers_s:
                wait_s = self.network.rng.uniform(0, self.network.plan.answers_s)
                self.network.story.happened["slow_answers"] += 1
                self._loop.call_later(wait_s, at_exchange)
            else:
                at_exchange()

        self._loop.call_later(self._delay_s(), arrives)

    def pause(self) -> None:
        self.paused = []
        self.network.story.fault("reading_paused", self.network.name)

    def resume(self) -> None:
        waiting, self.paused = self.paused or [], None
        for frames in waiting:
            self._deliver(frames)

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        """End at once; the exchange hears it a little later."""
        if not self.over:
            self._loop.call_later(self._delay_s(), self.network.exchange.left, self.at_venue)
            self._end(Closed("closed_by_us"))

    def _end(self, closed: Closed) -> None:
        self.over = True
        self.network.lines.discard(self)
        if not self._closed.done():
            self._closed.set_result(closed)

    def died(self) -> None:
        """The process is gone: its kernel resets the line."""
        if not self.over:
            self.over = True
            self.network.lines.discard(self)
            self._loop.call_later(self._delay_s(), self.network.exchange.left, self.at_venue)

    async def closed(self) -> Closed:
        return await self._closed


async def dial(
    network: Network, process: Process, headers: dict[str, str], on_frames: Any, wall_ns: Any
) -> Line:
    """As gatherer.transport.connect."""
    loop, exchange = network.exchange.loop, network.exchange
    await asyncio.sleep(network.rng.randint(*network.plan.delay_ms) / 500)
    held_s = network.held_until(loop.time())
    if held_s:
        await asyncio.sleep(min(10.0, held_s - loop.time()))
        raise UpgradeRefusedError("no answer")
    exchange.attend()
    if exchange.venue.refusal() is not None:
        network.story.fault("upgrade_refused", network.name)
        raise UpgradeRefusedError("refused", status=503)
    line = Line(network, process, on_frames, wall_ns)
    line.opened(handshake_of(headers))
    process.on_death.append(line.died)
    return line
