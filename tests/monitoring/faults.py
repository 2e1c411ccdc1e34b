"""The faults that raise the alerts, one function each: begin it, see the alerts, end it.

Nothing is told to the services but through their settings and what they meet: signals, databases
that stop, disks that shrink, an exchange that misbehaves, a proxy that loses frames. `Fault.raises`
is what has to fire because of it. One thing is said and not provoked: that the kernel's clock is
not synchronised (launched).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg
import psutil

from runtime.embedded import EmbeddedPostgres
from tape.children import Child
from tape.fleet import free_port
from tests.faults.stepped import step
from tests.monitoring.rig import FACTOR, JOBS, Rig, dedup_settings, told_to_prometheus

STEP_S: Final = 5
FREE_BYTES_LEFT: Final = 4 << 30
BEHIND_BYTES: Final = 1_100_000_000
LARGE_FRAMES_MAX: Final = 300
"""Of 16 MiB each, until more than the gigabyte waits that SinkBehind is about."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`inflict` returns the names that did not come, once all came or its patience is over."""

    name: str
    raises: tuple[str, ...]
    inflict: Callable[[Rig], Awaitable[list[str]]]
    needs_disk: bool = False


@contextlib.asynccontextmanager
async def frozen(*roots: psutil.Process) -> AsyncIterator[None]:
    """SIGSTOP to processes and their children, SIGCONT at the end."""
    held = [p for root in roots for p in (root, *root.children(recursive=True))]
    for process in held:
        process.suspend()
    try:
        yield
    finally:
        for process in held:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def server(database: EmbeddedPostgres) -> psutil.Process:
    assert database.pid is not None
    return psutil.Process(database.pid)


async def strange_frames(rig: Rig) -> list[str]:
    """The exchange sends what nobody has heard of."""
    await rig.switch(poison=["unknown_type", "not_json"])
    return await rig.fires("NotUnderstood")


async def gatherers_killed(rig: Rig) -> list[str]:
    """Two of three end and do not come back; one spool is torn as by a power cut meanwhile."""
    await asyncio.gather(rig.child("g1").stop(5.0), rig.child("g2").stop(5.0))
    missing = await rig.fires("TargetDown", "FewerThanTwoCapture", "GathererLag")
    newest = max((rig.out / "g1" / "disk" / "spool").rglob("*.seg*"), key=_modified)
    with newest.open("ab") as out:
        out.write(b"\x07half a record")
    await asyncio.gather(rig.start_gatherer("g1"), rig.start_gatherer("g2"))
    missing += await rig.fires("TornTail")
    await rig.recording()
    return missing


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns


async def hot_database_stopped(rig: Rig) -> list[str]:
    """A gatherer's rows wait in its spool; the deduplicator goes on without it."""
    database = rig.fleet.databases["g2.hot"]
    await database.stop()
    missing = await rig.fires("Unhealthy", "LeftOut")
    await database.start()
    missing += await rig.fires("Quarantined")
    return missing


async def production_stopped(rig: Rig) -> list[str]:
    """Nothing can be published."""
    database = rig.fleet.databases["production"]
    await database.stop()
    missing = await rig.fires("NothingOnTape")
    await database.start()
    return missing


async def exchange_frozen(rig: Rig) -> list[str]:
    """Sockets stay open and nothing comes."""
    async with frozen(psutil.Process(rig.pid("exchange"))):
        missing = await rig.fires("Silence", "CaptureIncomplete", "MarketsNotCovered")
    await rig.recording()
    return missing


async def key_expired(rig: Rig) -> list[str]:
    """Everybody is cut off and refused; then the same key is good again."""
    await rig.switch(key="expired")
    missing = await rig.fires("Reconnecting")
    pem = (rig.out / "keys" / "public.pem").read_text()
    key_id = rig.child("g1").environment["KT_KEY_ID"]
    await rig.switch(key={"pem": pem, "id": key_id})
    await rig.recording()
    return missing


async def frames_swallowed(rig: Rig) -> list[str]:
    """One gatherer is silently wrong: changes are lost and their numbers with them."""
    assert rig.proxy is not None
    rig.proxy.mode = "swallow"
    missing = await rig.fires(
        "SuspectGatherer", "RestDiffers", "InvariantBroken", "LiveContradicted"
    )
    return missing + await _two_contradict(rig)


async def _two_contradict(rig: Rig) -> list[str]:
    """Of the two that are left one is wrong, and no third one decides."""
    await rig.child("g1").stop(5.0)
    missing = await rig.fires("Disputed")
    await rig.start_gatherer("g1")
    await _plain_again(rig)
    return missing


