"""The loop of the deduplicator; whole runs are in integration/test_dedup_pipeline.py."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dedup.arbitrate import Arbiter
from dedup.flow import Publishing
from dedup.output import ArbiterSettings, WindowOutput
from dedup.pipeline import Pipeline, arbiter_settings, deciding
from dedup.readers import GathererReader
from runtime.embedded import EmbeddedPostgres
from runtime.postgres import connect
from tests.databases import fresh_database
from tests.dedup_rig import (
    Recordings,
    compare_with_stream,
    make_recordings,
    pipeline,
    run_through,
    settings,
)
from tests.gatherer_rows import Stream, make_stream


def nowhere(tmp_path: Path, **more: Any) -> Pipeline:
    """A pipeline whose databases are not there."""
    made = Recordings(Stream([], [], []), ["postgresql://a", "postgresql://b"], [], [])
    return pipeline(settings(made, "postgresql://c", tmp_path, **more))


def test_settings_reach_the_arbiter_in_its_units(tmp_path: Path) -> None:
    """Milliseconds and seconds of the environment, microseconds and nanoseconds of the core."""
    chosen = nowhere(tmp_path, window_ms=7, grace_ms=8, idle_hold_ms=9, patience_s=10)._settings
    made = arbiter_settings(chosen)
    assert made.window_us == 7_000
    assert made.grace_ns == 8_000_000
    assert made.idle_hold_ns == 9_000_000
    assert made.patience_ns == 10_000_000_000


def test_waiting_longer_is_no_other_tape(tmp_path: Path) -> None:
    """Only what decides the result binds a tape."""
    first = deciding(nowhere(tmp_path)._settings)
    assert first == deciding(nowhere(tmp_path, patience_s=5, grace_ms=1, poll_ms=1)._settings)
    assert first != deciding(nowhere(tmp_path, window_ms=1)._settings)
    assert first != deciding(nowhere(tmp_path, merge="content")._settings)


def test_who_does_not_answer_after_a_restart_is_left_out(tmp_path: Path) -> None:
    """Who is read again is waited for (test_reading_again) while there is something to wait for."""
    line = nowhere(tmp_path)
    line.readers = [GathererReader(g, "postgresql://a", poll_s=0) for g in range(2)]
    arbiter = Arbiter(2, ArbiterSettings())
    for reader, inflow in zip(line.readers, arbiter.inflows, strict=True):
        reader.state = "reading"
        inflow.resume(closed=5, taken_to=5, reread_from=3, seen_batch=9)
    line._leave_out_silent(arbiter)
    assert arbiter.reading_again == [0, 1]
    line.readers[0].state = "idle"  # a replaced database may hold fewer
    line._leave_out_silent(arbiter)
    assert arbiter.reading_again == [1]
    line.readers[1].state = "down"
    line.readers[1].silent_since_s -= line._settings.patience_s
    line._leave_out_silent(arbiter)
    assert arbiter.reading_again == []


async def test_whoever_is_overtaken_starts_again_from_production(
    postgres_server: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line to production is cut, another deduplicator finishes the tape: no row comes twice."""
    monkeypatch.setattr("dedup.pipeline.RESTART_WAIT_S", 0)
    stream = make_stream(11, events=500, mean_gap_us=150_000)
    made = await make_recordings(postgres_server, stream, gaps=1, disconnects=0)
    production = await fresh_database(postgres_server, "production")
    slow = pipeline(settings(made, production, tmp_path / "lake"))
    reached, go = asyncio.Event(), asyncio.Event()
    publish = slow._publish

    async def publish_late(outputs: Any) -> None:
        reached.set()
        await go.wait()
        await publish(outputs)

    monkeypatch.setattr(slow, "_publish", publish_late)
    task = asyncio.create_task(slow.run())
    await reached.wait()
    conn = await connect(production)
    await conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await conn.close()
    await run_through(settings(made, production, tmp_path / "lake"))
    go.set()
    async with asyncio.timeout(60):
        await task
    assert slow.finished
    assert (await compare_with_stream(production, stream))["extra"] == 0
    assert (await compare_with_stream(production, stream))["missing"] == 0


async def test_a_publication_on_its_way_says_itself_what_holds_it_up(tmp_path: Path) -> None:
    """The loop goes on beside it and must not call production well."""
    line, go = nowhere(tmp_path), asyncio.Event()

    async def publish(_: list[WindowOutput]) -> None:
        line._held_up("production: cut")
        await go.wait()

    line.publishing = Publishing(publish, 0)
    await line.publishing.begin([WindowOutput(1, 1, 2)])
    await asyncio.sleep(0)
    line._report()
    assert line._health.state == "failing"
    go.set()
    await line.publishing.settled()
    line._report()
    assert line._health.state != "failing"
