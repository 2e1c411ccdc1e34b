"""The pace of the play: when the venue moves on, and for whom it waits.

Purpose: drive the venue by wall time (a multiple of engine time) or as fast as the connected
clients read. A slow client slows the exchange; it is never dropped. At full speed the conductor
also waits, for a bounded time, for clients that a fault threw out: else a short play would be over
before anybody came back.

Does not do: decide what happens (venue), sockets (server).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final, Protocol

from exchange.commands import carry_out
from exchange.server import Client, Gate
from exchange.switches import Switches
from exchange.truth import BUFFER_BYTES, Ledger
from exchange.venue import Pause

BATCH_ITEMS: Final = 256
TICK_S: Final = 0.005
IDLE_S: Final = 0.05
HEARTBEAT_S: Final = 10.0
TRUTH_FLUSH_S: Final = 0.25
RECONNECT_WAIT_S: Final = 2.0  # at full speed, for clients that a fault cut off
HOLE_WALL_S: Final = 0.2  # at full speed a hole still refuses upgrades for so long
HOLE_RETURN_WAIT_S: Final = 10.0
LAST_READ_WAIT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Pace:
    """`rate`: engine seconds per wall second; None: as fast as the clients read."""

    rate: float | None
    start_timeout_s: float


class Drain(Protocol):
    """Where a ledger is emptied to: the files of the truth log, or nowhere."""

    def drain(self, ledger: Ledger) -> None:
        """Takes everything that the ledger holds."""
        ...


class Conductor:
    """Runs the play once, then answers commands until it is cancelled."""

    def __init__(
        self, gate: Gate, pace: Pace, truth: Drain, switches: Switches | None = None
    ) -> None:
        self._gate = gate
        self._switches = switches
        self._venue = gate.venue
        self._pace = pace
        self._truth = truth
        self._truth_flushed_s = time.monotonic()
        self._heartbeat_s = time.monotonic()
        self.started = False
        self.finished = False  # played, and read by every client that is still connected
        self.waiting_for = "start"

    async def run(self) -> None:
        """Start, play, stay."""
        await self._wait_for_crew("start", self._pace.start_timeout_s)
        self.started = True
        if not self._venue.crew_complete():
            self._venue.tell("start_without_all", None)
        if self._pace.rate is None:
            await self._free()
        else:
            await self._timed(self._pace.rate)
        self._attend()
        await self._wait_until_read()
        self._truth.drain(self._venue.ledger)
        self.waiting_for = ""
        self.finished = True
        while True:
            await self._tick(IDLE_S)

    async def _free(self) -> None:
        venue = self._venue
        after_hole = False
        while not venue.done:
            await self._uncongested()
            pause = venue.play(BATCH_ITEMS)
            self._attend()
            if pause is Pause.HOLE:
                after_hole = True
                await self._stay(HOLE_WALL_S)
            elif pause is Pause.RETURN:
                limit_s = HOLE_RETURN_WAIT_S if after_hole else RECONNECT_WAIT_S
                await self._wait_for_crew("hole" if after_hole else "return", limit_s)
                after_hole = False
            await asyncio.sleep(0)

    async def _timed(self, rate: float) -> None:
        venue = self._venue
        began_s, began_us = time.monotonic(), venue.now_us
        while not venue.done:
            await self._uncongested()
            until_us = began_us + int((time.monotonic() - began_s) * rate * 1_000_000)
            venue.play(BATCH_ITEMS, until_us)
            self._attend()
            if venue.now_us >= until_us or venue.next_us() > until_us:
                await self._tick(TICK_S)
            else:
                await asyncio.sleep(0)

    async def _wait_until_read(self) -> None:
        """At the end of the play: what was sent is to be read before it is called over."""
        until_s = time.monotonic() + LAST_READ_WAIT_S
        while time.monotonic() < until_s:
            for client in self._gate.clients.values():
                client.sync()  # also what was answered meanwhile
            if not any(client.unread_bytes for client in self._gate.clients.values()):
                break
            self.waiting_for = "last reads"
            await self._tick(IDLE_S)

    async def _uncongested(self) -> None:
        """Waits while any client has too much unread (WINDOW_BYTES), as long as the switch allows:
        then the client is cut off, as a real exchange would."""
        began_s = time.monotonic()
        while slow := [c for c in self._gate.clients.values() if c.congested]:
            self.waiting_for = "slow client"
            self._cut_off(slow, time.monotonic() - began_s)
            await self._tick(IDLE_S)
        self.waiting_for = ""

    def _cut_off(self, slow: list[Client], waited_s: float) -> None:
        switches = self._switches
        if switches is None or switches.slow_client_s is None or waited_s < switches.slow_client_s:
            return
        for client in slow:
            if client.connection is not None:
                switches.too_slow(client.connection)

    async def _wait_for_crew(self, reason: str, limit_s: float) -> None:
        until_s = time.monotonic() + limit_s
        while self._venue.crew and time.monotonic() < until_s:
            await self._uncongested()
            self.waiting_for = reason
            if self._venue.crew_complete():
                break
            await self._tick(IDLE_S)
        self.waiting_for = ""

    async def _stay(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            await self._tick(IDLE_S)

    async def _tick(self, limit_s: float) -> None:
        """Sleeps until a socket has something or `limit_s` is over, then attends to it."""
        try:
            async with asyncio.timeout(limit_s):
                await self._gate.wake.wait()
        except TimeoutError:
            pass
        self._attend()

    def _attend(self) -> None:
        """Carries out commands, writes frames, heartbeats and truth."""
        self._gate.wake.clear()
        now_s = time.monotonic()
        if self._switches is not None:
            self._switches.attend(now_s)
        beat = now_s - self._heartbeat_s >= HEARTBEAT_S
        if beat:
            self._heartbeat_s = now_s
        for client in list(self._gate.clients.values()):
            connection = client.connection
            if connection is not None and (connection.commands or connection.deferred):
                carry_out(self._venue, connection)
            client.flush()
            if beat:
                client.ping()
        ledger = self._venue.ledger
        if now_s - self._truth_flushed_s >= TRUTH_FLUSH_S or ledger.size_bytes() > BUFFER_BYTES:
            self._truth_flushed_s = now_s
            self._truth.drain(ledger)
