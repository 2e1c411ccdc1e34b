"""`make bench-dedup`: the deduplicator against its limit and a naive peer, its memory, a backlog.

`python -m tests.bench.deduplicator [--short] [--events N] [--only rounds|long]`, in one run:

- rounds: five alternated rounds of the merge, of its limit (binary COPY out three times and in
  once) and of the design that polls by timestamp and inserts with ON CONFLICT, on the same three
  databases: recorded captures where they are on the machine, and made-up frames of 800 markets.
- long: the service itself (`dedup.main`, with lake, live rows and proof as in production) in front
  of a backlog of 10 million events, while three gatherers go on at the live rate; then all that is
  left of 50 million events as fast as they can be written. The three gatherers are one database
  read three times: it is the readers' and the merge's work that is measured, not the disk.

Exit code 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop

from dedup.publication import HOUR_US
from runtime.embedded import EmbeddedPostgres, free_port
from runtime.postgres import connect
from tests.bench import merge, naive, sizes
from tests.bench.__main__ import machine
from tests.bench.hot_stream import START_US, HotStream, HotWriter
from tests.bench.ratios import Line, Target, line, table

ROOT: Final = Path(__file__).resolve().parents[2]
MARKETS: Final = 800
LIVE_RATE: Final = 5_000
ROUND_EVENTS: Final = 600_000  # two minutes; the beginning of an empty production is 0.2 s of it
CAPTURES: Final = 8
BATCH: Final = 5_000
LIVE_BATCHES_PER_S: Final = 4
STEP_S: Final = 0.5
CAUGHT_UP_S: Final = 15  # of exchange time that the windows and their grace keep back
READY_WITHIN_S: Final = 120
STALLED_S: Final = 900  # an hour of 18 million changes is exported meanwhile
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
OF_LIMIT: Final = Target("at least", 0.6)
OF_NAIVE: Final = Target("at least", 6)
OF_LIVE: Final = Target("at least", 5)
FLAT: Final = Target("at most", 1.15)
"""Most resident memory in all against that of the first fifth, in which an hour was exported."""
BEFORE_HOUR_US: Final = 900_000_000
"""The long run begins so long before an hour's end: it exports a quarter of an hour, then hours."""


def say(text: str) -> None:
    """Progress goes to standard error."""
    print(text, file=sys.stderr, flush=True)


# -- rounds ----------------------------------------------------------------------------------------


async def databases(server: EmbeddedPostgres, *names: str) -> list[str]:
    """Fresh empty databases; their DSNs."""
    conn = await connect(server.dsn())
    for name in names:
        await conn.execute(f"DROP DATABASE IF EXISTS {name}")
        await conn.execute(f"CREATE DATABASE {name}")
    await conn.close()
    return [server.dsn(name) for name in names]


async def made_up(hot: Sequence[str], events: int) -> None:
    """Three recordings of one stream."""
    stream = HotStream(MARKETS, LIVE_RATE)
    writer = HotWriter(stream, hot)
    await writer.open()
    while stream.made < events:
        await writer.write(stream.next(BATCH))
    await writer.finish()
    await writer.close()


async def settled(hot: Sequence[str]) -> None:
    """As autovacuum leaves tables within a minute: the index of batches knows them. These were
    filled in seconds and would be read through whole, again for each read."""
    for dsn in hot:
        conn = await connect(dsn)
        await conn.execute("VACUUM (ANALYZE)")
        await conn.close()


def one_round(server: EmbeddedPostgres, hot: Sequence[str], number: int) -> dict[str, Any]:
    """The merge, its limit and the naive design, one after the other; in the first round also the
    naive design with a task for each source."""
    span = asyncio.run(merge.time_span(hot[0]))
    names = ("merged", "limit_of", "naive_of", "naive_at_once")
    production, empty, other, both = asyncio.run(databases(server, *names))
    merged = uvloop.run(merge.merge(hot, production))
    tape = asyncio.run(merge.tape_bytes(production))
    limit_s = uvloop.run(merge.limit(hot, empty, tape, span))
    peer = uvloop.run(naive.run(hot, other))
    busy = None if number else uvloop.run(naive.run(hot, both, at_once=True))
    if merged.counts.get("quarantined_rows", 0):
        raise RuntimeError(f"the merge of whole recordings is not whole: {merged.counts}")
    if merged.counts["merged_events"] != peer.truth:
        raise RuntimeError(f"{merged.counts['merged_events']} merged of {peer.truth}")
    return {
        "merge": merged.rows_in / merged.seconds,
        "limit": merged.rows_in / limit_s,
        "naive": peer.rows_in / peer.seconds,
        "at once": busy.rows_in / busy.seconds if busy else None,
        "of limit": limit_s / merged.seconds,
        "of naive": (merged.rows_in / merged.seconds) / (peer.rows_in / peer.seconds),
        "lost": peer.lost,
        "lost ppm": 1e6 * peer.lost / peer.truth,
        "events": peer.truth,
    }


