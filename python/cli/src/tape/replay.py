"""`tape replay`: an interval of a lake or a spool as a Kalshi endpoint for existing clients.

Purpose: read the flags, open what is there (a lake is played repaired, a gatherer's spool faithful:
as that gatherer saw it), serve it until Ctrl-C (or, with --once, until it is over and read), and
say what to type in another terminal. On a terminal a progress bar, else a plain line every few
seconds. Any signed client is let in: it is the reader's own tape on his own machine.

Does not do: reading (lake_source, spool_source), playing and serving (exchange.player).
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
from exchange.recorded_venue import ANSWERS, RecordedVenue
from exchange.serving import Place, tls_context
from exchange.venue import Venue
from kalshilake.moments import moment_us
from kalshilake.read import Lake, open_lake
from marketdata.errors import ConfigError, LakeError
from marketdata.units import format_ts_us
from runtime.spool_files import META_NAME
from tape.exchange import KEY_ID
from tape.fleet import write_test_key
from tape.lake_source import LakeSource
from tape.output import EXIT_FOUND, guarded
from tape.spool_source import SpoolSource

HOST: Final = "127.0.0.1"
RATE_MAX: Final = "max"
GAPS: Final = ("snapshot", "close")
FAITHFUL: Final = "faithful"
REPAIRED: Final = "repaired"
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
    place: Annotated[
        str, typer.Argument(help="a lake (directory or s3://bucket/prefix) or a gatherer's spool")
    ],
    start: Annotated[str | None, typer.Option("--from", help="from this moment on (UTC)")] = None,
    end: Annotated[str | None, typer.Option("--to", help="up to this moment (UTC)")] = None,
    ticker: Annotated[
        list[str] | None, typer.Option(help="a market, may be given often; without it all")
    ] = None,
    rate: Annotated[str, typer.Option(help="multiple of recorded time, or max")] = "1",
    form: Annotated[
        str | None,
        typer.Option("--as", help="repaired (a lake) or faithful (a spool); without it what it is"),
    ] = None,
    gaps: Annotated[
        str | None, typer.Option(help="after a gap of a lake: snapshot, or close the connection")
    ] = None,
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
    """Play a lake, or what one gatherer received, to Kalshi clients; begins when the first has
    subscribed."""

    def run() -> int:
        tls = None if tls_cert is None or tls_key is None else (tls_cert, tls_key)
        if tls is None and (tls_cert or tls_key):
            raise ConfigError("--tls-cert and --tls-key are needed together")
        asked = Asked(out, port, rate_of(rate), paused, once, tls)
        if form_of(place, form) == FAITHFUL:
            refuse_for_spools(gaps, version)
            return play(spool_source(place, ticker or None, start, end), asked, sys.stdout.write)
        if gaps not in (None, *GAPS):
            raise ConfigError(f"--gaps {gaps} is none of {', '.join(GAPS)}")
        found = open_lake(place, version)
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


def form_of(place: str, asked: str | None) -> str:
    """How the place is played, told by what lies there; ConfigError where `asked` does not fit."""
    if asked not in (None, FAITHFUL, REPAIRED):
        raise ConfigError(f"--as {asked} is none of {FAITHFUL}, {REPAIRED}")
    folder = Path(place)
    is_local = "://" not in place
    is_spool = is_local and (folder / META_NAME).is_file()
    if is_spool and asked == REPAIRED:
        raise ConfigError(
            f"{place} is a gatherer's spool (it has {META_NAME}), and --as {REPAIRED} plays a lake",
            hint=f"name the lake, or leave --as {REPAIRED} out",
        )
    if is_spool:
        return FAITHFUL
    below = sorted(path.parent for path in folder.glob("*/" + META_NAME)) if is_local else []
    is_lake = not is_local or (folder / "manifest").is_dir()
    if asked == FAITHFUL or (below and not is_lake):
        what = "a lake" if is_lake else "no spool"
        raise ConfigError(
            f"{place} is {what} (it has no {META_NAME}), and {FAITHFUL} plays one gatherer's spool",
            hint=f"name one of {', '.join(map(str, below))}"
            if below
            else "name the gatherer's KT_SPOOL_DIR; of a capture it is the folder spool in its own",
        )
    return REPAIRED


def refuse_for_spools(gaps: str | None, version: int | None) -> None:
    """ConfigError for flags that say nothing about a spool."""
    if gaps is not None:
        raise ConfigError(
            f"--gaps {gaps} is for a lake: the gaps and disconnects of a spool are played as the "
            "gatherer had them"
        )
    if version is not None:
        raise ConfigError(f"--version {version} is for a lake: a spool has no versions")


def spool_source(
    place: str, tickers: list[str] | None, start: str | None, end: str | None
) -> SpoolSource:
    """What is to be played of a spool; bounds are times of receipt."""
    low = None if start is None else moment_us(start)
    high = None if end is None else moment_us(end)
    return SpoolSource(Path(place), low, high, tickers)


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
    """Serves until a signal, or with --once until it was read; the exit code: 1 where a part of a
    spool could not be played."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(source, asked, say))


