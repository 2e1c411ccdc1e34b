"""`make sim` and `make sim-many`: play seeds, print stories and totals.

Purpose: one seed with its plan, its story and the verdict; or many seeds in processes, one line for
each that fails, and how often every fault really happened.

Does not do: changing the product (mutate).
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.sim.checkers import judge
from tests.sim.virtual import STORY_TAIL
from tests.sim.world import World, limits_kept, play

PROCESSES = 2
PROGRESS_EVERY = 50
CPU_S_MAX = 60  # of one seed, which takes about one: a task that never waits lets no time pass


@dataclass
class Result:
    """What is kept of one seed."""

    seed: int
    violations: list[str]
    digest: str = ""  # of the whole story
    happened: Counter[str] = field(default_factory=Counter)
    overtaken: bool = False
    events: int = 0


def digest_of(world: World) -> str:
    """Names a story: two runs of a seed must give the same."""
    content = world.production.content
    made = hashlib.sha256("\n".join(world.story.lines).encode())
    for name in ("orderbook_delta", "trade", "ticker"):
        made.update(content.rows(name).tobytes())
    made.update(repr(sorted(content.tables["arbiter_state"].values())).encode())
    return made.hexdigest()


class NoRest(BaseException):
    """A world in which something goes round for ever."""


def _no_rest(*_: Any) -> None:
    raise NoRest(f"a task goes round for ever: more than {CPU_S_MAX} s of the processor")


def run_seed(seed: int) -> Result:
    """Play and judge one seed."""
    signal.signal(signal.SIGVTALRM, _no_rest)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S_MAX, CPU_S_MAX)
    try:
        with limits_kept():
            return _judged(seed)
    except NoRest as error:
        return Result(seed, [f"liveness: {error}"])
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _judged(seed: int) -> Result:
    try:
        world = play(seed)
        violations = [violation.told() for violation in judge(world)]
    except Exception as error:  # noqa: BLE001 - a fall of the simulation is told as such
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = (
            f"the simulation fell: {type(error).__name__}: {error} at {where.name}:{where.lineno}"
        )
        return Result(seed, [told])
    return Result(
        seed, violations, digest_of(world), world.story.happened,
        bool(world.dedup.watch.overtaken), world.exchange.venue.events,
    )  # fmt: skip


def tell_one(seed: int) -> int:
    """`make sim SEED=n`."""
    world = play(seed)
    print("\n".join(world.plan.told()))
    violations = judge(world)
    lines = list(world.story.lines)
    print(f"\nstory: {len(lines)} lines, the last {STORY_TAIL} before the end")
    print("\n".join(lines[-STORY_TAIL:]) if not os.environ.get("WHOLE") else "\n".join(lines))
    print(
        "\nfaults that happened: "
        + ", ".join(f"{k} {v}" for k, v in sorted(world.story.happened.items()))
    )
    if world.dedup.watch.overtaken:
        print(f"windows closed without something: {world.dedup.watch.overtaken}")
    for violation in violations:
        print(f"\nVIOLATION {violation.checker}\n  what:     {violation.what}")
        print(f"  seen:     {violation.seen or '-'}\n  expected: {violation.expected or '-'}")
    print(f"\nseed {seed}: {'VIOLATED' if violations else 'holds'} ({world.exchange.venue.events}"
          f" events, story {digest_of(world)[:16]})")  # fmt: skip
    return 1 if violations else 0


def tell_many(first: int, count: int, processes: int) -> int:
    """`make sim-many SEEDS=n`."""
    began_s = time.monotonic()
    happened: Counter[str] = Counter()
    worlds_with: Counter[str] = Counter()
    failed = overtaken = events = done = 0
    with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=200) as pool:
        for result in pool.imap_unordered(run_seed, range(first, first + count), chunksize=4):
            done += 1
            happened.update(result.happened)
            worlds_with.update(result.happened.keys())
            overtaken += result.overtaken
            events += result.events
            if done % PROGRESS_EVERY == 0:
                told = f"{done} seeds, {failed} with a violation"
                print(f"{told}, {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
            if result.violations:
                failed += 1
                print(f"seed {result.seed}: {result.violations[0][:400]}", flush=True)
    seconds = time.monotonic() - began_s
    print(f"\n{'fault':<34}{'times':>9}{'worlds':>9}")
    for name, times in sorted(happened.items()):
        print(f"{name:<34}{times:>9}{worlds_with[name]:>9}")
    never = [name for name in EXPECTED if not happened[name]]
    if never:
        print(f"\nNEVER HAPPENED: {', '.join(never)}")
    print(
        f"\n{done} seeds, {failed} with a violation, {overtaken} with windows that closed without"
        f" something; {events} exchange events; {seconds:.0f} s, {done / seconds:.2f} seeds/s"
    )
    return 1 if failed or (never and count >= 1000) else 0


EXPECTED = (
    "clean_stop", "clock_offset", "clock_step", "commit_after_the_end", "commit_result_unknown",
    "crash_at_effect", "crash_at_time", "dedup_crash_at_end", "dedup_crash_at_time", "disk_error",
    "doomed_at_rest",
    "fenced", "frames_lost", "hanging_transaction", "host_away", "host_replaced",
    "hot_database_down", "late_start", "line_cut_after_effect", "line_cut_before_effect",
    "lock_lost", "lock_wait", "market_moved", "partition", "partition_held", "production_down",
    "production_restored", "second_deduplicator", "silent_cut", "slow_answers", "slow_commit",
    "spool_lost", "torn_tail_cut", "torn_write", "upgrade_refused", "checked: one gatherer less",
    "exchange_close", "exchange_drop", "exchange_duplicate", "exchange_gap",
    "exchange_late_snapshot", "exchange_overflow", "exchange_reset", "exchange_shuffled",
    "exchange_stall_begins", "exchange_stall_reset_begins", "exchange_unknown_type",
)  # fmt: skip
"""A fault that never happens is a defect of the simulation."""


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    args = parser.parse_args()
    if args.seed is not None:
        return tell_one(args.seed)
    return tell_many(args.first, args.seeds, args.processes)


if __name__ == "__main__":
    sys.exit(main())
