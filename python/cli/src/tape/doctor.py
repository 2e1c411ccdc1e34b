"""`tape doctor`: what a capture needs, tried one by one; each trouble says what to do.

Purpose: key, clock, reachability, signature, disk, memory, limits, database, before an hour is
lost. `tape capture` makes the quick ones of these checks itself before it starts.
Does not do: repairing anything.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import ssl
import stat
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Annotated, Final

import aiohttp
import typer
from rich.table import Table

from gatherer.auth import Signer, load_private_key
from gatherer.transport import UpgradeRefusedError, connect
from marketdata.errors import TapeError
from runtime.embedded import EmbeddedPostgres
from tape.capture_config import CaptureConfig, resolve
from tape.output import EXIT_FOUND, guarded, terminal

NS_PER_S: Final = 1_000_000_000
ANSWER_TIMEOUT_S: Final = 10.0
CLOCK_WARN_S: Final = 1.0
CLOCK_BAD_S: Final = 5.0  # beyond it the exchange refuses signatures
DISK_MIN_BYTES: Final = 2 << 30
DISK_DAY_BYTES: Final = 50 << 30  # a day at 2,000 messages a second, one gatherer (docs/capture.md)
MEMORY_MIN_BYTES: Final = 2 << 30
FILES_MIN: Final = 1_024
KEY_REFUSED: Final = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. `state`: ok | warning | failed; `do`: what to do about it, empty if ok."""

    check: str
    state: str
    said: str
    do: str = ""


Check = Callable[[CaptureConfig], Awaitable[Finding]]


async def check_key(config: CaptureConfig) -> Finding:
    """A readable private key that nobody else can read."""
    path = config.key_file
    try:
        key = load_private_key(path)
        mode = stat.S_IMODE(path.stat().st_mode)
    except (TapeError, OSError) as error:
        return Finding(
            "key", "failed", str(error).split("\n", maxsplit=1)[0],
            "download the private key (PEM) from the exchange's API page and name it with"
            " --key-file",
        )  # fmt: skip
    if mode & 0o077:
        return Finding(
            "key", "warning", f"{path} can be read by others (mode {mode:o})", f"chmod 600 {path}"
        )
    return Finding("key", "ok", f"RSA, {key.key_size} bits")


async def check_clock(config: CaptureConfig) -> Finding:
    """The exchange answers, and our clock is near its own."""
    url = f"{config.rest}/exchange/status"
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
    began_s = time.monotonic()
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.get(url, ssl=_tls(config) or True) as answer,
        ):
            took_s = time.monotonic() - began_s
            now_ns = time.time_ns()
            date = answer.headers.get("Date", "")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return Finding(
            "network", "failed", f"no answer from {url}: {type(error).__name__}: {error}",
            "check the network, proxies and --env; nothing can be recorded without it",
        )  # fmt: skip
    try:
        offset_s = now_ns / NS_PER_S - parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return Finding("network", "ok", f"{url} answered in {took_s * 1e3:.0f} ms, without a date")
    said = f"{offset_s:+.1f} s from the exchange's (answered in {took_s * 1e3:.0f} ms)"
    do = "set the clock: timedatectl set-ntp true, or run chrony"
    if abs(offset_s) > CLOCK_BAD_S:
        return Finding("clock", "failed", f"{said}: it refuses signatures that far off", do)
    # The Date has whole seconds: below one nothing is known.
    state = "warning" if abs(offset_s) > CLOCK_WARN_S + 1 else "ok"
    return Finding("clock", state, said, do if state == "warning" else "")


async def check_signature(config: CaptureConfig) -> Finding:
    """The exchange opens the WebSocket for this key."""
    try:
        signer = Signer(config.key_id, load_private_key(config.key_file))
    except TapeError as error:
        return Finding("signature", "failed", str(error).split("\n", maxsplit=1)[0], "see key")
    headers = signer.headers("GET", config.websocket, time.time_ns())
    try:
        connection = await connect(
            config.transport, config.websocket, headers, lambda _frames, _stamp: None, time.time_ns,
            ssl_context=_tls(config),
        )  # fmt: skip
    except UpgradeRefusedError as error:
        if error.status in KEY_REFUSED:
            return Finding(
                "signature", "failed", f"the exchange refuses the key ({error.status})",
                f"check --key-id, that --key-file belongs to it, and --env (now {config.env})",
            )  # fmt: skip
        return Finding("signature", "failed", str(error), "check the network and try again")
    connection.close()
    await connection.closed()
    return Finding("signature", "ok", "the exchange opened a connection")


