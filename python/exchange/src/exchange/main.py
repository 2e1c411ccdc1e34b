"""Command line of the simulated exchange: `python -m exchange.main`.

Purpose: read the flags, build the source, run the server until SIGTERM or SIGINT, and leave a
complete truth log. When the play is over the exchange stays up, idle.

Exit codes: 0 clean stop, 2 wrong flags or an unreadable capture (one clear line on stderr).
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import uvloop
from aiohttp import web

from exchange.auth import CLOCK_TOLERANCE_MS, Verifier, load_public_key
from exchange.conductor import Conductor, Pace
from exchange.faults import SECOND_US, FaultLevel, FaultPlan
from exchange.replay import replay_source
from exchange.rest import Rest
from exchange.server import Gate
from exchange.serving import Place, serve_venue, tls_context
from exchange.switches import Switches
from exchange.synthetic import DEFAULT_SECONDS, START_US, SyntheticSource
from exchange.timeline import Source
from exchange.truth import Ledger, TruthWriter
from exchange.venue import Venue
from marketdata.errors import ConfigError, TapeError

EXIT_USAGE: Final = 2
RATE_MAX: Final = "max"


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags, checked."""

    frames: Path | None
    synthetic: int
    seconds: float
    events_per_s: float | None
    turnover_per_s: int
    start_s: int
    rate: float | None
    faults: FaultLevel
    seed: int
    truth: Path
    public_key: Path
    host: str
    port: int
    ready_file: Path | None
    expect_clients: int
    start_timeout_s: float
    clock_tolerance_ms: int
    tls: tuple[Path, Path] | None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="exchange", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--frames", type=Path, help="a recorded capture, or a directory of them")
    what.add_argument("--synthetic", type=int, default=None, metavar="MARKETS")
    parser.add_argument("--seconds", type=float, default=0.0, help="engine seconds (0: all)")
    parser.add_argument("--events-per-s", type=float, default=None, help="synthetic, all markets")
    parser.add_argument("--turnover-per-s", type=int, default=0, help="markets opening and closing")
    parser.add_argument(
        "--start", type=int, default=START_US // SECOND_US, metavar="UNIX_SECONDS",
        help="synthetic: the exchange's clock when the play begins",
    )  # fmt: skip
    parser.add_argument("--rate", default="1", help="multiple of engine time, or max")
    parser.add_argument("--faults", choices=list(FaultLevel), default=FaultLevel.NONE)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--truth", type=Path, required=True, help="directory of the truth log")
    parser.add_argument("--public-key", type=Path, required=True, help="PEM; verifies clients")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ready-file", type=Path, default=None)
    parser.add_argument("--expect-clients", type=int, default=0)
    parser.add_argument("--start-timeout", type=float, default=60.0, help="seconds")
    parser.add_argument("--clock-tolerance-ms", type=int, default=CLOCK_TOLERANCE_MS)
    parser.add_argument("--tls-cert", type=Path, default=None)
    parser.add_argument("--tls-key", type=Path, default=None)
    return parser


def read_flags(arguments: list[str]) -> Flags:
    """The flags of a command line; ConfigError for values that cannot be."""
    named = _parser().parse_args(arguments)
    faults: list[str] = []
    rate: float | None = None
    if named.rate != RATE_MAX:
        try:
            rate = float(named.rate)
        except ValueError:
            rate = 0.0
        if not 0 < rate < float("inf"):
            faults.append(f"--rate {named.rate} is neither a positive number nor max")
    synthetic = named.synthetic or 0
    if named.frames is None and synthetic < 1:
        faults.append(f"--synthetic {synthetic} markets: at least 1 is needed")
    if named.turnover_per_s < 0:
        faults.append(f"--turnover-per-s {named.turnover_per_s} is negative")
    if named.start < 0:
        faults.append(f"--start {named.start} is negative")
    if named.seconds < 0:
        faults.append(f"--seconds {named.seconds} is negative")
    if (named.tls_cert is None) != (named.tls_key is None):
        faults.append("--tls-cert and --tls-key are needed together")
    if faults:
        raise ConfigError("; ".join(faults))
    return Flags(
        frames=named.frames,
        synthetic=synthetic,
        seconds=named.seconds,
        events_per_s=named.events_per_s,
        turnover_per_s=named.turnover_per_s,
        start_s=named.start,
        rate=rate,
        faults=FaultLevel(named.faults),
        seed=named.seed,
        truth=named.truth,
        public_key=named.public_key,
        host=named.host,
        port=named.port,
        ready_file=named.ready_file,
        expect_clients=named.expect_clients,
        start_timeout_s=named.start_timeout,
        clock_tolerance_ms=named.clock_tolerance_ms,
        tls=None if named.tls_cert is None else (named.tls_cert, named.tls_key),
    )


