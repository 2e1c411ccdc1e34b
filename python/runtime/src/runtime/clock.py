"""The only reader of time: wall clock, monotonic clock, sleeping.

Purpose: services take a Clock and pass its numbers into the pure core, so that a test can give them
other numbers. The offset of the wall clock exists for tests of gatherers whose clocks disagree.

Does not do: formatting or parsing of times (marketdata.units).
"""

from __future__ import annotations

import asyncio
import time


class Clock:
    """Wall time in ns since 1970 UTC, with an offset; monotonic time in ns for durations."""

    __slots__ = ("offset_ns",)

    def __init__(self, offset_ms: int = 0) -> None:
        self.offset_ns = offset_ms * 1_000_000

    def wall_ns(self) -> int:
        """Unix time in nanoseconds; may step when the system's clock is set."""
        return time.time_ns() + self.offset_ns

    def monotonic_ns(self) -> int:
        """Nanoseconds from an arbitrary start; never goes back."""
        return time.monotonic_ns()

    async def sleep(self, duration_ns: int) -> None:
        """Wait for a duration; a negative one yields to other tasks once."""
        await asyncio.sleep(max(0, duration_ns) / 1e9)
