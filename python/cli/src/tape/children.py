"""Child processes of the demo: started, watched, killed on purpose, and never left behind.

A child dies with the demo (PR_SET_PDEATHSIG), restarts when it dies unexpectedly (a kill -9 is
what systemd would answer with Restart=always) and writes its log beside the other output.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from marketdata.errors import StorageError

RESTART_DELAY_S = 0.3  # as RestartSec of the units, shortened
STOP_TIMEOUT_S = 90.0  # a clean stop drains the spool into the database first
CRASHES_MAX = 5  # deaths in a row that nobody ordered: a fault to be told, not to be hidden
LIVED_S = 10.0  # a life longer than this ends the row
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """In the child before exec: be killed when the demo dies, however it dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.setsid()


@dataclass(slots=True)
class Child:
    """One service process. `restarts` counts deaths that were answered with a new start."""

    name: str
    module: str
    environment: dict[str, str]
    log: Path
    arguments: list[str] = field(default_factory=list)
    restart: bool = True
    restarts: int = 0
    wanted: bool = True
    exit_code: int | None = None
    crashes: int = 0  # in a row, not ordered by kill()
    _ordered: bool = False
    _running: asyncio.subprocess.Process | None = None
    _watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process and watch over it."""
        self._watch = asyncio.create_task(self._keep_running(), name=f"watch {self.name}")
        await asyncio.sleep(0)

    async def _spawn(self) -> asyncio.subprocess.Process:
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self.module,
                *self.arguments,
                # What a person has set for something else is no setting of this child.
                env={
                    **{n: v for n, v in os.environ.items() if not n.startswith("KT_")},
                    **self.environment,
                },
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
            )

    async def _keep_running(self) -> None:
        while True:
            begun = time.monotonic()
            self._running = await self._spawn()
            self.exit_code = await self._running.wait()
            if self._ordered or time.monotonic() - begun > LIVED_S:
                self.crashes = 0
            self.crashes += not self._ordered
            self._ordered = False
            if not self.wanted or not self.restart or self.exit_code in (0, 2):
                return  # 0: done; 2: settings are wrong, a restart would not help
            self.restarts += 1
            if self.crashes > CRASHES_MAX:
                return
            await asyncio.sleep(RESTART_DELAY_S)

    @property
    def alive(self) -> bool:
        """True while a process of this child runs."""
        return self._running is not None and self._running.returncode is None

    @property
    def finished(self) -> bool:
        """True when it ended and will not be started again."""
        return self._watch is not None and self._watch.done()

    def kill(self) -> bool:
        """kill -9 at this instant; the watcher starts it again. False if it was not running."""
        if self._running is None or self._running.returncode is not None:
            return False
        self._ordered = True
        self._running.kill()
        return True

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int | None:
        """SIGTERM, wait for the clean end, kill after the deadline. Returns the exit code."""
        self.wanted = False
        if self._running is not None and self._running.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._running.terminate()
        if self._watch is not None:
            try:
                await asyncio.wait_for(asyncio.shield(self._watch), timeout_s)
            except TimeoutError:
                self.kill()
                await self._watch
        return self.exit_code

    async def wait(self, timeout_s: float) -> int | None:
        """Wait until it has ended by itself. Raises StorageError at the deadline."""
        if self._watch is None:
            return None
        try:
            await asyncio.wait_for(asyncio.shield(self._watch), timeout_s)
        except TimeoutError:
            raise StorageError(
                f"{self.name} did not finish in {timeout_s:.0f} s", hint=f"see {self.log}"
            ) from None
        return self.exit_code

    def log_tail(self, lines: int = 6) -> str:
        """The last lines of its log, for an error message."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
