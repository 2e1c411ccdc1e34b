"""The service around the pipeline: what it answers and how it ends."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from dedup.export import Exporter
from dedup.main import GC_OBJECTS, SWITCH_S, main, report, serve, tune
from dedup.pipeline import Pipeline
from kalshilake.store import open_store
from marketdata.coverage import OPEN_US
from runtime.clock import Clock
from runtime.embedded import EmbeddedPostgres
from runtime.health import Health
from runtime.metrics import Metrics
from tests.databases import fresh_database
from tests.dedup_rig import compare_with_stream, make_recordings, pipeline, run_through, settings
from tests.gatherer_rows import make_stream


async def test_service_ends_with_0_when_the_tape_is_finished(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """KT_FINAL: all gatherers ended, all windows closed, everything exported."""
    stream = make_stream(12, events=400, mean_gap_us=150_000)
    made = await make_recordings(postgres_server, stream, gaps=1, disconnects=0)
    production = await fresh_database(postgres_server, "production")
    assert await serve(settings(made, production, tmp_path)) == 0
    assert (await compare_with_stream(production, stream))["missing"] == 0


async def test_other_settings_than_the_tape_began_with_end_with_2(
    postgres_server: EmbeddedPostgres, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A supervisor must not start it again and again."""
    stream = make_stream(13, events=200)
    made = await make_recordings(postgres_server, stream, gaps=0, disconnects=0)
    production = await fresh_database(postgres_server, "production")
    await run_through(settings(made, production, tmp_path))
    assert await serve(settings(made, production, tmp_path, window_ms=77)) == 2
    assert "window_us" in capsys.readouterr().err


async def test_status_tells_the_numbers_of_the_tape(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """What a screen shows: totals, every gatherer, the lake, the invariants."""
    stream = make_stream(14, events=400, mean_gap_us=150_000)
    made = await make_recordings(postgres_server, stream, gaps=1, disconnects=0)
    production = await fresh_database(postgres_server, "production")
    done = await run_through(settings(made, production, tmp_path))
    body = report(done, Health("deduplicator"), Clock())
    assert body["finished"] is True
    assert body["rows_merged"] == len(stream.deltas)
    assert sum(body["witnesses"].values()) == len(stream.deltas)
    assert body["lake"]["version"] >= 1
    assert body["lake"]["hours_waiting"] == 0
    assert set(body["invariants"].values()) == {0}
    assert 0 < body["complete_share"] <= 1
    assert body["closed_to_us"] < OPEN_US
    assert body["markets"] == len(stream.tickers)


def test_status_of_a_service_that_has_just_started(tmp_path: Path) -> None:
    """Nothing known yet is no reason to fail."""
    from tests.dedup_rig import Recordings

    made = Recordings(make_stream(1, events=1), ["postgresql://a"], [], [])
    line = pipeline(settings(made, "postgresql://c", tmp_path))
    body = report(line, Health("deduplicator"), Clock())
    assert body["closed_to"] is None
    assert body["complete_share"] is None


def test_wrong_settings_are_told_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All faults in one message, exit code 2."""
    monkeypatch.setenv("KT_GATHERER_DSNS", '["nowhere"]')
    monkeypatch.delenv("KT_PRODUCTION_DSN", raising=False)
    assert main() == 2
    said = capsys.readouterr().err
    assert "KT_GATHERER_DSNS" in said
    assert "KT_PRODUCTION_DSN" in said


def test_the_interpreter_is_set_up_for_many_objects_and_a_quick_change_of_threads() -> None:
    before, pool = (gc.get_threshold(), sys.getswitchinterval()), pa.default_memory_pool()
    try:
        tune()
        assert pa.default_memory_pool().backend_name == "system"
        assert gc.get_threshold()[0] == GC_OBJECTS
        assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
    finally:
        pa.set_memory_pool(pool)
        gc.set_threshold(*before[0])
        sys.setswitchinterval(before[1])


async def test_ready_is_said_when_production_is_reached_and_not_before(
    postgres_server: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While production is away the service waits, feeds its watchdog and is not ready."""
    stream = make_stream(15, events=200)
    made = await make_recordings(postgres_server, stream, gaps=0, disconnects=0)
    production = await fresh_database(postgres_server, "production")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "notify"))
        server.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        away = serve(settings(made, "postgresql://127.0.0.1:1/none", tmp_path / "away"))
        waiting = asyncio.create_task(away)
        await asyncio.sleep(2)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait([waiting], timeout=20)
        assert waiting.done(), "who waits for production is stopped at once"
        told = _datagrams(server)
        assert b"STATUS=waiting for production" in told
        assert b"READY=1" not in told
        assert await serve(settings(made, production, tmp_path / "there")) == 0
        assert b"READY=1" in _datagrams(server)


async def test_a_known_trouble_feeds_the_watchdog(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """A database that is away for an hour must not get us killed every two minutes."""
    stream = make_stream(16, events=100)
    made = await make_recordings(postgres_server, stream, gaps=0, disconnects=0)
    fed: list[str] = []
    one = Pipeline(
        settings(made, "postgresql://127.0.0.1:1/none", tmp_path),
        Exporter(open_store(str(tmp_path / "lake")), []),
        Health("deduplicator"),
        Metrics(),
        lambda: fed.append("progress"),
    )
    running = asyncio.create_task(one.run())
    async with asyncio.timeout(20):
        while not fed:  # noqa: ASYNC110 - that is what is waited for
            await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.wait([running])


def _datagrams(server: socket.socket) -> bytes:
    """All that was told so far."""
    told = b""
    while True:
        try:
            told += server.recv(4096) + b"\n"
        except BlockingIOError:
            return told