async def _plain_again(rig: Rig) -> None:
    """The proxy passes everything on, and the gatherer behind it begins anew."""
    assert rig.proxy is not None
    rig.proxy.mode = "plain"
    rig.child("g3").kill()
    await asyncio.sleep(1.0)
    await rig.recording()


async def wrong_sizes(rig: Rig) -> list[str]:
    """Changes that take away more than is there."""
    assert rig.proxy is not None
    rig.proxy.mode = "negative"
    missing = await rig.fires("NegativeLevels")
    await _plain_again(rig)
    return missing


async def other_times(rig: Rig) -> list[str]:
    """One connection is told other times than the others, after equal ones were proven."""
    assert rig.proxy is not None
    rig.proxy.mode = "shift"
    missing = await rig.fires("ExchangeChanged")
    await _plain_again(rig)
    return missing


async def clock_wrong(rig: Rig) -> list[str]:
    """A gatherer's wall clock is set, and its kernel says that it is not synchronised."""
    step(rig.out / "clock.g1", STEP_S)
    (rig.out / "kernel.g1").write_text("no")
    missing = await rig.fires("ClockStepped", "ClockOff", "ClockUnsynchronised")
    step(rig.out / "clock.g1", 0)
    (rig.out / "kernel.g1").write_text("yes")
    return missing


async def disk_full(rig: Rig) -> list[str]:
    """A spool's disk shrinks to a few gigabytes, then to nothing, then is as large as before."""
    disk = rig.out / "g2" / "disk"

    def resize(n_bytes: int) -> None:
        options = f"remount,size={n_bytes}"
        subprocess.run(["mount", "-o", options, str(disk)], check=True)

    used = psutil.disk_usage(str(disk)).used
    resize(used + FREE_BYTES_LEFT)
    missing = await rig.fires("SpoolDiskLow")
    used = psutil.disk_usage(str(disk)).used
    resize(used + (64 << 10))
    missing += await rig.fires("SpoolRefused")
    resize(60 << 30)
    await rig.recording()
    return missing


async def partition_taken(rig: Rig) -> list[str]:
    """The hour's partition is gone and the DEFAULT one holds a row of it: it cannot be made."""
    await rig.child("g1").stop(10.0)
    connection = await asyncpg.connect(rig.fleet.databases["g1.hot"].dsn())
    try:
        for table, default in await connection.fetch(_DEFAULTS):
            await _into_default(connection, table, default)
    finally:
        await connection.close()
    await rig.start_gatherer("g1")
    missing = await rig.fires("DefaultPartition")
    await rig.recording()
    return missing


_DEFAULTS: Final = """
SELECT parent.relname, child.relname FROM pg_inherits i
JOIN pg_class parent ON parent.oid = i.inhparent JOIN pg_class child ON child.oid = i.inhrelid
WHERE pg_get_expr(child.relpartbound, child.oid) = 'DEFAULT' AND parent.relname = 'orderbook_delta'
"""
_NEWEST: Final = """
SELECT child.relname FROM pg_inherits i JOIN pg_class child ON child.oid = i.inhrelid
WHERE i.inhparent = to_regclass($1) AND pg_get_expr(child.relpartbound, child.oid) <> 'DEFAULT'
ORDER BY 1 DESC
"""


async def _into_default(connection: Any, table: str, default: str) -> None:
    """Every partition of a table is taken off, its rows lie in DEFAULT."""
    for (name,) in await connection.fetch(_NEWEST, table):
        await connection.execute(f"ALTER TABLE {table} DETACH PARTITION {name}")
        await connection.execute(f"INSERT INTO {default} SELECT * FROM {name}")
        await connection.execute(f"DROP TABLE {name}")


async def rows_wait(rig: Rig) -> list[str]:
    """A hot database does not answer while frames of 16 MiB come: a gigabyte waits in the spool."""
    async with frozen(server(rig.fleet.databases["g2.hot"])):
        for _ in range(LARGE_FRAMES_MAX):
            await rig.switch(poison=["large"])
            await asyncio.sleep(0.4)
            if await rig.value("max(kalshi_tape_spool_lag_bytes)") > BEHIND_BYTES:
                break
        missing = await rig.fires("SinkBehind")
    await rig.recording()
    return missing


async def rest_away(rig: Rig) -> list[str]:
    """REST drops every call for two hours (compressed)."""
    await rig.switch(rest="drop")
    missing = await rig.fires("RestTradesBehind", patience_s=7_200 / FACTOR + 120)
    await rig.switch(rest="up")
    return missing


