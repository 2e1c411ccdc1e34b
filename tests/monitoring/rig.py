"""The services as `tape demo` starts them, and the real Prometheus that looks at them.

Three gatherers with two databases each, a deduplicator with production and a lake, the simulated
exchange, one gatherer behind a proxy (proxy.WrongProxy), and Prometheus with the rules of
monitoring/, their time divided by FACTOR. What a service has as a setting is divided by the same
factor as far as one machine carries it; waits that are constants are named in SCALED.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from tape.children import Child
from tape.fleet import KEY_ID, Fleet, free_port, start_databases, stop_everything, write_test_key
from tests import promtool
from tests.monitoring.compressed import compressed
from tests.monitoring.proxy import WrongProxy

ROOT: Final = Path(__file__).resolve().parents[2]
FACTOR: Final = 30
HOUR_S: Final = 3_600 / FACTOR
SCRAPE_MS: Final = 15_000 // FACTOR
PATIENCE_S: Final = 120.0
POLL_S: Final = 0.25
DISK_BYTES: Final = 60 << 30
"""Of a gatherer's spool where a disk may be mounted: a tmpfs, which takes what is written to it."""
SCALED: Final[dict[str, dict[str, float]]] = {
    "gatherer": {
        "gatherer.clock_offset.ROW_S": 60 // FACTOR,
        "gatherer.rest.BACKOFF_CAP_S": 10.0 / FACTOR,
        "gatherer.transport.OPEN_TIMEOUT_S": 1.0,
        "marketdata.capture_state.PROOF_NS": 60_000_000_000 // FACTOR,
    },
    "exchange": {"exchange.conductor.HEARTBEAT_S": 10.0 / FACTOR},
}


@dataclass(slots=True)
class Place:
    """As Fleet wants it."""

    out: Path
    gatherers: int = 3


@dataclass(slots=True)
class Seen:
    """What Prometheus said fires: alert -> moments (monotonic) at which it began to fire."""

    began: dict[str, list[float]] = field(default_factory=dict)
    now: set[str] = field(default_factory=set)

    def look(self, firing: set[str], at_s: float) -> None:
        for name in sorted(firing - self.now):
            self.began.setdefault(name, []).append(at_s)
        self.now = firing

    def between(self, from_s: float, to_s: float) -> set[str]:
        """What began to fire in that time."""
        return {n for n, at in self.began.items() if any(from_s <= s < to_s for s in at)}