def rounds(server: EmbeddedPostgres, short: bool) -> list[Line]:
    """All sources, all rounds."""
    sources: list[tuple[str, list[str]]] = []
    hot = asyncio.run(databases(server, "m0", "m1", "m2"))
    asyncio.run(made_up(hot, 20_000 if short else ROUND_EVENTS))
    sources.append((f"made-up frames of {MARKETS} markets", hot))
    captures = [] if short else sizes.largest_captures(CAPTURES)
    if captures:
        hot = asyncio.run(databases(server, "c0", "c1", "c2"))
        asyncio.run(sizes.write_gatherers(captures, hot))
        sources.append((f"{len(captures)} recorded captures", hot))
    lines: list[Line] = []
    for name, hot in sources:
        asyncio.run(naive.index(hot))
        asyncio.run(settled(hot))
        seen = []
        for number in range(1 if short else 5):
            seen.append(one_round(server, hot, number))
            say(f"{name}, round {number + 1}: {seen[-1]['of limit']:.3f} of the limit, "
                f"{seen[-1]['of naive']:.1f} times the naive design")  # fmt: skip
        lines += _lines(f"merge end to end: {name}", seen)
    return lines


def _lines(section: str, seen: Sequence[dict[str, Any]]) -> list[Line]:
    def of(key: str) -> list[float]:
        return [each[key] for each in seen if each[key] is not None]

    return [
        line(section, "events", of("events"), ""),
        line(section, "merge", of("merge"), "rows/s"),
        line(section, "limit: COPY out x3 + COPY in", of("limit"), "rows/s"),
        line(section, "poll by timestamp + ON CONFLICT", of("naive"), "rows/s"),
        line(section, "the same, a task for each source", of("at once"), "rows/s"),
        line(section, "merge / limit", of("of limit"), "x", OF_LIMIT),
        line(section, "merge / naive", of("of naive"), "x", OF_NAIVE),
        line(section, "lost by the naive design", of("lost"), "events"),
        line(section, "lost by the naive design", of("lost ppm"), "ppm"),
    ]


# -- the long run ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Service:
    """`dedup.main` as a child, and what is seen of it."""

    child: subprocess.Popen[bytes]
    port: int
    samples: list[tuple[float, int, int]] = field(default_factory=list)  # s, events, resident bytes

    def status(self) -> dict[str, Any]:
        """The body of /status; empty while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/status", timeout=30) as got:
                found: dict[str, Any] = json.load(got)
                return found
        except OSError:
            return {}

    def sample(self, began: float) -> int:
        """Take one; the events on the tape."""
        if self.child.poll() is not None:
            raise RuntimeError(f"the deduplicator ended with {self.child.returncode}")
        events = int(self.status().get("rows_merged", 0))
        pages = int(Path(f"/proc/{self.child.pid}/statm").read_text().split()[1])
        self.samples.append((time.monotonic() - began, events, pages * PAGE_BYTES))
        return events


def start(hot: Sequence[str], production: str, lake: Path, log: Path) -> Service:
    """The service with its defaults over these gatherers' databases."""
    port = free_port()
    environment = {
        **os.environ,
        "KT_GATHERER_DSNS": json.dumps(list(hot)),
        "KT_PRODUCTION_DSN": production,
        "KT_LAKE_URI": str(lake),
        "KT_HEALTH_PORT": str(port),
        "KT_METRICS_PORT": str(free_port()),
        "KT_LOG_LEVEL": "warning",
    }
    with log.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "dedup.main"], cwd=ROOT, env=environment, stderr=out
        )
    return Service(child, port)


