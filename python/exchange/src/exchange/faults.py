"""Fault plans of the simulated exchange, drawn from a seed before the play.

Purpose: say which fault hits which connection slot and when. A slot is a place that one connection
after the other takes: the first book connection takes book slot 0, and whoever comes after it left
continues its plan. Times are engine time and frame counts, never wall time, so a play at full speed
has as many faults as one at recorded speed.

Levels: `standard` loses about 0.1 % of the frames in bursts (mean 10) and disconnects each slot
every 5 minutes; `harsh` 1 % and every minute. A play too short for that still gets the least counts
of `Rates` (at least 2 disconnects and 2 bursts per book slot); `FaultPlan.told` says so.

Invariants: EXCH-5 the same level, seed and span give the same plan; EXCH-6 no fault but a hole
hits all slots at one instant (the near coincidence spreads them over hundreds of events).

Does not do: apply faults (venue, connection).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

SECOND_US: Final = 1_000_000
AUX_FRAME_SHARE: Final = 20  # a connection without books is taken to have 1/20 of the frames
SLOTS_IN_COINCIDENCE: Final = 8
SETTLE_SHARES: Final = (0.004, 0.03)  # a new connection is spared for such a share of the play
RUN_ON_EVENTS: Final = (200, 3000)  # the venue runs on for so many events after a cut
RUN_ON_SHARE: Final = 10  # ... but for at most a tenth of a short play
SHARD_OFFSET_US_MAX: Final = 50_000


class FaultLevel(StrEnum):
    """How much goes wrong."""

    NONE = "none"
    STANDARD = "standard"
    HARSH = "harsh"


@dataclass(frozen=True, slots=True)
class Rates:
    """How often, and at least how often per slot and play. Shares are of frames."""

    lost_share: float = 0.0
    burst_mean: int = 10
    bursts_min: int = 0
    disconnect_every_s: float = math.inf
    disconnects_min: int = 0
    stall_every_s: float = math.inf
    stalls_min: int = 0
    overflow_every_s: float = math.inf  # error 25
    overflows_min: int = 0
    gap_share: float = 0.0  # seq skips numbers, nothing is lost
    gaps_min: int = 0
    duplicate_share: float = 0.0
    duplicates_min: int = 0
    unknown_min: int = 0  # frames of an unknown type
    late_snapshot: float = 0.0  # probability per subscribe command
    refuse: float = 0.0  # probability that upgrades are refused after a cut
    coincidences: int = 0
    rest_429: float = 0.0
    rest_503: float = 0.0
    shard_share: float = 0.0


RATES: Final = {
    FaultLevel.NONE: Rates(),
    FaultLevel.STANDARD: Rates(
        lost_share=0.001,
        bursts_min=2,
        disconnect_every_s=300,
        disconnects_min=2,
        stall_every_s=600,
        stalls_min=1,
        overflow_every_s=1200,
        overflows_min=1,
        gap_share=1e-5,
        gaps_min=1,
        duplicate_share=2e-5,
        duplicates_min=1,
        unknown_min=1,
        late_snapshot=0.3,
        refuse=0.3,
        coincidences=1,
        rest_429=0.02,
        rest_503=0.01,
        shard_share=0.1,
    ),
    FaultLevel.HARSH: Rates(
        lost_share=0.01,
        bursts_min=4,
        disconnect_every_s=60,
        disconnects_min=4,
        stall_every_s=120,
        stalls_min=2,
        overflow_every_s=300,
        overflows_min=1,
        gap_share=4e-5,
        gaps_min=2,
        duplicate_share=1e-4,
        duplicates_min=2,
        unknown_min=2,
        late_snapshot=0.5,
        refuse=0.5,
        coincidences=2,
        rest_429=0.05,
        rest_503=0.03,
        shard_share=0.2,
    ),
}


class TimeKind(StrEnum):
    """Faults at an instant of engine time."""

    RESET = "reset"  # TCP reset
    CLOSE = "close"  # clean close
    STALL = "stall"  # data held back, pings alive, then delivered
    STALL_RESET = "stall_reset"  # ... then lost by a reset
    OVERFLOW = "overflow"  # error 25, then silence on that sid


class FrameKind(StrEnum):
    """Faults at a count of frames."""

    DROP = "drop"
    GAP = "gap"
    DUPLICATE = "duplicate"
    UNKNOWN = "unknown_type"


CUTS: Final = (TimeKind.RESET, TimeKind.RESET, TimeKind.CLOSE, TimeKind.CLOSE, TimeKind.STALL_RESET)


@dataclass(frozen=True, slots=True, order=True)
class TimeFault:
    """At engine time `at_us`; `span_us`: how long a stall holds the data."""

    at_us: int
    kind: TimeKind
    span_us: int = 0


@dataclass(frozen=True, slots=True, order=True)
class FrameFault:
    """From the slot's frame number `at_frame` on, for `length` frames (or numbers)."""

    at_frame: int
    kind: FrameKind
    length: int = 1


