"""`tape capture`: record the exchange on this one machine until stopped, and merge it into a lake.

Starts the embedded databases, the gatherers and the deduplicator in one folder and shows how they
stand. Stopped with Ctrl-C (or SIGTERM, or after `--seconds`) everything that was recorded is merged
and exported before it ends; started again with the same folder it goes on, and what lies between is
a gap in coverage.
Folder: as the demo's (tape.fleet), and CAPTURE.json, which says whose folder it is.
Does not do: proving against an exchange's own log (nobody has one), moving data off the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from marketdata.errors import ConfigError, StorageError
from tape import screen
from tape.capture_config import CaptureConfig, Resolved, resolve
from tape.children import Child
from tape.doctor import QUICK, examine
from tape.fleet import Fleet, free_port, start_databases, stop_everything
from tape.output import guarded, terminal

FINISH_TIMEOUT_S: Final = 600.0
WATCH_S: Final = 0.5
MARKER: Final = "CAPTURE.json"
FORMAT: Final = 1
RECONNECT_HINT: Final = "see the file in logs/"


@contextlib.contextmanager
def own_folder(out: Path) -> Iterator[Path]:
    """The folder, ours alone while inside. Raises StorageError where it is another's."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        out.chmod(0o711)  # the servers' account must be able to reach its own folders in it
    except OSError as error:
        raise StorageError(
            f"{out} cannot be made: {error.strerror}", hint="name another folder with --out"
        ) from error
    marker = out / MARKER
    if not marker.exists() and any(out.iterdir()):
        raise StorageError(
            f"{out} holds something else than a capture", hint="name a new folder with --out"
        )
    if marker.exists() and json.loads(marker.read_text()).get("format") != FORMAT:
        raise StorageError(f"{out} was made by another version", hint="name a new folder")
    with marker.open("a+") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(
                f"another capture is running in {out}", hint="stop it, or use another --out"
            ) from error
        if not marker.stat().st_size:
            held.write(json.dumps({"format": FORMAT}))
            held.flush()
        yield out


async def preflight(config: CaptureConfig, console: Console) -> None:
    """The quick checks of `tape doctor`. Raises ConfigError with the first that failed."""
    for finding in await examine(config, QUICK):
        if finding.state == "failed":
            raise ConfigError(f"{finding.check}: {finding.said}", hint=finding.do)
        if finding.state == "warning":
            console.print(
                f"warning: {finding.check}: {finding.said} - {finding.do}", highlight=False
            )


def gatherer_settings(config: CaptureConfig, fleet: Fleet[Any], name: str) -> dict[str, str]:
    """The environment of one gatherer."""
    folder = fleet.plan.out / name
    settings = {
        "KT_GATHERER_NAME": name,
        "KT_WS_URL": config.websocket,
        "KT_REST_URL": config.rest,
        "KT_KEY_ID": config.key_id,
        "KT_PRIVATE_KEY_FILE": str(config.key_file.absolute()),
        "KT_SPOOL_DIR": str(folder / "spool"),
        "KT_TIMESCALE_DSN": fleet.databases[f"{name}.hot"].dsn(),
        "KT_POSTGRES_DSN": fleet.databases[f"{name}.meta"].dsn(),
        "KT_HEALTH_PORT": str(fleet.ports[name]),
        "KT_METRICS_PORT": str(free_port()),
        "KT_TRANSPORT": config.transport,
        "KT_REST_RATE_PER_S": str(config.rest_rate_per_s),
        "KT_SERIES": json.dumps(config.series),
    }
    if config.ca_file is not None:
        settings["KT_CA_FILE"] = str(config.ca_file.absolute())
    return settings


def dedup_settings(config: CaptureConfig, fleet: Fleet[Any], *, final: bool) -> dict[str, str]:
    """The environment of the deduplicator; `final` ends it when everything is merged."""
    hot = [fleet.databases[f"{g}.hot"].dsn() for g in fleet.gatherer_names]
    meta = [fleet.databases[f"{g}.meta"].dsn() for g in fleet.gatherer_names]
    return {
        "KT_GATHERER_DSNS": json.dumps(hot),
        "KT_GATHERER_META_DSNS": json.dumps(meta),
        "KT_PRODUCTION_DSN": fleet.databases["production"].dsn(),
        "KT_LAKE_URI": str(fleet.plan.out / "lake"),
        "KT_WINDOW_MS": str(config.window_ms),
        "KT_HEALTH_PORT": str(fleet.ports["dedup"]),
        "KT_METRICS_PORT": str(free_port()),
        "KT_FINAL": "true" if final else "false",
    }


async def _start(fleet: Fleet[Any], name: str, module: str, environment: dict[str, str]) -> None:
    log = fleet.plan.out / "logs" / f"{name}.log"
    fleet.children[name] = Child(name, module, environment, log)
    await fleet.children[name].start()


