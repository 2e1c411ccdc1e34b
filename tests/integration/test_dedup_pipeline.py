"""Gatherer databases in, tape and lake out: exact, and the same whatever happens on the way."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dedup.pipeline import Pipeline
from kalshilake import open_lake
from marketdata.errors import StorageError
from runtime.embedded import EmbeddedPostgres
from runtime.postgres import Connection, connect
from tests.databases import empty_database, fresh_database, table_contents
from tests.dedup_rig import (
    RESULT,
    Recordings,
    child,
    compare_with_stream,
    lake_files,
    make_recordings,
    pipeline,
    run_through,
    settings,
)
from tests.gatherer_rows import make_stream, write_batches

NOTHING_WRONG = dict.fromkeys(
    ("missing", "extra", "misordered", "trades_missing", "trades_extra", "tickers_extra"), 0
)
KILLS = 6


async def finished(
    server: EmbeddedPostgres, made: Recordings, lake: Path, **more: object
) -> tuple[str, dict[str, list[str]], dict[str, str]]:
    """Run a deduplicator through: its production DSN, its result, its lake's files."""
    production = await fresh_database(server, "production")
    await run_through(settings(made, production, lake, **more))
    return production, await table_contents(production, *RESULT), lake_files(lake)


@pytest.mark.parametrize("seed", [1, 2])
async def test_tape_equals_what_happened(
    postgres_server: EmbeddedPostgres, tmp_path: Path, seed: int
) -> None:
    """Three recordings with holes, one tape without: every event once, in order; counters agree."""
    stream = make_stream(seed, events=1_500, mean_gap_us=150_000)
    made = await make_recordings(postgres_server, stream, seed=seed)
    production = await fresh_database(postgres_server, "production")
    done = await run_through(settings(made, production, tmp_path / "lake"))
    assert await compare_with_stream(production, stream) == NOTHING_WRONG
    assert done.invariants.broken == []
    counts = done.publisher.standing.counts
    assert counts["rows_in"] == sum(len(b.deltas) for mine in made.batches for b in mine)
    accounted = ("merged_rows", "duplicate_rows", "quarantined_rows", "skipped_rows")
    assert counts["rows_in"] == sum(counts.get(name, 0) for name in accounted)
    lake = open_lake(str(tmp_path / "lake"))
    assert lake.deltas(on_gap="ignore").num_rows == len(stream.deltas)
    assert done.exporter.coverage_us["complete"] > 0


