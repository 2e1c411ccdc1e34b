"""runtime.clock: the one reader of time."""

from __future__ import annotations

import time

from runtime.clock import Clock


def test_wall_clock_is_unix_time_in_nanoseconds() -> None:
    before = time.time_ns()
    seen = Clock().wall_ns()
    assert before <= seen <= time.time_ns()


def test_offset_moves_the_wall_clock_and_not_the_monotonic_one() -> None:
    """Tests give gatherers clocks that disagree; durations must not change with it."""
    before_wall, before = time.time_ns(), time.monotonic_ns()
    clock = Clock(offset_ms=-3_600_000)
    assert clock.wall_ns() < before_wall - 3_599 * 10**9
    assert before <= clock.monotonic_ns() <= time.monotonic_ns()


async def test_sleep_waits_at_least_its_duration_and_a_negative_one_returns() -> None:
    clock = Clock()
    before = clock.monotonic_ns()
    await clock.sleep(2_000_000)
    assert clock.monotonic_ns() - before >= 1_000_000
    await clock.sleep(-5)