async def lake_refuses(rig: Rig) -> list[str]:
    """Hours go by and the lake takes nothing: a file lies where its folder should be.

    An exchange of its own whose hour is over in a second, one gatherer, one deduplicator.
    """
    out, fleet = rig.out / "fast", rig.fleet
    out.mkdir(mode=0o711)
    for name in ("g9.hot", "g9.meta", "production.late"):
        fleet.databases[name] = EmbeddedPostgres(out / name)
        await fleet.databases[name].start()
    ready = out / "ready"
    exchange = Child(
        name="late.exchange", module="exchange.main", environment={}, restart=False,
        log=rig.out / "logs" / "late.exchange.log",
        arguments=[
            "--synthetic", "10", "--events-per-s", "0.02", "--seconds", "86400", "--rate", "1200",
            "--truth", str(out / "truth"), "--public-key", str(rig.out / "keys" / "public.pem"),
            "--port", "0", "--ready-file", str(ready), "--expect-clients", "1",
        ],
    )  # fmt: skip
    await exchange.start()
    while not ready.exists():  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    port = int(json.loads(ready.read_text())["port"])
    settings = {
        **rig.child("g1").environment,
        "KT_GATHERER_NAME": "g9", "KT_SPOOL_DIR": str(out / "spool"),
        "KT_WS_URL": f"ws://127.0.0.1:{port}/trade-api/ws/v2",
        "KT_REST_URL": f"http://127.0.0.1:{port}/trade-api/v2",
        "KT_TIMESCALE_DSN": fleet.databases["g9.hot"].dsn(),
        "KT_POSTGRES_DSN": fleet.databases["g9.meta"].dsn(),
        "KT_HEALTH_PORT": str(free_port()), "KT_METRICS_PORT": str(free_port()),
    }  # fmt: skip
    own = {k: v for k, v in settings.items() if k.startswith("KT_")}
    gatherer = Child(
        name="g9", module="gatherer.main", environment=own, log=rig.out / "logs" / "g9.log"
    )
    late = dedup_settings(rig, ["g9"], "late") | {"KT_WINDOW_MS": "60000"}
    Path(late["KT_LAKE_URI"]).write_text("no folder")  # noqa: ASYNC240
    merger = Child(
        name="late", module="dedup.main", environment=late, log=rig.out / "logs" / "late.log"
    )
    await gatherer.start()
    await merger.start()
    told_to_prometheus(rig, {**JOBS, "late-deduplicator": ["late"]})
    try:
        return await rig.fires("ExportBehind", patience_s=150.0)
    finally:
        told_to_prometheus(rig, JOBS)
        for child in (merger, gatherer, exchange):
            await child.stop(5.0)


def thaw(rig: Rig) -> None:
    """Nothing stays frozen after a fault that broke off."""
    with contextlib.suppress(ProcessLookupError, AssertionError):
        os.kill(rig.pid("exchange"), signal.SIGCONT)


FAULTS: Final = (
    Fault("frames that nobody knows", ("NotUnderstood",), strange_frames),
    Fault(
        "two gatherers end, a spool is torn",
        ("TargetDown", "FewerThanTwoCapture", "GathererLag", "TornTail"),
        gatherers_killed,
    ),
    Fault(
        "a hot database is stopped", ("Unhealthy", "LeftOut", "Quarantined"),
        hot_database_stopped,
    ),
    Fault("production is stopped", ("NothingOnTape",), production_stopped),
    Fault("the key expires", ("Reconnecting",), key_expired),
    Fault(
        "the exchange stands still", ("Silence", "CaptureIncomplete", "MarketsNotCovered"),
        exchange_frozen,
    ),
    Fault("one gatherer is given other times", ("ExchangeChanged",), other_times),
    Fault(
        "one gatherer loses frames without a gap",
        ("SuspectGatherer", "RestDiffers", "InvariantBroken", "LiveContradicted", "Disputed"),
        frames_swallowed,
    ),
    Fault("changes take away what is not there", ("NegativeLevels",), wrong_sizes),
    Fault(
        "a clock is set by five seconds", ("ClockStepped", "ClockOff", "ClockUnsynchronised"),
        clock_wrong,
    ),
    Fault("a spool's disk is full", ("SpoolDiskLow", "SpoolRefused"), disk_full, needs_disk=True),
    Fault("a partition cannot be made", ("DefaultPartition",), partition_taken),
    Fault("frames of 16 MiB, a database frozen", ("SinkBehind",), rows_wait),
    Fault("hours go by, the lake refuses", ("ExportBehind",), lake_refuses),
    Fault("REST is away for two hours", ("RestTradesBehind",), rest_away),
)  # fmt: skip
SHORT: Final = (
    "frames that nobody knows", "production is stopped", "a clock is set by five seconds",
    "one gatherer is given other times",
)  # fmt: skip
