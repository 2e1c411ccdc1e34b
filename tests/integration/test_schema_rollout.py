"""A release with added columns goes out under load: both releases at work, nothing lost.

The coming release is this one with one more migration in each folder. What is shown: the gatherer
of either release records on either schema, from one to the other and back; a migration passes
beside writers that are not stopped; the deduplicator merges old and new rows on an old and a new
production schema, and its tape is what happened.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import asyncpg
import pytest

import runtime
from deploy.migrations import File, classify, compare
from exchange.truth import read_truth
from runtime import postgres
from runtime.embedded import EmbeddedPostgres
from runtime.postgres import connect, migrate, migrations
from tests import gatherer_rig
from tests.databases import fresh_database
from tests.dedup_rig import Recordings, compare_with_stream, make_recordings, pipeline, settings
from tests.exchange_client import exchange
from tests.gatherer_rig import GathererProcess, gatherer, read_recording
from tests.gatherer_rows import make_stream, write_batches

MORE = {
    "gatherer_hot": """
        ALTER TABLE orderbook_delta ADD COLUMN heard integer;
        ALTER TABLE orderbook_snapshot ADD COLUMN heard integer;
        ALTER TABLE trade ADD COLUMN note text NOT NULL DEFAULT '';
        ALTER TABLE ticker ADD COLUMN note text NOT NULL DEFAULT '';
        ALTER TABLE control ADD COLUMN note text;
        ALTER TABLE market ADD COLUMN note text;
        ALTER TABLE spool_cursor ADD COLUMN note text;
        ALTER TABLE ingest_batch ADD COLUMN writer text NOT NULL DEFAULT 'old';
        CREATE INDEX ingest_batch_uid ON ingest_batch (batch_uid);
        CREATE TABLE later (batch_id integer PRIMARY KEY);""",
    "gatherer_meta": """
        ALTER TABLE market_history ADD COLUMN heard_ns bigint;
        ALTER TABLE event_history ADD COLUMN heard_ns bigint;
        ALTER TABLE series_history ADD COLUMN heard_ns bigint;
        ALTER TABLE rest_audit ADD COLUMN note text NOT NULL DEFAULT '';
        ALTER TABLE clock_offsets ADD COLUMN note text;""",
    "production": """
        ALTER TABLE orderbook_delta ADD COLUMN heard integer;
        ALTER TABLE orderbook_snapshot ADD COLUMN heard integer;
        ALTER TABLE trade ADD COLUMN note text NOT NULL DEFAULT '';
        ALTER TABLE ticker ADD COLUMN note text;
        ALTER TABLE market ADD COLUMN note text;
        ALTER TABLE merge_state ADD COLUMN note text NOT NULL DEFAULT '';
        ALTER TABLE gatherer_cursor ADD COLUMN note text;
        ALTER TABLE market_tail ADD COLUMN note text;
        ALTER TABLE arbiter_state ADD COLUMN note text;
        ALTER TABLE run_progress ADD COLUMN note text;
        ALTER TABLE market_claim ADD COLUMN note text;
        ALTER TABLE lake_hour ADD COLUMN note text;
        ALTER TABLE lake_version ADD COLUMN note text;
        ALTER TABLE export_object ADD COLUMN note text NOT NULL DEFAULT '';
        CREATE TABLE later (window_index bigint PRIMARY KEY);""",
}


@pytest.fixture
def coming(tmp_path: Path) -> Path:
    """A directory for PYTHONPATH with the coming release's `runtime`."""
    (whence,) = runtime.__path__
    root = tmp_path / "coming"
    shutil.copytree(whence, root / "runtime", ignore=shutil.ignore_patterns("__pycache__"))
    for folder, sql in MORE.items():
        files = [File(m.version, m.name, m.sql) for m in migrations(folder)]
        more = File(len(files) + 1, "more", sql)
        assert not compare(folder, files, [*files, more]).refused, classify(files, [more])
        (root / "runtime/migrations" / folder / f"{more.title}.sql").write_text(sql)
    return root


async def apply_coming(coming: Path, dsn: str, folder: str) -> list[int]:
    """What the coming release does to a database when it starts."""
    connection = await connect(dsn)
    try:
        return await migrate(connection, coming / "runtime/migrations" / folder)
    finally:
        await connection.close()


async def newest(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval("SELECT max(version) FROM schema_version"))
    finally:
        await connection.close()


async def committed_more(dsn: str, rows: int) -> None:
    """Until so many more rows are committed."""
    connection = await connect(dsn)
    try:
        count = "SELECT coalesce(sum(n_rows), 0) FROM ingest_batch"
        before = await connection.fetchval(count)
        async with asyncio.timeout(60):
            while await connection.fetchval(count) < before + rows:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        await connection.close()


async def restarted(process: GathererProcess, release: str) -> None:
    """Stop it in good order and start it with another PYTHONPATH first."""
    assert await process.stop() == 0
    process.environment["PYTHONPATH"] = release
    process.start()