@dataclass(slots=True)
class Rig:
    """The running parts."""

    fleet: Fleet[Place]
    rules: dict[str, Any]
    seen: Seen = field(default_factory=Seen)
    proxy: WrongProxy | None = None
    mounted: list[Path] = field(default_factory=list)
    prometheus_port: int = 0
    http: aiohttp.ClientSession | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    server: subprocess.Popen[bytes] | None = None

    @property
    def out(self) -> Path:
        return self.fleet.plan.out

    def child(self, name: str) -> Child:
        return self.fleet.children[name]

    def pid(self, name: str) -> int:
        running = self.child(name)._running
        assert running is not None
        return running.pid

    async def switch(self, **body: Any) -> None:
        """Turn a switch of the exchange."""
        assert self.http is not None
        async with self.http.post(self.fleet.url("exchange", "/sim/switch"), json=body) as answer:
            assert answer.status == 200, await answer.text()

    async def health(self, name: str) -> dict[str, Any]:
        """What a service says; empty where it is silent."""
        assert self.http is not None
        try:
            limit = aiohttp.ClientTimeout(2.0)
            async with self.http.get(self.fleet.url(name, "/health"), timeout=limit) as answer:
                found: dict[str, Any] = await answer.json()
                return found
        except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError):
            return {}

    async def recording(self, patience_s: float = PATIENCE_S) -> None:
        """Until every gatherer records everything and the deduplicator answers."""
        deadline = time.monotonic() + patience_s
        while True:
            told = {n: await self.health(n) for n in self.fleet.gatherer_names}
            is_well = all(t.get("detail", {}).get("complete") for t in told.values())
            if is_well and await self.health("dedup"):
                return
            assert time.monotonic() < deadline, json.dumps(told)[:2_000]
            await asyncio.sleep(POLL_S)

    async def fires(self, *names: str, patience_s: float = PATIENCE_S) -> list[str]:
        """Wait until all of these fire together or each has begun since now; what did not."""
        began_s = time.monotonic()

        def missing() -> list[str]:
            lately = self.seen.between(began_s, float("inf")) | self.seen.now
            return [name for name in names if name not in lately]

        while missing() and time.monotonic() < began_s + patience_s:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        return missing()

    async def value(self, query: str) -> float:
        """The one number that Prometheus answers; 0 where there is none."""
        assert self.http is not None
        url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/query"
        async with self.http.get(url, params={"query": query}) as answer:
            found = (await answer.json())["data"]["result"]
        return float(found[0]["value"][1]) if found else 0.0

    async def start_gatherer(self, name: str) -> None:
        """Start one whose process was stopped, with what it had."""
        old = self.child(name)
        self.fleet.children[name] = Child(
            old.name, old.module, old.environment, old.log, arguments=old.arguments
        )
        await self.child(name).start()

    async def watch(self) -> None:
        """Ask Prometheus what fires, for ever."""
        assert self.http is not None
        url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/alerts"
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self.http.get(url) as answer:
                    told = (await answer.json())["data"]["alerts"]
                firing = {a["labels"]["alertname"] for a in told if a["state"] == "firing"}
                self.seen.look(firing, time.monotonic())
            await asyncio.sleep(POLL_S)


def _launched(out: Path, name: str, kind: str, module: str) -> dict[str, Any]:
    """Module, arguments and environment of a service under tests.monitoring.launched."""
    return {
        "module": "tests.monitoring.launched",
        "arguments": [module],
        "environment": {
            "STEPPED_CLOCK": str(out / f"clock.{name}"),
            "SCALED_TIMES": json.dumps(SCALED[kind]),
        },
    }


async def start_exchange(rig: Rig, public_key: Path) -> None:
    """Sixty markets, the exchange's time is now."""
    out, ready = rig.out, rig.out / "exchange.ready"
    made = _launched(out, "exchange", "exchange", "exchange.main")
    made["environment"]["START_NOW"] = "yes"
    made["arguments"] += [
        "--synthetic", "60", "--events-per-s", "150", "--seconds", "7200", "--rate", "1",
        "--truth", str(out / "truth"), "--public-key", str(public_key), "--port", "0",
        "--ready-file", str(ready), "--clock-tolerance-ms", "60000",
    ]  # fmt: skip
    child = Child(name="exchange", log=out / "logs" / "exchange.log", restart=False, **made)
    rig.fleet.children["exchange"] = child
    await child.start()
    while not ready.exists():
        assert not child.finished, child.log_tail()
        await asyncio.sleep(0.05)
    rig.fleet.ports["exchange"] = int(json.loads(ready.read_text())["port"])


def gatherer_settings(rig: Rig, name: str, private_key: Path) -> dict[str, str]:
    """Of one gatherer; intervals are the defaults over FACTOR, in whole units."""
    fleet, port = rig.fleet, rig.fleet.ports["exchange"]
    through = fleet.ports["proxy"] if name == fleet.gatherer_names[-1] else port
    return {
        "KT_GATHERER_NAME": name,
        "KT_WS_URL": f"ws://127.0.0.1:{through}/trade-api/ws/v2",
        "KT_REST_URL": f"http://127.0.0.1:{port}/trade-api/v2",
        "KT_KEY_ID": KEY_ID,
        "KT_PRIVATE_KEY_FILE": str(private_key),
        "KT_SPOOL_DIR": str(rig.out / name / "spool"),
        "KT_TIMESCALE_DSN": fleet.databases[f"{name}.hot"].dsn(),
        "KT_POSTGRES_DSN": fleet.databases[f"{name}.meta"].dsn(),
        "KT_HEALTH_PORT": str(fleet.ports[name]),
        "KT_METRICS_PORT": str(fleet.ports[f"{name}.metrics"]),
        "KT_TRANSPORT": "picows",
        "KT_RECONNECT_BASE_MS": "20",
        "KT_RECONNECT_CAP_MS": "1000",
        "KT_HEARTBEAT_MS": "200",
        "KT_SINK_FLUSH_MS": "100",
        "KT_AUDIT_INTERVAL_S": "10",
        "KT_REST_AUDIT_INTERVAL_S": "10",
        "KT_DATA_TIMEOUT_S": "1",
        "KT_DISCOVERY_INTERVAL_S": "2",
        "KT_FULL_ROUND_S": "20",
        "KT_TRADE_WINDOW_S": "1",
        "KT_TRADE_SETTLE_S": "1",
        "KT_REST_RATE_PER_S": "60",
        "KT_MARKETS_PER_CONNECTION": "60",
    }


