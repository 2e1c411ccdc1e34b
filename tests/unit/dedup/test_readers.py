"""Reading one gatherer: its database may be away, replaced, or lag; others never wait long."""

from __future__ import annotations

import asyncpg

from dedup.readers import AHEAD_NS, GathererReader, may_read
from runtime.embedded import EmbeddedPostgres, free_port
from tests.databases import fresh_database
from tests.gatherer_rows import make_stream, record, write_batches


def reader(index: int = 0, dsn: str = "postgresql://nowhere", **more: object) -> GathererReader:
    return GathererReader(index, dsn, poll_s=0, **more)  # type: ignore[arg-type]


def test_nobody_runs_far_ahead_of_one_that_still_has_rows() -> None:
    """The merge would hold what it cannot use, and take a late answer for silence."""
    first, second = reader(0), reader(1)
    first.state = second.state = "reading"
    first.max_received_ns = AHEAD_NS
    assert may_read(first, [first, second], 60)
    first.max_received_ns = AHEAD_NS + 1
    assert not may_read(first, [first, second], 60)
    assert may_read(second, [first, second], 60)
    second.state = "idle"
    assert may_read(first, [first, second], 60)


def test_a_database_that_does_not_answer_holds_others_up_for_the_patience_only() -> None:
    """An answer that is late is waited for; one that never comes is not."""
    now = 0.0
    first = reader(0)
    second = reader(1, monotonic=lambda: now)
    first.state, first.max_received_ns, second.state = "reading", 2 * AHEAD_NS, "down"
    now = 59.0
    assert not may_read(first, [first, second], 60)
    now = 60.0
    assert may_read(first, [first, second], 60)


async def test_a_port_where_nobody_listens_is_told_as_down() -> None:
    """No exception: the reader says how it stands and tries again."""
    away = reader(0, f"postgresql://postgres@127.0.0.1:{free_port()}/postgres")
    assert await away.read() is None
    assert away.state == "down"
    assert away.reason
    assert away.errors == 1
    assert not away.answering
    await away.close()


async def test_reads_on_to_the_end_and_over_a_cut_connection(
    postgres_server: EmbeddedPostgres,
) -> None:
    """A broken line costs a try, no row; the end is what the gatherer said, not silence."""
    dsn = await fresh_database(postgres_server, "gatherer_hot")
    made = record(make_stream(7), 0, seed=7)
    conn = await asyncpg.connect(dsn)
    await write_batches(conn, made[:-1])
    mine = reader(0, dsn, max_rows=150)
    found = []
    while not mine.exhausted:
        if (batch := await mine.read()) is not None:
            found.append(batch)
    assert mine.state == "idle"
    await conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await write_batches(conn, made[-1:])
    while mine.state != "ended":
        if (batch := await mine.read()) is not None:
            found.append(batch)
    assert sum(len(b.deltas) for b in found) == sum(len(b.deltas) for b in made)
    assert found[-1].last_batch_id == made[-1].last_batch_id
    await mine.close()
    await conn.close()


async def test_resumes_where_it_is_told(postgres_server: EmbeddedPostgres) -> None:
    """After a restart the merge says from which batch it needs rows again."""
    dsn = await fresh_database(postgres_server, "gatherer_hot")
    made = record(make_stream(8), 0, seed=8)
    conn = await asyncpg.connect(dsn)
    await write_batches(conn, made)
    identity = await conn.fetchval("SELECT system_identifier FROM pg_control_system()")
    mine = reader(0, dsn, resume_at=(identity, 4))
    batch = await mine.read()
    assert batch is not None
    assert batch.first_batch_id == 4
    await mine.close()
    await conn.close()


async def test_a_cluster_that_lost_batches_is_refused_in_words(
    postgres_server: EmbeddedPostgres,
) -> None:
    """Reading on would leave a hole that nobody sees."""
    dsn = await fresh_database(postgres_server, "gatherer_hot")
    mine = reader(0, dsn, resume_at=(1, 400))
    assert await mine.read() is None
    assert mine.state == "idle"  # still empty: it may be restored yet
    conn = await asyncpg.connect(dsn)
    await write_batches(conn, record(make_stream(9), 0, seed=9))
    await conn.close()
    assert await mine.read() is None
    assert mine.state == "refused"
    assert "was replaced" in mine.reason
    await mine.close()


async def test_tells_the_gatherer_what_is_stored(postgres_server: EmbeddedPostgres) -> None:
    """The gatherer keeps its spool until then."""
    dsn = await fresh_database(postgres_server, "gatherer_hot")
    conn = await asyncpg.connect(dsn)
    await write_batches(conn, record(make_stream(9), 0, seed=9))
    times = iter(range(0, 100, 10))
    mine = reader(0, dsn, monotonic=lambda: float(next(times)))
    await mine.read()
    assert await conn.fetchval("SELECT count(*) FROM reader_cursor") == 0
    mine.stored(3)
    await mine.read()
    row = await conn.fetchrow("SELECT reader, batch_id FROM reader_cursor")
    assert tuple(row) == (await conn.fetchval("SELECT session_user"), 3)
    await mine.close()
    await conn.close()


async def test_a_gatherer_that_takes_no_word_is_read_on(postgres_server: EmbeddedPostgres) -> None:
    """An older gatherer, or one that did not grant it: reading must not suffer."""
    dsn = await fresh_database(postgres_server, "gatherer_hot")
    conn = await asyncpg.connect(dsn)
    made = record(make_stream(9), 0, seed=9)
    await write_batches(conn, made)
    await conn.execute("DROP FUNCTION tell_reader_cursor(integer)")
    mine = reader(0, dsn, max_rows=50)
    mine.stored(3)
    rows = 0
    while not mine.exhausted:
        if (batch := await mine.read()) is not None:
            rows += len(batch.deltas)
    assert rows == sum(len(b.deltas) for b in made)
    assert mine.errors == 0
    await mine.close()
    await conn.close()