async def test_two_gatherers_of_two_releases_lose_nothing(
    postgres_server: EmbeddedPostgres, tmp_path: Path, coming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is moved to the coming release and back; under the other the schema is changed while it
    writes, with no restart. Every row is compared with what the exchange says that it sent."""
    monkeypatch.setenv("PYTHONPATH", own := os.environ.get("PYTHONPATH", ""))
    hot = [await fresh_database(postgres_server, "gatherer_hot") for _ in range(2)]
    meta = [await fresh_database(postgres_server, "gatherer_meta") for _ in range(2)]
    for n in range(2):
        (tmp_path / str(n)).mkdir()
    flags = ("--synthetic", "60", "--seconds", "60", "--rate", "8", "--faults", "none")
    async with exchange(tmp_path, *flags, "--expect-clients", "2") as running:
        async with (
            gatherer(tmp_path / "0", running, hot[0], meta[0]) as moved,
            gatherer(tmp_path / "1", running, hot[1], meta[1]) as stays,
        ):
            before = len(migrations("gatherer_hot"))
            await asyncio.gather(*(committed_more(dsn, 100) for dsn in hot))
            changing = asyncio.create_task(apply_coming(coming, hot[1], "gatherer_hot"))
            await restarted(moved, f"{coming}:{own}")
            await asyncio.gather(*(committed_more(dsn, 100) for dsn in hot))
            assert await changing == [before + 1]
            assert await apply_coming(coming, meta[1], "gatherer_meta")
            assert [await newest(dsn) for dsn in hot] == [before + 1] * 2
            await restarted(moved, own)  # rolled back: the schema stays
            await asyncio.gather(*(committed_more(dsn, 50) for dsn in hot))
            await running.done()
            await asyncio.sleep(1.0)
            assert (await moved.stop(), await stays.stop()) == (0, 0)
        running.stop()
    truth = read_truth(running.truth)
    for dsn in hot:
        recording = await read_recording(dsn)
        found = gatherer_rig.compare(recording, truth)
        assert found.compared > 200
        assert (found.unnamed, found.doubled, found.altered) == (0, 0, 0)
        assert (found.wrong_hash, found.lost) == (0, 0)
        assert all(row["note"] == "" for row in recording.trades)
        ids = [row["batch_id"] for row in recording.batches]
        assert ids == list(range(1, len(ids) + 1))


async def _write(made: Recordings, gatherer: int, half: asyncio.Event, go: asyncio.Event) -> None:
    """One gatherer's rows. At the half it says so, and goes on without waiting for anybody, but
    for the last batch, which waits for `go`."""
    connection = await connect(made.hot[gatherer])
    batches = made.batches[gatherer]
    for n, batch in enumerate(batches):
        if n == len(batches) // 3:
            half.set()
        if n == len(batches) - 1:
            await go.wait()
        await write_batches(connection, [batch])
        await asyncio.sleep(0.02)
    await connection.close()


async def test_the_tape_is_what_happened_while_every_schema_changes(
    postgres_server: EmbeddedPostgres, tmp_path: Path, coming: Path
) -> None:
    """Three writers and a deduplicator at work; gatherers 1 and 2 and production get the coming
    schema, gatherer 0 keeps the old one. The deduplicator then begins again as the old release."""
    stream = make_stream(11, events=1_500, mean_gap_us=150_000)
    made = await make_recordings(postgres_server, stream, written=False)
    production = await fresh_database(postgres_server, "production")
    chosen = settings(made, production, tmp_path / "lake", patience_s=1_000_000)
    first = pipeline(chosen)
    halves, go = [asyncio.Event() for _ in made.hot], asyncio.Event()
    async with asyncio.timeout(200), asyncio.TaskGroup() as tasks:
        merging = tasks.create_task(first.run())
        for n, half in enumerate(halves):
            tasks.create_task(_write(made, n, half, go))
        await asyncio.gather(*(half.wait() for half in halves))
        while first.publisher.standing.windows == 0:
            assert not merging.done(), merging.exception()
            await asyncio.sleep(0.02)
        for n in (1, 2):
            assert await apply_coming(coming, made.hot[n], "gatherer_hot")
            assert await apply_coming(coming, made.meta[n], "gatherer_meta")
        assert await apply_coming(coming, production, "production")
        seen = first.publisher.standing.windows
        while first.publisher.standing.windows < seen + 3 and not go.is_set():
            assert not merging.done(), merging.exception()
            await asyncio.sleep(0.02)
        merging.cancel()  # killed, and started again as the old release
        await asyncio.wait([merging])
        second = pipeline(chosen)
        tasks.create_task(second.run())
        go.set()
    assert second.finished
    assert second.invariants.broken == []
    found = await compare_with_stream(production, stream)
    assert not any(found.values()), found
    connection = await connect(production)
    await connection.execute("UPDATE orderbook_delta SET heard = 1")  # the new columns are there
    await connection.close()


async def test_a_schema_that_takes_a_column_away_is_noticed(
    postgres_server: EmbeddedPostgres, tmp_path: Path, coming: Path
) -> None:
    """The control: it is refused beforehand; applied all the same, the old release loses its way,
    and a file that says so keeps it from starting."""
    taken = "ALTER TABLE orderbook_delta DROP COLUMN seq"
    files = [File(m.version, m.name, m.sql) for m in migrations("gatherer_hot")]
    less = File(len(files) + 1, "more", taken)
    assert compare("gatherer_hot", files, [*files, less]).refused
    place = coming / "runtime/migrations/gatherer_hot" / f"{less.title}.sql"
    place.write_text(f"{postgres.BREAKS_OLDER}: they read seq\n{taken}")
    made = await make_recordings(postgres_server, make_stream(12, events=100), gatherers=1, gaps=0,
                                 disconnects=0, written=False)  # fmt: skip
    await apply_coming(coming, made.hot[0], "gatherer_hot")
    connection = await connect(made.hot[0])
    try:
        with pytest.raises(asyncpg.UndefinedColumnError):
            await write_batches(connection, made.batches[0])
        with pytest.raises(postgres.StorageError, match="breaks older programs"):
            await migrate(connection, "gatherer_hot")
    finally:
        await connection.close()
