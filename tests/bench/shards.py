"""`make bench-shards`: what several mergers of one tape cost, together and each.

`python -m tests.bench.shards [--short] [--events N]`: the deduplicator's own processes
(`dedup.main`, with lake and proof) over three recordings of N, 2 N and 4 N made-up events of 800
markets, as 1, 2 and 4 processes that share the markets. Counted is the processor time of each
process over its whole life, start included; that of the databases is not.

- Linear in events: of one process, the time that another million events costs between N and 2 N
  against that between 2 N and 4 N.
- The price of sharing: every process reads everything (shards, owned), so all together cost more
  than one, and each costs less.

Exit code 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.embedded import EmbeddedPostgres
from runtime.postgres import connect
from tests.bench.__main__ import machine
from tests.bench.deduplicator import MARKETS, databases, made_up, say
from tests.bench.ratios import Target

SHARDS: Final = (1, 2, 4)
SIZES: Final = (1, 2, 4)
LINEAR: Final = Target("at most", 1.3)
EACH_OF_FOUR: Final = Target("at most", 0.75)
"""Of what one process alone takes, with four."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One run: processor seconds of each process, and how long the whole took."""

    events: int
    each_s: list[float]
    seconds: float

    @property
    def total_s(self) -> float:
        """Of all processes."""
        return sum(self.each_s)


def run(hot: Sequence[str], production: str, lake: Path, of: int) -> Cost:
    """The mergers of one tape from its beginning to its end."""
    common = {
        "KT_GATHERER_DSNS": json.dumps(list(hot)), "KT_PRODUCTION_DSN": production,
        "KT_LAKE_URI": str(lake), "KT_FINAL": "true", "KT_HEALTH_PORT": "0",
        "KT_METRICS_PORT": "0", "KT_LOG_LEVEL": "error", "KT_MERGE_SHARDS": str(of),
        "KT_PATIENCE_S": "1000000",
    }  # fmt: skip
    began = time.perf_counter()
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "dedup.main"],
            env={**os.environ, **common, "KT_MERGE_SHARD": str(number)},
        )
        for number in range(1, of + 1)
    ]
    each_s = []
    for child in children:
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise RuntimeError(f"a merger ended with {child.returncode}")
        each_s.append(used.ru_utime + used.ru_stime)
    return Cost(0, each_s, time.perf_counter() - began)


async def counted(production: str) -> int:
    """Events on the tape."""
    conn = await connect(production)
    found: int = await conn.fetchval("SELECT count(*) FROM orderbook_delta")
    await conn.close()
    return found


def measured(server: EmbeddedPostgres, folder: Path, events: int) -> dict[tuple[int, int], Cost]:
    """(size, processes) -> cost."""
    made: dict[tuple[int, int], Cost] = {}
    for size in SIZES:
        hot = asyncio.run(databases(server, "s0", "s1", "s2"))
        asyncio.run(made_up(hot, size * events))
        for of in SHARDS:
            (production,) = asyncio.run(databases(server, "shared"))
            cost = run(hot, production, folder / f"{size}-{of}", of)
            seen = asyncio.run(counted(production))
            if seen != size * events:
                raise RuntimeError(f"{seen} events on the tape of {size * events}")
            made[size, of] = Cost(seen, cost.each_s, cost.seconds)
            say(f"{seen} events, {of} processes: {cost.total_s:.1f} s of processor time")
    return made


def told(made: dict[tuple[int, int], Cost], events: int) -> bool:
    """Print all; whether the targets are met."""
    print(f"{'events':>10} {'processes':>9} {'cpu s':>8} {'cpu s / 1M events':>18} "
          f"{'of the largest process':>23} {'wall s':>7}")  # fmt: skip
    for (_, of), cost in made.items():
        million = cost.events / 1e6
        print(f"{cost.events:>10} {of:>9} {cost.total_s:>8.1f} {cost.total_s / million:>18.1f} "
              f"{max(cost.each_s) / million:>23.1f} {cost.seconds:>7.1f}")  # fmt: skip
    million = events / 1e6
    well = True
    for of in SHARDS:
        total = [made[size, of].total_s for size in SIZES]
        first, second = (total[1] - total[0]) / million, (total[2] - total[1]) / (2 * million)
        print(f"{of} processes, another million events: {first:.1f} s, then {second:.1f} s")
        if of == 1:
            well &= LINEAR.met(second / first)
            print(f"  ratio {second / first:.2f}, target {LINEAR.kind} {LINEAR.value}")
    big, small = SIZES[-1], SIZES[0]
    alone = made[big, 1].total_s - made[small, 1].total_s
    each = max(made[big, 4].each_s) - max(made[small, 4].each_s)
    well &= EACH_OF_FOUR.met(each / alone)
    print(f"the largest of four processes costs {each / alone:.2f} of one alone, "
          f"target {EACH_OF_FOUR.kind} {EACH_OF_FOUR.value}")  # fmt: skip
    return well


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="one twentieth of the events")
    parser.add_argument("--events", type=int, default=1_000_000, help="of the smallest run")
    asked = parser.parse_args()
    events = asked.events // 20 if asked.short else asked.events

    server = EmbeddedPostgres()
    server.start_blocking()
    try:
        print(", ".join(f"{name} {value}" for name, value in machine(server).items()))
        print(f"made-up events of {MARKETS} markets, three recordings of each")
        with tempfile.TemporaryDirectory() as folder:
            made = measured(server, Path(folder), events)
    finally:
        server.close_blocking()
    return 0 if told(made, events) else 1


if __name__ == "__main__":
    sys.exit(main())
