"""Writing to production, against a real PostgreSQL: once, whole, by one merger only."""

from __future__ import annotations

import asyncio
import json

import asyncpg
import pytest

from dedup.publication import publication_of
from dedup.publish import Publisher
from marketdata.errors import ConfigError, StorageError
from tests.databases import table_contents
from tests.window_outputs import T0, WINDOW_US, window_output, with_trouble

SETTINGS = {"window_us": WINDOW_US, "gatherers": 3}
TAPE = (
    "market", "orderbook_delta", "orderbook_snapshot", "trade", "ticker", "market_epoch", "gap",
    "quarantine", "run_progress", "market_claim", "mark", "audit_point",
)  # fmt: skip


def outputs() -> list[object]:
    return [
        window_output(0, ["A", "B"]),
        window_output(1, ["A", "C"], 4),
        with_trouble(window_output(2, ["A", "B"], 7)),
    ]


async def publish(publisher: Publisher, *groups: list[object]) -> None:
    """Open and commit each group as one publication."""
    for group in groups:
        standing = publisher.standing
        made = publication_of(group, standing.ids, standing.reach)  # type: ignore[arg-type]
        await publisher.commit(made, {0: 4711})


async def test_what_was_published_is_loaded_after_a_restart(production: str) -> None:
    """A restarted merger goes on from exactly what was committed."""
    publisher = Publisher(production, SETTINGS)
    assert (await publisher.open()).fresh
    await publish(publisher, outputs())
    kept = publisher.standing
    await publisher.close()
    again = Publisher(production, SETTINGS)
    loaded = await again.open()
    assert loaded.windows == 3
    assert loaded.closed_to_us == T0 + 3 * WINDOW_US
    assert loaded.ids == kept.ids == {"A": 1, "B": 2, "C": 3}
    assert loaded.tails == {"A": b"A@2", "B": b"B@2", "C": b"C@1"}
    assert loaded.named_states == {"global": b"2", "gone1": b"x", "gone2": b"x"}
    assert [(p.gatherer, p.reread_from_batch, p.seen_batch) for p in loaded.positions] == [
        (0, 3, 4)
    ]
    assert loaded.identifiers == {0: 4711}
    assert loaded.counts == kept.counts
    assert loaded.reach == kept.reach
    assert loaded.received_ns_max == kept.received_ns_max
    await again.close()


async def test_grouping_of_windows_leaves_no_trace(
    production: str, postgres_server: object
) -> None:
    """One transaction or three: the same rows, byte for byte."""
    from tests.databases import fresh_database

    other = await fresh_database(postgres_server, "production")  # type: ignore[arg-type]
    for dsn, groups in ((production, [outputs()]), (other, [[o] for o in outputs()])):
        publisher = Publisher(dsn, SETTINGS)
        await publisher.open()
        await publish(publisher, *groups)
        await publisher.close()
    contents = await table_contents(production, *TAPE)
    assert contents == await table_contents(other, *TAPE)
    assert all(contents[t] for t in TAPE)


async def test_rows_go_to_partitions_of_their_day(production: str) -> None:
    """Retention drops partitions; a row left to DEFAULT would stay for ever."""
    publisher = Publisher(production, SETTINGS)
    await publisher.open()
    await publish(publisher, outputs())
    await publisher.close()
    conn = await asyncpg.connect(production)
    for table in ("orderbook_delta", "orderbook_snapshot", "trade", "ticker"):
        found = await conn.fetch(f"SELECT DISTINCT tableoid::regclass::text AS t FROM {table}")
        part, *others = [r["t"] for r in found]
        assert not others
        assert part == f"{table}_p20260224" or "_hyper_" in part  # a chunk, of a hypertable
    await conn.close()


async def test_a_crash_before_the_commit_leaves_nothing(production: str) -> None:
    """The transaction is the unit: rows, states and position come together or not at all."""
    publisher = Publisher(production, SETTINGS)
    await publisher.open()
    await publish(publisher, outputs()[:1])
    before = await table_contents(production, *TAPE, "merge_state", "arbiter_state")
    made = publication_of(outputs()[1:2], publisher.standing.ids, {})  # type: ignore[arg-type]
    made.audits.append((99, 0, None, 0, 0, True))  # type: ignore[arg-type]  # refused at the end
    with pytest.raises(asyncpg.NotNullViolationError):
        await publisher.commit(made, {})
    assert await table_contents(production, *TAPE, "merge_state", "arbiter_state") == before
    assert publisher.standing.windows == 1
    await publisher.close()


