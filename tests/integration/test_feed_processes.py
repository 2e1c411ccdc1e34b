"""Two feed processes as one service: they share the markets, and one that is killed comes back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from gatherer.processes import dsn_of
from tests.bench.sustained import TABLES, Load, Rig, rig

PROCESSES = 2
RATE = 400
WITHIN_S = 60
LOAD = Load(RATE, 1, markets=120, markets_per_connection=40)


async def until(made: Rig, http: aiohttp.ClientSession, **wanted: Any) -> dict[str, Any]:
    """Figures of /health that have these values."""
    seen: dict[str, Any] = {}
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        seen = await made.health(http)
        if seen and all(seen.get(name) == value for name, value in wanted.items()):
            return seen
        await asyncio.sleep(0.1)
    raise AssertionError(f"{wanted} did not come: {json.dumps(seen)}")


async def counts(dsn: str) -> tuple[dict[str, int], set[str]]:
    """Rows by kind, and the markets whose books are there."""
    conn = await asyncpg.connect(dsn)
    try:
        rows = {k: await conn.fetchval(f"SELECT count(*) FROM {t}") for k, t in TABLES.items()}
        books = await conn.fetch(
            "SELECT DISTINCT ticker FROM market JOIN orderbook_snapshot USING (market_id)"
        )
        return rows, {row[0] for row in books}
    finally:
        await conn.close()


async def whole(made: Rig) -> tuple[dict[str, int], list[set[str]]]:
    """Rows of all processes together, and each one's markets."""
    found = [await counts(dsn_of(made.hot, n)) for n in range(1, PROCESSES + 1)]
    return {k: sum(rows[k] for rows, _ in found) for k in TABLES}, [books for _, books in found]


async def drained(made: Rig, sent: dict[str, Any]) -> dict[str, int]:
    """The rows, once there are as many as were sent (or the time is over)."""
    deadline = time.monotonic() + WITHIN_S
    while True:
        rows, _ = await whole(made)
        if all(rows[k] >= sent.get(k, 0) for k in TABLES) or time.monotonic() > deadline:
            return rows
        await asyncio.sleep(0.2)


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(word) for word in text.split()]


async def test_processes_share_the_markets_and_a_killed_one_comes_back(tmp_path: Path) -> None:
    settings = {"KT_FEED_PROCESSES": str(PROCESSES), "KT_DISCOVERY_INTERVAL_S": "5"}
    async with rig(tmp_path, LOAD, settings) as made, aiohttp.ClientSession() as http:
        await until(made, http, complete=True)
        await made.exchange.ask(f"rate {RATE}")
        await asyncio.sleep(3)
        sent = await made.exchange.ask("rate 0")
        rows = await drained(made, sent)
        assert rows == {kind: sent[kind] for kind in TABLES}
        _, books = await whole(made)
        assert all(books)
        assert not books[0] & books[1]
        assert len(books[0] | books[1]) == LOAD.markets

        victim = children_of(made.gatherer.pid)[1]
        os.kill(victim, signal.SIGKILL)
        await until(made, http, restarts=1, complete=True)
        assert victim not in children_of(made.gatherer.pid)
        before = await made.exchange.ask("facts")
        rows_before, _ = await whole(made)
        await made.exchange.ask(f"rate {RATE}")
        await asyncio.sleep(2)
        sent = await made.exchange.ask("rate 0")
        extra = {kind: sent[kind] - before[kind] for kind in TABLES}
        rows = await drained(made, {k: rows_before[k] + extra[k] for k in TABLES})
        assert {kind: rows[kind] - rows_before[kind] for kind in TABLES} == extra

        async with http.get(f"http://127.0.0.1:{made.health_port}/health") as answer:
            assert answer.status == 200
        pids = children_of(made.gatherer.pid)
        made.gatherer.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(made.gatherer.wait, 60) == 0
        assert not [pid for pid in pids if is_alive(pid)]
