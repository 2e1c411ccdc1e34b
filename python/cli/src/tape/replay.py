"""`tape replay`: an interval of a lake as a Kalshi endpoint that existing clients connect to.

Purpose: read the flags, open the lake, serve it until Ctrl-C (or, with --once, until it is over and
read), and say what to type in another terminal. On a terminal a progress bar, else a plain line
every few seconds. Any signed client is let in: it is the reader's own tape on his own machine.

Does not do: reading tapes (lake_source), playing and serving (exchange.player).
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import uvloop
from rich.progress import BarColumn, Progress, TextColumn

from exchange.auth import Verifier, load_public_key
from exchange.player import Playback, SeekableSource
from exchange.serving import Place, tls_context
from kalshilake.moments import moment_us
from kalshilake.read import Lake, open_lake
from marketdata.errors import ConfigError, LakeError
from marketdata.units import format_ts_us
from tape.exchange import KEY_ID
from tape.fleet import write_test_key
from tape.lake_source import LakeSource
from tape.output import guarded

HOST: Final = "127.0.0.1"
RATE_MAX: Final = "max"
GAPS: Final = ("snapshot", "close")
SCREEN_S: Final = 0.2
LINE_S: Final = 5.0

Say = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """The flags of serving. `rate` None: as fast as the clients read."""

    out: Path
    port: int
    rate: float | None
    paused: bool
    once: bool
    tls: tuple[Path, Path] | None = None  # certificate, key


def replay(
    lake: Annotated[str, typer.Argument(help="directory or s3://bucket/prefix")],
    start: Annotated[str | None, typer.Option("--from", help="from this moment on (UTC)")] = None,
    end: Annotated[str | None, typer.Option("--to", help="up to this moment (UTC)")] = None,
    ticker: Annotated[
        list[str] | None, typer.Option(help="a market, may be given often; without it all")
    ] = None,
    rate: Annotated[str, typer.Option(help="multiple of recorded time, or max")] = "1",
    gaps: Annotated[
        str, typer.Option(help="after a gap: snapshot, or close the connection")
    ] = "snapshot",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: any")] = 8766,
    out: Annotated[Path, typer.Option(help="folder of a key that clients may use")] = Path(
        "replay"
    ),
    paused: Annotated[bool, typer.Option(help="wait for POST /replay/resume")] = False,  # noqa: FBT002
    once: Annotated[bool, typer.Option(help="end when it is over and read")] = False,  # noqa: FBT002
    version: Annotated[int | None, typer.Option(help="of the lake; without it the newest")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM; clients then use wss, https")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM; belongs to --tls-cert")] = None,
) -> None:
    """Play an interval of a lake to Kalshi clients; begins when the first has subscribed."""

    def run() -> int:
        tls = None if tls_cert is None or tls_key is None else (tls_cert, tls_key)
        if tls is None and (tls_cert or tls_key):
            raise ConfigError("--tls-cert and --tls-key are needed together")
        asked = Asked(out, port, rate_of(rate), paused, once, tls)
        if gaps not in GAPS:
            raise ConfigError(f"--gaps {gaps} is none of {', '.join(GAPS)}")
        found = open_lake(lake, version)
        low, high = interval(found, ticker or None, start, end)
        source = LakeSource(found, low, high, ticker or None, closes=gaps == "close")
        return play(source, asked, sys.stdout.write)

    raise typer.Exit(guarded(run))


def rate_of(text: str) -> float | None:
    """The value of --rate; None for max. Raises ConfigError."""
    if text == RATE_MAX:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise ConfigError(f"--rate {text} is neither a positive number nor max")
    return rate


def interval(
    lake: Lake, tickers: list[str] | None, start: str | None, end: str | None
) -> tuple[int, int]:
    """[from, to) of the replay; a bound that is not given is that of the proven books."""
    low = None if start is None else moment_us(start)
    high = None if end is None else moment_us(end)
    if low is None or high is None:
        cover = lake.coverage_map(tickers)
        for name in tickers or ():
            lake.nothing(name, "orderbook")  # a name that the lake does not know is refused
        found = [cover.proven_span(name, "orderbook") for name in tickers or cover.markets]
        spans = [span for span in found if span is not None]
        if not spans:
            raise LakeError(f"no book of {lake.store.location} is proven", hint="--from and --to")
        low = min(span[0] for span in spans) if low is None else low
        high = max(span[1] for span in spans) if high is None else high
    return low, high


def play(source: SeekableSource, asked: Asked, say: Say) -> int:
    """Serves until a signal, or with --once until it was read; the exit code."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(source, asked, say))
    return 0