async def _serve(source: SeekableSource, asked: Asked, say: Say) -> int:
    private, public = asked.out / "private.pem", asked.out / "public.pem"
    try:
        if not private.exists() or not public.exists():
            write_test_key(asked.out)
    except OSError as error:
        raise ConfigError(f"{asked.out} cannot be used: {error.strerror}") from None
    verifier = Verifier(load_public_key(public))
    verifier.any_key = True
    is_spool = isinstance(source, SpoolSource)
    kind: type[Venue] = RecordedVenue if is_spool else Venue
    playback = Playback(
        source, verifier, moment_us, rate=asked.rate, paused=asked.paused, kind=kind
    )
    place = Place(HOST, asked.port, tls_context(asked.tls))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def ready() -> None:
        for fault in source.overview.faults if isinstance(source, SpoolSource) else ():
            say(f"not whole: {fault}\n")
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
    return EXIT_FOUND if playback.status().get("damage") else 0


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
    for damage in status.get("damage", ()):
        say(f"not played: {damage}\n")


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
    if status["form"] == FAITHFUL:
        return text + faithful_words(status)
    return f"{text}; {gaps} book{'' if gaps == 1 else 's'} begun anew" if gaps else text


def faithful_words(status: dict[str, Any]) -> str:
    """What the gatherer lost and what no client was given, where there is any."""
    parts = [
        f"{status[name]:,} {told}{'' if status[name] == 1 else 's'}"
        for name, told in (("gaps", "gap"), ("closes", "disconnect"))
        if status[name]
    ]
    reasons = {k: n for k, n in status["not_given"].items() if k != ANSWERS}
    if reasons:
        told = ", ".join(f"{reason} {n:,}" for reason, n in sorted(reasons.items()))
        parts.append(f"frames that no client can be given: {told}")
    return "".join(f"; {part}" for part in parts)


def words(status: dict[str, Any], private: Path, port: int, *, secure: bool) -> str:
    """What to type in another terminal."""
    s = "s" if secure else ""
    at = f"http{s}://{HOST}:{port}"
    ws_url, rest_url = f"ws{s}://{HOST}:{port}/trade-api/ws/v2", f"{at}/trade-api/v2"
    begins, ends = format_ts_us(status["start_us"]), format_ts_us(status["end_us"])
    flags = f"--key-id {KEY_ID} --key-file {private} --ws-url {ws_url} --rest-url {rest_url}"
    return (
        f"{status['markets']} markets, {status['form']}, from {begins} to {ends}, "
        f"rate {status['rate']}, until Ctrl-C.\n"
        f"A client with any key connects to\n\n  {ws_url}\n  {rest_url}\n\n"
        "In another terminal:\n\n"
        f"  tape capture {flags} --out again\n"
        f"  curl -X POST {at}/replay/pause\n"
        f"  curl -X POST {at}/replay/resume\n"
        f"  curl -X POST '{at}/replay/seek?to={begins}'\n"
        f"  curl {at}/replay/status\n\n"
    )
