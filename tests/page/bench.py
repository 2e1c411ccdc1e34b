"""What the page costs with ten thousand markets: `make page-bench`. Exit code 1: a limit is missed.

A production with MARKETS markets, three witnesses of each and gaps in some of them; the page's
server as a process of its own, whose tape moves on every second; a real browser that looks.
Measured: first paint in the browser, processor time of the server for one reader of the stream
against none, and its memory over time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
import psutil

from dedup.main import report
from dedup.page.serving import Page
from dedup.pipeline import Pipeline
from kalshilake.store import open_store
from runtime.clock import Clock
from runtime.embedded import EmbeddedPostgres
from runtime.health import Health, HealthServer
from runtime.metrics import Metrics
from tape.fleet import free_port
from tests.databases import fresh_database
from tests.dedup_rig import Recordings, pipeline, settings
from tests.gatherer_rows import make_stream
from tests.page.browser import browser, opened
from tests.page.test_requests import answers

MARKETS = 10_000
SERIES = 100
FIRST_PAINT_MS_MAX = 1_000
SHARE_MAX = 0.02
GROWTH_MAX = 0.05
WARM_UP_S = 30.0
HOUR_US = 3_600_000_000
OPEN_US = 2**62


FILL = """
INSERT INTO market SELECT n, 'KXS' || lpad((n % {series})::text, 3, '0') || '-E-' || n, {before}
FROM generate_series(1, {markets}) n;
INSERT INTO run_progress SELECT g, 1, 'orderbook', {before}, {now}, false, ''
FROM generate_series(0, 2) g;
INSERT INTO run_progress SELECT g, 2, 'trade', {before}, {now}, false, ''
FROM generate_series(0, 2) g;
INSERT INTO market_claim SELECT market_id, g, 1, {before}, {open}, true, ''
FROM market, generate_series(0, 2) g;
INSERT INTO market_epoch SELECT market_id, 1, {before}, 0, 'first' FROM market;
INSERT INTO mark SELECT 1, market_id, market_id, 'gap', {hour} + 1000000, {hour} + 2000000, 'gap'
FROM market WHERE market_id % 97 = 0;
INSERT INTO lake_hour VALUES ({before}, true, true, 0), ({hour}, true, true, 0);
INSERT INTO merge_state (windows, closed_to_us, received_ns_max, settings, counts)
VALUES (1, {now}, {now} * 1000::bigint, '{{}}', '{{}}');
ANALYZE;
"""


async def fill(dsn: str, now_us: int) -> None:
    """Ten thousand markets in the running hour and the one before."""
    hour_us = now_us - now_us % HOUR_US
    conn = await asyncpg.connect(dsn)
    await conn.execute(
        FILL.format(
            markets=MARKETS,
            series=SERIES,
            before=hour_us - HOUR_US,
            hour=hour_us,
            now=now_us,
            open=OPEN_US,
        )
    )
    await conn.close()


async def move_on(dsn: str) -> None:
    """A second of tape a second."""
    conn = await asyncpg.connect(dsn)
    while True:
        await asyncio.sleep(1)
        now_us = time.time_ns() // 1_000
        await conn.execute(
            "UPDATE merge_state SET closed_to_us = $1, received_ns_max = $2", now_us, now_us * 1_000
        )
        await conn.execute("UPDATE run_progress SET to_us = $1", now_us)


async def serve(dsn: str, lake: str, port: int) -> None:
    """The page's server alone: no merge runs beside it, so that what is measured is its own."""
    made = Recordings(make_stream(1, events=1), ["postgresql://a"] * 3, [], [])
    line: Pipeline = pipeline(settings(made, dsn, Path(lake)))
    health, clock = Health("deduplicator", "merge"), Clock()
    health.set("merge", "ok")

    def status() -> dict[str, object]:
        return report(line, health, clock)

    page = Page(health, status, dsn, open_store(lake), lake_uri=lake)
    server = HealthServer(health, Metrics(), health_port=port, status=status, routes=page.routes())
    async with server:
        await asyncio.Event().wait()


async def cost(process: psutil.Process, seconds: float) -> float:
    """Share of a core that the process uses."""
    before, began_s = process.cpu_times(), time.monotonic()
    await asyncio.sleep(seconds)
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return float(used / (time.monotonic() - began_s))


async def measure(seconds: float) -> dict[str, float]:
    """All of it."""
    postgres = EmbeddedPostgres(settings={"fsync": "off"})
    await postgres.start()
    dsn, port = await fresh_database(postgres, "production"), free_port()
    await fill(dsn, time.time_ns() // 1_000)
    moving = asyncio.create_task(move_on(dsn))
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.page.bench", "--serve", dsn, tempfile.mkdtemp(), str(port),
    )  # fmt: skip
    process = psutil.Process(child.pid)
    base = f"http://127.0.0.1:{port}/"
    try:
        await answers(f"{base}api/overview", 60)
        async with browser() as running:
            tab = await opened(running, base)
            await tab.tab.wait_for_selector("#hours button")
            await tab.tab.context.close()
            idle = await cost(process, 10)
            tab = await opened(running, base)
            await tab.tab.wait_for_selector("#hours button")
            painted = await tab.tab.evaluate(
                "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            )
            await asyncio.sleep(WARM_UP_S)
            memory = process.memory_info().rss
            looked_at = await cost(process, seconds)
            grown = process.memory_info().rss / memory - 1
            assert tab.errors == [], tab.errors
            word = await tab.text("#word-text")
            assert word.lower() == "not complete", word
    finally:
        child.terminate()
        await child.wait()
        moving.cancel()
        await postgres.stop()
    return {
        "markets": MARKETS,
        "first_paint_ms": round(painted),
        "core_share_idle": round(idle, 4),
        "core_share_one_reader": round(looked_at, 4),
        "memory_bytes": memory,
        "memory_growth": round(grown, 4),
        "seconds": seconds,
    }


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--serve", nargs=3, metavar=("DSN", "LAKE", "PORT"))
    chosen = parser.parse_args()
    if chosen.serve:
        dsn, lake, port = chosen.serve
        asyncio.run(serve(dsn, lake, int(port)))
        return 0
    found = asyncio.run(measure(chosen.seconds))
    missed = [
        name
        for name, limit in (
            ("first_paint_ms", FIRST_PAINT_MS_MAX),
            ("core_share_one_reader", SHARE_MAX),
            ("memory_growth", GROWTH_MAX),
        )
        if found[name] > limit
    ]
    limits = f"limits: {FIRST_PAINT_MS_MAX} ms, {SHARE_MAX} of a core, {GROWTH_MAX} growth"
    print(json.dumps(found), limits, f"missed: {missed or 'none'}", sep="\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
