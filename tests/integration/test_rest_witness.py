"""REST as a witness of a real gatherer: it agrees with a right book and finds a wrong one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest

from runtime.embedded import EmbeddedPostgres
from tests.acceptance.dropping_proxy import DroppingProxy
from tests.databases import postgres_server
from tests.exchange_client import Running, exchange
from tests.gatherer_rig import gatherer

__all__ = ["postgres_server"]

FLAGS = ("--synthetic", "200", "--rate", "1", "--faults", "none", "--events-per-s", "20")
SETTINGS = {
    "rest_rate_per_s": "20", "rest_audit_share": "0.5", "rest_audit_interval_s": "6",
    "trade_window_s": "5", "trade_settle_s": "2", "audit_interval_s": "3600",
}  # fmt: skip


@dataclass(slots=True)
class Alters(DroppingProxy):
    """Changes the size of every so many changes of a book, once; their numbers stay in sequence."""

    every: int = 0
    altered: set[str] = field(default_factory=set)

    async def _pass_down(self, client: Any, exchange: Any) -> None:
        deltas = 0
        async for frame in exchange:
            told = orjson.loads(frame)
            if told["type"] == "orderbook_delta" and self.every:
                deltas += 1
                if deltas % self.every == 0 and len(self.altered) < 5:
                    told["msg"]["delta_fp"] = f"{float(told['msg']['delta_fp']) + 1:.2f}"
                    self.altered.add(told["msg"]["market_ticker"])
                    frame = orjson.dumps(told).decode()
            await client.send(frame)


async def databases(server: EmbeddedPostgres, name: str) -> tuple[str, str]:
    connection = await asyncpg.connect(server.dsn())
    try:
        for kind in ("hot", "meta"):
            await connection.execute(f"CREATE DATABASE {name}_{kind}")
    finally:
        await connection.close()
    return server.dsn(f"{name}_hot"), server.dsn(f"{name}_meta")


async def fetch(dsn: str, query: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(query)
    finally:
        await connection.close()


async def verdicts(meta: str) -> dict[int, int]:
    rows = await fetch(meta, "SELECT verdict, count(*) FROM rest_book_audit GROUP BY verdict")
    return dict(rows)


async def play(
    folder: Path, running: Running, hot: str, meta: str, proxy: Alters
) -> tuple[dict[int, int], list[asyncpg.Record]]:
    port = await proxy.start()
    try:
        url = f"ws://127.0.0.1:{port}/trade-api/ws/v2"
        async with gatherer(folder, running, hot, meta, ws_url=url, **SETTINGS) as process:
            await running.done()
            await asyncio.sleep(1.0)
            assert await process.stop() == 0
        running.stop()
    finally:
        await proxy.stop()
    return await verdicts(meta), await fetch(meta, "SELECT * FROM rest_difference")


@pytest.mark.timeout(180)
async def test_a_right_recording_is_agreed_with_and_its_clock_measured(
    tmp_path: Path, postgres_server: EmbeddedPostgres
) -> None:
    hot, meta = await databases(postgres_server, "agreed")
    async with exchange(tmp_path, *FLAGS, "--seconds", "15", "--expect-clients", "1") as running:
        proxy = Alters(f"ws://127.0.0.1:{running.ready['port']}", 0)
        found, differences = await play(tmp_path, running, hot, meta, proxy)
    assert found[0] > 400, "two rounds and more"
    assert found.get(2, 0) + found.get(3, 0) == 0, "suspected or different"
    assert differences == []
    (clock,) = await fetch(meta, "SELECT * FROM clock_offsets ORDER BY at_ns LIMIT 1")
    assert clock["stepped_ns"] == 0
    windows = await fetch(hot, "SELECT detail FROM control WHERE kind = 'rest_window'")
    assert len(windows) >= 2


@pytest.mark.timeout(180)
async def test_a_change_that_was_altered_in_sequence_is_found_and_its_book_asked_for(
    tmp_path: Path, postgres_server: EmbeddedPostgres
) -> None:
    """Nothing in the frames shows it: the numbers are right and no snapshot is due for an hour."""
    hot, meta = await databases(postgres_server, "altered")
    async with exchange(tmp_path, *FLAGS, "--seconds", "28", "--expect-clients", "1") as running:
        proxy = Alters(f"ws://127.0.0.1:{running.ready['port']}", 0, every=20)
        _, differences = await play(tmp_path, running, hot, meta, proxy)
    assert proxy.altered
    differing = {row["ticker"] for row in differences}
    assert differing, "at least one of them stood still for long enough"
    assert differing <= proxy.altered, "and nobody else"
    failed = await fetch(
        hot,
        "SELECT DISTINCT ticker FROM orderbook_snapshot JOIN market USING (market_id)"
        " WHERE verdict = 2",
    )
    assert {row["ticker"] for row in failed} & differing, "the snapshot asked for says so too"
