"""Live rows with real databases: early, once, gone with the tape, taken back when wrong."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dedup import live_path
from dedup.pipeline import Pipeline
from marketdata.book import level_constant
from marketdata.rows import GathererBatch
from runtime.embedded import EmbeddedPostgres
from runtime.postgres import Connection, connect, migrate
from tests.bench.hot_stream import HotStream, HotWriter
from tests.databases import fresh_database
from tests.dedup_rig import Recordings, child, pipeline, settings
from tests.gatherer_rows import Stream

MARKETS = 20
RATE = 400
STEP_S = 0.1
FIRST_S = 0.3
"""Into a second. Just after one began, the tape's first window may hold nothing, so no live row has
a place; and the tape's first moment of export comes with that window."""
KILLS = 4
TWICE = "SELECT count(*) - count(DISTINCT (market_id, epoch, market_seq)) FROM orderbook_now"
HOLES = (
    "SELECT count(*) FROM (SELECT max(market_seq) - count(*) AS missing FROM orderbook_now"
    " GROUP BY market_id, epoch) AS each WHERE missing <> 0"
)


class Rig:
    """Three gatherers that write at a steady rate, and a deduplicator that reads them."""

    def __init__(self, made: list[Pipeline], writer: HotWriter, conn: Connection) -> None:
        self.pipelines, self.writer, self.conn = made, writer, conn
        self.stalled_s = 0.0  # what is due waits for so long before it is written, once
        self._writing: list[asyncio.Task[None]] = []

    @property
    def pipeline(self) -> Pipeline:
        """The only merger, or the first."""
        return self.pipelines[0]

    def begin(self, seconds: float, over: asyncio.Event | None = None) -> asyncio.Task[None]:
        """`write` beside what follows; `until` tells of its failure."""
        self._writing.append(asyncio.create_task(self.write(seconds, over)))
        return self._writing[-1]

    async def write(self, seconds: float, over: asyncio.Event | None = None) -> None:
        """Events of this second in this second, for so long or until it is over."""
        until = time.monotonic() + seconds
        stream = self.writer.stream
        while time.monotonic() < until and not (over is not None and over.is_set()):
            due = (time.time_ns() // 1_000 - stream.start_us) * RATE // 1_000_000 - stream.made
            if due > 0:
                rows = stream.next(due)
                stall_s, self.stalled_s = self.stalled_s, 0.0
                await asyncio.sleep(stall_s)
                await self.writer.write(rows)
            await asyncio.sleep(STEP_S)

    async def until(self, what: Callable[[], Awaitable[bool]], seconds: float = 30) -> None:
        """Wait for it."""
        try:
            async with asyncio.timeout(seconds):
                while not await what():
                    for task in self._writing:
                        if task.done():
                            task.result()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"waited for {seconds} s; the live paths say {self._told()}")

    def _told(self) -> list[dict[str, Any]]:
        return [each.live.told() for each in self.pipelines]

    async def count(self, sql: str) -> int:
        return int(await self.conn.fetchval(sql))


