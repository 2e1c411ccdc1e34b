"""A whole gatherer under a steady rate: what is lost, how late rows are, what it costs, what grows.

`make bench-live` (rates and latencies) and `make soak` (thirty minutes, with a picture). Real are:
the gatherer's process with its two PostgreSQL clusters at default durability, TLS, its REST rounds.
Made up is the exchange (tests.bench.paced). How late a row is comes from the server, not from us:
`pg_xact_commit_timestamp` of its batch less the `ts` that the exchange gave it when it was sent.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import asyncpg
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from runtime.embedded import EmbeddedPostgres, free_port
from tests.bench.runs import ROOT, certificate

READY_WITHIN_S: Final = 60
DRAIN_WITHIN_S: Final = 300
SETTLE_S: Final = 3
"""Of a run whose rows are not measured: the first commits load code and make partitions."""
SAMPLE_S: Final = 1.0
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
TABLES: Final = {"orderbook_delta": "orderbook_delta", "ticker": "ticker", "trade": "trade"}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Load:
    """What one run is."""

    rate: int
    seconds: int
    markets: int = 800
    markets_per_connection: int = 100
    transport: str = "picows"


@dataclass(slots=True)
class Outcome:
    """What one run gave. Latencies in milliseconds; CPU in microseconds a frame."""

    load: Load
    sent: dict[str, int]
    stored: dict[str, int]
    health: dict[str, Any]
    latency_ms: dict[str, float]
    receive_to_commit_ms: dict[str, float]
    cpu_us: dict[str, float]
    drained_s: float
    samples: list[dict[str, float]] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """What was lost or went wrong; empty where nothing did."""
        return faults(self.sent, self.stored, self.health)

    @property
    def rate(self) -> float:
        """Frames a second that were really sent."""
        return sum(self.sent.get(kind, 0) for kind in TABLES) / self.load.seconds


def faults(sent: dict[str, int], stored: dict[str, int], health: dict[str, Any]) -> list[str]:
    """Every frame that was sent is one row, and the gatherer saw nothing out of order."""
    found = [
        f"{kind}: {sent.get(kind, 0)} sent, {stored.get(kind, 0)} stored"
        for kind in TABLES
        if sent.get(kind, 0) != stored.get(kind, 0)
    ]
    found += [
        f"{name}: {health[name]}"
        for name in ("gaps", "duplicates", "problems", "audits_failed")
        if health.get(name)
    ]
    if sent.get("closed", 0):
        found.append(f"{sent['closed']} connections ended")
    return found


def cpu_s(pid: int, *, children: bool = False) -> float:
    """User and system time of a process; of all its children too (a server's backends)."""
    pids = [pid]
    if children:
        kids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pids += map(int, kids)
    total = 0
    for each in pids:
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15] if each == pid and children else fields[11:13]))
    return total / CLOCK_TICKS


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES / 2**20


