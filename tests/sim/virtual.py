"""Virtual time: an event loop whose clock jumps, and processes that can die at any effect.

Purpose: run the real services' coroutines without waiting. Nothing here reads a clock, a socket or
a file: the loop's time moves only when everybody sleeps. What has an order has it by the seed.

Invariants: SIM-1 two runs of the same program take the same steps in the same order. SIM-2 of a
process that is dead nothing reaches a simulated database, disk or network any more.

Does not do: faults (plan), what an effect does (sql, disk, network).
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

NS_PER_S = 1_000_000_000
STORY_LINES_MAX = 60_000
STORY_TAIL = 40


class _Jump:
    """Stands where a selector would: nothing ever arrives from outside, so time jumps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def select(self, timeout: float | None) -> list[Any]:
        assert timeout is not None, "everybody waits for something that nobody will do"
        self.now_s += timeout
        return []

    def close(self) -> None:
        """Nothing is open."""


class SimExecutor:
    """A thread of one process' disk: `run` is called when its work begins and gives its seconds."""

    def __init__(self, run: Callable[[Callable[..., Any], tuple[Any, ...]], float]) -> None:
        self.run = run

    def shutdown(self) -> None:
        """Nothing waits."""


class VirtualLoop(asyncio.BaseEventLoop):
    """asyncio in virtual time. Threads are calls made at once, or by a SimExecutor in its time."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Jump()

    def time(self) -> float:
        return self._selector.now_s

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody waits in another thread."""

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        future = self.create_future()
        delay_s = executor.run(func, args) if isinstance(executor, SimExecutor) else 0.0

        def carry_out() -> None:
            if future.cancelled():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:  # noqa: BLE001 - it belongs to whoever waits
                future.set_exception(error)

        if delay_s:
            self.call_later(delay_s, carry_out)
        else:
            carry_out()
        return future


@dataclass
class Story:
    """What happened, in order: for a person, and for the comparison of two runs."""

    now_ns: Callable[[], int]
    begin_ns: int
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=STORY_LINES_MAX))
    told: int = 0
    happened: Counter[str] = field(default_factory=Counter)

    def tell(self, who: str, text: str) -> None:
        """One line."""
        at_ms = (self.now_ns() - self.begin_ns) // 1_000_000
        self.told += 1
        self.lines.append(f"{at_ms // 1000:5d}.{at_ms % 1000:03d}  {who:<10} {text}")

    def fault(self, name: str, who: str, text: str = "") -> None:
        """A fault really happened."""
        self.happened[name] += 1
        self.tell(who, f"** {name}{': ' + text if text else ''}")


class Dead(BaseException):
    """The process that wanted an effect is dead."""


class Process:
    """Tasks that live and die together. `steps` counts its effects on databases."""

    def __init__(self, name: str, story: Story) -> None:
        self.name = name
        self.story = story
        self.dead = False
        self.steps = 0
        self.tasks: list[asyncio.Task[Any]] = []
        self.on_death: list[Callable[[], None]] = []
        self.failures: list[BaseException] = []

    def start(
        self, work: Coroutine[Any, Any, Any], then: Callable[[], None] | None = None
    ) -> asyncio.Task[None]:
        """Run `work` as part of the process; what it raises ends the process."""

        async def guarded() -> None:
            try:
                await work
            except (asyncio.CancelledError, Dead):
                raise
            except BaseException as error:  # noqa: BLE001 - a supervisor's boundary: it is told
                self.failures.append(error)
                self.kill(f"died of {type(error).__name__}: {error}")
                return
            if then is not None and not self.dead:
                then()

        task = asyncio.get_running_loop().create_task(guarded())
        task.add_done_callback(_heard)
        self.tasks.append(task)
        return task

    def kill(self, why: str) -> None:
        """Now, wherever it is."""
        if self.dead:
            return
        self.dead = True
        self.story.tell(self.name, f"dead: {why}")
        for act in self.on_death:
            act()
        for task in self.tasks:
            task.cancel()


def _heard(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


class SimClock:
    """A host's clock: off by an offset that grows by steps; the monotonic one is right."""

    def __init__(self, loop: VirtualLoop, begin_ns: int, offset_ns: int) -> None:
        self._loop = loop
        self._begin_ns = begin_ns
        self.offset_ns = offset_ns

    def true_ns(self) -> int:
        """What a right clock would show."""
        return self._begin_ns + int(self._loop.time() * NS_PER_S)

    def wall_ns(self) -> int:
        """What this host believes."""
        return self.true_ns() + self.offset_ns

    def monotonic_ns(self) -> int:
        """Since some start."""
        return 5 * NS_PER_S + int(self._loop.time() * NS_PER_S)

    async def sleep(self, duration_ns: int) -> None:
        """As runtime.clock.Clock.sleep."""
        await asyncio.sleep(max(0, duration_ns) / 1e9)