@contextlib.asynccontextmanager
async def running(server: EmbeddedPostgres, folder: Path, mergers: int = 1) -> AsyncIterator[Rig]:
    hot = [await fresh_database(server, "gatherer_hot") for _ in range(3)]
    production = await fresh_database(server, "production")
    await asyncio.sleep((FIRST_S - time.time()) % 1)
    writer = HotWriter(HotStream(MARKETS, RATE, start_us=time.time_ns() // 1_000), hot)
    await writer.open()
    made = Recordings(Stream([], [], []), hot, [], [])
    working = [
        pipeline(
            settings(
                made, production, folder / "lake", final=False, window_ms=1_000, grace_ms=1_000,
                poll_ms=50, merge_shards=mergers, merge_shard=n if mergers > 1 else 0,
            )
        )
        for n in range(1, mergers + 1)
    ]  # fmt: skip
    tasks = [asyncio.create_task(each.run()) for each in working]
    conn = await connect(production)
    try:
        yield Rig(working, writer, conn)
    finally:
        for each in working:
            await each.stop()
        await asyncio.wait_for(asyncio.gather(*tasks), 30)
        await conn.close()
        await writer.close()


async def test_live_rows_come_early_and_go_when_the_tape_has_them(
    postgres_server: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_path, "REMOVE_S", 0.2)
    early = "SELECT count(*) FROM live_delta WHERE exchange_ts > to_timestamp($1::bigint / 1e6)"
    async with running(postgres_server, tmp_path) as rig:
        writing = rig.begin(6)

        async def before_its_window() -> bool:
            closed_us = await rig.conn.fetchval("SELECT closed_to_us FROM merge_state")
            return int(await rig.conn.fetchval(early, closed_us)) > 50

        await rig.until(before_its_window)
        while not writing.done():
            assert await rig.count(TWICE) == 0
            assert await rig.count(HOLES) == 0
            await asyncio.sleep(0.2)
        await writing
        await rig.writer.finish()

        async def all_on_the_tape() -> bool:
            return await rig.count("SELECT count(*) FROM orderbook_delta") == rig.writer.stream.made

        async def none_left() -> bool:
            return await rig.count("SELECT count(*) FROM live_delta") == 0

        await rig.until(all_on_the_tape)
        await rig.until(none_left)
        assert await rig.count(TWICE) == 0
        told = rig.pipeline.live.told()
        assert told["contradicted"] == 0
        assert told["confirmed"] == told["given"] > RATE
        closed = await rig.conn.fetch("SELECT reason, windows FROM window_closing")
        assert {r["reason"] for r in closed} == {"watermark"}
        assert sum(r["windows"] for r in closed) == rig.pipeline.publisher.standing.windows


@pytest.mark.parametrize("stall_s", [0, 1.5])
@pytest.mark.parametrize("mergers", [1, 2])
async def test_live_rows_go_on_while_an_hour_is_exported(
    postgres_server: EmbeddedPostgres,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mergers: int,
    stall_s: float,
) -> None:
    """A busy hour takes a minute or more: the live rows do not stand still meanwhile, neither those
    of the merger that exports nor those of the one that waits for it. Not for a stall of all
    gatherers either: no window closes that could place what was not listened to."""
    monkeypatch.setattr(live_path, "LAG_NS", 1_000_000_000)
    newest = f"SELECT count(DISTINCT market_id) = {MARKETS} FROM live_delta WHERE exchange_ts > $1"
    async with running(postgres_server, tmp_path, mergers) as rig:
        export, held, go_on = rig.pipeline.exporter.export, asyncio.Event(), asyncio.Event()

        async def slow(*given: Any, **more: Any) -> Any:
            held.set()
            await go_on.wait()
            return await export(*given, **more)

        rig.pipeline.exporter.export = slow  # type: ignore[method-assign]
        writing = rig.begin(120, go_on)
        try:
            async with asyncio.timeout(60):
                await held.wait()
            await asyncio.sleep(0.5)  # the other has come to this moment, too
            windows = [each.publisher.standing.windows for each in rig.pipelines]
            rig.stalled_s = stall_s
            for _ in range(3):
                now = datetime.now(UTC)

                async def is_there(since: datetime = now) -> bool:
                    return bool(await rig.conn.fetchval(newest, since))

                await rig.until(is_there)
            stood = [each.publisher.standing.windows for each in rig.pipelines]
            assert stood == windows, "the export has production"
        finally:
            go_on.set()
        await writing
        await rig.writer.finish()

        async def all_on_the_tape() -> bool:
            return await rig.count("SELECT count(*) FROM orderbook_delta") == rig.writer.stream.made

        await rig.until(all_on_the_tape)
        assert await rig.count(TWICE) == 0
        assert rig.pipeline.live.told()["contradicted"] == 0


async def test_a_wrong_live_row_is_counted_and_taken_back(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Planted on its way to the lines: the merge has the true row."""
    async with running(postgres_server, tmp_path) as rig:
        live, heard = rig.pipeline.live, rig.pipeline.live.heard

        def falsified(batch: GathererBatch) -> None:
            told = live.told()
            if len(batch.deltas) and told.get("confirmed") and not told["contradicted"]:
                batch = _with_a_wrong_last_row(batch)
            heard(batch)

        live.heard = falsified  # type: ignore[method-assign]  # before a reader has it
        writing = rig.begin(6)

        async def contradicted() -> bool:
            return live.told().get("contradicted", 0) > 0

        await rig.until(contradicted)
        await writing
        await rig.writer.finish()
        health = rig.pipeline._health.get("live")
        assert health is not None
        assert "not on the tape" in health.reason

        async def gone() -> bool:
            return await rig.count("SELECT count(*) FROM orderbook_now WHERE price = 990001") == 0

        await rig.until(gone)
        assert await rig.count(TWICE) == 0
        assert await rig.count("SELECT count(*) FROM orderbook_delta WHERE price = 990001") == 0


@pytest.mark.parametrize("mergers", [pytest.param(1, marks=pytest.mark.slow), 2])
async def test_kill_9_while_live_rows_go_on(
    postgres_server: EmbeddedPostgres, tmp_path: Path, mergers: int
) -> None:
    """Killed again and again while events come in: readers of `orderbook_now` never see one twice,
    and in the end the tape has each once. Several mergers: one after the other dies."""
    hot = [await fresh_database(postgres_server, "gatherer_hot") for _ in range(3)]
    production = await fresh_database(postgres_server, "production")
    writer = HotWriter(HotStream(MARKETS, RATE, start_us=time.time_ns() // 1_000), hot)
    await writer.open()
    made = Recordings(Stream([], [], []), hot, [], [])
    shards = [
        settings(
            made, production, tmp_path / "lake", final=False, window_ms=1_000, grace_ms=1_000,
            poll_ms=50, merge_shards=mergers, merge_shard=number, log_level="warning",
        )
        for number in range(1, mergers + 1)
    ]  # fmt: skip
    conn = await connect(production)
    await migrate(conn, "production")
    rig = Rig(pipeline(shards[0]), writer, conn)
    children = [child(each) for each in shards]
    enough = asyncio.Event()

    async def write() -> None:
        while not enough.is_set():
            await rig.write(0.5)

    writing = asyncio.create_task(write())
    try:
        for kill in range(KILLS):
            shard = kill % mergers + 1

            async def live_again(shard: int = shard, since: int = 1 + kill // mergers) -> bool:
                """The process that will die has begun as often as it should and gives live rows."""
                assert await rig.count(TWICE) == 0
                generation = f"SELECT max(generation) FROM live_generation WHERE shard = {shard}"
                if (await rig.conn.fetchval(generation) or 0) < since:
                    return False
                return await rig.count(f"SELECT count(*) FROM live_delta WHERE shard = {shard}") > 9

            await rig.until(live_again, 60)
            children[shard - 1].kill()
            await asyncio.to_thread(children[shard - 1].communicate)
            children[shard - 1] = child(shards[shard - 1])
        enough.set()
        await writing
        await writer.finish()

        async def all_on_the_tape() -> bool:
            return await rig.count("SELECT count(*) FROM orderbook_delta") >= writer.stream.made

        await rig.until(all_on_the_tape, 60)
        assert await rig.count("SELECT count(*) FROM orderbook_delta") == writer.stream.made
        assert await rig.count(TWICE) == await rig.count(HOLES) == 0
    finally:
        for process in children:
            process.kill()
            await asyncio.to_thread(process.communicate)
        await conn.close()
        await writer.close()


def _with_a_wrong_last_row(batch: GathererBatch) -> GathererBatch:
    deltas = batch.deltas.copy()
    last = deltas[-1]
    step = level_constant(int(last["side"]), int(last["price"])) * int(last["delta"])
    before = (int(last["book_hash"]) - step) % 2**64
    deltas["price"][-1] = 990_001
    step = level_constant(int(last["side"]), 990_001) * int(last["delta"])
    deltas["book_hash"][-1] = np.uint64((before + step) % 2**64)
    return replace(batch, deltas=deltas)
