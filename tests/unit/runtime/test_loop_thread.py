"""A loop of its own: results, errors and cancellation cross over, nothing stays behind."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from runtime.loop_thread import LoopThread


async def test_work_runs_elsewhere_and_its_result_comes_back() -> None:
    thread = LoopThread("elsewhere")
    thread.start()

    async def name() -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    assert await thread.run(name()) == "elsewhere"
    await thread.stop()
    assert "elsewhere" not in {t.name for t in threading.enumerate()}


async def test_an_error_comes_back_as_itself() -> None:
    thread = LoopThread("failing")
    thread.start()

    async def fail() -> None:
        raise OSError("refused")

    with pytest.raises(OSError, match="refused"):
        await thread.run(fail())
    await thread.stop()


async def test_a_cancelled_caller_cancels_what_it_waits_for() -> None:
    """A database that hangs must not keep its connection after the sink was stopped."""
    thread = LoopThread("waiting")
    thread.start()
    began, ended = threading.Event(), threading.Event()

    async def wait() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(thread.run(wait()))
    assert await asyncio.to_thread(began.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(ended.wait, 10)
    await thread.stop()


async def test_stopping_cancels_what_is_under_way() -> None:
    thread = LoopThread("stopping")
    thread.start()

    async def wait() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(thread.run(wait()))
    await asyncio.sleep(0.01)
    await thread.stop()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_it_goes_on_while_the_main_loop_is_busy() -> None:
    """What it is for: many short waits over there while one turn here takes long."""
    thread = LoopThread("steady")
    thread.start()
    turns: list[int] = []

    async def count() -> None:
        for n in range(50):
            turns.append(n)
            await asyncio.sleep(0)

    task = asyncio.ensure_future(thread.run(count()))
    await asyncio.sleep(0)
    deadline = time.monotonic() + 30
    while len(turns) < 50 and time.monotonic() < deadline:
        sum(range(1_000))  # this loop does not turn
    assert len(turns) == 50
    assert not task.done()
    await task
    await thread.stop()