NEVER_FRAME: Final = 1 << 62


@dataclass(slots=True)
class Slot:
    """A slot's plan and how far it has come. Both lists are sorted with the next fault last."""

    name: str
    rng: random.Random
    time_faults: list[TimeFault] = field(default_factory=list)
    frame_faults: list[FrameFault] = field(default_factory=list)
    frames: int = 0
    taken: bool = False
    next_fault_frame: int = NEVER_FRAME

    def arm(self) -> None:
        """Recomputes the frame number of the next frame fault."""
        faults = self.frame_faults
        self.next_fault_frame = faults[-1].at_frame if faults else NEVER_FRAME


@dataclass(slots=True)
class FaultPlan:
    """All faults of one play."""

    level: FaultLevel
    seed: int
    start_us: int
    end_us: int
    events_expected: int
    rates: Rates = field(init=False)
    _slots: dict[str, Slot] = field(init=False, default_factory=dict)
    _coincidences: list[int] = field(init=False, default_factory=list)
    _rest_rng: random.Random = field(init=False)
    _rest_in_row: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.rates = RATES[self.level]
        self._rest_rng = self._rng("rest")
        rng = self._rng("coincidence")
        if self.rates.coincidences and rng.random() < 0.5 + 0.5 * (self.level == FaultLevel.HARSH):
            self._coincidences = [
                self._at(rng.uniform(0.15, 0.85)) for _ in range(self.rates.coincidences)
            ]

    @property
    def span_us(self) -> int:
        """Engine time from start to end of the play."""
        return max(1, self.end_us - self.start_us)

    def _rng(self, name: str) -> random.Random:
        return random.Random(f"{self.seed}/{self.level}/{name}")

    def _at(self, share: float) -> int:
        return self.start_us + int(self.span_us * share)

    def told(self) -> dict[str, Any]:
        """First line of faults.jsonl: the plan's rates, and whether least counts rule them."""
        seconds = self.span_us / SECOND_US
        return {
            "kind": "plan",
            "level": self.level,
            "seed": self.seed,
            "seconds": round(seconds, 3),
            "events_expected": self.events_expected,
            "scaled_up": self.level != FaultLevel.NONE
            and seconds / self.rates.disconnect_every_s < self.rates.disconnects_min,
            "coincidences_us": self._coincidences,
        }

    def take_slot(self, *, books: bool) -> Slot:
        """The first free slot of the role; its plan is drawn when it is first taken."""
        number = 0
        while True:
            name = f"{'book' if books else 'aux'}{number}"
            slot = self._slots.get(name)
            if slot is None:
                slot = self._draw(name, number, books=books)
                self._slots[name] = slot
            if not slot.taken:
                slot.taken = True
                return slot
            number += 1

    def _draw(self, name: str, number: int, *, books: bool) -> Slot:
        rng = self._rng(name)
        slot = Slot(name, rng)
        if self.level == FaultLevel.NONE:
            return slot
        frames = self.events_expected if books else self.events_expected // AUX_FRAME_SHARE
        slot.time_faults = self._draw_times(rng, number, books=books)
        slot.frame_faults = self._draw_frames(rng, max(frames, 20))
        slot.arm()
        return slot

    def _instants(self, rng: random.Random, every_s: float, least: int) -> list[int]:
        mean = self.span_us / SECOND_US / every_s
        count = max(least, int(mean + rng.random()))
        # One per stretch of the play: spread, and never all in its first seconds.
        return [self._at((n + rng.uniform(0.05, 0.95)) / count) for n in range(count)]

    def _draw_times(self, rng: random.Random, number: int, *, books: bool) -> list[TimeFault]:
        rates = self.rates
        faults = [
            TimeFault(at_us, kind, self._stall_us(rng) if kind == TimeKind.STALL_RESET else 0)
            for at_us in self._instants(rng, rates.disconnect_every_s, rates.disconnects_min)
            for kind in (rng.choice(CUTS),)
        ]
        faults += [
            TimeFault(at_us, TimeKind.STALL, self._stall_us(rng))
            for at_us in self._instants(rng, rates.stall_every_s, rates.stalls_min)
        ]
        if books:
            instants = self._instants(rng, rates.overflow_every_s, rates.overflows_min)
            faults += [TimeFault(at_us, TimeKind.OVERFLOW) for at_us in instants]
            if number < SLOTS_IN_COINCIDENCE:
                near_us = self.span_us * 400 // max(400, self.events_expected)
                faults += [
                    TimeFault(at_us + rng.randint(0, near_us), TimeKind.RESET)
                    for at_us in self._coincidences
                ]
        return sorted(faults, reverse=True)

    def _stall_us(self, rng: random.Random) -> int:
        longest = min(5 * SECOND_US, self.span_us // 10)
        return max(1, int(longest * rng.uniform(0.1, 1.0)))

    def _draw_frames(self, rng: random.Random, frames: int) -> list[FrameFault]:
        rates = self.rates
        longest = max(3, frames // 20)
        bursts = max(rates.bursts_min, int(frames * rates.lost_share / rates.burst_mean + 0.5))
        wanted = [(FrameKind.DROP, bursts, rates.burst_mean)]
        wanted.append((FrameKind.GAP, max(rates.gaps_min, int(frames * rates.gap_share)), 3))
        doubled = max(rates.duplicates_min, int(frames * rates.duplicate_share))
        wanted.append((FrameKind.DUPLICATE, doubled, 1))
        wanted.append((FrameKind.UNKNOWN, rates.unknown_min, 1))
        faults = [
            FrameFault(
                rng.randint(1, frames), kind, min(longest, 1 + int(rng.expovariate(1 / mean)))
            )
            for kind, count, mean in wanted
            for _ in range(count)
        ]
        return sorted(faults, reverse=True)

    def settle_us(self, rng: random.Random) -> int:
        """Engine time for which a new connection is spared by time faults."""
        return int(self.span_us * rng.uniform(*SETTLE_SHARES))

    def run_on(self, rng: random.Random) -> int:
        """Events that the venue plays after a cut before it waits for the return (full speed)."""
        low, high = RUN_ON_EVENTS
        count = int(math.exp(rng.uniform(math.log(low), math.log(high))))
        if rng.random() < 0.15:
            return 0
        return min(count, max(1, self.events_expected // RUN_ON_SHARE))

    def late_us(self, rng: random.Random) -> int:
        """How late a late snapshot comes."""
        longest = max(2.0, min(SECOND_US, self.span_us / 20))
        return int(math.exp(rng.uniform(0, math.log(longest))))

    def rest_fault(self) -> int | None:
        """HTTP status with which the next REST call fails, or None. Never four in a row."""
        draw = self._rest_rng.random()
        if self._rest_in_row >= 3 or draw >= self.rates.rest_429 + self.rates.rest_503:
            self._rest_in_row = 0
            return None
        self._rest_in_row += 1
        return 429 if draw < self.rates.rest_429 else 503
