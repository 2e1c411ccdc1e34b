"""The faults of one world, drawn from its seed before it begins.

Purpose: every field is one documented kind of trouble with its places; the printed plan is the head
of the story. Times are virtual seconds from the start. Whether a fault really meets something (a
crash at the 400th effect of a process that makes 300) is counted when it happens.

Invariants: SIM-3 a plan follows from its seed alone.

Does not do: carrying out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from typing import Any

GATHERERS = 3

Span = tuple[float, float]


@dataclass(frozen=True)
class GathererPlan:
    """Troubles of one gatherer. Spans are (from, to) in seconds."""

    start_s: float  # when its first process starts
    clock_offset_ms: int
    clock_steps: tuple[tuple[float, int], ...]  # (when, by how many ms)
    book_feeds: int  # connections that carry books
    delay_ms: tuple[int, int]  # of the network: least and most
    lost_bursts: int  # bursts of frames that the network loses without a word
    partitions: tuple[Span, ...]  # nothing arrives, and then all of it
    silent_cuts: tuple[float, ...]  # both ends believe that the connection lives
    crashes_at: tuple[float, ...]  # the process dies at a time
    crashes_step: tuple[tuple[int, bool], ...]  # ... at its n-th effect, before or after it
    down_s: float  # how long it stays away after a death
    clean_stops: tuple[float, ...]  # stopped properly, and started again
    away: Span | None  # the host is off for long
    replaced_at: float | None  # a new host with an empty disk and empty databases takes over
    spool_lost_at: float | None  # a new disk for the spool; the database stays
    database_down: tuple[Span, ...]
    line_cuts: tuple[tuple[int, bool], ...]  # the n-th effect fails; True: after it was done
    slow_commits: float  # longest wait of a COMMIT, seconds
    disk_ms: tuple[int, int]  # how long a sync takes
    disk_errors: int  # syncs that fail and are tried again
    moves: tuple[tuple[float, int, float], ...]  # (when, market, s): dropped and taken up again
    flush_ms: int
    segment_bytes: int
    answers_s: float  # longest time after which the exchange looks at a command


@dataclass(frozen=True)
class DedupPlan:
    """Troubles of the deduplicator and of production."""

    start_s: float
    crashes_at: tuple[float, ...]
    crashes_step: tuple[tuple[int, bool], ...]
    down_s: float
    line_cuts: tuple[tuple[int, bool], ...]
    read_cuts: tuple[tuple[int, bool], ...]  # on the lines to the gatherers' databases
    production_down: tuple[Span, ...]
    restore: tuple[float, float] | None  # (backup taken at, restored at)
    second_at: float | None  # a second deduplicator is started by mistake
    lock_lost_at: float | None  # the server forgets the first one's lock
    pull_rows: int  # most rows of one read
    read_ms: tuple[int, int]  # how long an answer of a gatherer's database takes
    crashes_at_end: tuple[float, ...]  # after the gatherers were asked to stop for good
    crashes_at_rest: tuple[tuple[int, bool], ...]  # at the n-th effect after all had stopped
    memory_windows: int  # as dedup.union.MEMORY_WINDOWS: how long trades are remembered
    publish_windows: int  # as dedup.flow.PUBLISH_WINDOWS: most windows of one publication


@dataclass(frozen=True)
class FaultPlan:
    """One world."""

    seed: int
    seconds: float
    markets: int
    events_per_s: float
    exchange_level: str  # none | standard | harsh: the faults of exchange.faults
    window_ms: int
    poll_ms: int
    audit_s: int
    drop_finished: bool  # markets leave the subscription when they are over
    gatherers: tuple[GathererPlan, ...]
    dedup: DedupPlan

    @classmethod
    def draw(cls, seed: int) -> FaultPlan:
        """The plan of a seed."""
        rng = random.Random(f"{seed}/plan")
        seconds = rng.choice((40.0, 50.0, 60.0, 90.0))
        events = rng.choice((150, 250, 400, 800))
        calm = rng.random() < 0.12  # nothing goes wrong: the plain case must hold, too
        return cls(
            seed=seed,
            seconds=seconds,
            markets=rng.choice((1, 2, 3, 4, 6)),
            events_per_s=events / seconds,
            exchange_level="none"
            if calm
            else rng.choice(("none", "standard", "standard", "harsh")),
            window_ms=_rarely(
                seed, "windows", 0.15, (200, 500), rng.choice((1_000, 2_000, 5_000, 5_000))
            ),
            poll_ms=rng.choice((500, 1_000, 2_000)),
            audit_s=_rarely(seed, "audits", 0.15, (3,), rng.choice((0, 10, 20, 40))),
            drop_finished=rng.random() < 0.5,
            gatherers=tuple(_gatherer(seed, n, seconds, calm=calm) for n in range(GATHERERS)),
            dedup=_dedup(seed, seconds, calm=calm),
        )

    def told(self) -> list[str]:
        """The plan in lines."""
        lines = [f"plan of seed {self.seed}"]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "gatherers":
                for n, gatherer in enumerate(value):
                    lines.append(f"  gatherer {n}: {_told(gatherer)}")
            elif field.name == "dedup":
                lines.append(f"  deduplicator: {_told(value)}")
            elif field.name != "seed":
                lines.append(f"  {field.name}: {value}")
        return lines


def _told(part: Any) -> str:
    quiet = (None, (), 0, 0.0, False)
    named = ((field.name, getattr(part, field.name)) for field in fields(part))
    return ", ".join(f"{name}={value}" for name, value in named if value not in quiet)


class _Dice:
    """Draws of one part of the plan."""

    def __init__(self, seed: int, name: str, seconds: float, *, calm: bool) -> None:
        self.rng = random.Random(f"{seed}/{name}")
        self.seconds = seconds
        self.calm = calm

    def hit(self, chance: float) -> bool:
        """Whether it happens at all. Always drawn, so that a new field changes no other one."""
        return self.rng.random() < chance and not self.calm

    def at(self, low: float = 0.1, high: float = 0.9) -> float:
        """A moment of the play."""
        return round(self.seconds * self.rng.uniform(low, high), 3)

    def span(self, shortest: float, longest: float) -> Span:
        begin = self.at(0.1, 0.8)
        return begin, round(begin + self.rng.uniform(shortest, longest), 3)

    def some(self, chance: float, most: int, make: Any) -> tuple[Any, ...]:
        """Sorted, often none."""
        if not self.hit(chance):
            return ()
        return tuple(sorted(make() for _ in range(self.rng.randint(1, most))))

    def steps(self, chance: float, most: int, highest: int) -> tuple[tuple[int, bool], ...]:
        return self.some(
            chance, most, lambda: (self.rng.randint(1, highest), self.rng.random() < 0.5)
        )


def _rarely(seed: int, name: str, chance: float, choices: tuple[Any, ...], otherwise: Any) -> Any:
    """Drawn from a stream of its own: a world that it does not hit stays as it was without it."""
    rng = random.Random(f"{seed}/{name}")
    return rng.choice(choices) if rng.random() < chance else otherwise


def _gatherer(seed: int, number: int, seconds: float, *, calm: bool) -> GathererPlan:
    dice = _Dice(seed, f"gatherer{number}", seconds, calm=calm)
    rng, hit = dice.rng, dice.hit
    more = _Dice(seed, f"more{number}", seconds, calm=calm)  # drawn later than the others
    replaced_at = more.at(0.3, 0.8) if more.hit(0.05) else None
    answers_s = round(more.rng.uniform(0.5, 2.5), 3) if more.hit(0.2) else 0.0
    away_for_long = more.some(0.08, 1, lambda: more.span(20, 35))
    slow_net = hit(0.15)
    return GathererPlan(
        start_s=round(rng.uniform(0, 12), 3) if hit(0.4) else 0.0,
        clock_offset_ms=rng.randint(-400, 400) if hit(0.6) else 0,
        clock_steps=dice.some(0.25, 2, lambda: (dice.at(), rng.choice((-1500, -300, 300, 1500)))),
        book_feeds=rng.choice((1, 1, 2)),
        delay_ms=(20, 900) if slow_net else (rng.randint(1, 10), rng.randint(11, 80)),
        lost_bursts=rng.randint(1, 4) if hit(0.35) else 0,
        partitions=dice.some(0.3, 2, lambda: dice.span(1, 12)),
        silent_cuts=dice.some(0.2, 1, dice.at),
        crashes_at=dice.some(0.3, 2, dice.at),
        crashes_step=dice.steps(0.35, 2, 400),
        down_s=round(rng.uniform(0.5, 8), 3),
        clean_stops=dice.some(0.12, 1, dice.at),
        away=dice.span(18, 45) if hit(0.07) else None,
        replaced_at=replaced_at if hit(1.0) else None,  # a draw of old, so that the others stay
        spool_lost_at=dice.at(0.2, 0.9) if hit(0.06) else None,
        database_down=dice.some(0.25, 2, lambda: dice.span(1, 15)) + away_for_long,
        line_cuts=dice.steps(0.35, 3, 400),
        slow_commits=round(rng.uniform(0.5, 6), 3) if hit(0.25) else 0.02,
        disk_ms=(50, 900) if hit(0.15) else (1, 12),
        disk_errors=rng.randint(1, 3) if hit(0.15) else 0,
        moves=dice.some(
            0.25, 3, lambda: (dice.at(), rng.randrange(6), round(rng.uniform(0, 15), 3))
        ),
        flush_ms=rng.choice((500, 1_000, 1_000, 2_000)),
        segment_bytes=rng.choice((20_000, 60_000, 1_000_000)),
        answers_s=answers_s,
    )


def _dedup(seed: int, seconds: float, *, calm: bool) -> DedupPlan:
    dice = _Dice(seed, "dedup", seconds, calm=calm)
    rng, hit = dice.rng, dice.hit
    more = _Dice(seed, "more", seconds, calm=calm)
    piecemeal = not calm and _rarely(seed, "piecemeal", 0.15, (True,), False)
    backup = dice.at(0.2, 0.6)
    return DedupPlan(
        start_s=dice.at(0.1, 0.9) if hit(0.2) else 0.0,
        crashes_at=dice.some(0.3, 3, dice.at),
        crashes_step=dice.steps(0.5, 4, 500),
        down_s=round(rng.uniform(0.2, 6), 3),
        line_cuts=dice.steps(0.4, 4, 500),
        read_cuts=dice.steps(0.3, 4, 700),
        production_down=dice.some(0.2, 2, lambda: dice.span(1, 15)),
        restore=(backup, round(backup + seconds * rng.uniform(0.05, 0.35), 3))
        if hit(0.15)
        else None,
        second_at=dice.at() if hit(0.12) else None,
        lock_lost_at=dice.at(0.3, 0.9) if hit(0.12) else None,
        pull_rows=min(rng.choice((20, 200, 50_000)), 20 if piecemeal else 50_000),
        read_ms=(5, 400) if hit(0.2) or piecemeal else (1, 5),
        crashes_at_end=more.some(0.2, 2, lambda: round(more.rng.uniform(0.2, 8), 3)),
        crashes_at_rest=more.steps(1 if piecemeal else 0.25, 4, 60),
        memory_windows=_rarely(seed, "memory", 0.3, (1, 2, 3), 24),
        publish_windows=1 if piecemeal else 200,
    )