async def check_disk(config: CaptureConfig) -> Finding:
    """Room and right to write where the tape will lie."""
    place = config.out.absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding("disk", "failed", f"{place} cannot be written", "name another with --out")
    free = shutil.disk_usage(place).free
    said = f"{free / 2**30:.1f} GiB free at {place}"
    if free < DISK_MIN_BYTES:
        least = DISK_MIN_BYTES >> 30
        do = f"free some room ({least} GiB at least) or name another disk with --out"
        return Finding("disk", "failed", said, do)
    if free < DISK_DAY_BYTES:
        do = "a day of the whole exchange takes about 50 GiB; record fewer --series or free room"
        return Finding("disk", "warning", said, do)
    return Finding("disk", "ok", said)


async def check_machine(config: CaptureConfig) -> Finding:
    """Memory and open files."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = f"{memory / 2**30:.1f} GiB of memory, {files} open files"
    need = MEMORY_MIN_BYTES * config.gatherers
    if memory < need:
        return Finding(
            "machine", "warning", said, f"{need >> 30} GiB are needed; fewer --gatherers"
        )
    if files < FILES_MIN:
        return Finding("machine", "warning", said, f"ulimit -n {FILES_MIN}")
    return Finding("machine", "ok", said)


async def check_database(config: CaptureConfig) -> Finding:  # noqa: ARG001 - one form for all
    """The embedded PostgreSQL starts here and answers."""
    try:
        async with EmbeddedPostgres():
            return Finding("database", "ok", "the embedded PostgreSQL starts")
    except TapeError as error:
        told = str(error).replace("\nhint: ", " - ")
        return Finding("database", "failed", told, "see the message; docs/capture.md has more")


QUICK: Final[tuple[Check, ...]] = (check_key, check_disk, check_clock, check_signature)
ALL: Final[tuple[Check, ...]] = (
    check_key, check_clock, check_signature, check_disk, check_machine, check_database,
)  # fmt: skip


async def examine(config: CaptureConfig, checks: tuple[Check, ...] = ALL) -> list[Finding]:
    """The findings of the checks, in order. A signature is not tried when its grounds failed."""
    found: list[Finding] = []
    for check in checks:
        grounds = {f.check for f in found if f.state == "failed"} & {"key", "clock", "network"}
        if check is check_signature and grounds:
            continue
        found.append(await check(config))
    return found


def _tls(config: CaptureConfig) -> ssl.SSLContext | None:
    if config.ca_file is None:
        return None
    context = ssl.create_default_context()
    context.load_verify_locations(cafile=str(config.ca_file))
    return context


def doctor(
    key_id: Annotated[str | None, typer.Option(help="id of the API key")] = None,
    key_file: Annotated[Path | None, typer.Option(help="its private key, PEM")] = None,
    env: Annotated[str | None, typer.Option(help="prod or demo")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the tape")] = None,
    ws_url: Annotated[str | None, typer.Option(help="another WebSocket address")] = None,
    rest_url: Annotated[str | None, typer.Option(help="another REST address")] = None,
    ca_file: Annotated[Path | None, typer.Option(help="trust this certificate too")] = None,
    config: Annotated[Path | None, typer.Option(help="settings as TOML")] = None,
    json_line: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,  # noqa: FBT002
) -> None:
    """Try everything that a capture needs and say what to do about what fails."""

    def run() -> int:
        flags = {
            "key_id": key_id, "key_file": key_file, "env": env, "out": out, "ws_url": ws_url,
            "rest_url": rest_url, "ca_file": ca_file,
        }  # fmt: skip
        found = asyncio.run(examine(resolve(config, os.environ, flags).config))
        if json_line:
            sys.stdout.write(json.dumps([asdict(finding) for finding in found]) + "\n")
        else:
            table = Table()
            for column in ("check", "state", "found", "what to do"):
                table.add_column(column, overflow="fold")
            for finding in found:
                table.add_row(finding.check, finding.state, finding.said, finding.do)
            terminal().print(table)
        return EXIT_FOUND if any(finding.state == "failed" for finding in found) else 0

    raise typer.Exit(guarded(run))
