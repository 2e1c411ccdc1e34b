"""Several mergers of one tape on one host, as one service: `KT_MERGE_SHARDS` above 1.

Purpose: start N deduplicators that share the markets (shards), keep them running, one port for
/health, /status and /metrics; one service for systemd. On several hosts each process is a service
of its own instead, with its `KT_MERGE_SHARD`.
Invariants:
- A process that dies is started again; one that does not answer for SILENT_S is killed first. What
  it had published is in production, and nothing else counts.
- One that ends by itself with 0 has finished the tape (KT_FINAL); the service ends when all have.
  Wrong settings (2) end the service: a restart changes nothing.
- The service is ready once every process merges, and feeds the watchdog only while all answer.
- A process that loses this one stops by itself, cleanly.
Does not do: merging, waiting for each other (shards).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import aiohttp

from marketdata.errors import ConfigError
from runtime import logs
from runtime.config import DedupSettings
from runtime.expositions import joined
from runtime.health import STATES, Health, HealthServer, State
from runtime.metrics import Metrics
from runtime.supervise import Supervisor

LOOK_S: Final = 1
ANSWER_WITHIN_S: Final = 5
SILENT_S: Final = 60
RESTART_S: Final = 1
STALL_S: Final = 3 * SILENT_S
STOP_S: Final = 60.0
WRONG_SETTINGS: Final = 2
SUMMED: Final = (
    "rows_in", "rows_merged", "duplicates", "quarantined", "skipped", "late", "ambiguous",
    "disputed", "gaps", "audits", "audits_failed", "trades", "tickers", "markets",
    "rows_merged_per_s",
)  # fmt: skip
_OURS: Final = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})

Answer = Mapping[str, Any] | None

log = logs.get("processes")


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def environment_of(
    environ: Mapping[str, str], number: int, parent: int, ports: tuple[int, int]
) -> dict[str, str]:
    """The environment of merger `number`: everything of ours, and what is its own."""
    return {
        **{name: value for name, value in environ.items() if name not in _OURS},
        "KT_MERGE_SHARD": str(number),
        "KT_MERGE_PARENT": str(parent),
        "KT_BIND": "127.0.0.1",
        "KT_HEALTH_PORT": str(ports[0]),
        "KT_METRICS_PORT": str(ports[1]),
    }


def together(answers: Sequence[Answer]) -> dict[str, Any]:
    """What the mergers say in /status as one body: that of the first, which exports, with the
    counts of all markets; `mergers` has each one's progress. One that is silent counts as None."""
    told = [answer or {} for answer in answers]
    mergers = [
        None
        if answer is None
        else {
            name: answer.get(name)
            for name in ("windows", "closed_to", "rows_merged", "rows_merged_per_s", "waiting_for")
        }
        for answer in answers
    ]
    summed = {name: sum(int(t.get(name) or 0) for t in told) for name in SUMMED}
    finished = bool(told) and all(t.get("finished") is True for t in told)
    return {**told[0], **summed, "mergers": mergers, "finished": finished}


def state_of(answer: Answer) -> tuple[State, str]:
    """State and reason of one merger by its /health."""
    if answer is None:
        return "failing", "does not answer"
    reasons = "; ".join(str(reason) for reason in answer.get("reasons", ()))
    for state in STATES:
        if state == answer.get("state"):
            return state, reasons
    return "failing", f"says the state {answer.get('state')!r}"


