"""Several mergers of one tape on one host, as one service: `KT_MERGE_SHARDS` above 1.

Purpose: start N deduplicators that share the markets (shards), keep them running, one port for
/health, /status and /metrics; one service for systemd. On several hosts each process is a service
of its own instead, with its `KT_MERGE_SHARD`.
Invariants:
- A process that dies or is silent is started again (runtime.children). What it had published is in
  production, and nothing else counts.
- One that ends by itself with 0 has finished the tape (KT_FINAL); the service ends when all have.
  Wrong settings (2) end the service: a restart changes nothing.
- The service is ready once every process merges, and feeds the watchdog only while all answer.
Does not do: merging, waiting for each other (shards).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import aiohttp

from dedup.page.serving import Page
from marketdata.errors import ConfigError
from runtime.children import (
    ANSWER_WITHIN_S,
    LOOK_S,
    STALL_S,
    Answer,
    Child,
    inherited,
    state_of,
)
from runtime.config import DedupSettings
from runtime.expositions import joined
from runtime.health import Health, HealthServer
from runtime.metrics import Metrics
from runtime.supervise import Supervisor

STOP_S: Final = 60.0
WRONG_SETTINGS: Final = 2
SUMMED: Final = (
    "rows_in", "rows_merged", "duplicates", "quarantined", "skipped", "late", "ambiguous",
    "disputed", "gaps", "audits", "audits_failed", "trades", "tickers", "markets",
    "rows_merged_per_s",
)  # fmt: skip


def environment_of(
    environ: Mapping[str, str], number: int, parent: int, ports: tuple[int, int]
) -> dict[str, str]:
    """The environment of merger `number`: everything of ours, and what is its own."""
    return {
        **inherited(environ, ports),
        "KT_MERGE_SHARD": str(number),
        "KT_MERGE_PARENT": str(parent),
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


class Merger(Child):
    """One of them."""

    kind, module = "merger", "dedup.main"

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status: Answer = None

    def environment(self, ports: tuple[int, int]) -> dict[str, str]:
        """What it is started with."""
        return environment_of(os.environ, self.number, os.getpid(), ports)

    def is_over(self, code: int) -> bool:
        """Whether it has finished the tape.

        Raises:
            ConfigError: its settings are wrong; it has said how.
        """
        if code == WRONG_SETTINGS:
            raise ConfigError(f"merger {self.number} refuses its settings")
        return code == 0

    async def ask(self, http: aiohttp.ClientSession) -> None:
        """Take what it says now."""
        await super().ask(http)
        self.status = await self.said(http, "status")


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
        page = Page.of(self._settings, self.health, self.status)
        server = HealthServer(
            self.health,
            Metrics(),
            bind=self._settings.bind,
            health_port=self._settings.health_port,
            metrics_port=self._settings.metrics_port,
            status=self.status,
            exposition=self.exposition,
            routes=page.routes(),
        )
        await stack.enter_async_context(server)
        stack.push_async_callback(page.close)
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
                self.health.set(f"merger{merger.number}", *state_of(merger.answer))
            if all(merger.answer is not None for merger in running):
                self._supervisor.progress("mergers")
                if not ready and all(_is_merging(merger.answer) for merger in running):
                    ready = True
                    self._supervisor.ready("merging")
            await asyncio.sleep(LOOK_S)


def _is_merging(answer: Answer) -> bool:
    """As a single process decides when it is ready: production was reached."""
    parts = (answer or {}).get("components", {})
    return bool(parts.get("production", {}).get("state") == "ok")
