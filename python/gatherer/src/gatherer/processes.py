"""Several feed processes on one host, as one service: `KT_FEED_PROCESSES` above 1.

Purpose: start N gatherers that share the markets (marketdata.share), each with its own event loop,
spool, schema of the hot database and sink; keep them running; one port for /health and one for
/metrics; one service for systemd.
Invariants:
- A process that dies or is silent is started again (runtime.children). Its spool has what it took
  in.
- The service is ready once every process records, and feeds the watchdog only while all answer.
Trades and tickers are carried by the first process alone; the request budget is divided.
Does not do: capture (each process is a whole gatherer), adding up (together).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

import aiohttp

from gatherer import together
from marketdata.errors import StorageError
from runtime import logs
from runtime.children import (
    ANSWER_WITHIN_S,
    LOOK_S,
    STALL_S,
    Answer,
    Child,
    inherited,
    state_of,
)
from runtime.config import GathererSettings
from runtime.expositions import joined
from runtime.health import Health, HealthServer
from runtime.metrics import Metrics
from runtime.supervise import Supervisor

SCHEMA: Final = "feed{number}"

log = logs.get("processes")


def dsn_of(dsn: str, number: int) -> str:
    """The hot database of one process: the same database, a schema of its own."""
    parts = urlsplit(dsn)
    own = f"search_path={quote(SCHEMA.format(number=number))}"
    return urlunsplit(parts._replace(query="&".join(filter(None, (parts.query, own)))))


def environment_of(
    environ: Mapping[str, str], settings: GathererSettings, number: int, ports: tuple[int, int]
) -> dict[str, str]:
    """The environment of feed process `number`: everything of ours, and what is its own."""
    return {
        **inherited(environ, ports),
        "KT_FEED_NUMBER": str(number),
        "KT_SPOOL_DIR": str(settings.spool_dir / SCHEMA.format(number=number)),
        "KT_TIMESCALE_DSN": dsn_of(settings.timescale_dsn, number),
        "KT_REST_RATE_PER_S": str(settings.rest_rate_per_s / settings.feed_processes),
    }


class FeedProcess(Child):
    """One of them."""

    kind, module = "feed process", "gatherer.main"

    def __init__(self, settings: GathererSettings, number: int) -> None:
        super().__init__(number)
        self._settings = settings

    def environment(self, ports: tuple[int, int]) -> dict[str, str]:
        """What it is started with."""
        return environment_of(os.environ, self._settings, self.number, ports)


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
        return joined(texts).encode()

    async def _stop(self) -> None:
        deadline_s = self._settings.drain_deadline_s * 1.5
        await asyncio.gather(*(feed.stop(deadline_s) for feed in self.feeds))

    async def _look(self) -> None:
        assert self._http is not None
        ready = False
        while True:
            await asyncio.gather(*(feed.look(self._http) for feed in self.feeds))
            for feed in self.feeds:
                self.health.set(f"feed{feed.number}", *state_of(feed.answer))
            if all(feed.answer is not None for feed in self.feeds):
                self._supervisor.progress("feeds")
                if not ready and all(_is_recording(feed.answer) for feed in self.feeds):
                    ready = True
                    self._supervisor.ready("recording")
            await asyncio.sleep(LOOK_S)


def _is_recording(answer: Answer) -> bool:
    """As a single process decides when it is ready: frames reach the disk."""
    parts = (answer or {}).get("components", {})
    return all(
        parts.get(name, {}).get("state") in ("ok", "degraded") for name in ("exchange", "spool")
    )


def check(settings: GathererSettings) -> None:
    """Refuse what several processes could not do. Raises StorageError."""
    if settings.feed_number > settings.feed_processes:
        raise StorageError(
            f"KT_FEED_NUMBER {settings.feed_number} of {settings.feed_processes} processes",
            hint="it is set by the process that starts the feed processes; leave it out",
        )