async def test_an_answer_that_was_lost_is_not_taken_for_a_failure(production: str) -> None:
    """The commit went through, its answer did not: the publication must not come twice."""
    publisher = Publisher(production, SETTINGS)
    await publisher.open()
    made = publication_of(outputs()[:1], {}, {})  # type: ignore[arg-type]
    real = publisher._make_partitions
    tried = 0

    async def lose_the_answer(conn: object, what: object) -> None:
        nonlocal tried
        tried += 1
        await real(conn, what)  # type: ignore[arg-type]
        if tried == 1:  # another process of ours commits the very same, then the line is cut
            twin = Publisher(production, SETTINGS)
            twin.standing = publisher.standing
            twin._conn = await asyncpg.connect(production)
            await Publisher.commit(twin, made, {0: 1})
            publisher.standing.windows, publisher.standing.counts = 0, {}
            await twin.close()
            raise ConnectionResetError("the line is cut")

    publisher._make_partitions = lose_the_answer  # type: ignore[method-assign]
    await publisher.commit(made, {0: 1})
    assert tried == 1
    assert publisher.standing.windows == 1
    conn = await asyncpg.connect(production)
    assert await conn.fetchval("SELECT count(*) FROM orderbook_delta") == 6
    await conn.close()
    await publisher.close()


async def test_whoever_finds_another_position_goes_no_further(production: str) -> None:
    """The fence: a merger that lost its lock unnoticed cannot write over its successor."""
    old, new = Publisher(production, SETTINGS), Publisher(production, SETTINGS)
    await old.open()
    await old.close()  # loses the lock, keeps its memory
    await new.open()
    await publish(new, outputs()[:1])
    await new.close()
    with pytest.raises(StorageError, match="does not stand at window 0"):
        await publish(old, outputs()[:1])
    await old.close()


async def test_a_second_merger_waits_until_the_first_is_gone(production: str) -> None:
    """Two deduplicators of one tape: the second stands by and says so."""
    said: list[str] = []
    first, second = Publisher(production, SETTINGS), Publisher(production, SETTINGS, said.append)
    await first.open()
    waiting = asyncio.create_task(second.open())
    while not said:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert "another deduplicator" in said[0]
    assert not waiting.done()
    await first.close()
    await waiting
    assert said[-1] == ""
    await second.close()


async def test_settings_that_decide_the_result_cannot_change(production: str) -> None:
    """Half a tape in windows of 5 s and half in windows of 1 s would be no tape."""
    publisher = Publisher(production, SETTINGS)
    await publisher.open()
    await publisher.close()
    other = Publisher(production, {**SETTINGS, "window_us": 1})
    with pytest.raises(ConfigError, match="window_us"):
        await other.open()
    await other.close()


async def test_a_server_that_dies_between_publications_is_waited_for(
    production: str, postgres_server: object
) -> None:
    """A broken connection is made anew, with the lock."""
    publisher = Publisher(production, SETTINGS)
    await publisher.open()
    await publish(publisher, outputs()[:1])
    conn = await asyncpg.connect(production)
    await conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await publish(publisher, outputs()[1:])
    assert await conn.fetchval("SELECT windows FROM merge_state") == 3
    counts = json.loads(await conn.fetchval("SELECT counts FROM merge_state"))
    assert counts["rows_in"] == 18
    await conn.close()
    await publisher.close()


async def test_publications_planned_ahead_are_those_made_one_after_the_other(
    production: str,
) -> None:
    """Ids of markets and the reach of runs go on from what is planned, not from what is there."""
    publisher = Publisher(production, SETTINGS)
    await publisher.open()
    planned = [publisher.plan([output]) for output in outputs()]  # type: ignore[list-item]
    assert publisher.standing.ids == {}, "nothing is in production yet"
    made = []
    for output, ahead in zip(outputs(), planned, strict=True):
        standing = publisher.standing
        made.append(publication_of([output], standing.ids, standing.reach))  # type: ignore[list-item]
        await publisher.commit(ahead, {0: 4711})
    assert [m.new_markets for m in made] == [p.new_markets for p in planned]
    assert [m.deltas.tobytes() for m in made] == [p.deltas.tobytes() for p in planned]
    assert publisher.standing.ids == {"A": 1, "B": 2, "C": 3}
    await publisher.close()
    await publisher.open()  # after a failure: from what production holds
    assert publisher.plan([window_output(3, ["D"])]).new_markets[0][0] == 4
    await publisher.close()
