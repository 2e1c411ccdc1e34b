"""Reading, deciding and publishing side by side, each in its own order.

Purpose: a backlog is worked off at the pace of the slowest of the three, not of their sum. While a
publication is on its way into production, the arbiter decides the windows after it; while it
decides, the readers wait for their databases.

What holds:
- The arbiter hears one call at a time: `absorb`, `nothing_new` and `step` never overlap.
- At most one publication is on its way, and the next is made only when it is in production: market
  ids and the fence of `merge_state` see the windows in their order.
- A publication that fails is heard of before anything after it is published, and nothing is.
- Windows of one publication never lie on both sides of a moment of export, and the export of that
  moment begins only when everything before it is in production.

Does not do: deciding (arbitrate), SQL (publish, pull), what to do about failures (pipeline).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

from dedup.arbitrate import Arbiter
from dedup.output import WindowOutput
from dedup.readers import GathererReader, may_read
from marketdata.rows import GathererBatch

PUBLISH_ROWS: Final = 50_000
PUBLISH_WINDOWS: Final = 200
TAKE_WAIT_S: Final = 1.0

Publish: TypeAlias = Callable[[list[WindowOutput]], Awaitable[None]]
Reads: TypeAlias = dict[asyncio.Task[GathererBatch | None], GathererReader]


class Publishing:
    """Publications one after the other, beside whatever the caller does meanwhile."""

    __slots__ = ("_publish", "_task")

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._task: asyncio.Future[None] | None = None

    async def begin(self, outputs: list[WindowOutput]) -> None:
        """Publish these; returns once the publication before them is in production.

        Raises whatever that one raised; these are then not published.
        """
        await self.settled()
        self._task = asyncio.ensure_future(self._publish(outputs))

    async def settled(self) -> None:
        """Returns when nothing is on its way; raises what the last publication raised."""
        task, self._task = self._task, None
        if task is not None:
            await task

    async def abandon(self) -> None:
        """After a failure elsewhere: end what is on its way, whatever becomes of it.

        It is in production whole or not at all; who goes on asks production.
        """
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def close_windows(
    arbiter: Arbiter,
    publish: Publish,
    *,
    final: bool,
    closed_to_us: int = 0,
    due: Callable[[int, int], bool] = lambda _closed, _to: False,
    export: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Publish every window that may close.

    `due(before, after)`: whether a moment of export lies between two ends of closed windows.
    """
    publishing = Publishing(publish)
    outputs: list[WindowOutput] = []
    rows = 0
    try:
        while True:
            output = await asyncio.to_thread(arbiter.step, final=final)
            if output is not None:
                outputs.append(output)
                rows += len(output.deltas) + len(output.trades) + len(output.ticker_rows)
            full = rows >= PUBLISH_ROWS or len(outputs) >= PUBLISH_WINDOWS
            passed = output is not None and due(closed_to_us, output.to_us)
            if outputs and (output is None or full or passed):
                await publishing.begin(outputs)
                outputs, rows = [], 0
            if passed and export is not None:
                await publishing.settled()
                await export()
            if output is None:
                break
            closed_to_us = output.to_us
        await publishing.settled()
    finally:
        await publishing.abandon()


async def take(
    arbiter: Arbiter,
    readers: Sequence[GathererReader],
    tasks: Reads,
    patience_s: float,
    absorbed: Callable[[GathererReader, GathererBatch], None],
    stopping: asyncio.Event | None = None,
) -> None:
    """Wait for at least one reader, give the arbiter everything that has arrived.

    `tasks`: the reads on their way, kept by the caller from call to call.
    """
    busy = {reader.index for reader in tasks.values()}
    for reader in readers:
        if reader.index not in busy and may_read(reader, readers, patience_s):
            tasks[asyncio.create_task(reader.read())] = reader
    stop: set[asyncio.Task[Any]] = set()
    if stopping is not None:
        stop.add(asyncio.create_task(stopping.wait()))
    try:
        await asyncio.wait(
            [*tasks, *stop], return_when=asyncio.FIRST_COMPLETED, timeout=TAKE_WAIT_S
        )
    finally:
        for task in stop:
            task.cancel()
    done = [task for task in tasks if task.done()]
    for task in sorted(done, key=lambda t: tasks[t].index):
        reader = tasks.pop(task)
        batch = task.result()
        if batch is not None:
            if may_read(reader, readers, patience_s):  # its next answer comes while this is taken
                tasks[asyncio.create_task(reader.read())] = reader
            await asyncio.to_thread(arbiter.absorb, batch)
            absorbed(reader, batch)
    for reader in readers:
        if reader.exhausted or reader.silent_s() >= patience_s:
            arbiter.nothing_new(reader.index)