async def start_gatherers(rig: Rig, private_key: Path) -> None:
    """Each with its own clock, its own kernel's word and, where that may be, its own disk."""
    for name in rig.fleet.gatherer_names:
        folder = rig.out / name
        folder.mkdir(exist_ok=True)
        (folder / "disk").mkdir()
        if _mount(folder / "disk"):
            rig.mounted.append(folder / "disk")
        (rig.out / f"kernel.{name}").write_text("yes")
        rig.fleet.ports[name], rig.fleet.ports[f"{name}.metrics"] = free_port(), free_port()
        made = _launched(rig.out, name, "gatherer", "gatherer.main")
        made["environment"] |= {
            **gatherer_settings(rig, name, private_key),
            "KT_SPOOL_DIR": str(folder / "disk" / "spool"),
            "KERNEL_CLOCK": str(rig.out / f"kernel.{name}"),
        }
        child = Child(name=name, log=rig.out / "logs" / f"{name}.log", **made)
        rig.fleet.children[name] = child
        await child.start()


def _mount(folder: Path) -> bool:
    if os.geteuid() != 0:
        return False
    size = f"size={DISK_BYTES},mode=0711"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=False, capture_output=True
    )
    return done.returncode == 0


def dedup_settings(rig: Rig, names: list[str], name: str) -> dict[str, str]:
    """Of a deduplicator over these gatherers; its production and its lake have its name."""
    fleet = rig.fleet
    fleet.ports[name], fleet.ports[f"{name}.metrics"] = free_port(), free_port()
    production = "production" if name == "dedup" else f"production.{name}"
    return {
        "KT_GATHERER_DSNS": json.dumps([fleet.databases[f"{n}.hot"].dsn() for n in names]),
        "KT_GATHERER_META_DSNS": json.dumps([fleet.databases[f"{n}.meta"].dsn() for n in names]),
        "KT_PRODUCTION_DSN": fleet.databases[production].dsn(),
        "KT_LAKE_URI": str(rig.out / f"lake.{name}"),
        "KT_WINDOW_MS": "300",
        "KT_GRACE_MS": "300",
        "KT_IDLE_HOLD_MS": "1000",
        "KT_PATIENCE_S": "2",
        "KT_HEALTH_PORT": str(fleet.ports[name]),
        "KT_METRICS_PORT": str(fleet.ports[f"{name}.metrics"]),
    }


async def start_deduplicator(rig: Rig) -> None:
    """Over the three gatherers."""
    child = Child(
        name="dedup", module="dedup.main", log=rig.out / "logs" / "dedup.log",
        environment=dedup_settings(rig, rig.fleet.gatherer_names, "dedup"),
    )  # fmt: skip
    rig.fleet.children["dedup"] = child
    await child.start()


def told_to_prometheus(rig: Rig, jobs: dict[str, list[str]]) -> None:
    """Which ports it asks; read again within a second."""
    targets = [
        {
            "targets": [f"127.0.0.1:{rig.fleet.ports[f'{n}.metrics']}" for n in names],
            "labels": {"job": job},
        }
        for job, names in jobs.items()
    ]
    beside = rig.out / "targets.new"
    beside.write_text(json.dumps(targets))
    beside.replace(rig.out / "targets.json")


