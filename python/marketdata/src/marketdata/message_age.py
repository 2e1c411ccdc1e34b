"""How old messages are when they arrive, and whether they grow older: a reader that is too slow.

Purpose: samples of (receive time, exchange time of the newest message) of one connection -> age and
its slope. The exchange keeps what a slow reader has not taken and at last drops the subscription
(error 25); before that its messages come ever later, which a gap check cannot see.
Invariants: integers only; at most SAMPLES_MAX samples of the last WINDOW_NS; the slope does not
depend on how far our clock is off, the age does.
Does not do: reading clocks, deciding what to do (the observer tells; the session acts on error 25).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

NS_PER_MS: Final = 1_000_000
WINDOW_NS: Final = 60_000_000_000
SAMPLES_MAX: Final = 120
SAMPLES_MIN: Final = 20
SPAN_MIN_NS: Final = 20_000_000_000
SLOW_PERMILLE: Final = 50
"""A message grows older by 50 ms a second, for a minute: three seconds in all."""
SLOW_AGE_MS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Age:
    """`age_ms`: of the newest message when it came. `permille`: how much older messages get, in ms
    a second; None while the samples are too few."""

    age_ms: int
    permille: int | None

    @property
    def is_slow(self) -> bool:
        """Whether the connection's reader falls behind."""
        return (
            self.permille is not None
            and self.permille > SLOW_PERMILLE
            and self.age_ms > SLOW_AGE_MS
        )


class AgeTrack:
    """The ages on one feed's connection, and anew on its next."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int]] = deque(maxlen=SAMPLES_MAX)  # received, age
        self._newest_us = 0
        self._conn_id = 0

    def look(self, conn_id: int, received_ns: int, exchange_us: int) -> None:
        """Note the newest message of the connection, if it is newer than the one noted last."""
        if conn_id != self._conn_id:
            self._samples.clear()
            self._newest_us, self._conn_id = 0, conn_id
        if exchange_us <= self._newest_us:
            return
        self._newest_us = exchange_us
        self._samples.append((received_ns, received_ns - exchange_us * 1_000))
        while self._samples[0][0] < received_ns - WINDOW_NS:
            self._samples.popleft()

    def age(self) -> Age | None:
        """What the samples say; None before the first."""
        if not self._samples:
            return None
        return Age(self._samples[-1][1] // NS_PER_MS, self._permille())

    def _permille(self) -> int | None:
        """Slope of the line of least squares through the samples, in ms a second."""
        count = len(self._samples)
        if count < SAMPLES_MIN or self._samples[-1][0] - self._samples[0][0] < SPAN_MIN_NS:
            return None
        start_ns, first = self._samples[0]
        times = [(at - start_ns) // NS_PER_MS for at, _ in self._samples]
        ages = [(age - first) // NS_PER_MS for _, age in self._samples]
        sum_times, sum_ages = sum(times), sum(ages)
        pairs = zip(times, ages, strict=True)
        above = sum((count * t - sum_times) * (count * a - sum_ages) for t, a in pairs)
        below = sum((count * t - sum_times) ** 2 for t in times)
        return 1_000 * above // below if below else None