class Merger:
    """One of them."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.health_port = self.metrics_port = 0
        self.health: Answer = None
        self.status: Answer = None
        self.restarts = 0
        self.finished = False
        self.answered_s = time.monotonic()
        self._running: asyncio.subprocess.Process | None = None
        self._stopping = False

    async def run(self) -> None:
        """Keep it running until `stop`, or until it has finished the tape.

        Raises:
            ConfigError: its settings are wrong; it has said how.
        """
        while not self._stopping:
            self.health_port, self.metrics_port = free_port(), free_port()
            ports = self.health_port, self.metrics_port
            self.answered_s = time.monotonic()
            self._running = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "dedup.main",
                env=environment_of(os.environ, self.number, os.getpid(), ports),
                stdin=asyncio.subprocess.DEVNULL,
            )
            code = await self._running.wait()
            self.health = None
            if code == WRONG_SETTINGS:
                raise ConfigError(f"merger {self.number} refuses its settings")
            if code == 0 and not self._stopping:
                self.finished = True
                return
            if not self._stopping:
                self.restarts += 1
                log.warning("a merger ended", number=self.number, code=code)
                await asyncio.sleep(RESTART_S)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self._running is not None and self._running.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._running.send_signal(number)

    async def stop(self, deadline_s: float) -> None:
        """A clean stop, and an end by force after the deadline."""
        self._stopping = True
        self.signal(signal.SIGTERM)
        if self._running is not None:
            try:
                async with asyncio.timeout(deadline_s):
                    await self._running.wait()
            except TimeoutError:
                log.warning("a merger is ended by force", number=self.number)
                self.signal(signal.SIGKILL)

    async def look(self, http: aiohttp.ClientSession) -> None:
        """Ask how it stands; kill it if it has been silent for too long."""
        at = f"http://127.0.0.1:{self.health_port}"
        try:
            async with http.get(f"{at}/health") as answered:
                self.health = json.loads(await answered.text())
            async with http.get(f"{at}/status") as answered:
                self.status = json.loads(await answered.text())
            self.answered_s = time.monotonic()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            self.health = None
            silent_s = time.monotonic() - self.answered_s
            if silent_s > SILENT_S and not self._stopping and not self.finished:
                log.warning("a merger is silent and is ended", number=self.number)
                self.answered_s = time.monotonic()
                self.signal(signal.SIGKILL)

    async def metrics(self, http: aiohttp.ClientSession) -> str:
        """Its exposition; empty while it does not answer."""
        try:
            async with http.get(f"http://127.0.0.1:{self.metrics_port}/metrics") as answered:
                return await answered.text()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return ""


class Processes:
    """See the module's text."""

    def __init__(self, settings: DedupSettings, supervisor: Supervisor) -> None:
        self._settings = settings
        self._supervisor = supervisor
        numbers = range(1, settings.merge_shards + 1)
        self.mergers = [Merger(number) for number in numbers]
        self.health = Health("deduplicator", *(f"merger{number}" for number in numbers))
        self.health_port = 0
        self._http: aiohttp.ClientSession | None = None

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        """Listen, and have the processes started with the supervisor's parts."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
        self._http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        server = HealthServer(
            self.health,
            Metrics(),
            bind=self._settings.bind,
            health_port=self._settings.health_port,
            metrics_port=self._settings.metrics_port,
            status=self.status,
            exposition=self.exposition,
        )
        await stack.enter_async_context(server)
        self.health_port = server.health_port
        self._supervisor.add("mergers", self._run, stop=self._stop, deadline_s=STOP_S * 1.5)
        self._supervisor.add("look", self._look)
        self._supervisor.watch("mergers", STALL_S)

    def status(self) -> dict[str, Any]:
        """The body of /status."""
        restarts = sum(merger.restarts for merger in self.mergers)
        return {**together([m.status for m in self.mergers]), "restarts": restarts}

    async def exposition(self) -> bytes:
        """The metrics of all."""
        assert self._http is not None
        http = self._http
        return joined(await asyncio.gather(*(m.metrics(http) for m in self.mergers))).encode()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for merger in self.mergers:
                group.create_task(merger.run())

    async def _stop(self) -> None:
        await asyncio.gather(*(merger.stop(STOP_S) for merger in self.mergers))

    async def _look(self) -> None:
        assert self._http is not None
        ready = False
        while True:
            running = [merger for merger in self.mergers if not merger.finished]
            await asyncio.gather(*(merger.look(self._http) for merger in running))
            for merger in running:
                self.health.set(f"merger{merger.number}", *state_of(merger.health))
            if all(merger.health is not None for merger in running):
                self._supervisor.progress("mergers")
                if not ready and all(_is_merging(merger.health) for merger in running):
                    ready = True
                    self._supervisor.ready("merging")
            await asyncio.sleep(LOOK_S)


def _is_merging(answer: Answer) -> bool:
    """As a single process decides when it is ready: production was reached."""
    parts = (answer or {}).get("components", {})
    return bool(parts.get("production", {}).get("state") == "ok")


async def watch_parent(supervisor: Supervisor, parent: int) -> None:
    """In a merger: stop when whoever started it is gone."""
    while os.getppid() == parent:  # noqa: ASYNC110 - the kernel tells by a number only
        await asyncio.sleep(LOOK_S)
    supervisor.request_stop("the process that started this one is gone")
