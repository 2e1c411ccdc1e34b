"""Several processes of one service: started, kept running, asked, stopped. Shared by the services
that can be several (gatherer.processes, dedup.processes).

Purpose: one child process with the ports it was given; what it says on them; its end.
Invariants:
- A child that dies is started again after RESTART_S; one that does not answer for SILENT_S is
  killed first.
- A child that loses its parent stops by itself, cleanly (`watch_parent`).
Does not do: adding up what children say, their settings (the services), deciding readiness.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, Final, cast

import aiohttp

from runtime import logs
from runtime.cluster_home import free_port
from runtime.health import STATES, State
from runtime.supervise import Supervisor

LOOK_S: Final = 1
ANSWER_WITHIN_S: Final = 5
SILENT_S: Final = 60
RESTART_S: Final = 1
STALL_S: Final = 3 * SILENT_S
"""Of the watchdog: longer than it takes to kill and start a process that stands still."""
_OURS: Final = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})

Answer = Mapping[str, Any] | None
"""The JSON of a process' /health or /status; None: it did not answer."""

log = logs.get("processes")


def inherited(environ: Mapping[str, str], ports: tuple[int, int]) -> dict[str, str]:
    """The environment of any child: everything but the service manager's, and its own ports."""
    return {
        **{name: value for name, value in environ.items() if name not in _OURS},
        "KT_BIND": "127.0.0.1",
        "KT_HEALTH_PORT": str(ports[0]),
        "KT_METRICS_PORT": str(ports[1]),
    }


def state_of(answer: Answer) -> tuple[State, str]:
    """State and reason of one process by its /health."""
    if answer is None:
        return "failing", "does not answer"
    state = answer.get("state")
    reasons = "; ".join(str(reason) for reason in answer.get("reasons", ()))
    if state not in STATES:
        return "failing", f"says the state {state!r}"
    return cast(State, state), reasons


class Child:
    """One process, `python -m MODULE`. `kind`: what it is called in the log."""

    kind = "process"
    module = ""

    def __init__(self, number: int) -> None:
        self.number = number
        self.health_port = self.metrics_port = 0
        self.answer: Answer = None  # by its /health
        self.restarts = 0
        self.finished = False  # it ended and is not started again
        self.answered_s = time.monotonic()
        self._running: asyncio.subprocess.Process | None = None
        self._stopping = False

    def environment(self, ports: tuple[int, int]) -> dict[str, str]:
        """What it is started with."""
        return inherited(os.environ, ports)

    def is_over(self, code: int) -> bool:  # noqa: ARG002 (for those whose end may be meant)
        """Whether this end, which nobody asked for, is its last."""
        return False

    async def run(self) -> None:
        """Keep it running until `stop`, or until it is over."""
        while not self._stopping:
            self.health_port, self.metrics_port = free_port(), free_port()
            self.answered_s = time.monotonic()
            self._running = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self.module,
                env=self.environment((self.health_port, self.metrics_port)),
                stdin=asyncio.subprocess.DEVNULL,
            )
            code = await self._running.wait()
            self.answer = None
            self.finished = self.is_over(code) and not self._stopping
            if self.finished:
                return
            if not self._stopping:
                self.restarts += 1
                log.warning("a process ended", kind=self.kind, number=self.number, code=code)
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
                log.warning("a process is ended by force", kind=self.kind, number=self.number)
                self.signal(signal.SIGKILL)

    async def ask(self, http: aiohttp.ClientSession) -> None:
        """Take what it says now."""
        self.answer = await self.said(http, "health")

    async def said(self, http: aiohttp.ClientSession, page: str) -> Answer:
        """One page of its health port."""
        async with http.get(f"http://127.0.0.1:{self.health_port}/{page}") as answered:
            return cast(Answer, json.loads(await answered.text()))

    async def look(self, http: aiohttp.ClientSession) -> None:
        """Ask how it stands; kill it if it has been silent for too long."""
        try:
            await self.ask(http)
            self.answered_s = time.monotonic()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            self.answer = None
            silent_s = time.monotonic() - self.answered_s
            if silent_s > SILENT_S and not self._stopping and not self.finished:
                log.warning("a silent process is ended", kind=self.kind, number=self.number)
                self.answered_s = time.monotonic()
                self.signal(signal.SIGKILL)

    async def metrics(self, http: aiohttp.ClientSession) -> str:
        """Its exposition; empty while it does not answer."""
        try:
            async with http.get(f"http://127.0.0.1:{self.metrics_port}/metrics") as answered:
                return await answered.text()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return ""


async def watch_parent(supervisor: Supervisor, parent: int | None = None) -> None:
    """In a child: stop when whoever started it is gone. Without `parent` it is who it has now."""
    began_with = os.getppid() if parent is None else parent
    while os.getppid() == began_with:  # noqa: ASYNC110 - the kernel tells by a number only
        await asyncio.sleep(LOOK_S)
    supervisor.request_stop("the process that started this one is gone")
