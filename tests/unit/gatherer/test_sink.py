"""The sink against a real PostgreSQL: once each, in order, whatever breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from gatherer import sink as module
from gatherer.hot_database import HotDatabase
from gatherer.intake import Decoding, LiveIntake, recover
from gatherer.sink import Sink, SinkSettings
from runtime.clock import Clock
from runtime.embedded import EmbeddedPostgres
from runtime.spool import Position, SpoolWriter
from runtime.spool_files import segment_name
from tests import wire_frames as wire


@dataclass
class Rig:
    spool: SpoolWriter
    live: LiveIntake
    sink: Sink
    conn_id: int
    clock: Clock
    seq: int = 0

    def send(self, n: int) -> None:
        """`n` more changes in frames of ten."""
        frames = []
        for _ in range(n):
            self.seq += 1
            frames.append(wire.snapshot(1) if self.seq == 1 else wire.delta(self.seq))
        for at in range(0, n, 10):
            self.live.absorb(self.conn_id, frames[at : at + 10], self.clock.wall_ns())

    async def committed(self) -> None:
        """Wait until everything in the spool is committed."""
        async with asyncio.timeout(120):
            while self.sink.status.cursor < self.spool.end:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@asynccontextmanager
async def rig(
    folder: Path, dsn: str, *, queue: int = 100_000, run: bool = True
) -> AsyncIterator[Rig]:
    """A process life: opens the spool as `main` does, ends without a clean stop."""
    holder: list[Decoding] = []

    def state() -> bytes:
        return holder[0].state()

    spool = SpoolWriter.open(
        folder, state=state, created_ns=1, id_base=10, segment_bytes=64 * 1024, group_commit_ms=1
    )
    holder.append(recover(spool))
    live = LiveIntake(spool, holder[0], queue_rows_max=queue, wake_rows=500)
    clock = Clock()
    live.bury(clock.wall_ns())
    sink = Sink(
        SinkSettings(dsn, flush_ms=20, flush_rows=500, heartbeat_ms=100), spool, live, clock
    )
    conn_id = live.next_conn_id()
    body = {"k": "connect", "conn": conn_id, "conn_uid": "u", "handshake": "h"}
    live.control({**body, "local": "l", "url": "w"}, clock.wall_ns())
    live.absorb(conn_id, [wire.subscribed(1)], clock.wall_ns())
    tasks = [asyncio.create_task(spool.run())]
    if run:
        tasks.append(asyncio.create_task(sink.run()))
    try:
        yield Rig(spool, live, sink, conn_id, clock)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await spool.close(clean=False)


async def _rows(dsn: str) -> list[tuple[int, int]]:
    """(run_id, seq) of every change, in the order of batches."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT run_id, seq FROM orderbook_delta ORDER BY batch_id, run_id, seq"
        )
        batches = await connection.fetch("SELECT * FROM ingest_batch ORDER BY batch_id")
    finally:
        await connection.close()
    ids = [b["batch_id"] for b in batches]
    assert ids == list(range(1, len(ids) + 1))
    told = [b["max_received_ns"] for b in batches]
    assert told == sorted(told)
    return [(r["run_id"], r["seq"]) for r in rows]


async def test_rows_are_committed_once_and_a_quiet_feed_still_moves_the_watermark(
    tmp_path: Path, dsn: str
) -> None:
    """Readers wait for the watermark: silence has to be told too."""
    async with rig(tmp_path, dsn) as made:
        made.send(1_000)
        await made.committed()
        before = made.sink.status.watermark_ns
        async with asyncio.timeout(10):
            while made.sink.status.watermark_ns == before:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert made.sink.status.state == "live"
    assert await _rows(dsn) == [(10, k) for k in range(2, 1_001)]


async def test_a_new_process_commits_what_the_old_one_only_spooled(
    tmp_path: Path, dsn: str
) -> None:
    """The cursor says where to go on; the runs of the old connection end as died."""
    async with rig(tmp_path, dsn, run=False) as made:
        made.send(900)
        await made.spool.sync()
    async with rig(tmp_path, dsn) as made:
        made.send(100)
        await made.committed()
    assert await _rows(dsn) == [(10, k) for k in range(2, 901)] + [(11, k) for k in range(2, 101)]
    connection = await asyncpg.connect(dsn)
    reasons = await connection.fetch("SELECT reason FROM control WHERE kind = 'conn_close'")
    await connection.close()
    assert [r["reason"] for r in reasons] == ["died"]


