"""A gatherer against the simulated exchange: what it stored is what it was sent."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from exchange.truth import read_truth
from runtime.embedded import EmbeddedPostgres
from tests.exchange_client import Running, exchange
from tests.gatherer_rig import compare, gatherer, read_recording
from tests.recorded import recorded

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres()
    try:
        server.start_blocking()
        yield server
    finally:
        server.close_blocking()


async def _databases(cluster: EmbeddedPostgres) -> tuple[str, str]:
    """A fresh hot database and a fresh meta database."""
    names = [f"{kind}{next(_numbers)}" for kind in ("hot", "meta")]
    connection = await asyncpg.connect(cluster.dsn())
    try:
        for name in names:
            await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
    return cluster.dsn(names[0]), cluster.dsn(names[1])


async def _committed(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval("SELECT coalesce(sum(n_rows), 0) FROM ingest_batch")
    except asyncpg.UndefinedTableError:
        return 0
    finally:
        await connection.close()


async def _committed_more(dsn: str, rows: int) -> None:
    before = await _committed(dsn)
    while await _committed(dsn) < before + rows:  # noqa: ASYNC110 - another process commits
        await asyncio.sleep(0.05)


async def _play_out(running: Running) -> None:
    await running.done()
    await asyncio.sleep(1.0)


@pytest.mark.parametrize("transport", ["websockets", "picows"])
async def test_everything_sent_is_stored_with_the_exchanges_own_book_hash(
    transport: str, tmp_path: Path, cluster: EmbeddedPostgres
) -> None:
    """Without faults every change, trade and snapshot arrives, and each running hash is the hash
    of the exchange's book at that moment: the identity on which the merge rests."""
    hot, meta = await _databases(cluster)
    flags = ("--synthetic", "60", "--seconds", "20", "--rate", "max", "--faults", "none")
    async with exchange(tmp_path, *flags, "--expect-clients", "1") as running:
        async with gatherer(tmp_path, running, hot, meta, transport=transport) as process:
            await _play_out(running)
            assert await process.stop() == 0
        running.stop()
    recording, truth = await read_recording(hot), read_truth(running.truth)
    found = compare(recording, truth)
    assert found.compared >= found.sent > 900
    assert (found.unnamed, found.doubled, found.altered) == (0, 0, 0)
    assert (found.wrong_hash, found.lost, found.floating) == (0, 0, 0)
    assert len(recording.trades) == len(truth.trades)
    kinds = [row["kind"] for row in recording.controls]
    assert kinds[-1] == "gatherer_end"
    assert kinds.count("run_start") == kinds.count("run_end")


async def test_faults_lose_nothing_that_was_received(
    tmp_path: Path, cluster: EmbeddedPostgres
) -> None:
    """Drops, duplicates, resets, dead subscriptions: rows carry the right name, content and hash,
    and after every gap the books are proven anew."""
    hot, meta = await _databases(cluster)
    flags = ("--synthetic", "60", "--seconds", "60", "--rate", "max", "--faults", "harsh")
    async with exchange(tmp_path, *flags, "--seed", "3", "--expect-clients", "1") as running:
        async with gatherer(tmp_path, running, hot, meta, transport="picows") as process:
            await _play_out(running)
            assert await process.stop() == 0
        running.stop()
    recording, truth = await read_recording(hot), read_truth(running.truth)
    found = compare(recording, truth)
    assert found.compared > 1000
    assert (found.unnamed, found.doubled, found.altered) == (0, 0, 0)
    assert (found.wrong_hash, found.lost) == (0, 0)
    assert any(row["kind"] == "run_end" and row["reason"] == "gap" for row in recording.controls)
    assert not any(row["verdict"] == 2 for row in recording.snapshots)


@pytest.mark.slow
async def test_a_killed_gatherer_goes_on_where_the_spool_ends(
    tmp_path: Path, cluster: EmbeddedPostgres
) -> None:
    """kill -9 at three moments: no row twice, no row of a durable record missing, batch ids
    without a hole, and the connections of the dead process are closed in the record."""
    hot, meta = await _databases(cluster)
    flags = ("--synthetic", "60", "--seconds", "60", "--events-per-s", "300", "--rate", "2")
    async with exchange(tmp_path, *flags, "--faults", "none", "--expect-clients", "1") as running:
        async with gatherer(
            tmp_path, running, hot, meta, segment_bytes="262144", sink_flush_ms="50"
        ) as process:
            for _ in range(3):
                await _committed_more(hot, 300)
                process.kill()
                process.start()
            await _committed_more(hot, 100)
            await _play_out(running)
            assert await process.stop() == 0
        running.stop()
    recording, truth = await read_recording(hot), read_truth(running.truth)
    found = compare(recording, truth)
    assert found.compared > 900
    assert (found.unnamed, found.doubled, found.altered) == (0, 0, 0)
    assert (found.wrong_hash, found.lost) == (0, 0)
    ids = [row["batch_id"] for row in recording.batches]
    assert ids == list(range(1, len(ids) + 1))
    told = [row["max_received_ns"] for row in recording.batches]
    assert told == sorted(told)
    died = [r for r in recording.controls if r["kind"] == "conn_close" and r["reason"] == "died"]
    assert len(died) >= 3


