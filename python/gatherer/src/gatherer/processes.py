"""Several feed processes on one host, as one service: `KT_FEED_PROCESSES` above 1.

Purpose: start N gatherers that share the markets (marketdata.share), each with its own event loop,
spool, schema of the hot database and sink; keep them running; one port for /health and one for
/metrics; one service for systemd.
Invariants:
- A process that dies is started again; one that does not answer for SILENT_S is killed first. Its
  spool has what it took in.
- The service is ready once every process records, and feeds the watchdog only while all answer.
- A feed process that loses this one stops by itself, cleanly.
Trades and tickers are carried by the first process alone; the request budget is divided.
Does not do: capture (each process is a whole gatherer), adding up (together).
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
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

import aiohttp

from gatherer import together
from marketdata.errors import StorageError
from runtime import logs
from runtime.config import GathererSettings
from runtime.health import Health, HealthServer
from runtime.metrics import Metrics
from runtime.supervise import Supervisor

LOOK_S: Final = 1
ANSWER_WITHIN_S: Final = 5
SILENT_S: Final = 60
RESTART_S: Final = 1
STALL_S: Final = 3 * SILENT_S
"""Of the watchdog: longer than it takes to kill and start a process that stands still."""
SCHEMA: Final = "feed{number}"

log = logs.get("processes")


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def dsn_of(dsn: str, number: int) -> str:
    """The hot database of one process: the same database, a schema of its own."""
    parts = urlsplit(dsn)
    own = f"search_path={quote(SCHEMA.format(number=number))}"
    return urlunsplit(parts._replace(query="&".join(filter(None, (parts.query, own)))))


def environment_of(
    environ: Mapping[str, str], settings: GathererSettings, number: int, ports: tuple[int, int]
) -> dict[str, str]:
    """The environment of feed process `number`: everything of ours, and what is its own."""
    kept = {name: value for name, value in environ.items() if name not in _OURS}
    return {
        **kept,
        "KT_FEED_NUMBER": str(number),
        "KT_SPOOL_DIR": str(settings.spool_dir / SCHEMA.format(number=number)),
        "KT_TIMESCALE_DSN": dsn_of(settings.timescale_dsn, number),
        "KT_REST_RATE_PER_S": str(settings.rest_rate_per_s / settings.feed_processes),
        "KT_BIND": "127.0.0.1",
        "KT_HEALTH_PORT": str(ports[0]),
        "KT_METRICS_PORT": str(ports[1]),
    }


_OURS: Final = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})


class FeedProcess:
    """One of them."""

    def __init__(self, settings: GathererSettings, number: int) -> None:
        self._settings = settings
        self.number = number
        self.health_port = self.metrics_port = 0
        self.answer: dict[str, Any] | None = None
        self.restarts = 0
        self.answered_s = time.monotonic()
        self._running: asyncio.subprocess.Process | None = None
        self._stopping = False

    async def run(self) -> None:
        """Keep it running until `stop`."""
        while not self._stopping:
            self.health_port, self.metrics_port = free_port(), free_port()
            ports = self.health_port, self.metrics_port
            self.answered_s = time.monotonic()
            self._running = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "gatherer.main",
                env=environment_of(os.environ, self._settings, self.number, ports),
                stdin=asyncio.subprocess.DEVNULL,
            )
            code = await self._running.wait()
            self.answer = None
            if not self._stopping:
                self.restarts += 1
                log.warning("a feed process ended", number=self.number, code=code)
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
                log.warning("a feed process is ended by force", number=self.number)
                self.signal(signal.SIGKILL)

    async def look(self, http: aiohttp.ClientSession) -> None:
        """Ask for its health; kill it if it has been silent for too long."""
        try:
            async with http.get(f"http://127.0.0.1:{self.health_port}/health") as answered:
                self.answer = json.loads(await answered.text())
                self.answered_s = time.monotonic()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            self.answer = None
            if time.monotonic() - self.answered_s > SILENT_S and not self._stopping:
                log.warning("a feed process is silent and is ended", number=self.number)
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

    def __init__(self, settings: GathererSettings, supervisor: Supervisor) -> None:
        self._settings = settings
        self._supervisor = supervisor
        numbers = range(1, settings.feed_processes + 1)
        self.feeds = [FeedProcess(settings, number) for number in numbers]
        self.health = Health("gatherer", *(f"feed{number}" for number in numbers))
        self.health_port = self.metrics_port = 0
        self._http: aiohttp.ClientSession | None = None

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        """Listen, and have the processes started with the supervisor's parts."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
        self._http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        settings = self._settings
        server = HealthServer(
            self.health,
            Metrics(),
            bind=settings.bind,
            health_port=settings.health_port,
            metrics_port=settings.metrics_port,
            detail=self.numbers,
            status=self.numbers,
            exposition=self.exposition,
        )
        await stack.enter_async_context(server)
        self.health_port, self.metrics_port = server.health_port, server.metrics_port
        log.info("listening", health=server.health_port, metrics=server.metrics_port)
        deadline_s = settings.drain_deadline_s * 2.0
        for feed in self.feeds:
            self._supervisor.add(f"feed {feed.number}", feed.run)
        self._supervisor.add("look", self._look, stop=self._stop, deadline_s=deadline_s)
        self._supervisor.watch("feeds", STALL_S)

    def numbers(self) -> dict[str, Any]:
        """The figures of all together."""
        whole = together.numbers([feed.answer for feed in self.feeds])
        name = self._settings.gatherer_name
        return {"gatherer": name, "restarts": sum(f.restarts for f in self.feeds), **whole}

    async def exposition(self) -> bytes:
        """The metrics of all."""
        assert self._http is not None
        http = self._http
        texts = await asyncio.gather(*(feed.metrics(http) for feed in self.feeds))
        return together.metrics(texts).encode()

    async def _stop(self) -> None:
        deadline_s = self._settings.drain_deadline_s * 1.5
        await asyncio.gather(*(feed.stop(deadline_s) for feed in self.feeds))

    async def _look(self) -> None:
        assert self._http is not None
        ready = False
        while True:
            await asyncio.gather(*(feed.look(self._http) for feed in self.feeds))
            for feed in self.feeds:
                self.health.set(f"feed{feed.number}", *together.state_of(feed.answer))
            if all(feed.answer is not None for feed in self.feeds):
                self._supervisor.progress("feeds")
                if not ready and all(_is_recording(feed.answer) for feed in self.feeds):
                    ready = True
                    self._supervisor.ready("recording")
            await asyncio.sleep(LOOK_S)


def _is_recording(answer: dict[str, Any] | None) -> bool:
    """As a single process decides when it is ready: frames reach the disk."""
    parts = (answer or {}).get("components", {})
    return all(
        parts.get(name, {}).get("state") in ("ok", "degraded") for name in ("exchange", "spool")
    )


async def watch_parent(supervisor: Supervisor) -> None:
    """In a feed process: stop when whoever started it is gone."""
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - the kernel tells by a number only
        await asyncio.sleep(LOOK_S)
    supervisor.request_stop("the process that started this one is gone")


def check(settings: GathererSettings) -> None:
    """Refuse what several processes could not do. Raises StorageError."""
    if settings.feed_number > settings.feed_processes:
        raise StorageError(
            f"KT_FEED_NUMBER {settings.feed_number} of {settings.feed_processes} processes",
            hint="it is set by the process that starts the feed processes; leave it out",
        )
