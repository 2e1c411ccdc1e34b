"""Several mergers of one tape: the lake that one alone would have made, whatever happens."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dedup.pipeline import Pipeline
from dedup.publish import EXPORT_LOCK
from marketdata.errors import ConfigError
from marketdata.share import Share
from runtime.embedded import EmbeddedPostgres
from runtime.postgres import Connection, connect
from tests.databases import fresh_database
from tests.dedup_rig import (
    Recordings,
    child,
    compare_with_stream,
    lake_files,
    make_recordings,
    pipeline,
    run_through,
    settings,
)
from tests.gatherer_rows import Stream, make_stream

EVENTS = 400
PATIENCE_S = 1_000  # nobody is given up
HELD = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid::bigint = $1"
    " AND mode = 'ExclusiveLock' AND pid = pg_backend_pid()"
)


def hours_of_events(seed: int) -> Stream:
    """A quiet stream over three hours: several moments of export."""
    return make_stream(seed, markets=8, events=EVENTS, mean_gap_us=36_000_000)


async def recordings(server: EmbeddedPostgres, seed: int) -> Recordings:
    return await make_recordings(server, hours_of_events(seed), seed=seed)


def shards(made: Recordings, production: str, lake: Path, of: int, **more: Any) -> list[Pipeline]:
    """The mergers of one tape, not yet running."""
    chosen = {"patience_s": PATIENCE_S, "window_ms": 5_000, **more}
    return [
        pipeline(settings(made, production, lake, merge_shards=of, merge_shard=number, **chosen))
        for number in range(1, of + 1)
    ]


async def run_all(mergers: list[Pipeline]) -> None:
    async with asyncio.timeout(120):
        await asyncio.gather(*(m.run() for m in mergers))
    assert all(m.finished for m in mergers)


def lake(root: Path) -> dict[str, Any]:
    """Every file of a lake: its digest; a commit record as it is told, but for what each merger saw
    of the exchange by its own markets, which is told by merger (docs/formats.md)."""
    found: dict[str, Any] = dict(lake_files(root))
    for key in found:
        if "/_manifest-" in key:
            found[key] = json.loads((root / key).read_text())
            found[key]["extra"].pop("exchange", None)
    return found


async def alone(server: EmbeddedPostgres, made: Recordings, lake: Path) -> Pipeline:
    production = await fresh_database(server, "production")
    return await run_through(
        settings(made, production, lake, patience_s=PATIENCE_S, window_ms=5_000)
    )


async def test_three_mergers_make_the_lake_of_one(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Byte for byte; the accounts add up; nobody gives the id of another's market."""
    made = await recordings(postgres_server, 11)
    one = await alone(postgres_server, made, tmp_path / "one")
    production = await fresh_database(postgres_server, "production")
    mergers = shards(made, production, tmp_path / "three", 3)
    held: list[int] = []
    look = mergers[0].exporter.look_again

    async def looked(conn: Connection) -> None:
        held.append(await conn.fetchval(HELD, EXPORT_LOCK))
        await look(conn)

    mergers[0].exporter.look_again = looked  # type: ignore[method-assign]
    await run_all(mergers)
    assert held[-1] == 1, "what is dirty was read before the others had to wait"
    files = lake(tmp_path / "one")
    assert sum("orderbook_deltas" in key for key in files) > 1, "one hour only"
    assert sum("coverage" in key for key in files) > 1
    assert lake(tmp_path / "three") == files
    wrong = await compare_with_stream(production, made.stream)
    assert set(wrong.values()) == {0}, wrong
    added: Counter[str] = Counter()
    for merger in mergers:
        added.update(merger.publisher.standing.counts)
        assert len(merger.publisher.standing.ids) > 0
        assert merger.invariants.broken == []
    assert added == one.publisher.standing.counts
    conn = await connect(production)
    rows = await conn.fetch("SELECT market_id, ticker FROM market")
    for row in rows:
        assert Share((row["market_id"] - 1) % 3 + 1, 3).owns(row["ticker"])
    cursors = await conn.fetch("SELECT DISTINCT shard FROM gatherer_cursor ORDER BY 1")
    assert [r["shard"] for r in cursors] == [1, 2, 3]
    await conn.close()
    assert [m["finished"] for m in mergers[0].together.told()["mergers"]] == [True, True, True]


async def _published(production: str, shard: int) -> None:
    """Returns when this merger has published something."""
    conn = await connect(production)
    windows = "SELECT sum(windows) FROM merge_state WHERE shard = $1"
    async with asyncio.timeout(60):
        while not await conn.fetchval(windows, shard):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await conn.close()