def start_prometheus(rig: Rig) -> None:
    """The server over the compressed rules; its store lies in the run's folder."""
    program = promtool.prometheus()
    assert program is not None
    rig.prometheus_port = free_port()
    (rig.out / "rules.yml").write_text(yaml.safe_dump(rig.rules))
    found = [{"files": [str(rig.out / "targets.json")], "refresh_interval": "1s"}]
    config = {
        "global": {
            "scrape_interval": f"{SCRAPE_MS}ms",
            "scrape_timeout": f"{SCRAPE_MS}ms",
            "evaluation_interval": f"{30_000 // FACTOR}ms",
        },
        "rule_files": [str(rig.out / "rules.yml")],
        "scrape_configs": [{"job_name": "found", "file_sd_configs": found}],
    }
    (rig.out / "prometheus.yml").write_text(yaml.safe_dump(config))
    with (rig.out / "logs" / "prometheus.log").open("ab") as log:
        rig.server = subprocess.Popen(
            [
                program, f"--config.file={rig.out / 'prometheus.yml'}",
                f"--storage.tsdb.path={rig.out / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{rig.prometheus_port}",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip


JOBS: Final = {
    "kalshi-gatherer": ["g1", "g2", "g3"],
    "kalshi-deduplicator": ["dedup"],
}


def with_controls(rules: dict[str, Any]) -> dict[str, Any]:
    """The rules and, for the judge, one that never fires and one that always does."""
    made = compressed(rules, FACTOR)
    controls = [
        {"alert": "ControlDeaf", "expr": "(up == 0) and vector(1) > 2"},
        {"alert": "ControlAlways", "expr": "vector(1)"},
    ]
    made["groups"].append({"name": "controls", "interval": "1s", "rules": controls})
    return made


@contextlib.asynccontextmanager
async def running(rules: dict[str, Any]) -> AsyncIterator[Rig]:
    """Start everything, wait until all is recorded, let Prometheus look; leave nothing behind."""
    out = Path(tempfile.mkdtemp(prefix="kalshi-tape-alerts-"))
    out.chmod(0o711)  # noqa: ASYNC240
    rig = Rig(Fleet(Place(out)), rules)
    async with contextlib.AsyncExitStack() as stack:
        if not os.environ.get("KT_ALERTS_KEEP"):
            stack.callback(shutil.rmtree, out, ignore_errors=True)
        stack.push_async_callback(_stop, rig)
        (out / "logs").mkdir()
        rig.http = await stack.enter_async_context(aiohttp.ClientSession())
        private, public = write_test_key(out / "keys")
        await asyncio.gather(start_databases(rig.fleet), start_exchange(rig, public))
        rig.proxy = WrongProxy(f"ws://127.0.0.1:{rig.fleet.ports['exchange']}")
        rig.fleet.ports["proxy"] = await rig.proxy.start()
        await start_gatherers(rig, private)
        await start_deduplicator(rig)
        await rig.recording()
        told_to_prometheus(rig, JOBS)
        start_prometheus(rig)
        rig.tasks.append(asyncio.create_task(rig.watch()))
        yield rig


async def _stop(rig: Rig) -> None:
    for task in rig.tasks:
        task.cancel()
    await asyncio.gather(*rig.tasks, return_exceptions=True)
    if rig.server is not None:
        rig.server.terminate()
        await asyncio.to_thread(rig.server.wait)
    for child in rig.fleet.children.values():
        if child.alive:  # a frozen one would not hear that it is to end
            os.kill(child._running.pid, signal.SIGCONT)  # type: ignore[union-attr]
    await stop_everything(rig.fleet)
    if rig.proxy is not None:
        await rig.proxy.stop()
    for folder in rig.mounted:
        await asyncio.to_thread(subprocess.run, ["umount", "-l", str(folder)], check=True)
