"""A gatherer whose disk was replaced by an empty one joins again; the tape does not change.

Its new database is another cluster (another system identifier), its batches, runs and connections
have numbers that were given before. All databases of a test lie in one cluster here, so the
identifier that the reader sees is made from the database's oid: another database, another cluster.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import dedup.pull as puller
from dedup.lives import REPLACED
from dedup.pipeline import Pipeline
from dedup.pull import Position
from marketdata.rows import GathererBatch
from runtime.embedded import EmbeddedPostgres
from runtime.postgres import Connection, connect
from tests.databases import fresh_database
from tests.dedup_rig import (
    Recordings,
    compare_with_stream,
    make_recordings,
    pipeline,
    run_through,
    settings,
)
from tests.gatherer_rows import Stream, make_stream, record, write_batches

SEED = 7
THIRD = 2


@pytest.fixture(autouse=True)
def identifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def of_database(conn: Connection) -> int:
        name = "SELECT oid::bigint FROM pg_database WHERE datname = current_database()"
        return int(await conn.fetchval(name))

    monkeypatch.setattr(puller, "server_identity", of_database)


def second_life(stream: Stream, born: int) -> list[GathererBatch]:
    """What the third gatherer has if it begins, knowing nothing, before happening `born`."""
    opening = [dict(book) for book in stream.opening]
    for h in stream.happenings[:born]:
        if h.kind == "delta":
            book, level = opening[h.market], (h.side, h.price)
            book[level] = book.get(level, 0) + h.delta
            if not book[level]:
                del book[level]
    rest = replace(stream, opening=opening, happenings=stream.happenings[born:])
    return record(rest, THIRD, seed=SEED + 1)


async def fill(dsn: str, batches: list[GathererBatch]) -> None:
    conn = await connect(dsn)
    await write_batches(conn, batches)
    await conn.close()


async def wipe(server: EmbeddedPostgres, dsn: str) -> None:
    """The database is another one with the same name, empty."""
    name = dsn.rpartition("/")[2].partition("?")[0]
    fresh = (await fresh_database(server, "gatherer_hot")).rpartition("/")[2].partition("?")[0]
    conn = await asyncpg.connect(server.dsn())
    await conn.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await conn.execute(f"ALTER DATABASE {fresh} RENAME TO {name}")
    await conn.close()


async def until_read(work: Pipeline, counts: list[int], production: str) -> None:
    """Until every reader has read so many batches of its gatherer and found nothing more, and
    something of the third one is published."""

    def read() -> bool:
        found = [(r.exhausted, r.position.last_batch_id) for r in work.readers]
        return [exhausted and last for exhausted, last in found] == counts

    conn = await connect(production)
    published = "SELECT count(*) FROM run_progress WHERE gatherer = $1"
    for _ in range(600):
        if read() and await conn.fetchval(published, THIRD):
            break
        await asyncio.sleep(0.1)
    assert read()
    assert await conn.fetchval(published, THIRD)
    await conn.close()


async def tape_of(production: str) -> list[tuple[Any, ...]]:
    """The tape without who saw it when."""
    conn = await connect(production)
    rows = await conn.fetch(
        "SELECT ticker, epoch, market_seq, exchange_ts, side, price, delta, book_hash"
        " FROM orderbook_delta JOIN market USING (market_id) ORDER BY 1, 2, 3"
    )
    await conn.close()
    return [tuple(r) for r in rows]


async def stage(
    server: EmbeddedPostgres, stream: Stream
) -> tuple[Recordings, list[list[GathererBatch]], list[list[GathererBatch]]]:
    """Databases with the first halves of three recordings; the halves."""
    made = await make_recordings(server, stream, gaps=0, disconnects=0, seed=SEED, written=False)
    early = [b[: len(b) // 2] for b in made.batches]
    early[THIRD] = made.batches[THIRD][: len(made.batches[THIRD]) // 3]
    late = [b[len(b) // 2 :] for b in made.batches]
    born = len(stream.happenings) * 6 // 10
    late[THIRD] = second_life(stream, born)
    for dsn, batches in zip(made.hot, early, strict=True):
        await fill(dsn, batches)
    return made, early, late


@pytest.mark.parametrize("restarted", ["", "while it is empty", "when it has rows"])
async def test_a_third_gatherer_with_an_empty_disk_joins_again(
    postgres_server: EmbeddedPostgres, tmp_path: Path, restarted: str
) -> None:
    """`restarted`: when the deduplicator begins again, if it does, and sees the new database."""
    stream = make_stream(SEED)
    made, early, late = await stage(postgres_server, stream)
    production = await fresh_database(postgres_server, "production")
    chosen = settings(made, production, tmp_path / "lake", window_ms=200)
    work = pipeline(chosen)
    running = asyncio.create_task(work.run())
    await until_read(work, [len(b) for b in early], production)
    if restarted:
        await work.stop()
        await running
    await wipe(postgres_server, made.hot[THIRD])
    if restarted == "when it has rows":
        await fill(made.hot[THIRD], late[THIRD])
    if restarted:
        work = pipeline(chosen)
        running = asyncio.create_task(work.run())
        await asyncio.sleep(0.5)  # it finds the new database; if that is empty it waits
    third = work.readers[THIRD]
    for gatherer, (dsn, batches) in enumerate(zip(made.hot, late, strict=True)):
        if gatherer != THIRD or restarted != "when it has rows":
            await fill(dsn, batches)
    async with asyncio.timeout(60):
        await running
    assert work.finished
    assert not any((await compare_with_stream(production, stream)).values())
    assert any("replaced by an empty one" in told for told in third.gone)

    whole = await make_recordings(postgres_server, stream, gaps=0, disconnects=0, seed=SEED)
    other = await fresh_database(postgres_server, "production")
    await run_through(settings(whole, other, tmp_path / "other", window_ms=200))
    assert await tape_of(production) == await tape_of(other)
    await old_runs_are_over(production, early[THIRD], late[THIRD])


async def old_runs_are_over(
    production: str, early: list[GathererBatch], late: list[GathererBatch]
) -> None:
    """They prove what they had shown; both lives are witnesses, under numbers of their own."""
    conn = await connect(production)
    progress = await conn.fetch(
        "SELECT run_id, to_us, ended, reason FROM run_progress WHERE gatherer = $1", THIRD
    )
    claims = await conn.fetch(
        "SELECT run_id, to_us, reason FROM market_claim WHERE gatherer = $1 AND valid", THIRD
    )
    cursor = await conn.fetchrow("SELECT * FROM gatherer_cursor WHERE gatherer = $1", THIRD)
    await conn.close()
    assert all(r["ended"] for r in progress)
    shown_us = max(int(b.deltas["exchange_us"].max()) for b in early if b.deltas.size)
    old = [r for r in progress if r["reason"] == REPLACED]
    assert old
    assert all(r["to_us"] <= shown_us + 1 for r in old)
    over = {r["run_id"] for r in old}
    ended = [c for c in claims if c["run_id"] in over]
    assert ended
    assert all(c["to_us"] <= shown_us + 1 for c in ended)
    reasons = Counter(c["reason"] for c in claims if c["run_id"] not in over)
    assert reasons["close"] > 0  # of the second life
    assert cursor["seen_batch"] == len(early) + len(late)


async def test_a_database_with_rows_from_before_is_still_refused(
    postgres_server: EmbeddedPostgres,
) -> None:
    """An older copy of its database is no new life: reading it as one would bring rows twice."""
    made = record(make_stream(5), 0, seed=5)
    dsn = await fresh_database(postgres_server, "gatherer_hot")
    await fill(dsn, made[:4])
    conn = await connect(dsn)
    read = Position(1, 0, len(made), received_ns=made[-1].max_received_ns)
    with pytest.raises(puller.StorageError, match="was replaced"):
        await puller.pull(conn, 0, read)
    later = replace(read, received_ns=made[0].max_received_ns - 1)
    got = await puller.pull(conn, 0, later)
    assert (got.batch.first_batch_id, got.position.replaced) == (1, 1)
    await conn.close()


async def test_nothing_is_decided_while_the_new_database_is_empty(
    postgres_server: EmbeddedPostgres,
) -> None:
    """It may be restored in a minute."""
    conn = await connect(await fresh_database(postgres_server, "gatherer_hot"))
    read = Position(1, 0, 400, received_ns=9)
    got = await puller.pull(conn, 0, read)
    assert got.batch is None
    assert got.position == read
    resumed = await puller.resume(conn, 1, 401, 9)
    assert (resumed.system_identifier, resumed.last_batch_id) == (1, 400)
    await conn.close()