@pytest.mark.skipif("SHARDS_LONG" not in os.environ, reason="long: make test-shards")
async def test_killed_and_doubled_mergers_leave_no_trace(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """kill -9 of two of three, and the third runs twice by mistake."""
    made = await recordings(postgres_server, 12)
    await alone(postgres_server, made, tmp_path / "one")
    production = await fresh_database(postgres_server, "production")
    more = {"merge_shards": 3, "patience_s": PATIENCE_S, "window_ms": 5_000}
    chosen = {
        n: settings(made, production, tmp_path / "three", merge_shard=n, **more) for n in (1, 2, 3)
    }
    twins = [child(chosen[3]), child(chosen[3])]
    second = child(chosen[2])
    await _published(production, 2)  # it waits for the first merger's export now
    second.kill()
    await asyncio.to_thread(second.communicate)
    first, second = child(chosen[1]), child(chosen[2])
    await _published(production, 1)
    await asyncio.sleep(random.Random(12).random())
    assert first.poll() is None, "it has finished already: nothing is killed"
    first.kill()
    await asyncio.to_thread(first.communicate)
    twins += [second, child(chosen[1])]
    for twin in twins:  # the second of the third comes to it when the first has finished
        _, said = await asyncio.to_thread(twin.communicate, None, 60)
        assert twin.returncode == 0, said
    assert lake(tmp_path / "three") == lake(tmp_path / "one")


async def test_one_service_starts_them_all(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Two processes under one; it ends when both have finished the tape."""
    stream = make_stream(15, markets=6, events=100)
    made = await make_recordings(postgres_server, stream, gaps=0, disconnects=0)
    await alone(postgres_server, made, tmp_path / "one")
    production = await fresh_database(postgres_server, "production")
    more = {"patience_s": PATIENCE_S, "window_ms": 5_000}
    service = child(settings(made, production, tmp_path / "two", merge_shards=2, **more))
    _, said = await asyncio.to_thread(service.communicate, None, 90)
    assert service.returncode == 0, said
    assert lake(tmp_path / "two") == lake(tmp_path / "one")
    conn = await connect(production)
    assert await conn.fetchval("SELECT count(*) FROM merge_state WHERE finished") == 2
    await conn.close()


async def test_a_missing_merger_is_not_taken_for_a_quiet_one(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """The control: without the third nothing is exported and nobody has finished, but the others
    go on; when it comes the lake has everything."""
    made = await recordings(postgres_server, 13)
    one = await alone(postgres_server, made, tmp_path / "one")
    production = await fresh_database(postgres_server, "production")
    mergers = shards(made, production, tmp_path / "three", 3)
    for merger in mergers:
        merger.together._patience_s = 1
    running = [asyncio.create_task(m.run()) for m in mergers[:2]]
    last_us = one.publisher.standing.closed_to_us
    async with asyncio.timeout(60):
        while mergers[1].publisher.standing.closed_to_us < last_us:
            assert not any(task.done() for task in running[:1])
            await asyncio.sleep(0.1)
    assert not running[0].done()
    assert not lake_files(tmp_path / "three")
    assert not mergers[0].finished
    running.append(asyncio.create_task(mergers[2].run()))
    async with asyncio.timeout(60):
        await asyncio.gather(*running)
    objects = {k: v for k, v in lake_files(tmp_path / "one").items() if _is_object(k)}
    assert {k: v for k, v in lake_files(tmp_path / "three").items() if _is_object(k)} == objects


def _is_object(key: str) -> bool:
    return key.startswith("parquet/") and key.endswith(".parquet")


async def test_a_tape_keeps_its_number_of_mergers(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Another number would give markets other owners in the middle of the tape."""
    made = await make_recordings(postgres_server, make_stream(14, events=60), written=False)
    production = await fresh_database(postgres_server, "production")
    first = pipeline(settings(made, production, tmp_path, merge_shards=2, merge_shard=2))
    await first.publisher.open()
    await first.publisher.close()
    for number, of in ((1, 1), (1, 3), (3, 3)):
        other = pipeline(settings(made, production, tmp_path, merge_shards=of, merge_shard=number))
        with pytest.raises(ConfigError, match="merge_shards"):
            await other.publisher.open()
        await other.publisher.close()
    conn = await connect(production)
    found = await conn.fetch("SELECT shard, settings FROM merge_state")
    assert [(r["shard"], json.loads(r["settings"])["merge_shards"]) for r in found] == [(2, 2)]
    await conn.close()
