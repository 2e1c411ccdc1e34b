"""Our clock against the exchange's: what the Date of its answers proves, and steps of ours.

Purpose: a Date has whole seconds, so one answer says little: our clock minus the exchange's lies
between (sent - Date - 1 s) and (received - Date). Answers come at all phases of the second, so that
the intersection of many is narrow. Times of ours are of the monotonic clock, which nobody steps; a
step of the wall clock then shows at once and spoils nothing.
Invariants:
- INV-76 while the two clocks run apart by no more than DRIFT_PPM and Dates are at most
  DATE_STALE_NS old, the true difference lies within the bounds.
- INV-77 the state is one bound at each end, whatever number of answers came.
- An answer that contradicts the bounds is counted and left out (a cache may have kept an old one);
  CONTRADICTIONS_MAX of them in a row begin anew, for then it is the bounds that are wrong.
Does not do: reading clocks, ordering anything by time: frames never are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

NS_PER_S: Final = 1_000_000_000
DRIFT_PPM: Final = 200
"""How fast two clocks may run apart, ours being slewed by NTP at times."""
DATE_STALE_NS: Final = 100_000_000
"""Servers write the text of the Date once a second, a little late."""
CONTRADICTIONS_MAX: Final = 3
_PPM: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Bounds:
    """Ours minus the exchange's lies in [low_ns, high_ns], by `answers` answers."""

    low_ns: int
    high_ns: int
    answers: int

    def shifted(self, by_ns: int) -> Bounds:
        """The bounds of a clock that is `by_ns` ahead of the one of these."""
        return Bounds(self.low_ns + by_ns, self.high_ns + by_ns, self.answers)

    def is_beyond(self, limit_ns: int) -> bool:
        """Whether the difference is proven to be greater than the limit, either way."""
        return self.low_ns > limit_ns or self.high_ns < -limit_ns


@dataclass(slots=True)
class _End:
    """One bound: what it was at a moment; it loosens with time."""

    value_ns: int
    at_ns: int

    def loosened_ns(self, now_ns: int) -> int:
        return max(0, now_ns - self.at_ns) * DRIFT_PPM // _PPM + 1


class OffsetBounds:
    """Our monotonic clock minus the exchange's time."""

    __slots__ = ("_answers", "_high", "_in_a_row", "_low", "contradictions")

    def __init__(self) -> None:
        self._low: _End | None = None
        self._high: _End | None = None
        self._answers = 0
        self._in_a_row = 0
        self.contradictions = 0

    def answered(self, date_s: int, sent_ns: int, received_ns: int) -> None:
        """An answer of that Date: asked for and received at these moments of our clock."""
        date_ns = date_s * NS_PER_S
        low_ns = sent_ns - date_ns - NS_PER_S - DATE_STALE_NS
        high_ns = received_ns - date_ns
        held = self.bounds(received_ns)
        if held is not None and (low_ns > held.high_ns or high_ns < held.low_ns):
            self.contradictions += 1
            self._in_a_row += 1
            if self._in_a_row < CONTRADICTIONS_MAX:
                return
            held, self._answers = None, 0
        self._in_a_row = 0
        self._answers += 1
        if held is None or low_ns > held.low_ns:
            self._low = _End(low_ns, received_ns)
        if held is None or high_ns < held.high_ns:
            self._high = _End(high_ns, received_ns)

    def bounds(self, now_ns: int) -> Bounds | None:
        """What is proven at this moment; None before the first answer."""
        low, high = self._low, self._high
        if low is None or high is None:
            return None
        return Bounds(
            low.value_ns - low.loosened_ns(now_ns),
            high.value_ns + high.loosened_ns(now_ns),
            self._answers,
        )


class Steps:
    """How far the wall clock left the monotonic one since the last look: steps, and slewing."""

    __slots__ = ("_apart_ns",)

    def __init__(self) -> None:
        self._apart_ns: int | None = None

    def look(self, wall_ns: int, monotonic_ns: int) -> int:
        """The change since the last look; 0 at the first."""
        apart_ns = wall_ns - monotonic_ns
        changed_ns = 0 if self._apart_ns is None else apart_ns - self._apart_ns
        self._apart_ns = apart_ns
        return changed_ns


@dataclass(frozen=True, slots=True)
class KernelClock:
    """What the kernel says of its clock. `error_ns`: its own estimate of the error."""

    synchronised: bool
    offset_ns: int
    error_ns: int


def trouble(bounds: Bounds | None, kernel: KernelClock | None, limit_ns: int) -> str:
    """What is wrong with the wall clock; empty where nothing is known to be. `limit_ns` 0: only
    what the kernel says counts."""
    told = []
    if kernel is not None and not kernel.synchronised:
        told.append("the kernel's clock is not synchronised")
    if limit_ns and bounds is not None and bounds.is_beyond(limit_ns):
        low, high = bounds.low_ns // 1_000_000, bounds.high_ns // 1_000_000
        told.append(f"our clock minus the exchange's is {low} to {high} ms")
    return "; ".join(told)
