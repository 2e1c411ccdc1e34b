"""Reading, deciding and publishing side by side, each in its own order.

Purpose: a backlog is worked off at the pace of the slowest of the three, not of their sum. While a
publication is on its way into production, the arbiter decides the windows after it; while it
decides, the readers wait for their databases.

What holds:
- The arbiter hears one call at a time: what it is told and `step` never overlap.
- At most one publication is on its way, and the next is sent only when it is in production: market
  ids and the fence of `merge_state` see the windows in their order. It is planned before that.
- A publication that fails is heard of before anything after it is published, and nothing is.
- What was decided and is not in production is one publication on its way and one in the making.
- Windows of one publication never lie on both sides of a moment of export, and the export of that
  moment begins only when everything before it is in production.
- While an export has production to itself, reading goes on up to READ_ON_ROWS: the live path hears
  what is read, and nobody else needs to wait for an hour's rows.

Does not do: deciding (arbitrate), SQL (publish, pull), what to do about failures (pipeline).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from dedup.arbitrate import Arbiter
from dedup.output import WindowOutput
from dedup.readers import GathererReader, may_read
from marketdata.rows import GathererBatch

PUBLISH_ROWS: Final = 50_000
PUBLISH_WINDOWS: Final = 200
TAKE_WAIT_S: Final = 1
READ_ON_ROWS: Final = 1_500_000  # of all gatherers: 100 s of three at 5,000 events a second

Due: TypeAlias = Callable[[int, int], bool]
Publish: TypeAlias = Callable[[Any], Awaitable[None]]  # of what the plan is
Plan: TypeAlias = Callable[[list[WindowOutput]], Any]
T = TypeVar("T")


class Asked(NamedTuple):
    """Who is asked for what is new, and what receive time anybody had shown before."""

    reader: GathererReader
    shown_ns: int


Reads: TypeAlias = dict[asyncio.Task[GathererBatch | None], Asked]


class Publishing:
    """Publications one after the other, beside whatever the caller does meanwhile.

    `closed_to_us`: the end of the last window that was given to it. `plan`: what `publish` gets of
    windows, made while the publication before it is on its way.
    """

    __slots__ = ("_plan", "_publish", "_task", "closed_to_us")

    def __init__(
        self, publish: Publish, closed_to_us: int, plan: Plan = lambda outputs: outputs
    ) -> None:
        self.closed_to_us = closed_to_us
        self._publish, self._plan = publish, plan
        self._task: asyncio.Future[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return self._task is None or self._task.done()

    async def begin(self, outputs: list[WindowOutput]) -> None:
        """Publish these; returns once the publication before them is in production.

        Raises whatever that one raised; these are then not published.
        """
        await self.heard()
        planned = self._plan(outputs)
        await self.settled()
        self.closed_to_us = outputs[-1].to_us
        self._task = asyncio.ensure_future(self._publish(planned))

    async def heard(self) -> None:
        """Raises what the last publication raised, if it has ended; waits for nothing."""
        if self.idle:
            await self.settled()

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


@dataclass(slots=True)
class Closed:
    """Windows that were closed in one go."""

    outputs: list[WindowOutput] = field(default_factory=list)
    rows: int = 0
    passed: bool = False  # the last one ends behind a moment of export
    more: bool = True  # there may be another window that can be closed now


def close_some(arbiter: Arbiter, due: Due, *, final: bool, closed_to_us: int) -> Closed:
    """Close the windows of one publication, or all that may close: their rows are bounded."""
    made = Closed()
    while made.rows < PUBLISH_ROWS and len(made.outputs) < PUBLISH_WINDOWS and not made.passed:
        output = arbiter.step(final=final)
        if output is None:
            made.more = False
            break
        made.outputs.append(output)
        made.rows += len(output.deltas) + len(output.trades) + len(output.ticker_rows)
        made.passed = due(closed_to_us, output.to_us)
        closed_to_us = output.to_us
    return made


async def close_windows(
    arbiter: Arbiter,
    publishing: Publishing,
    *,
    final: bool,
    due: Due = lambda _closed, _to: False,
    export: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Publish every window that may close; the last of them may still be on their way.

    `due(before, after)`: whether a moment of export lies between two ends of closed windows.
    """
    made = Closed()
    while made.more:
        # A whole publication in one go: a change of threads waits for the event loop, which is
        # busy with what is read. Measured on dense recordings: 8 % of the merge with 5,000 rows.
        made = await asyncio.to_thread(
            close_some, arbiter, due, final=final, closed_to_us=publishing.closed_to_us
        )
        if made.outputs:
            await publishing.begin(made.outputs)
        if made.passed and export is not None:
            await publishing.settled()
            await export()


async def take(
    arbiter: Arbiter,
    readers: Sequence[GathererReader],
    tasks: Reads,
    patience_s: float,
    absorbed: Callable[[GathererBatch], None],
    stopping: asyncio.Event | None = None,
) -> None:
    """Wait for at least one reader, give the arbiter everything that has arrived.

    `tasks`: the reads on their way, kept by the caller from call to call.
    """

    def ask(reader: GathererReader) -> None:
        if may_read(reader, readers, patience_s):
            tasks[asyncio.create_task(reader.read())] = Asked(reader, arbiter.shown_ns)

    busy = {asked.reader.index for asked in tasks.values()}
    for reader in readers:
        if reader.index not in busy:
            ask(reader)
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
    for task in sorted(done, key=lambda t: tasks[t].reader.index):
        reader, shown_ns = tasks.pop(task)
        batch = task.result()
        if batch is None and reader.exhausted:
            arbiter.had_nothing(reader.index, shown_ns)
        elif batch is not None:
            ask(reader)  # its next answer comes while this is taken
            await asyncio.to_thread(arbiter.absorb, batch)
            absorbed(batch)
    for reader in readers:
        if reader.exhausted or reader.silent_s() >= patience_s:
            arbiter.nothing_new(reader.index)


async def reading_on(
    work: Coroutine[Any, Any, T],
    arbiter: Arbiter,
    readers: Sequence[GathererReader],
    tasks: Reads,
    patience_s: float,
    absorbed: Callable[[GathererBatch], None],
) -> T:
    """The outcome of `work`, which nothing is decided or published beside. Batches are taken as
    ever meanwhile, up to READ_ON_ROWS."""
    over = asyncio.Event()
    doing = asyncio.ensure_future(work)
    doing.add_done_callback(lambda _: over.set())
    rows = 0

    def taken(batch: GathererBatch) -> None:
        nonlocal rows
        rows += len(batch.deltas) + len(batch.trades) + len(batch.tickers)
        absorbed(batch)

    try:
        while not over.is_set() and rows < READ_ON_ROWS:
            await take(arbiter, readers, tasks, patience_s, taken, over)
        return await doing
    except BaseException:
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)
        raise