async def test_rows_let_go_by_memory_come_from_the_spool(tmp_path: Path, dsn: str) -> None:
    """A burst beyond the queue's limit is late, not lost; then memory takes over again."""
    async with rig(tmp_path, dsn, queue=300) as made:
        made.send(10)
        await made.committed()
        made.send(5_000)
        assert made.live.spills >= 1
        await made.committed()
        made.send(10)
        await made.committed()
        assert made.live.holds_from is not None
        assert made.live.spills == 1
    assert [seq for _, seq in await _rows(dsn)] == list(range(2, 5_021))


async def test_a_commit_whose_answer_was_lost_is_not_repeated(
    tmp_path: Path, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks right after the server committed: the cursor tells."""
    real, broken = module.Sink._commit, []

    async def commit_and_break(self: Sink, batch: object) -> None:
        before = self.status.cursor, self.status.batch_id
        await real(self, batch)  # type: ignore[arg-type]
        if len(broken) < 5:
            broken.append(1)
            self.status.cursor, self.status.batch_id = before
            raise ConnectionResetError("the answer was lost")

    monkeypatch.setattr(module.Sink, "_commit", commit_and_break)
    async with rig(tmp_path, dsn) as made:
        for _ in range(10):
            made.send(100)
            await made.committed()
        assert made.sink.status.retries >= 5
    assert await _rows(dsn) == [(10, k) for k in range(2, 1_001)]


async def test_a_second_writer_is_kept_out_by_the_cursor(tmp_path: Path, dsn: str) -> None:
    """A copied spool must not write the same rows again: the cursor has moved."""
    async with rig(tmp_path, dsn) as made:
        made.send(100)
        await made.committed()
        made.sink.status.batch_id -= 1  # as the other one believes
        made.send(100)
        await made.committed()
        assert made.sink.status.retries >= 1
    assert await _rows(dsn) == [(10, k) for k in range(2, 201)]


async def test_a_server_killed_and_started_again_has_every_row_once(tmp_path: Path) -> None:
    """kill -9 of the postmaster at several moments while rows flow."""
    async with EmbeddedPostgres() as server:
        dsn = server.dsn()
        async with rig(tmp_path, dsn, queue=2_000) as made:
            for n in range(3):
                made.send(1_500)
                await asyncio.sleep(0.05 * n)
                server.kill()
                made.send(1_500)
                await asyncio.to_thread(server.start_blocking)
                await made.committed()
            assert made.sink.status.retries > 0
        assert [seq for _, seq in await _rows(dsn)] == list(range(2, made.seq + 1))


async def test_a_driver_that_lost_its_place_is_no_end_of_the_sink(
    tmp_path: Path, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a line that is cut under it asyncpg says so now and then, at the commit: the sink's task
    ended by it, and with it the gatherer. Seen with a killed PostgreSQL 15 on a busy host."""
    real, said = HotDatabase._transact, []

    async def confused(self: HotDatabase, *given: Any) -> None:
        if len(said) < 2:
            said.append(given)
            raise asyncpg.InternalClientError("cannot switch to state 15; another operation (2)")
        await real(self, *given)

    monkeypatch.setattr(HotDatabase, "_transact", confused)
    async with rig(tmp_path, dsn) as made:
        made.send(300)
        await made.committed()
        assert made.sink.status.retries == len(said) == 2
    assert [seq for _, seq in await _rows(dsn)] == list(range(2, made.seq + 1))


async def test_a_drain_commits_everything_and_ends(tmp_path: Path, dsn: str) -> None:
    """A clean stop leaves nothing behind, the END of the gatherer included."""
    async with rig(tmp_path, dsn, run=False) as made:
        made.send(700)
        made.live.control({"k": "close", "conn": made.conn_id, "reason": "closed_by_us"}, 1)
        made.live.end()
        made.sink.drain()
        await asyncio.wait_for(made.sink.run(), 20)
        assert made.sink.status.state == "stopped"
        assert made.sink.status.cursor == made.spool.end
    connection = await asyncpg.connect(dsn)
    last = await connection.fetchval(
        "SELECT kind FROM control ORDER BY batch_id DESC, ord DESC LIMIT 1"
    )
    await connection.close()
    assert last == "gatherer_end"


async def test_a_spool_set_back_behind_its_database_is_not_trusted(
    tmp_path: Path, dsn: str
) -> None:
    """An older copy of the spool would give the same ids to other rows."""
    async with rig(tmp_path, dsn) as made:
        made.send(100)
        await made.committed()
        made.sink.status.retries = 0
        connection = await asyncpg.connect(dsn)
        await connection.execute("UPDATE spool_cursor SET segment = 99")
        made.send(10)
        async with asyncio.timeout(10):
            while "begin a new spool" not in made.sink.status.reason:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await connection.close()
        assert made.sink.status.state == "database_down"


async def test_the_distance_counts_segments(tmp_path: Path, dsn: str) -> None:
    async with rig(tmp_path, dsn, run=False) as made:
        made.send(900)
        end = made.spool.end
        assert end.segment >= 2
        assert made.sink._distance(end) == 0
        assert made.sink._distance(Position(end.segment - 1, 16)) == end.offset
        assert made.sink._distance(Position(end.segment - 2, 16)) > module.JOIN_BYTES


async def test_what_waits_is_counted_over_all_segments(tmp_path: Path, dsn: str) -> None:
    """The alert SinkBehind asks for more than a gigabyte, which is many segments; one segment, or
    4 MiB for many, was all that this ever said."""
    async with rig(tmp_path, dsn, run=False) as made:
        assert made.sink.lag_bytes() == made.spool.end.offset
        made.send(900)
        await made.spool.sync()
        end = made.spool.end
        assert end.segment >= 3
        files = {n: made.spool.directory / segment_name(n) for n in range(1, end.segment)}
        sizes = {n: path.stat().st_size for n, path in files.items()}
        assert made.sink.lag_bytes() == sum(sizes.values()) + end.offset
        made.sink.status.cursor = Position(2, 100)
        assert made.sink.lag_bytes() == sum(sizes.values()) - sizes[1] - 100 + end.offset
        made.sink.status.cursor = end
        assert made.sink.lag_bytes() == 0


async def test_a_refused_row_does_not_hold_up_what_came_after_it(tmp_path: Path, dsn: str) -> None:
    """Kept aside, counted, told for a while; the sink stays live."""
    told: list[int] = []
    async with rig(tmp_path / "spool", dsn) as made:
        made.sink._on_refused = lambda rows: told.append(len(rows))
        made.send(20)
        await made.committed()
        connection = await asyncpg.connect(dsn)
        await connection.execute(
            "ALTER TABLE orderbook_delta ADD CONSTRAINT poison CHECK (seq <> 33)"
        )
        await connection.close()
        made.send(40)
        await made.committed()
        made.send(10)
        await made.committed()
        status = made.sink.status
        assert (status.state, status.refused) == ("live", 1)
        assert "refused_row" in status.refusal
        assert made.live.counts["problem_refused_row"] == sum(told) == 1
    assert [seq for _, seq in await _rows(dsn)] == [n for n in range(2, 71) if n != 33]


async def test_a_database_that_does_not_answer_is_told_and_given_up_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped, not dead: nothing ever comes back on the connection."""
    monkeypatch.setattr(module, "SILENT_S", 0.05)
    monkeypatch.setattr(module, "GIVE_UP_S", 0.2)
    async with EmbeddedPostgres() as server, rig(tmp_path / "spool", server.dsn()) as made:
        made.send(20)
        await made.committed()
        frozen = psutil.Process(server.pid)
        stopped = [*frozen.children(recursive=True), frozen]
        for process in stopped:
            process.suspend()
        made.send(20)
        async with asyncio.timeout(60):
            while "no answer" not in made.sink.status.reason:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while made.sink.status.retries == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert made.sink.status.state == "database_down"
        for process in stopped:
            process.resume()
        made.send(20)
        await made.committed()
        rows = await _rows(server.dsn())
    assert [seq for _, seq in rows] == list(range(2, 61))
