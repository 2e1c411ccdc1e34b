"""A conductor with a hand on it: pause, resume and seek while clients stay connected.

Purpose: play a source that can begin anywhere. Beside the exchange's own paths it answers

    GET  /replay/status               where it is, and what it waits for
    POST /replay/pause, /replay/resume
    POST /replay/seek?to=MOMENT       clients get the books of that time as snapshots

Invariants: PLAY-1 nothing is dropped: whoever does not read holds everybody, up to WINDOW_BYTES of
the server are under way to a client; PLAY-2 the time for which a client or a pause held the play
does not count: afterwards it goes on at its rate, it does not hurry; PLAY-3 nothing is played
before the first client has subscribed, unless it was told to resume.

Does not do: reading tapes (the source comes in), the protocol (venue, commands).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from aiohttp import web

from exchange.auth import Verifier
from exchange.conductor import BATCH_ITEMS, IDLE_S, TICK_S, Conductor, Pace
from exchange.faults import SECOND_US, FaultLevel, FaultPlan
from exchange.recorded_venue import RecordedVenue
from exchange.rest import Rest
from exchange.server import Gate
from exchange.serving import Place, serve_venue
from exchange.timeline import Item, Source
from exchange.truth import Ledger
from exchange.venue import Pause, Venue
from marketdata.errors import TapeError

SETTLE_S: Final = 0.5  # after the first subscription: a client subscribes with several commands
# 256 recorded frames are more than a client's window: each batch would wait for it to be read.
# Measured: 4,100 changes a second with batches of 256, 11,900 with these.
RECORDED_ITEMS: Final = 64
RETURN_WAIT_S: Final = 10.0  # at full speed, for clients that a recorded disconnect cut off


class SeekableSource(Source, Protocol):
    """A source that can begin at any time of its interval."""

    def items_from(self, at_us: int) -> Iterator[Item]:
        """The items from `at_us` on, beginning with each market's book of that time. May block."""
        ...


class Nowhere:
    """The truth log of a replay: the truth is the tape that is played."""

    def drain(self, ledger: Ledger) -> None:
        """Empties the ledger."""
        ledger.events.clear()
        ledger.sends.clear()
        for lines in ledger.lines.values():
            lines.clear()


class Player(Conductor):
    """Plays, and plays again after a seek, until it is cancelled."""

    def __init__(self, gate: Gate, source: SeekableSource, rate: float | None, *, paused: bool):
        super().__init__(gate, Pace(rate, 0), Nowhere())
        self._source = source
        self._clock_us = 0.0
        self._clock_s = 0.0
        self._moved: tuple[Iterator[Item], int] | None = None
        self.paused = paused
        self.held = not paused  # for the first client

    async def run(self) -> None:
        """See the class."""
        while True:
            await self._first_client()
            self.started = True
            await self._play_on()
            self._attend()
            await self._wait_until_read()
            self.finished, self.waiting_for = self._moved is None, ""
            while self._moved is None:
                await self._tick(IDLE_S)
            self.finished = False

    async def seek(self, to_us: int) -> None:
        """Goes on from another time. Raises TapeError if it is not of the interval."""
        source = self._source
        if not source.start_us <= to_us < source.end_us:
            raise TapeError("the time asked for is not of the interval that is played")
        loop = asyncio.get_running_loop()
        self._moved = (await loop.run_in_executor(None, source.items_from, to_us), to_us)
        self._gate.wake.set()

    def resume(self) -> None:
        """Plays on, also if no client has come yet."""
        self.paused = self.held = False
        self._gate.wake.set()

    async def _first_client(self) -> None:
        while self.held:
            self.waiting_for = "first client"
            await self._tick(IDLE_S)
            if any(held.by_sid for held in self._venue.connections.values()):
                until_s = time.monotonic() + SETTLE_S
                while time.monotonic() < until_s:
                    await self._tick(IDLE_S)
                self.held = False
        self.waiting_for = ""

    async def _play_on(self) -> None:
        venue, rate = self._venue, self._pace.rate
        batch = RECORDED_ITEMS if isinstance(venue, RecordedVenue) else BATCH_ITEMS
        self._restart_clock()
        while self._moved is not None or not venue.done:
            await self._unheld()
            if self._moved is not None:
                (items, at_us), self._moved = self._moved, None
                venue.jump(items, at_us)
                venue.play(len(venue.markets), at_us)  # the books, also while paused
                self._attend()
                self._restart_clock()
                continue
            until_us = None if rate is None else self._due_us(rate)
            pause = venue.play(batch, until_us)
            self._attend()
            if pause is Pause.RETURN:
                await self._returned()
            if until_us is not None and (venue.now_us >= until_us or venue.next_us() > until_us):
                await self._tick(TICK_S)
            else:
                await asyncio.sleep(0)

    async def _unheld(self) -> None:
        """Waits while a client is slow or the play paused; that time does not count (PLAY-2)."""
        began_s = time.monotonic()
        await self._uncongested()
        while self.paused and self._moved is None:
            self.waiting_for = "resume"
            await self._tick(IDLE_S)
        self.waiting_for = ""
        self._clock_s += time.monotonic() - began_s

    async def _returned(self) -> None:
        """Clients were cut off, and may connect again. At full speed they are waited for: else the
        rest would be over before they are back."""
        venue = self._venue
        assert isinstance(venue, RecordedVenue), "nobody else waits here"
        until_s = time.monotonic() + RETURN_WAIT_S
        is_back = False
        while self._pace.rate is None and self._moved is None and time.monotonic() < until_s:
            self.waiting_for = "return"
            await self._tick(IDLE_S)
            if not is_back and venue.returned():
                is_back, until_s = True, time.monotonic() + SETTLE_S
        venue.forgive()
        self.waiting_for = ""

    def _restart_clock(self) -> None:
        self._clock_us, self._clock_s = float(self._venue.now_us), time.monotonic()

    def _due_us(self, rate: float) -> int:
        now_s = time.monotonic()
        self._clock_us += (now_s - self._clock_s) * rate * SECOND_US
        self._clock_s = now_s
        return int(self._clock_us)