def build_venue(flags: Flags, ledger: Ledger) -> Venue:
    """The venue that the flags ask for; CaptureFormatError if a capture is none."""
    source: Source
    if flags.frames is not None:
        source = replay_source(flags.frames)
    else:
        source = SyntheticSource(
            markets=flags.synthetic,
            seconds=flags.seconds or DEFAULT_SECONDS,
            seed=flags.seed,
            events_per_s=flags.events_per_s,
            level=flags.faults,
            turnover_per_s=flags.turnover_per_s,
            start_us=flags.start_s * SECOND_US,
        )
    end_us, expected = source.end_us, source.events_expected
    if flags.seconds:
        asked_us = source.start_us + int(flags.seconds * SECOND_US)
        if asked_us < end_us:
            share = (asked_us - source.start_us) / (end_us - source.start_us)
            end_us, expected = asked_us, int(expected * share)
    plan = FaultPlan(flags.faults, flags.seed, source.start_us, end_us, max(1, expected))
    return Venue(source, plan, crew=flags.expect_clients, ledger=ledger)


class Exchange:
    """A running exchange: server, conductor, truth."""

    def __init__(self, flags: Flags) -> None:
        self._flags = flags
        ledger = Ledger()
        verifier = Verifier(load_public_key(flags.public_key), flags.clock_tolerance_ms)
        self.venue = build_venue(flags, ledger)
        self._truth = TruthWriter(flags.truth)
        self._truth.drain(ledger)
        self._rest = Rest(self.venue, verifier, self.status)
        self._verifier = verifier
        self._switches = Switches(self.venue, verifier)
        self._gate: Gate | None = None
        self._conductor: Conductor | None = None
        self.port = 0

    def status(self) -> dict[str, Any]:
        """What `/sim/status` answers."""
        venue, gate, conductor = self.venue, self._gate, self._conductor
        return {
            "done": conductor is not None and conductor.finished,
            "started": conductor is not None and conductor.started,
            "waiting_for": conductor.waiting_for if conductor else "start",
            "events": venue.events,
            "events_expected": venue.plan.events_expected,
            "trades": venue.trades_told,
            "tickers": venue.tickers_told,
            "markets": len(venue.markets),
            "virtual_us": venue.now_us,
            "start_us": venue.plan.start_us,
            "end_us": venue.plan.end_us,
            "conns": len(venue.connections),
            "book_conns": sum(
                "orderbook_delta" in held.by_channel for held in venue.connections.values()
            ),
            "frames_sent": gate.frames_sent if gate else 0,
            "bytes_sent": gate.bytes_sent if gate else 0,
            "faults": dict(venue.faults),
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set; the truth log is complete when this returns."""
        application = self._rest.application()
        add_switches(application, self._switches)
        place = Place(self._flags.host, self._flags.port, tls_context(self._flags.tls))
        try:
            await serve_venue(self.venue, self._verifier, application, place, self._conduct, stop)
        finally:
            self._truth.close(self.venue.ledger)

    def _conduct(self, gate: Gate, port: int) -> Conductor:
        self._gate, self.port = gate, port
        pace = Pace(self._flags.rate, self._flags.start_timeout_s)
        self._conductor = Conductor(gate, pace, self._truth, self._switches)
        self._write_ready_file()
        return self._conductor

    def _write_ready_file(self) -> None:
        flags = self._flags
        if flags.ready_file is None:
            return
        secure = "s" if flags.tls else ""
        at = f"{flags.host}:{self.port}"
        row = {
            "port": self.port,
            "ws_url": f"ws{secure}://{at}/trade-api/ws/v2",
            "rest_url": f"http{secure}://{at}/trade-api/v2",
            "status_url": f"http{secure}://{at}/sim/status",
            "markets": len(self.venue.markets),
        }
        beside = flags.ready_file.with_name(flags.ready_file.name + ".new")
        beside.write_bytes(orjson.dumps(row))
        beside.replace(flags.ready_file)


def add_switches(application: web.Application, switches: Switches) -> None:
    """`POST /sim/switch`, and what the switch of REST does to every other call."""

    @web.middleware
    async def gate(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if switches.rest == "up" or request.path.startswith("/sim/"):
            return await handler(request)
        if switches.rest == "drop" and request.transport is not None:
            request.transport.abort()
        return web.json_response({"error": "service unavailable"}, status=503)

    async def turn(request: web.Request) -> web.Response:
        try:
            switches.turn(orjson.loads(await request.read()))
        except (ConfigError, orjson.JSONDecodeError) as fault:
            return web.json_response({"error": str(fault)}, status=400)
        return web.json_response({})

    application.middlewares.insert(0, gate)
    application.router.add_post("/sim/switch", turn)


async def serve(flags: Flags) -> None:
    """Runs an exchange until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Exchange(flags).run(stop)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    try:
        flags = read_flags(sys.argv[1:] if arguments is None else arguments)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(flags))
    except TapeError as fault:
        sys.stderr.write(f"exchange: {fault}\n")
        return EXIT_USAGE
    except OSError as fault:
        sys.stderr.write(f"exchange: {fault.strerror or fault}\n")
        return EXIT_USAGE
    return 0


if __name__ == "__main__":
    sys.exit(main())
