"""Our clock as rows: against the exchange's Date, and by the kernel's own word.

Purpose: gather the bounds that REST answers give, ask the kernel once a minute, write one row, and
say when the clock is not synchronised or proven to be off by more than a limit.
What holds:
- Everything is measured on the monotonic clock; a wall clock that is stepped by an hour shows in
  the next row and in nothing else.
- A system that forbids asking the kernel (a sandbox) is no trouble: the row says null.
Does not do: setting clocks, ordering frames (nothing orders them by our time), bounds
(marketdata.clock_bounds).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import sys
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Final

from gatherer.side_rows import SideRows
from marketdata.clock_bounds import Bounds, KernelClock, OffsetBounds, Steps, trouble
from marketdata.units import US_PER_S
from runtime import logs
from runtime.clock import Clock

ROW_S: Final = 60
STEP_TOLD_NS: Final = 500_000_000
"""The wall clock left the monotonic one by more than this within a minute: told in the log."""
_INSERT: Final = (
    "INSERT INTO clock_offsets VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING"
)
_TIME_ERROR: Final = 5
_STA_UNSYNC: Final = 0x0040
_STA_NANO: Final = 0x2000
_NS_PER_US: Final = 1_000

STEP_MIN_NS: Final = 100_000_000
"""Less than this is no step: two clocks are read one after the other, and between the two a busy
machine runs something else. Counted, it moved the metric at every look: the alert never ended."""

log = logs.get("clock")


class _Timex(ctypes.Structure):
    """struct timex of Linux on 64 bits."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 164),
    )


def kernel_clock() -> KernelClock | None:
    """What adjtimex says; None where it is not there or may not be asked."""
    if sys.platform != "linux":
        return None
    asked = _Timex()  # modes 0: nothing is set
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(asked))
    except (OSError, AttributeError):
        return None
    if state < 0:
        return None
    unit_ns = 1 if asked.status & _STA_NANO else _NS_PER_US
    return KernelClock(
        synchronised=state != _TIME_ERROR and not asked.status & _STA_UNSYNC,
        offset_ns=asked.offset * unit_ns,
        error_ns=asked.esterror * _NS_PER_US,
    )


class ClockOffset:
    """See the module's text. `limit_ms` 0: the offset is measured and not judged."""

    def __init__(
        self,
        rows: SideRows,
        clock: Clock,
        limit_ms: int,
        *,
        kernel: Callable[[], KernelClock | None] = kernel_clock,
    ) -> None:
        self._rows = rows
        self._clock = clock
        self._limit_ns = limit_ms * 1_000_000
        self._ask_kernel = kernel
        self._offset = OffsetBounds()
        self._steps = Steps()
        self._date_s = 0
        self._date_at_ns = 0
        self.kernel: KernelClock | None = None
        self.stepped_ns = 0  # all steps since the start, forward and back added up
        self.reason = ""

    def answered(self, date: str, sent_ns: int, received_ns: int) -> None:
        """A REST answer: its Date, and our monotonic clock at the request and at its head."""
        with contextlib.suppress(TypeError, ValueError):
            date_s = int(parsedate_to_datetime(date).timestamp())
            self._offset.answered(date_s, sent_ns, received_ns)
            self._date_s, self._date_at_ns = date_s, received_ns

    def date_us(self) -> int:
        """The exchange's time by its last Date at least; 0 before the first."""
        if not self._date_s:
            return 0
        since_ns = self._clock.monotonic_ns() - self._date_at_ns
        return self._date_s * US_PER_S + max(0, since_ns) // _NS_PER_US

    def wall_bounds(self) -> Bounds | None:
        """Our wall clock minus the exchange's, as far as it is proven."""
        monotonic_ns = self._clock.monotonic_ns()
        found = self._offset.bounds(monotonic_ns)
        return None if found is None else found.shifted(self._clock.wall_ns() - monotonic_ns)

    async def run(self) -> None:
        """A row now and each minute until cancelled."""
        while True:
            self.once()
            await asyncio.sleep(ROW_S)

    def once(self) -> None:
        """Look at everything, write one row. Rows that find no room are left out: the next look
        says the same of the present."""
        wall_ns = self._clock.wall_ns()
        stepped_ns = self._steps.look(wall_ns, self._clock.monotonic_ns())
        if abs(stepped_ns) >= STEP_MIN_NS:
            self.stepped_ns += abs(stepped_ns)
        self.kernel, bounds = self._ask_kernel(), self.wall_bounds()
        self.reason = trouble(bounds, self.kernel, self._limit_ns)
        if abs(stepped_ns) > STEP_TOLD_NS:
            log.warning("the clock was set", by_ms=stepped_ns // 1_000_000)
        if self._rows.is_full:
            return
        kernel = self.kernel
        self._rows.put(
            _INSERT,
            wall_ns,
            None if bounds is None else bounds.low_ns,
            None if bounds is None else bounds.high_ns,
            0 if bounds is None else bounds.answers,
            self._offset.contradictions,
            stepped_ns,
            None if kernel is None else kernel.synchronised,
            None if kernel is None else kernel.offset_ns,
            None if kernel is None else kernel.error_ns,
        )