class Playback:
    """A replay behind one port. `moment` reads the time of a seek; TapeError if it is none."""

    def __init__(
        self,
        source: SeekableSource,
        verifier: Verifier,
        moment: Callable[[str], int],
        *,
        rate: float | None,
        paused: bool,
        kind: type[Venue] = Venue,
    ) -> None:
        plan = FaultPlan(
            FaultLevel.NONE, 1, source.start_us, source.end_us, max(1, source.events_expected)
        )
        self._source, self._verifier, self._moment = source, verifier, moment
        self._rate, self._paused = rate, paused
        self.venue = kind(source, plan, crew=0, ledger=Ledger())
        self.venue.interleaves = False
        self.player: Player | None = None
        self._gate: Gate | None = None
        self.port = 0

    async def run(self, place: Place, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Serves until `stop` is set; `ready` is called once `port` is known."""

        def conduct(gate: Gate, bound: int) -> Player:
            self._gate, self.port = gate, bound
            self.player = Player(gate, self._source, self._rate, paused=self._paused)
            ready()
            return self.player

        application = Rest(self.venue, self._verifier, self.status).application()
        add_controls(application, self)
        await serve_venue(self.venue, self._verifier, application, place, conduct, stop)

    def status(self) -> dict[str, Any]:
        """What `/replay/status` answers. Times in microseconds of the tape."""
        venue, gate, player = self.venue, self._gate, self.player
        return {
            "done": player is not None and player.finished,
            "started": player is not None and player.started,
            "paused": player is not None and player.paused,
            "waiting_for": player.waiting_for if player else "start",
            "rate": "max" if self._rate is None else self._rate,
            "at_us": venue.now_us,
            "start_us": self._source.start_us,
            "end_us": self._source.end_us,
            "events": venue.events,
            "events_expected": venue.plan.events_expected,
            "trades": venue.trades_told,
            "tickers": venue.tickers_told,
            "markets": len(venue.markets),
            "gaps": venue.faults["gap"],
            "conns": len(venue.connections),
            "subscribers": min((len(market.books) for market in venue.markets), default=0),
            "frames_sent": gate.frames_sent if gate else 0,
            "bytes_sent": gate.bytes_sent if gate else 0,
            **(venue.told() if isinstance(venue, RecordedVenue) else {"form": "repaired"}),
        }

    async def control(self, what: str, to: str | None) -> None:
        """Pause, resume or seek. Raises TapeError."""
        player = self.player
        assert player is not None
        if what == "pause":
            player.paused = True
        elif what == "resume":
            player.resume()
        elif to is None:
            raise TapeError("seek needs ?to= a time")
        else:
            await player.seek(self._moment(to))


def add_controls(application: web.Application, playback: Playback) -> None:
    """The paths below /replay/; each answers with the status."""

    async def status(request: web.Request) -> web.Response:
        del request
        return web.json_response(playback.status())

    async def control(request: web.Request) -> web.Response:
        try:
            await playback.control(request.match_info["what"], request.query.get("to"))
        except TapeError as fault:
            return web.json_response({"error": str(fault)}, status=400)
        return web.json_response(playback.status())

    application.router.add_get("/replay/status", status)
    application.router.add_post("/replay/{what:pause|resume|seek}", control)
