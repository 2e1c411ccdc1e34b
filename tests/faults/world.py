"""One gatherer as a real process, with everything real around it, for one or more faults.

Simulated exchange with its truth log, two embedded PostgreSQL clusters, the gatherer; at the end
the deduplicator and a lake (judge). The gatherer is watched as systemd would watch it; that it was
started again only after kills that the test ordered is checked at the end. /health is read ten
times a second, so that a test can wait for what the gatherer says, and for what it says afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from runtime.embedded import EmbeddedPostgres
from tape.children import Child
from tape.fleet import free_port, write_test_key

PATIENCE_S = 120.0
"""How long a test waits for something that has to come: a limit of patience, not a promise."""
POLL_S = 0.1
ANSWER_S = 1.0
MACHINES_OWN = "kernel's clock is not synchronised"
"""What may be wrong with the machine that runs the tests, and no fault of a test."""
KEY_ID = "00000000-0000-4000-8000-000000000001"
GATHERER = "g1"


@dataclass(frozen=True)
class Plan:
    """What a world is made of. Times that a service has as a setting are scaled down for all."""

    markets: int = 60
    per_connection: int = 20
    events_per_s: float = 300.0
    seconds: float = 3600.0  # of play; a world ends it when it has seen enough
    faults: str = "none"
    rate: str = "1"
    transport: str = "picows"
    launcher: str = ""  # module that runs the gatherer's module, "" for none
    settings: dict[str, str] = field(default_factory=dict)
    scaled: dict[str, float] = field(default_factory=dict)  # with a launcher: tests.faults.stepped


class Disk(Protocol):
    """Where a spool lies."""

    def prepare(self, folder: Path) -> None: ...

    def remove(self) -> None: ...


@dataclass(frozen=True)
class Reading:
    """One look at /health. `state` is "silent" where nobody answered."""

    state: str
    components: dict[str, dict[str, str]]
    detail: dict[str, Any]
    asked_s: float = 0.0  # monotonic time at which it was asked for

    @property
    def is_well(self) -> bool:
        """Everything is right, all of it recorded, and the database is up to date."""
        rest = [c for c in self.components.values() if c["state"] != "ok"]
        is_right = all(MACHINES_OWN in c["reason"] for c in rest)
        return bool(self.components) and is_right and bool(self.detail.get("complete"))

    def says(self, component: str, *words: str) -> bool:
        """The component is not ok, and its reason holds one of the words."""
        told = self.components.get(component, {"state": "ok", "reason": ""})
        is_bad = told["state"] in ("degraded", "failing")
        return is_bad and any(word in told["reason"] for word in words)


@dataclass
class World:
    """The running parts."""

    out: Path
    plan: Plan
    hot: EmbeddedPostgres
    meta: EmbeddedPostgres
    key_file: Path
    exchange: Child
    gatherer: Child
    ports: dict[str, int]
    kills: int = 0
    disk: Any = None  # of the one fault that has a disk of its own
    readings: list[Reading] = field(default_factory=list)
    _http: aiohttp.ClientSession | None = None
    _watch: asyncio.Task[None] | None = None

    @property
    def spool(self) -> Path:
        return self.out / GATHERER / "spool"

    @property
    def pid(self) -> int:
        """Process id of the gatherer."""
        running = self.gatherer._running
        assert running is not None
        return running.pid

    async def switch(self, **body: Any) -> None:
        """Turn a switch of the exchange."""
        assert self._http is not None
        url = f"http://127.0.0.1:{self.ports['exchange']}/sim/switch"
        async with self._http.post(url, json=body) as answer:
            assert answer.status == 200, await answer.text()

    async def exchange_status(self) -> dict[str, Any]:
        assert self._http is not None
        url = f"http://127.0.0.1:{self.ports['exchange']}/sim/status"
        async with self._http.get(url) as answer:
            found: dict[str, Any] = await answer.json()
            return found

    async def count(self, *kinds: str) -> int:
        """How often the exchange has told faults of these kinds."""
        told = (await self.exchange_status())["faults"]
        return sum(int(told.get(kind, 0)) for kind in kinds)

    async def counted(self, before: int, *kinds: str) -> None:
        """Wait until the exchange has told one more."""
        deadline = time.monotonic() + PATIENCE_S
        while await self.count(*kinds) <= before:
            assert time.monotonic() < deadline, f"none of {kinds} came\n{self.log()}"
            await asyncio.sleep(POLL_S)

    async def look(self) -> Reading:
        """One reading of /health."""
        assert self._http is not None
        url = f"http://127.0.0.1:{self.ports[GATHERER]}/health"
        asked_s = time.monotonic()
        try:
            async with self._http.get(url, timeout=aiohttp.ClientTimeout(ANSWER_S)) as answer:
                body = await answer.json()
        except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError):
            return Reading("silent", {}, {}, asked_s)
        return Reading(body["state"], body["components"], body.get("detail", {}), asked_s)

    async def until(
        self, holds: Callable[[Reading], bool], what: str, patience_s: float = PATIENCE_S
    ) -> Reading:
        """The first reading from now on that `holds`."""
        began_s = time.monotonic()
        deadline, seen = began_s + patience_s, len(self.readings)
        while True:
            while seen < len(self.readings):
                reading = self.readings[seen]
                if reading.asked_s >= began_s and holds(reading):
                    return reading
                seen += 1
            assert not self.gatherer.finished, f"{what}: the gatherer gave up\n{self.log()}"
            died = self.gatherer.restarts > self.kills
            assert not died, f"{what}: the gatherer died by itself\n{self.log()}"
            assert time.monotonic() < deadline, f"{what}: {self.readings[-1]}\n{self.log()}"
            await asyncio.sleep(POLL_S)

    async def well(
        self, what: str = "well again without help", patience_s: float = PATIENCE_S
    ) -> Reading:
        """Wait until everything is right."""
        return await self.until(lambda r: r.is_well, what, patience_s)

    async def told(self, component: str, *words: str) -> Reading:
        """Wait until a component says that it is not well, and why."""
        return await self.until(
            lambda r: r.says(component, *words), f"{component} says one of {words}"
        )

    def kill(self) -> bool:
        """kill -9 of the gatherer; it is started again."""
        done = self.gatherer.kill()
        self.kills += done
        return done

    def log(self) -> str:
        return self.gatherer.log_tail(12)

    async def _read_health(self) -> None:
        while True:
            self.readings.append(await self.look())
            await asyncio.sleep(POLL_S)

    async def stop_recording(self) -> None:
        """A clean stop of the gatherer, then of the exchange: the truth log is complete."""
        while not self.gatherer.alive:  # noqa: ASYNC110 - between death and restart
            await asyncio.sleep(POLL_S)
        await self.until(lambda r: r.state != "silent", "the gatherer answers before its stop")
        code = await self.gatherer.stop()
        assert code == 0, f"the gatherer ended with {code}\n{self.log()}"
        assert self.gatherer.restarts == self.kills, f"it died by itself\n{self.log()}"
        assert await self.exchange.stop() == 0, self.exchange.log_tail()


def _gatherer(out: Path, plan: Plan, exchange: int, health: int, dsns: tuple[str, str]) -> Child:
    environment = {
        "KT_GATHERER_NAME": GATHERER,
        "KT_WS_URL": f"ws://127.0.0.1:{exchange}/trade-api/ws/v2",
        "KT_REST_URL": f"http://127.0.0.1:{exchange}/trade-api/v2",
        "KT_KEY_ID": KEY_ID,
        "KT_PRIVATE_KEY_FILE": str(out / "keys" / "private.pem"),
        "KT_SPOOL_DIR": str(out / GATHERER / "spool"),
        "KT_TIMESCALE_DSN": dsns[0],
        "KT_POSTGRES_DSN": dsns[1],
        "KT_HEALTH_PORT": str(health),
        "KT_METRICS_PORT": "0",
        "KT_TRANSPORT": plan.transport,
        "KT_RECONNECT_BASE_MS": "50",
        "KT_RECONNECT_CAP_MS": "500",
        "KT_AUDIT_INTERVAL_S": "20",
        "KT_DATA_TIMEOUT_S": "10",
        "KT_DISCOVERY_INTERVAL_S": "2",
        "KT_REST_RATE_PER_S": "200",
        "KT_MARKETS_PER_CONNECTION": str(plan.per_connection),
        **{f"KT_{name.upper()}": value for name, value in plan.settings.items()},
    }
    module, arguments = "gatherer.main", []
    if plan.launcher:
        module, arguments = plan.launcher, [module]
        environment["STEPPED_CLOCK"] = str(out / "clock")
        environment["SCALED_TIMES"] = json.dumps(plan.scaled)
    return Child(
        name=GATHERER, module=module, arguments=arguments, environment=environment,
        log=out / "logs" / "gatherer.log",
    )  # fmt: skip


async def _exchange(out: Path, plan: Plan, public_key: Path) -> tuple[Child, int]:
    ready = out / "exchange.ready"
    child = Child(
        name="exchange", module="exchange.main", environment={}, restart=False,
        log=out / "logs" / "exchange.log",
        arguments=[
            "--synthetic", str(plan.markets), "--events-per-s", str(plan.events_per_s),
            "--seconds", str(plan.seconds), "--rate", plan.rate, "--faults", plan.faults,
            "--truth", str(out / "truth"), "--public-key", str(public_key),
            "--ready-file", str(ready), "--expect-clients", "1",
        ],
    )  # fmt: skip
    await child.start()
    while not ready.exists():
        assert not child.finished, child.log_tail()
        await asyncio.sleep(0.05)
    return child, int(json.loads(ready.read_text())["port"])


def _folder() -> Path:
    out = Path(tempfile.mkdtemp(prefix="kalshi-tape-fault-"))
    out.chmod(0o711)  # the servers' account must be able to reach its own folders in it
    return out


@contextlib.asynccontextmanager
async def world(plan: Plan, disk: Disk | None = None) -> AsyncIterator[World]:
    """Start everything and wait until all is recorded; leave nothing behind.

    `disk`: on which the spool lies, if not on the one of everything else.
    """
    out = _folder()
    hot, meta = EmbeddedPostgres(out / "db" / "hot"), EmbeddedPostgres(out / "db" / "meta")
    children: list[Child] = []
    made: World | None = None
    try:
        (out / "logs").mkdir()
        (out / GATHERER).mkdir()
        if disk is not None:
            disk.prepare(out / GATHERER)
        private, public = write_test_key(out / "keys")
        await hot.start()
        (exchange, port), _ = await asyncio.gather(_exchange(out, plan, public), meta.start())
        children.append(exchange)
        health = free_port()
        gatherer = _gatherer(out, plan, port, health, (hot.dsn(), meta.dsn()))
        children.append(gatherer)
        await gatherer.start()
        made = World(
            out, plan, hot, meta, private, exchange, gatherer, {"exchange": port, GATHERER: health}
        )
        made._http = aiohttp.ClientSession()
        made._watch = asyncio.create_task(made._read_health())
        await made.well("everything is recorded at the start")
        yield made
    finally:
        if made is not None and made._watch is not None:
            made._watch.cancel()
            await asyncio.gather(made._watch, return_exceptions=True)
        if made is not None and made._http is not None:
            await made._http.close()
        for child in reversed(children):
            await child.stop(timeout_s=5.0)
        await asyncio.gather(hot.stop(), meta.stop(), return_exceptions=True)
        if disk is not None:
            disk.remove()
        shutil.rmtree(out, ignore_errors=True)