async def live(writer: HotWriter, seconds: float) -> None:
    """Batches at the live rate for so long."""
    began, sent = time.monotonic(), 0
    while (passed := time.monotonic() - began) < seconds:
        due = int(passed * LIVE_BATCHES_PER_S) + 1
        while sent < due:
            await writer.write(writer.stream.next(LIVE_RATE // LIVE_BATCHES_PER_S))
            sent += 1
        await asyncio.sleep(0.02)


async def worked_off(service: Service, writer: HotWriter, began: float, limit: float) -> float:
    """Seconds until everything but what windows keep back is on the tape; live rows go on."""
    last, moved = 0, time.monotonic()
    while True:
        await live(writer, STEP_S)
        events = await asyncio.to_thread(service.sample, began)
        if events > last:
            last, moved = events, time.monotonic()
        elif time.monotonic() - moved > limit:
            raise RuntimeError(f"nothing was merged for {limit:.0f} s: {service.status()}")
        if events >= writer.stream.made - CAUGHT_UP_S * LIVE_RATE:
            return time.monotonic() - began


async def fed(service: Service, writer: HotWriter, began: float, events: int) -> None:
    """The rest as fast as it is read, never more than 2 million events ahead."""
    last, moved = 0, time.monotonic()
    goal = events - CAUGHT_UP_S * LIVE_RATE
    while last < goal:
        until = time.monotonic() + STEP_S
        while time.monotonic() < until:
            if writer.stream.made >= min(events, last + 2_000_000):
                await asyncio.sleep(0.05)
                continue
            await writer.write(writer.stream.next(BATCH))
        now = await asyncio.to_thread(service.sample, began)
        if now > last:
            last, moved = now, time.monotonic()
        elif time.monotonic() - moved > STALLED_S:
            raise RuntimeError(f"nothing was merged for {STALLED_S} s: {service.status()}")


async def long_run(
    server: EmbeddedPostgres, folder: Path, events: int, backlog: int
) -> tuple[Service, float, int]:
    """(service with its samples, seconds for the backlog, events on the tape by then)."""
    hot, production = await databases(server, "hot", "production")
    start_us = START_US + HOUR_US - BEFORE_HOUR_US
    stream = HotStream(MARKETS, LIVE_RATE, start_us=start_us)
    writer = HotWriter(stream, [hot])
    await writer.open()
    while stream.made < backlog:
        await writer.write(stream.next(BATCH))
    say(f"backlog of {backlog:,} events written")
    began = time.monotonic()
    service = start([hot] * 3, production, folder / "lake", folder / "dedup.log")
    try:
        while not service.status():
            if service.child.poll() is not None or time.monotonic() - began > READY_WITHIN_S:
                raise RuntimeError((folder / "dedup.log").read_text()[-2000:])
            await asyncio.sleep(0.1)
        seconds = await worked_off(service, writer, began, STALLED_S)
        at_end = service.samples[-1][1]
        say(f"{at_end:,} events in {seconds:.0f} s: {at_end / seconds / LIVE_RATE:.1f} x live")
        await fed(service, writer, began, events)
        found = service.status()
        wrong = {k: found[k] for k in ("quarantined", "audits_failed", "gaps") if found[k]}
        if wrong or found["duplicates"] != 2 * found["rows_merged"]:
            raise RuntimeError(f"the tape is not whole: {found}")
    finally:
        service.child.send_signal(signal.SIGTERM)
        service.child.wait(120)
        await writer.close()
    return service, seconds, at_end


def resident(service: Service, events: int) -> float:
    """Most MiB resident up to the moment when so many events were on the tape."""
    return max((size for _, seen, size in service.samples if seen <= events), default=0) / (1 << 20)


def long_lines(server: EmbeddedPostgres, folder: Path, events: int, backlog: int) -> list[Line]:
    """The lines of the long run."""
    service, seconds, done = uvloop.run(long_run(server, folder, events, backlog))
    section = f"the service: {MARKETS} markets, live rate {LIVE_RATE:,} events/s"
    marks = [n for n in (1, 5, 10, 25, 50) if n * 1_000_000 <= events]
    lines = [
        line(section, f"backlog of {backlog:,} events worked off after", [seconds], "s"),
        line(section, "rate / live rate", [done / seconds / LIVE_RATE], "x", OF_LIVE),
    ]
    for n in marks:
        seen = [s for s in service.samples if s[1] >= n * 1_000_000 - CAUGHT_UP_S * LIVE_RATE]
        size = seen[0][2] / (1 << 20) if seen else 0
        lines.append(line(section, f"resident at {n} million events", [size], "MiB"))
    first, whole = resident(service, events // 5), resident(service, events)
    lines.append(line(section, f"most in the first {events // 5:,}", [first], "MiB"))
    lines.append(line(section, "most in all", [whole], "MiB"))
    lines.append(line(section, "most in all / most in the first fifth", [whole / first], "x", FLAT))
    return lines


def main() -> int:
    """Measure, print; 1 where a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.deduplicator", description=__doc__)
    parser.add_argument("--short", action="store_true", help="that it runs, no measurement")
    parser.add_argument("--events", type=int, default=50_000_000)
    parser.add_argument("--backlog", type=int, default=10_000_000)
    parser.add_argument("--only", choices=("rounds", "long"))
    parser.add_argument("--folder", type=Path, help="where databases go (about 300 bytes an event)")
    asked = parser.parse_args()
    events, backlog = (400_000, 200_000) if asked.short else (asked.events, asked.backlog)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="kalshi-tape-bench-", dir=asked.folder) as name:
        server = EmbeddedPostgres()
        try:
            server.start_blocking()
            facts = machine(server)
            if asked.only != "long":
                lines += rounds(server, asked.short)
            if asked.only != "rounds":
                lines += long_lines(server, Path(name), events, backlog)
        finally:
            server.close_blocking()
    facts["loadavg at the end"] = " ".join(f"{load:.1f}" for load in os.getloadavg())
    print(", ".join(f"{key}: {value}" for key, value in facts.items()))
    print("median of the rounds [smallest .. largest]")
    print(table(lines))
    missed = [each for each in lines if each.verdict == "NOT MET"]
    return 0 if asked.short or not missed else 1


if __name__ == "__main__":
    sys.exit(main())