@contextlib.asynccontextmanager
async def recording(config: CaptureConfig) -> AsyncIterator[Fleet[CaptureConfig]]:
    """Everything started; stopped on the way out, whatever happened."""
    fleet: Fleet[CaptureConfig] = Fleet(config)
    (config.out / "logs").mkdir(exist_ok=True)
    try:
        await start_databases(fleet)
        for name in fleet.gatherer_names:
            (config.out / name).mkdir(exist_ok=True)
            fleet.ports[name] = free_port()
            await _start(fleet, name, "gatherer.main", gatherer_settings(config, fleet, name))
        fleet.ports["dedup"] = free_port()
        await _start(fleet, "dedup", "dedup.main", dedup_settings(config, fleet, final=False))
        yield fleet
    finally:
        await asyncio.shield(stop_everything(fleet))


async def finish(fleet: Fleet[CaptureConfig]) -> None:
    """Clean ends, one after the other: close records, all rows committed, merged, exported."""
    config = fleet.plan
    codes = await asyncio.gather(*(fleet.children[g].stop() for g in fleet.gatherer_names))
    for name, code in zip(fleet.gatherer_names, codes, strict=True):
        if code:
            raise StorageError(f"{name} ended with code {code}: {fleet.children[name].log_tail()}")
    await fleet.children["dedup"].stop()
    await _start(fleet, "dedup", "dedup.main", dedup_settings(config, fleet, final=True))
    code = await fleet.children["dedup"].wait(FINISH_TIMEOUT_S)
    if code:
        raise StorageError(
            f"the deduplicator ended with code {code}: {fleet.children['dedup'].log_tail()}"
        )


async def _watch(fleet: Fleet[CaptureConfig], stop: asyncio.Event, seconds: float) -> None:
    """Until somebody wants it to end; a service that gave up ends it with its own words."""
    deadline = asyncio.get_running_loop().time() + seconds if seconds else None
    while not stop.is_set():
        for name, child in fleet.children.items():
            if child.finished:
                raise StorageError(f"{name} gave up: {child.log_tail()}", hint=RECONNECT_HINT)
        if deadline is not None and asyncio.get_running_loop().time() >= deadline:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), WATCH_S)


async def capture_until_stopped(resolved: Resolved, console: Console, seconds: float) -> None:
    """Check, record, finish."""
    config = resolved.config
    stop, drawn = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await preflight(config, console)
    readings = screen.Readings(phase="recording; Ctrl-C ends it well")
    async with recording(config) as fleet:
        console.print(f"status page: {fleet.url('dedup', '/')}", highlight=False, soft_wrap=True)
        drawing = asyncio.create_task(screen.show(fleet, readings, console, drawn))
        try:
            await _watch(fleet, stop, seconds)
            readings.phase = "finishing: everything recorded is merged and exported"
            await finish(fleet)
        finally:
            drawn.set()
            await asyncio.gather(drawing, return_exceptions=True)
    console.print(f"the tape is in {config.out / 'lake'}:", highlight=False, soft_wrap=True)
    for command in ("coverage", "verify"):
        console.print(f"  tape {command} {config.out / 'lake'}", highlight=False, soft_wrap=True)


def capture(
    key_id: Annotated[str | None, typer.Option(help="id of the API key")] = None,
    key_file: Annotated[Path | None, typer.Option(help="its private key, PEM")] = None,
    env: Annotated[str | None, typer.Option(help="prod or demo")] = None,
    series: Annotated[
        list[str] | None, typer.Option(help="record only this series' books; may be repeated")
    ] = None,
    everything: Annotated[  # noqa: FBT002 - typer makes the flag of it
        bool, typer.Option("--all", help="every market's books (what happens without --series)")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="folder of the tape; goes on there")] = None,
    gatherers: Annotated[int | None, typer.Option(help="1 to 3 recordings side by side")] = None,
    transport: Annotated[str | None, typer.Option(help="picows or websockets")] = None,
    ws_url: Annotated[str | None, typer.Option(help="another WebSocket address")] = None,
    rest_url: Annotated[str | None, typer.Option(help="another REST address")] = None,
    ca_file: Annotated[Path | None, typer.Option(help="trust this certificate too")] = None,
    config: Annotated[Path | None, typer.Option(help="settings as TOML")] = None,
    seconds: Annotated[float, typer.Option(help="stop after so long; 0: never")] = 0.0,
    show_config: Annotated[  # noqa: FBT002
        bool, typer.Option("--show-config", help="print the resolved settings and end")
    ] = False,
) -> None:
    """Record the exchange on this machine until stopped."""

    def run() -> int:
        if everything and series:
            raise ConfigError("--all and --series say different things", hint="give one of them")
        flags = {
            "key_id": key_id, "key_file": key_file, "env": env, "series": series, "out": out,
            "gatherers": gatherers, "transport": transport, "ws_url": ws_url,
            "rest_url": rest_url, "ca_file": ca_file,
        }  # fmt: skip
        resolved = resolve(config, os.environ, flags)
        if everything:
            chosen = resolved.config.model_copy(update={"series": []})
            resolved = Resolved(chosen, {**resolved.origin, "series": "--all"})
        console = terminal()
        for line in resolved.lines():
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        if show_config:
            return 0
        place = resolved.config.out.absolute()
        settled = resolved.config.model_copy(update={"out": place})
        with own_folder(place):
            asyncio.run(capture_until_stopped(Resolved(settled, resolved.origin), console, seconds))
        return 0

    raise typer.Exit(guarded(run))
