"""`make bench-latency`: from a gatherer's receipt of an event to the row in production.

`python -m tests.bench.latency [--seconds N] [--rate N]`: made-up recordings of 800 markets at a
steady rate through three gatherers' databases, each committing every FLUSH_S at its own phase as a
sink does, and the service itself (`dedup.main`) reading them; everything on this machine. Measured
is the time from the earliest receipt to the first answer of an independent reader that holds the
event, live or on the tape. Twice: with three gatherers, and with the third one silent.

What is in it: the sink's flush, the commit, the read, the proof, the commit in production, the
reader's own interval (POLL_S). What is not: the gatherer's spool (its group commit of up to 100 ms
comes before the flush) and the network between hosts.

Exit code 1 where p99 misses the target.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import uvloop

from runtime.embedded import EmbeddedPostgres
from runtime.postgres import connect
from tests.bench.__main__ import machine
from tests.bench.deduplicator import databases, say, start
from tests.bench.hot_stream import RECEIPT_NS, HotStream, HotWriter, Rows
from tests.bench.ratios import Line, Target, table

ROOT: Final = Path(__file__).resolve().parents[2]
MARKETS: Final = 800
RATE: Final = 5_000
GATHERERS: Final = 3
FLUSH_S: Final = 0.25
TICK_S: Final = 0.02
POLL_S: Final = 0.025
WARM_UP_S: Final = 25
SECONDS: Final = 60
UNDER_A_SECOND: Final = Target("at most", 1)


class Feed:
    """One stream, made as time passes, and what each gatherer has not committed yet."""

    def __init__(self, hot: Sequence[str], rate: int, begin_us: int) -> None:
        self.stream = HotStream(MARKETS, rate, start_us=begin_us)
        self.writers = [HotWriter(self.stream, [dsn]) for dsn in hot]
        self.waiting: list[list[Rows]] = [[] for _ in hot]
        self.silent: set[int] = set()
        self.late_s = 0.0  # the writers' own trouble to keep up, worst

    async def make(self) -> None:
        """Events come as time passes."""
        stream = self.stream
        while True:
            due = (time.time_ns() // 1_000 - stream.start_us) * stream.rate // 1_000_000
            if due > stream.made:
                rows = stream.next(due - stream.made)
                for waiting in self.waiting:
                    waiting.append(rows)
            await asyncio.sleep(TICK_S)

    async def flush(self, gatherer: int) -> None:
        """Commit what has come, again and again."""
        await asyncio.sleep(FLUSH_S * gatherer / GATHERERS)
        while True:
            began = time.monotonic()
            rows, self.waiting[gatherer] = self.waiting[gatherer], []
            if rows and gatherer not in self.silent:
                await self.writers[gatherer].write(np.concatenate(rows))
            took = time.monotonic() - began
            self.late_s = max(self.late_s, took)
            await asyncio.sleep(max(0.0, FLUSH_S - took))


class Watcher:
    """An independent reader: when was each event first seen in production?"""

    def __init__(self, feed: Feed, events_max: int) -> None:
        self.feed = feed
        self.seen_ns = np.zeros(events_max, np.int64)
        self.live = np.zeros(events_max, np.bool_)

    async def watch(self, dsn: str) -> None:
        """Look at new live rows and at the tape's end, until cancelled."""
        conn = await connect(dsn)
        # Rows only ever come behind the last page, so a look costs what is new.
        await conn.execute("ALTER TABLE live_delta SET (autovacuum_enabled = off)")
        page, closed_us, base = 0, 0, MARKETS + 1
        stream = self.feed.stream
        while True:
            rows = await conn.fetch(
                f"SELECT ctid::text AS at, seq FROM live_delta WHERE ctid >= '({page},0)'"
            )
            end_us = await conn.fetchval("SELECT coalesce(max(closed_to_us), 0) FROM merge_state")
            now_ns = time.time_ns()
            numbers = np.array([r["seq"] for r in rows], np.int64) - base
            new = numbers[self.seen_ns[numbers] == 0]
            self.seen_ns[new] = now_ns
            self.live[new] = True
            page = max((int(r["at"][1:].split(",")[0]) for r in rows), default=page)
            if end_us > closed_us:  # the tape holds everything before it
                closed_us = end_us
                upto = min((end_us - stream.start_us) * stream.rate // 1_000_000, stream.made)
                part = self.seen_ns[: max(0, upto)]
                part[part == 0] = now_ns
            await asyncio.sleep(POLL_S)

    def latencies_s(self, first: int, last: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Of the events with these numbers; one that was never seen counts until now."""
        stream = self.feed.stream
        number = np.arange(first, last, dtype=np.int64)
        received_ns = (stream.start_us + number * 1_000_000 // stream.rate) * 1_000 + RECEIPT_NS
        seen_ns = self.seen_ns[first:last].copy()
        seen_ns[seen_ns == 0] = time.time_ns()
        return (seen_ns - received_ns) / 1e9


async def scene(
    server: EmbeddedPostgres, folder: Path, rate: int, seconds: int, silent: set[int]
) -> list[Line]:
    """One measurement; `silent`: gatherers that commit nothing once the warm-up is over."""
    name = f"{GATHERERS - len(silent)} of {GATHERERS} gatherers"
    *hot, production = await databases(server, "l0", "l1", "l2", "lp")
    feed = Feed(hot, rate, time.time_ns() // 1_000)
    for writer in feed.writers:
        await writer.open()
    feed.stream.start_us = time.time_ns() // 1_000
    service = start(hot, production, folder / f"lake{len(silent)}", folder / "log")
    tasks = [asyncio.create_task(feed.make())]
    tasks += [asyncio.create_task(feed.flush(g)) for g in range(GATHERERS)]
    try:
        while not (await asyncio.to_thread(service.status)).get("windows"):  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        watcher = Watcher(feed, rate * (seconds + 600))
        tasks.append(asyncio.create_task(watcher.watch(production)))
        await asyncio.sleep(WARM_UP_S)
        feed.silent = silent
        first = feed.stream.made
        say(f"{name}: measuring {seconds} s from event {first:,} on")
        await asyncio.sleep(seconds)
        last = feed.stream.made
        await asyncio.sleep(3)
        seen = watcher.latencies_s(first, last)
        told = (await asyncio.to_thread(service.status))["live"]
        broken = [t for t in tasks if t.done()]
        if broken:
            await broken[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        service.child.send_signal(signal.SIGTERM)
        service.child.wait(60)
        for writer in feed.writers:
            await writer.close()
    say(f"{name}: {told}")
    p50, p99, p999 = np.percentile(seen, [50, 99, 99.9]).tolist()
    return [
        Line(name, "receive to visible row, p50", p50, "s"),
        Line(name, "p99", p99, "s", UNDER_A_SECOND),
        Line(name, "p99.9", p999, "s"),
        Line(name, "events", last - first, ""),
        Line(name, "of them live", int(watcher.live[first:last].sum()) / (last - first), ""),
        Line(name, "contradicted", told["contradicted"], "rows", Target("at most", 0)),
        Line(name, "the writers' longest commit", feed.late_s, "s"),
    ]


def main() -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(description="from receipt to the row in production")
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--rate", type=int, default=RATE)
    asked = parser.parse_args()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedPostgres()
        server.start_blocking()
        try:
            for key, value in machine(server).items():
                print(f"{key}: {value}")
            for silent in (set[int](), {GATHERERS - 1}):
                lines += uvloop.run(scene(server, Path(folder), asked.rate, asked.seconds, silent))
        finally:
            server.close_blocking()
    print(table(lines))
    return 1 if any(each.verdict == "NOT MET" for each in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