async def test_a_database_that_is_away_makes_rows_late_and_loses_none(tmp_path: Path) -> None:
    """The server is killed while frames arrive and comes back: what came meanwhile is read from
    the spool. A small queue makes the rows let go of memory."""
    async with EmbeddedPostgres() as server:
        hot, meta = await _databases(server)
        flags = ("--synthetic", "60", "--seconds", "60", "--rate", "10", "--faults", "none")
        async with exchange(tmp_path, *flags, "--expect-clients", "1") as running:
            async with gatherer(
                tmp_path, running, hot, meta, sink_queue_rows="200", sink_flush_ms="50"
            ) as process:
                await _committed_more(hot, 300)
                server.kill()
                await asyncio.sleep(2.0)
                server.start_blocking()
                await _play_out(running)
                assert await process.stop() == 0
            running.stop()
        recording, truth = await read_recording(hot), read_truth(running.truth)
    found = compare(recording, truth)
    assert found.compared >= found.sent > 900
    assert (found.unnamed, found.doubled, found.altered) == (0, 0, 0)
    assert (found.wrong_hash, found.lost, found.floating) == (0, 0, 0)


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_recorded_capture_with_faults_is_stored_as_it_was_sent(
    seed: int, tmp_path: Path, cluster: EmbeddedPostgres
) -> None:
    """Real bursts, equal changes in one microsecond, holes of the recorder."""
    hot, meta = await _databases(cluster)
    capture = recorded("ws_btc15m", "kxbtc15m_20260513T055211Z.jsonl.gz")
    flags = ("--frames", str(capture), "--rate", "max", "--faults", "standard")
    async with exchange(tmp_path, *flags, "--seed", str(seed), "--expect-clients", "1") as running:
        async with gatherer(tmp_path, running, hot, meta, transport="picows") as process:
            await _play_out(running)
            assert await process.stop() == 0
        running.stop()
    recording, truth = await read_recording(hot), read_truth(running.truth)
    found = compare(recording, truth)
    assert found.compared > 500
    assert (found.unnamed, found.doubled, found.altered) == (0, 0, 0)
    assert (found.wrong_hash, found.lost) == (0, 0)


async def test_the_comparison_finds_a_changed_a_lost_and_a_doubled_row(
    tmp_path: Path, cluster: EmbeddedPostgres
) -> None:
    """The control: a comparison that cannot fail proves nothing."""
    hot, meta = await _databases(cluster)
    flags = ("--synthetic", "20", "--seconds", "10", "--rate", "max", "--faults", "none")
    async with exchange(tmp_path, *flags, "--expect-clients", "1") as running:
        async with gatherer(tmp_path, running, hot, meta) as process:
            await _play_out(running)
            assert await process.stop() == 0
        running.stop()
    recording, truth = await read_recording(hot), read_truth(running.truth)
    rows = recording.deltas.copy()
    rows["delta"][10] += 100
    rows["book_hash"][11] += 1
    recording.deltas = rows[[i for i in range(len(rows)) if i != 12] + [20]]
    found = compare(recording, truth)
    assert (found.altered, found.wrong_hash, found.lost, found.doubled) == (1, 1, 1, 1)


async def _hears(server: socket.socket, word: bytes, within_s: float) -> bool:
    """Whether a service tells systemd `word` in time."""
    loop = asyncio.get_running_loop()
    heard = b""
    try:
        async with asyncio.timeout(within_s):
            while word not in heard:
                heard = await loop.sock_recv(server, 4096)
    except TimeoutError:
        return False
    return True


async def test_ready_is_said_when_frames_are_recorded_and_waits_for_no_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both databases away it is ready; with the exchange away it is not (the control)."""
    away = "postgresql://127.0.0.1:1/none"
    (tmp_path / "down").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "notify"))
        server.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        flags = ("--synthetic", "20", "--seconds", "60", "--rate", "1", "--faults", "none")
        async with exchange(tmp_path, *flags, "--expect-clients", "1") as running:
            async with gatherer(
                tmp_path / "down", running, away, away, ws_url="ws://127.0.0.1:1/nobody"
            ):
                assert not await _hears(server, b"READY=1", 4)
            async with gatherer(tmp_path, running, away, away, drain_deadline_s="1") as process:
                assert await _hears(server, b"READY=1", 40)
                assert await process.stop() == 0
            running.stop()