def open_files(pid: int) -> int:
    """Open file descriptors of a process."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def threads(pid: int) -> int:
    """Threads of a process."""
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())


class Exchange:
    """The load generator's process."""

    def __init__(self, folder: Path, markets: int) -> None:
        self.cert, key = certificate(folder)
        self.ready = folder / "paced.ready"
        command = [sys.executable, "-m", "tests.bench.paced", "--markets", str(markets)]
        tls = ["--tls-cert", str(self.cert), "--tls-key", str(key)]
        self.child = subprocess.Popen(
            [*command, "--ready", str(self.ready), *tls],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    async def ports(self) -> dict[str, int]:
        """Once it listens."""
        async with asyncio.timeout(READY_WITHIN_S):
            while not self.ready.exists():
                if self.child.poll() is not None:
                    raise RuntimeError("the load generator did not start")
                await asyncio.sleep(0.05)
        ports: dict[str, int] = json.loads(self.ready.read_text())
        return ports

    async def ask(self, command: str) -> dict[str, Any]:
        """A command and its answer."""
        return await asyncio.to_thread(self._ask, command)

    def _ask(self, command: str) -> dict[str, Any]:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(command + "\n")
        self.child.stdin.flush()
        answer: dict[str, Any] = json.loads(self.child.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        self.child.kill()
        self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                pipe.close()


class Rig:
    """A gatherer, its clusters and its exchange, all running."""

    def __init__(self, exchange: Exchange, gatherer: subprocess.Popen[bytes], hot: str) -> None:
        self.exchange, self.gatherer, self.hot = exchange, gatherer, hot
        self.health_port = 0
        self.server_pid = 0

    async def health(self, http: aiohttp.ClientSession) -> dict[str, Any]:
        """The figures of /health; empty while nobody answers."""
        try:
            async with http.get(f"http://127.0.0.1:{self.health_port}/health") as answer:
                detail: dict[str, Any] = json.loads(await answer.text())["detail"]
        except (aiohttp.ClientError, OSError):
            if self.gatherer.poll() is not None:
                raise RuntimeError("the gatherer ended") from None
            return {}
        return detail

    async def complete(self, http: aiohttp.ClientSession) -> float:
        """Seconds until the gatherer says that everything is covered."""
        began, seen = time.monotonic(), dict[str, Any]()
        while not seen.get("complete"):
            if time.monotonic() - began > READY_WITHIN_S:
                raise RuntimeError(f"the gatherer does not become complete: {seen}")
            await asyncio.sleep(0.1)
            seen = await self.health(http)
        return time.monotonic() - began


@asynccontextmanager
async def rig(
    folder: Path, load: Load, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Rig]:
    """Everything started; everything ended. `settings`: more of the gatherer's environment."""
    async with AsyncExitStack() as stack:
        hot = EmbeddedPostgres(settings={"track_commit_timestamp": "on"})
        meta = EmbeddedPostgres()
        for server in (hot, meta):
            await asyncio.to_thread(server.start_blocking)
            stack.callback(server.close_blocking)
        exchange = Exchange(folder, load.markets)
        stack.callback(exchange.close)
        ports = await exchange.ports()
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        plain = serialization.NoEncryption()
        pkcs8 = serialization.PrivateFormat.PKCS8
        (folder / "key.pem").write_bytes(
            key.private_bytes(serialization.Encoding.PEM, pkcs8, plain)
        )
        port = free_port()
        environment = {
            "KT_WS_URL": f"wss://127.0.0.1:{ports['ws']}/trade-api/ws/v2",
            "KT_REST_URL": f"http://127.0.0.1:{ports['rest']}/trade-api/v2",
            "KT_CA_FILE": str(exchange.cert),
            "KT_KEY_ID": "bench",
            "KT_PRIVATE_KEY_FILE": str(folder / "key.pem"),
            "KT_SPOOL_DIR": str(folder / "spool"),
            "KT_TIMESCALE_DSN": hot.dsn(),
            "KT_POSTGRES_DSN": meta.dsn(),
            "KT_TRANSPORT": load.transport,
            "KT_MARKETS_PER_CONNECTION": str(load.markets_per_connection),
            "KT_SPOOL_AWAIT_READER": "false",
            "KT_HEALTH_PORT": str(port),
            "KT_METRICS_PORT": "0",
            "KT_LOG_LEVEL": "warning",
            **(settings or {}),
        }
        gatherer = _start(folder, environment)
        made = Rig(exchange, gatherer, hot.dsn())
        made.health_port, made.server_pid = port, hot.pid or 0
        stack.callback(_end, gatherer)
        yield made


def _start(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with (folder / "gatherer.log").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "gatherer.main"],
            env={**os.environ, **environment}, stderr=out, stdout=out,
        )  # fmt: skip


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def sample(made: Rig, http: aiohttp.ClientSession, began: float) -> dict[str, float]:
    """One line of the series."""
    health = await made.health(http)
    pid = made.gatherer.pid
    return {
        "at_s": round(time.monotonic() - began, 2),
        "resident_mib": round(resident_mib(pid), 1),
        "open_files": open_files(pid),
        "tasks": health.get("tasks", 0),
        "threads": threads(pid),
        "queue_rows": health.get("queue_rows", 0),
        "lag_ms": health.get("lag_ms", 0),
        "cpu_s": round(cpu_s(pid), 2),
    }


async def run(made: Rig, load: Load, say: Say) -> Outcome:
    """One load on a running rig."""
    async with aiohttp.ClientSession() as http:
        say(f"covered after {await made.complete(http):.1f} s; {load.rate:,} frames/s")
        before = await made.exchange.ask("facts")
        stored_before, health_before = await _stored(made.hot), await made.health(http)
        spent = _spent(made, before)
        began, wall_us = time.monotonic(), time.time_ns() // 1_000
        await made.exchange.ask(f"rate {load.rate}")
        samples, every_s = [], max(SAMPLE_S, load.seconds / 600)
        while (left := began + load.seconds - time.monotonic()) > 0:
            samples.append(await sample(made, http, began))
            if len(samples) % 30 == 0:
                say(f"  {samples[-1]}")
            await asyncio.sleep(min(every_s, left))
        after = await made.exchange.ask("rate 0")
        until_us = time.time_ns() // 1_000
        drained_s = await _drained(made, http, after)
        spent_after = _spent(made, after)
        stored, health = await _stored(made.hot), await made.health(http)
        frames = sum(after[kind] - before.get(kind, 0) for kind in TABLES)
        span = (wall_us + SETTLE_S * 1_000_000, until_us)
        late, inside = await _latencies(made.hot, *span)
        return Outcome(
            load,
            _difference(after, before),
            _difference(stored, stored_before),
            {**health, **_difference(health, health_before)},
            late,
            inside,
            {name: 1e6 * (spent_after[name] - spent[name]) / max(1, frames) for name in spent},
            drained_s,
            samples,
        )


def _difference(after: dict[str, Any], before: dict[str, Any]) -> dict[str, int]:
    return {k: v - before.get(k, 0) for k, v in after.items() if type(v) is int}


def _spent(made: Rig, facts: dict[str, Any]) -> dict[str, float]:
    return {
        "gatherer": cpu_s(made.gatherer.pid),
        "postgresql": cpu_s(made.server_pid, children=True),
        "exchange": facts["cpu_s"],
    }


async def _drained(made: Rig, http: aiohttp.ClientSession, sent: dict[str, Any]) -> float:
    """Seconds from the last frame sent until every frame's row is committed, as far as counts
    tell; gives up after DRAIN_WITHIN_S, and the comparison then says what is missing."""
    began = time.monotonic()
    while time.monotonic() - began < DRAIN_WITHIN_S:
        stored = await _stored(made.hot)
        if all(stored[kind] >= sent.get(kind, 0) for kind in TABLES):
            break
        await asyncio.sleep(0.2)
    await made.health(http)
    return time.monotonic() - began


async def _stored(dsn: str) -> dict[str, int]:
    conn = await asyncpg.connect(dsn)
    try:
        return {
            kind: await conn.fetchval(f"SELECT count(*) FROM {table}")
            for kind, table in TABLES.items()
        }
    finally:
        await conn.close()


_LATENCY: Final = """
WITH committed AS MATERIALIZED (
    SELECT batch_id, (extract(epoch FROM pg_xact_commit_timestamp(xid::xid)) * 1e6)::bigint AS us
    FROM ingest_batch
), late AS (
    SELECT us - (extract(epoch FROM exchange_ts) * 1e6)::bigint AS sent, us - received_ns / 1000
        AS received
    FROM orderbook_delta JOIN committed USING (batch_id)
    WHERE exchange_ts BETWEEN to_timestamp($1::float8 / 1e6) AND to_timestamp($2::float8 / 1e6)
)
SELECT percentile_disc(ARRAY[0.5, 0.99, 0.999, 1]) WITHIN GROUP (ORDER BY sent),
       percentile_disc(ARRAY[0.5, 0.99, 0.999, 1]) WITHIN GROUP (ORDER BY received)
FROM late
"""


async def _latencies(dsn: str, from_us: int, to_us: int) -> tuple[dict[str, float], ...]:
    conn = await asyncpg.connect(dsn)
    try:
        await conn.execute("SET work_mem = '1GB'")
        row = await conn.fetchrow(_LATENCY, float(from_us), float(to_us))
    finally:
        await conn.close()
    names = ("p50", "p99", "p99.9", "max")
    return tuple(
        {name: us / 1_000 for name, us in zip(names, found or [0] * 4, strict=True)}
        for found in row
    )


def described(outcome: Outcome) -> dict[str, Any]:
    """Without its series."""
    body = {k: v for k, v in asdict(outcome).items() if k not in ("samples", "health")}
    body["frames_per_s"] = round(outcome.rate)
    body["faults"] = outcome.faults
    return body