async def test_naive_key_loses_events(postgres_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """The control: equal changes in one microsecond are lost by the usual unique key."""
    stream = make_stream(3, events=1_500)
    twice = [h for h in stream.happenings if h.kind == "delta"][-1]
    stream.happenings += [twice, twice]
    made = await make_recordings(postgres_server, stream, gaps=0, disconnects=0)
    runs = await fresh_database(postgres_server, "production")
    await run_through(settings(made, runs, tmp_path / "runs"))
    assert await compare_with_stream(runs, stream) == NOTHING_WRONG
    content = await fresh_database(postgres_server, "production")
    await run_through(settings(made, content, tmp_path / "content", merge="content"))
    assert (await compare_with_stream(content, stream))["missing"] >= 2


async def test_timing_and_order_of_reads_leave_no_trace(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Read at once from a heap in another order, or live as it is written: the same bytes."""
    stream = make_stream(4, events=1_500, mean_gap_us=150_000)
    more = {"patience_s": 1_000_000}  # stamps are made up: a gatherer is never given up here
    made = await make_recordings(postgres_server, stream)
    _, result, files = await finished(postgres_server, made, tmp_path / "a", **more)

    other = await make_recordings(postgres_server, stream, shuffle=random.Random(1))
    _, shuffled, shuffled_files = await finished(postgres_server, other, tmp_path / "b", **more)
    assert shuffled == result
    assert shuffled_files == files

    live = await make_recordings(postgres_server, stream, written=False)
    production = await fresh_database(postgres_server, "production")

    async def write(gatherer: int) -> None:
        rng = random.Random(gatherer)
        conn = await connect(live.hot[gatherer])
        for batch in live.batches[gatherer]:
            await write_batches(conn, [batch])
            await asyncio.sleep(rng.choice([0, 0, 0.05, 0.2]))
        await conn.close()

    chosen = settings(live, production, tmp_path / "c", **more)
    await asyncio.gather(run_through(chosen), *(write(g) for g in range(3)))
    assert await table_contents(production, *RESULT) == result
    assert lake_files(tmp_path / "c") == files


async def test_kill_9_at_random_instants_leaves_no_trace(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Any instant: in a read, in a commit, between two objects of the lake."""
    stream = make_stream(5, events=1_500, mean_gap_us=1_500_000)
    made = await make_recordings(postgres_server, stream)
    _, result, files = await finished(postgres_server, made, tmp_path / "undisturbed")
    production = await fresh_database(postgres_server, "production")
    chosen = settings(made, production, tmp_path / "killed")
    rng = random.Random(5)
    kills, code = 0, None
    while code is None:
        process = await asyncio.to_thread(child, chosen)
        patience_s = 1.2 + 1.5 * rng.random() if kills < KILLS else 120
        try:
            _, said = await asyncio.to_thread(process.communicate, None, patience_s)
            code = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.communicate)
            kills += 1
    assert code == 0, said
    assert kills > 0
    assert await table_contents(production, *RESULT) == result
    assert lake_files(tmp_path / "killed") == files


async def test_database_that_dies_is_waited_for(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Two gatherers stay up, the third's cluster and production's are killed and come back."""
    stream = make_stream(6, events=1_500, mean_gap_us=150_000)
    made = await make_recordings(postgres_server, stream)
    _, result, files = await finished(postgres_server, made, tmp_path / "undisturbed")
    async with EmbeddedPostgres() as third, EmbeddedPostgres() as target:
        hot = await fresh_database(third, "gatherer_hot")
        conn = await connect(hot)
        await write_batches(conn, made.batches[2][:5])
        made.hot[2] = hot
        production = await fresh_database(target, "production")
        running = pipeline(settings(made, production, tmp_path / "disturbed"))
        task = asyncio.create_task(running.run())
        while running.publisher.standing.windows == 0:
            assert not task.done(), task.exception()
            await asyncio.sleep(0.05)
        third.kill()
        target.kill()
        await asyncio.sleep(0.5)
        assert not running.finished
        conn.terminate()
        await asyncio.gather(third.restart(), target.restart())
        conn = await connect(hot)
        await write_batches(conn, made.batches[2][5:])
        await conn.close()
        async with asyncio.timeout(120):
            await task
        assert running.finished
        assert await table_contents(production, *RESULT) == result
    assert lake_files(tmp_path / "disturbed") == files


async def test_production_that_dies_in_an_export_changes_nothing(
    postgres_server: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export is made again before anything else: later, it would see windows beyond its own."""
    stream = make_stream(6, events=1_500, mean_gap_us=150_000)
    made = await make_recordings(postgres_server, stream)
    _, result, files = await finished(postgres_server, made, tmp_path / "undisturbed")
    production = await fresh_database(postgres_server, "production")
    running = pipeline(settings(made, production, tmp_path / "disturbed"))
    export, calls = running.exporter.export, 0

    async def cut_off(conn: Connection, *given: Any, **more: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            conn.terminate()
        await export(conn, *given, **more)

    monkeypatch.setattr(running.exporter, "export", cut_off)
    async with asyncio.timeout(120):
        await running.run()
    assert running.finished
    assert calls > 2, "an export in the middle, once cut off, and the last"
    assert await table_contents(production, *RESULT) == result
    assert lake_files(tmp_path / "disturbed") == files


async def test_lake_that_refuses_does_not_stop_the_merge(
    postgres_server: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Production goes on; the lake is healed when it takes objects again."""
    monkeypatch.setattr("dedup.pipeline.EXPORT_RETRY_S", 0)
    stream = make_stream(7, events=600, mean_gap_us=150_000)
    made = await make_recordings(postgres_server, stream, gaps=1, disconnects=0)
    _, _, files = await finished(postgres_server, made, tmp_path / "undisturbed")
    production = await fresh_database(postgres_server, "production")
    running = pipeline(settings(made, production, tmp_path / "lake"))
    store = running.exporter._store
    refused = 0
    put = type(store).put

    def refuse(self: object, key: str, body: bytes) -> None:
        nonlocal refused
        refused += 1
        if refused <= 5:
            raise OSError(28, "no space left on device")
        put(self, key, body)  # type: ignore[arg-type]

    monkeypatch.setattr(type(store), "put", refuse)
    async with asyncio.timeout(120):
        await running.run()
    assert refused > 5
    assert await compare_with_stream(production, stream) == NOTHING_WRONG
    assert lake_files(tmp_path / "lake") == files


async def test_a_lake_that_is_away_at_the_start_holds_nothing_up(
    postgres_server: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tape goes on in production; what the lake holds is looked at when it answers."""
    monkeypatch.setattr("dedup.pipeline.EXPORT_RETRY_S", 0)
    stream = make_stream(7, events=600, mean_gap_us=150_000)
    made = await make_recordings(postgres_server, stream, gaps=1, disconnects=0)
    _, _, files = await finished(postgres_server, made, tmp_path / "undisturbed")
    production = await fresh_database(postgres_server, "production")
    running = pipeline(settings(made, production, tmp_path / "lake"))
    kind = type(running.exporter._store)
    listing = kind.list
    asked: list[int] = []

    def away(self: object, prefix: str) -> object:
        asked.append(running.publisher.standing.windows)
        if len(asked) <= 2:  # another tape's versions, its backups: a new one waits for that word
            return listing(self, prefix)  # type: ignore[arg-type]
        if asked[-1] == 0 or len(asked) <= 5:
            raise StorageError("no route to the lake")
        return listing(self, prefix)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "list", away)
    async with asyncio.timeout(120):
        await running.run()
    assert asked[2] == 0, "not looked at before anything was merged"
    assert len(asked) > 5
    assert await compare_with_stream(production, stream) == NOTHING_WRONG
    assert lake_files(tmp_path / "lake") == files


def _why(running: Pipeline) -> str:
    """What production says of itself."""
    told = running._health.get("production")
    return told.reason if told else ""


async def test_no_tape_begins_beside_the_one_that_the_lake_has(
    postgres_server: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Production was lost and is there again, empty: it stays so until a backup is in it.

    A lake that does not answer may have a tape; one that has none lets the tape begin.
    """
    monkeypatch.setattr("dedup.pipeline.BEGIN_POLL_S", 0.05)
    stream = make_stream(7, events=600, mean_gap_us=150_000)
    made = await make_recordings(postgres_server, stream, gaps=1, disconnects=0)
    lake = tmp_path / "lake"
    _, _, files = await finished(postgres_server, made, lake)
    production = await empty_database(postgres_server)
    running = pipeline(settings(made, production, lake))
    kind = type(running.exporter._store)
    listing, away = kind.list, False

    def sometimes(self: object, prefix: str) -> object:
        if away:
            raise StorageError("no route to the lake")
        return listing(self, prefix)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "list", sometimes)
    work = asyncio.create_task(running.run())
    conn = await connect(production)
    told: set[str] = set()
    try:
        async with asyncio.timeout(120):
            for word in ("the lake has one up to", "no route to the lake"):
                while word not in _why(running):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                told.add(_why(running))
                away = True
            tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
            assert await conn.fetchval(tables) == 0
            assert lake_files(lake) == files
            lake.rename(tmp_path / "elsewhere")
            away = False
            await work
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await conn.close()
    assert len(told) == 2
    assert await compare_with_stream(production, stream) == NOTHING_WRONG
    assert lake_files(lake) == files


async def test_stops_cleanly_when_asked(postgres_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """SIGTERM: exit 0, and the next start goes on to the same end."""
    stream = make_stream(8, events=800, mean_gap_us=1_500_000)
    made = await make_recordings(postgres_server, stream)
    production = await fresh_database(postgres_server, "production")
    chosen = settings(made, production, tmp_path / "lake")
    process = await asyncio.to_thread(child, chosen)
    conn = await connect(production)
    while not await conn.fetchval("SELECT count(*) FROM merge_state"):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await conn.close()
    process.send_signal(signal.SIGTERM)
    _, said = await asyncio.to_thread(process.communicate, None, 60)
    assert process.returncode == 0, said
    await run_through(chosen)
    assert await compare_with_stream(production, stream) == NOTHING_WRONG


async def test_wrong_settings_end_with_code_2_and_every_fault(tmp_path: Path) -> None:
    """One message, all faults."""
    process = await asyncio.to_thread(
        subprocess.run,
        [__import__("sys").executable, "-m", "dedup.main"],
        env={"KT_PRODUCTION_DSN": "nowhere", "KT_GATHERER_DSNS": "[]", "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2
    for name in ("KT_PRODUCTION_DSN", "KT_GATHERER_DSNS", "KT_LAKE_URI"):
        assert name in process.stderr
