"""An event loop in a thread of its own, for work that must not wait behind a busy one.

Purpose: while frames flood in, a turn of the main loop takes tens of milliseconds, and a
transaction needs a dozen turns. In its own loop it needs a dozen switches of the interpreter lock.
Not measured apart from the transport's slices, which came with it.
Invariants:
- What runs there shares nothing with the main loop but what it is given and what it returns.
- A cancelled `run` cancels what it waits for.
Does not do: more than one thread, work that needs the processor (the lock is shared).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


class LoopThread:
    """One event loop in one daemon thread, from `start` to `stop`."""

    def __init__(self, name: str) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)

    def start(self) -> None:
        """Begin; once."""
        self._thread.start()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns or raises, run over there."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def call(self, work: Callable[[], object]) -> None:
        """Have `work` called over there soon."""
        self._loop.call_soon_threadsafe(work)

    async def stop(self) -> None:
        """Cancel what is under way and end the thread."""
        with contextlib.suppress(asyncio.CancelledError):
            await self.run(_cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()


async def _cancel_all() -> None:
    """Cancel every other task of this loop and wait for their ends."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