async def _serve(source: SeekableSource, asked: Asked, say: Say) -> None:
    private, public = asked.out / "private.pem", asked.out / "public.pem"
    try:
        if not private.exists() or not public.exists():
            write_test_key(asked.out)
    except OSError as error:
        raise ConfigError(f"{asked.out} cannot be used: {error.strerror}") from None
    verifier = Verifier(load_public_key(public))
    verifier.any_key = True
    playback = Playback(source, verifier, moment_us, rate=asked.rate, paused=asked.paused)
    place = Place(HOST, asked.port, tls_context(asked.tls))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def ready() -> None:
        say(words(playback.status(), private, playback.port, secure=asked.tls is not None))
        sys.stdout.flush()

    watching = asyncio.create_task(_watch(playback, stop, asked, say))
    try:
        await playback.run(place, stop, ready)
    except OSError as error:
        raise ConfigError(f"port {asked.port} cannot be used: {error.strerror}") from None
    finally:
        stop.set()
        await watching


async def _watch(playback: Playback, stop: asyncio.Event, asked: Asked, say: Say) -> None:
    """Shows the progress; sets `stop` at the end if that was asked for."""
    shown_s, began_s = 0.0, time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(None))
    with Progress(*columns, disable=not sys.stdout.isatty(), transient=True) as screen:
        span_us = playback.status()["end_us"] - playback.status()["start_us"]
        bar = screen.add_task("", total=span_us)
        while not stop.is_set():
            status, now_s = playback.status(), time.monotonic()
            if not screen.disable:
                done_us = status["at_us"] - status["start_us"]
                screen.update(bar, completed=done_us, description=line(status))
            elif status["started"] and now_s - shown_s >= LINE_S:
                shown_s = now_s
                say(line(status) + "\n")
                sys.stdout.flush()
            if asked.once and status["done"]:
                stop.set()
            try:
                async with asyncio.timeout(SCREEN_S):
                    await stop.wait()
            except TimeoutError:
                pass
    status = playback.status()
    say(f"{line(status)}; stopped after {time.monotonic() - began_s:.1f} s\n")


def line(status: dict[str, Any]) -> str:
    """Where a replay is, in one line."""
    waits = status["waiting_for"]
    state = "over" if status["done"] else f"waits for {waits}" if waits else "plays"
    text = (
        f"{format_ts_us(status['at_us'])}  {state}: {status['events']:,} changes, "
        f"{status['trades']:,} trades, {status['tickers']:,} ticker states; "
        f"{status['conns']} connection{'' if status['conns'] == 1 else 's'}"
    )
    gaps = status["gaps"]
    return f"{text}; {gaps} book{'' if gaps == 1 else 's'} begun anew" if gaps else text


def words(status: dict[str, Any], private: Path, port: int, *, secure: bool) -> str:
    """What to type in another terminal."""
    s = "s" if secure else ""
    at = f"http{s}://{HOST}:{port}"
    ws_url, rest_url = f"ws{s}://{HOST}:{port}/trade-api/ws/v2", f"{at}/trade-api/v2"
    begins, ends = format_ts_us(status["start_us"]), format_ts_us(status["end_us"])
    flags = f"--key-id {KEY_ID} --key-file {private} --ws-url {ws_url} --rest-url {rest_url}"
    return (
        f"{status['markets']} markets from {begins} to {ends}, rate {status['rate']}, until "
        f"Ctrl-C.\nA client with any key connects to\n\n  {ws_url}\n  {rest_url}\n\n"
        "In another terminal:\n\n"
        f"  tape capture {flags} --out again\n"
        f"  curl -X POST {at}/replay/pause\n"
        f"  curl -X POST {at}/replay/resume\n"
        f"  curl -X POST '{at}/replay/seek?to={begins}'\n"
        f"  curl {at}/replay/status\n\n"
    )
