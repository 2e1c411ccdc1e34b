"""Checks of recording: the gatherer's own parts, emulated, from a socket to committed rows.

The exchange (the load generator) and PostgreSQL run natively on the loopback interface. What is
compared is not speed: the frames in the spool with those sent, the rows that either processor makes
of that spool, and the rows in the database with those that a native sink commits from it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from marketdata import segment
from runtime.embedded import EmbeddedPostgres
from runtime.pgcopy import (
    CONTROL_COPY,
    DELTA_COPY,
    MARKET_COPY,
    SNAPSHOT_COPY,
    TICKER_COPY,
    TRADE_COPY,
    CopyLayout,
)
from runtime.spool import START, SpoolReader
from tests.aarch64.emulator import native, serving
from tests.aarch64.trial import FailedError, Trial, expect
from tests.bench.generator import MARKETS_EACH, make_frames
from tests.bench.runs import certificate

STREAMS = 4
FRAMES_EACH = 2_500
FRAMES = STREAMS * FRAMES_EACH
READY_WITHIN_S = 60
WAYS = tuple((transport, wire) for transport in ("picows", "websockets") for wire in ("wss", "ws"))
LAYOUTS = (DELTA_COPY, SNAPSHOT_COPY, TRADE_COPY, TICKER_COPY, CONTROL_COPY, MARKET_COPY)
# Which commit a row came with is a matter of time, and differs between two runs of anything.
OF_THE_COMMIT = ("batch_id", "ord")
# Each process that stops says so once: the native sink adds its own end to that of the recording.
LEFT_OUT = {CONTROL_COPY.table: " WHERE kind <> 'gatherer_end'"}
ANSWERS_BEGIN = b'{"id"'  # to our subscribe commands


@dataclass(frozen=True)
class Capture:
    """One recording that was made under emulation."""

    name: str
    spool: Path
    dsn: str
    answer: dict[str, Any]
    emulated: dict[str, Any]  # rows that the emulated side makes of the spool
    native: dict[str, Any]  # and this side
    database: dict[str, str]  # table -> hash of what was committed under emulation
    replayed: dict[str, str]  # and by a native sink from the same spool


@contextmanager
def exchange(folder: Path) -> Iterator[dict[str, str]]:
    """The load generator, plain and with TLS; scheme -> address."""
    cert, key = certificate(folder)
    tls = ("--tls-cert", str(cert), "--tls-key", str(key))
    sizes = ("--frames", str(FRAMES_EACH), "--connections", str(STREAMS))
    with ExitStack() as stack:
        urls = {}
        for scheme, more in (("wss", tls), ("ws", ())):
            ready = folder / f"{scheme}.ready"
            command = ("-m", "tests.bench.generator", *sizes, "--ready", str(ready), *more)
            child = stack.enter_context(serving(*command))
            deadline = time.monotonic() + READY_WITHIN_S
            while not ready.exists():
                if child.poll() is not None or time.monotonic() > deadline:
                    raise FailedError("the exchange did not start")
                time.sleep(0.05)
            port = json.loads(ready.read_text())["port"]
            urls[scheme] = f"{scheme}://127.0.0.1:{port}/trade-api/ws/v2"
        yield urls


async def make_databases(dsn: str, names: list[str]) -> None:
    """Empty databases."""
    connection = await asyncpg.connect(dsn)
    for name in names:
        await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()


async def stored(dsn: str, layouts: Sequence[CopyLayout] = LAYOUTS) -> dict[str, str]:
    """A hash of every table of a database, a hot one unless told, whatever the commits were."""
    connection = await asyncpg.connect(dsn)
    found = {}
    for layout in layouts:
        names = [name for name, _ in layout.columns if name not in OF_THE_COMMIT]
        columns = ", ".join(names)
        digest = hashlib.sha256()

        async def take(data: bytes, into: Any = digest) -> None:
            into.update(data)

        rest = LEFT_OUT.get(layout.table, "")
        query = f"SELECT {columns} FROM {layout.table}{rest} ORDER BY {columns}"
        await connection.copy_from_query(query, output=take, format="binary")
        found[layout.table] = digest.hexdigest()
    await connection.close()
    return found


async def after_a_change(dsn: str) -> dict[str, str]:
    """`stored`, once the size of one change is a hundredth greater."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "UPDATE orderbook_delta SET delta = delta + 1"
        " WHERE ctid = (SELECT ctid FROM orderbook_delta LIMIT 1)"
    )
    await connection.close()
    return await stored(dsn)


def spooled(spool: Path) -> list[list[bytes]]:
    """The data frames in a spool by connection, in order."""
    reader = SpoolReader(spool, START)
    found: dict[int, list[bytes]] = {}
    while records := reader.read():
        for record in records:
            if record.kind == segment.KIND_FRAMES:
                batch = segment.decode_frames(record.payload)
                frames = [bytes(f) for f in batch.frames if not bytes(f).startswith(ANSWERS_BEGIN)]
                found.setdefault(batch.conn, []).extend(frames)
    reader.close()
    return list(found.values())


