"""A service's life: parts started in order, stopped in reverse, signals, systemd.

What holds:
- SIGTERM and SIGINT ask for a clean stop; the exit code is then 0.
- A part that raises stops the service with exit code 1; what it raised is logged and kept in
  `verdict`. This is the one place with a broad except.
- A part that returns stops the service too (that is how a service ends by itself, exit code 0).
- Parts stop in reverse order, each with its own deadline: first `stop()`, then cancellation.
- The systemd watchdog is fed only while every watched part has made progress lately.

Does not do: restart anything (systemd does), decide what progress is (the part calls `progress`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from runtime.logs import get

STOP_DEADLINE_S: Final = 10.0
CANCEL_DEADLINE_S: Final = 5.0
WATCHDOG_SHARE: Final = 3  # feed at a third of the interval that systemd asks for

log = get("supervise")


class Notifier:
    """sd_notify: one datagram to NOTIFY_SOCKET ("@": an abstract socket); silent without it."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        variables = os.environ if environ is None else environ
        address = variables.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s: float | None = None
        interval_us = variables.get("WATCHDOG_USEC", "")
        owner = variables.get("WATCHDOG_PID", "")
        if interval_us.isdigit() and int(interval_us) > 0 and owner in ("", str(os.getpid())):
            self.watchdog_s = int(interval_us) / 1e6

    def send(self, *lines: str) -> bool:
        """Tell systemd; False when nobody listens. Never raises: telling must not stop the work."""
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.sendto("\n".join(lines).encode("utf-8"), self._address)
        except OSError:
            return False
        return True


Run = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class _Part:
    name: str
    run: Run
    stop: Run | None
    deadline_s: float
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Watched:
    age_max_s: float
    at_s: float = field(default=0.0)


class Supervisor:
    """Runs the parts of one service. Add parts, then `await run()` for the exit code."""

    def __init__(
        self,
        service: str,
        *,
        notifier: Notifier | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self.service = service
        self.verdict: BaseException | None = None
        self.reason = ""
        self.stopping = asyncio.Event()
        self._notifier = notifier or Notifier()
        self._parts: list[_Part] = []
        self._watched: dict[str, _Watched] = {}
        self._exit_code = 0

    def add(
        self,
        name: str,
        run: Run,
        *,
        stop: Run | None = None,
        deadline_s: float = STOP_DEADLINE_S,
    ) -> None:
        """A part: `run` works until stopped; `stop` asks it to end well and may await that."""
        self._parts.append(_Part(name, run, stop, deadline_s))

    def watch(self, name: str, age_max_s: float) -> None:
        """The watchdog is fed only while `progress(name)` was called within `age_max_s`."""
        self._watched[name] = _Watched(age_max_s, self._monotonic())

    def progress(self, name: str) -> None:
        """Real work was done: rows committed, frames taken, a window closed, or nothing was due."""
        self._watched[name].at_s = self._monotonic()

    def stalled(self) -> list[str]:
        """Watched parts without recent progress."""
        now = self._monotonic()
        return [n for n, w in self._watched.items() if now - w.at_s > w.age_max_s]

    def ready(self, status: str = "") -> None:
        """Tell systemd that the service works now."""
        self._notifier.send("READY=1", *([f"STATUS={status}"] if status else []))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._notifier.send(f"STATUS={text}")

    def request_stop(self, reason: str, exit_code: int = 0) -> None:
        """Begin the stop; the first reason counts, the worst exit code wins."""
        if not self.stopping.is_set():
            self.reason = reason
            log.info("stopping", reason=reason)
        self._exit_code = max(self._exit_code, exit_code)
        self.stopping.set()

    async def run(self) -> int:
        """Start the parts, wait for a reason to stop, stop them; the exit code."""
        loop = asyncio.get_running_loop()
        caught = (signal.SIGTERM, signal.SIGINT)
        for number in caught:
            loop.add_signal_handler(number, self.request_stop, signal.Signals(number).name)
        watchdog = asyncio.create_task(self._feed_watchdog(), name="watchdog")
        try:
            for part in self._parts:
                part.task = asyncio.create_task(self._guard(part), name=part.name)
            await self.stopping.wait()
        finally:
            self._notifier.send("STOPPING=1")
            try:
                for part in reversed(self._parts):
                    await self._end(part)
            finally:
                watchdog.cancel()
                await asyncio.wait([watchdog])
                for number in caught:
                    loop.remove_signal_handler(number)
        return self._exit_code

    async def _guard(self, part: _Part) -> None:
        """The supervisor boundary: whatever a part raises becomes the service's verdict."""
        try:
            await part.run()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.verdict = self.verdict or error
            log.exception("part failed", name=part.name)
            self.request_stop(f"{part.name} failed: {type(error).__name__}: {error}", 1)
            if not isinstance(error, Exception):
                raise
        else:
            self.request_stop(f"{part.name} ended")

    async def _end(self, part: _Part) -> None:
        task = part.task
        if task is None:
            return
        if part.stop is not None and not task.done():
            try:
                async with asyncio.timeout(part.deadline_s):
                    await part.stop()
                    await asyncio.wait([task])
            except TimeoutError:
                log.warning("part did not stop in time", name=part.name, deadline_s=part.deadline_s)
            except Exception as error:
                self.verdict = self.verdict or error
                self._exit_code = 1
                log.exception("stop failed", name=part.name)
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=CANCEL_DEADLINE_S)
        with contextlib.suppress(asyncio.CancelledError):
            if task.done():
                task.exception()

    async def _feed_watchdog(self) -> None:
        interval_s = self._notifier.watchdog_s
        if interval_s is None:
            return
        while True:
            late = self.stalled()
            if late:
                self._notifier.send(f"STATUS=no progress: {', '.join(late)}")
            else:
                self._notifier.send("WATCHDOG=1")
            await asyncio.sleep(interval_s / WATCHDOG_SHARE)