def _record(trial: Trial, server: EmbeddedPostgres, urls: dict[str, str]) -> list[Capture]:
    """All ways in one emulated process, then the same spools on this side."""
    names = [f"{transport}_{wire}" for transport, wire in WAYS]
    databases = [*names, *(f"{name}_again" for name in names)]
    asyncio.run(make_databases(server.dsn(), databases))
    questions: list[dict[str, Any]] = []
    again: list[dict[str, Any]] = []
    for (transport, wire), name in zip(WAYS, names, strict=True):
        spool = trial.folder / "spools" / name
        asked = {"op": "record", "transport": transport, "url": urls[wire], "streams": STREAMS,
                 "frames": FRAMES_EACH, "dsn": server.dsn(name),
                 "spool": trial.inside(spool)}  # fmt: skip
        questions += [asked, {"op": "rows", "spool": trial.inside(spool)}]
        again += [
            {"op": "rows", "spool": str(spool)},
            {**asked, "streams": 0, "dsn": server.dsn(f"{name}_again"), "spool": f"{spool}-again"},
        ]
    answers = trial.emulator.ask("gatherer", "side_capture", questions)
    for name in names:  # a sink that opens a spool writes to it
        shutil.copytree(trial.folder / "spools" / name, trial.folder / "spools" / f"{name}-again")
    others = native("side_capture", again)
    return [
        Capture(
            name.replace("_", " over "),
            trial.folder / "spools" / name,
            server.dsn(name),
            answers[2 * n],
            answers[2 * n + 1],
            others[2 * n],
            asyncio.run(stored(server.dsn(name))),
            asyncio.run(stored(server.dsn(f"{name}_again"))),
        )
        for n, name in enumerate(names)
    ]


def captures(trial: Trial) -> list[Capture]:
    """The recordings, made when they are first asked for."""
    if trial.captures is None:
        (trial.folder / "spools").mkdir()
        with exchange(trial.folder) as urls:
            trial.captures = _record(trial, trial.postgres(), urls)
    return list(trial.captures)


def capture(trial: Trial) -> str:
    """10,000 frames each way: nothing lost, nothing misread, every row committed."""
    told = []
    for one in captures(trial):
        answer = one.answer
        expect(answer["frames"] == FRAMES, f"{one.name}: {answer}")
        expect(not answer["counts"], f"{one.name}: not in sequence: {answer['counts']}")
        rows = FRAMES - STREAMS * MARKETS_EACH
        expect(answer["rows"] == rows, f"{one.name}: {answer['rows']} rows of {rows}")
        told.append(
            f"{one.name} {answer['seconds']:.1f} s,"
            f" spool {sum(p.stat().st_size for p in one.spool.iterdir()) / 2**20:.1f} MiB"
        )
    return f"{FRAMES} frames on {STREAMS} connections, rows committed to PostgreSQL: " + "; ".join(
        told
    )


def frames(trial: Trial) -> str:
    """The spools, read on this side, hold the frames that were sent, byte for byte."""
    sent = sorted(make_frames(FRAMES_EACH, stream) for stream in range(STREAMS))
    for one in captures(trial):
        expect(sorted(spooled(one.spool)) == sent, f"{one.name}: other frames than were sent")
    return f"{len(WAYS)} spools of {FRAMES} frames, byte for byte those that were sent"


def rows(trial: Trial) -> str:
    """Both processors make the same rows of the same spool."""
    for one in captures(trial):
        differ = sorted(k for k in one.native if one.native[k] != one.emulated[k])
        expect(not differ, f"{one.name}: {differ}: {one.native} and {one.emulated}")
        expect(not one.native["damage"], f"{one.name}: {one.native['damage']}")
    last = captures(trial)[-1].native
    return (
        f"{sum(last['counts'].values())} rows a spool: structs, {last['copy_bytes'] / 2**20:.1f}"
        f" MiB of COPY bytes and the final state (book hashes included) have one SHA-256 on both"
    )


def database(trial: Trial) -> str:
    """What was committed under emulation is what a native sink commits from the same spool."""
    for one in captures(trial):
        differ = sorted(k for k in one.database if one.database[k] != one.replayed[k])
        expect(not differ, f"{one.name}: {differ} differ in the database")
    return f"{len(LAYOUTS)} tables of {len(WAYS)} databases equal those of a native sink"


def capture_control(trial: Trial) -> str:
    """A flipped byte, a changed digit, a changed row and a missing frame are all noticed."""
    one = captures(trial)[0]
    flipped = trial.folder / "spools" / "flipped"
    shutil.copytree(one.spool, flipped)
    file = max(flipped.iterdir(), key=lambda path: path.stat().st_size)
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.write_bytes(body)
    asked: list[dict[str, Any]] = [
        {"op": "rows", "spool": str(flipped)},
        {"op": "rows", "spool": str(one.spool), "change": True},
    ]
    torn, changed = native("side_capture", asked)
    expect(torn["end"] != one.emulated["end"], "a flipped byte went unnoticed")
    expect(torn["frames"] < one.emulated["frames"], "frames behind the damage were believed")
    expect(changed["structs"]["delta"] != one.emulated["structs"]["delta"], "a digit went by")
    expect(changed["copy"] != one.emulated["copy"], "a changed digit is not in the COPY bytes")
    expect(changed["structs"]["trade"] == one.emulated["structs"]["trade"], "too much differs")
    now = asyncio.run(after_a_change(one.dsn))
    differ = sorted(table for table in now if now[table] != one.replayed[table])
    expect(differ == ["orderbook_delta"], f"one changed row was noticed in {differ}")
    short = spooled(one.spool)
    short[0].pop()
    sent = sorted(make_frames(FRAMES_EACH, stream) for stream in range(STREAMS))
    expect(sorted(short) != sent, "a missing frame went unnoticed")
    return "a flipped byte, a changed digit, a changed row, a missing frame: each is noticed"
