"""Who waits for whom: against a real production, without merging anything."""

from __future__ import annotations

import asyncio

import pytest

from dedup.export import LAG_US
from dedup.publication import HOUR_US
from dedup.publish import EXPORT_LOCK
from dedup.shards import Level, StopAsked, Together
from marketdata.share import Share
from runtime.postgres import Connection, connect

MOMENT = 500_000 * HOUR_US + LAG_US
PATIENCE_S = 30.0


class Clock:
    """Moves when it is told."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def together(number: int, clock: Clock | None = None) -> tuple[Together, list[str]]:
    said: list[str] = []
    made = Together(Share(number, 2), PATIENCE_S, asyncio.Event(), said.append, clock or Clock())
    return made, said


async def stand(conn: Connection, shard: int, closed_to_us: int, *, finished: bool = False) -> None:
    await conn.execute(
        "INSERT INTO merge_state (windows, closed_to_us, received_ns_max, settings, counts, shard,"
        " finished) VALUES (1, $2, $1 * 10, '{}', '{}', $1, $3) ON CONFLICT (shard) DO UPDATE"
        " SET closed_to_us = $2, finished = $3",
        shard, closed_to_us, finished,
    )  # fmt: skip


async def test_the_first_waits_until_the_other_is_at_the_moment(production: str) -> None:
    conn = await connect(production)
    first, said = together(1)
    await stand(conn, 1, MOMENT + 5)
    waiting = asyncio.create_task(first.wait_for_all(conn, MOMENT + 5, final=False))
    while not said:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert said[-1] == "merger 2 of 2 is not there yet"
    other = await connect(production)
    await stand(other, 2, MOMENT - 1)
    await asyncio.sleep(0.3)
    assert not waiting.done(), "a merger before the moment was taken for one that is there"
    await stand(other, 2, MOMENT + 5)
    assert await waiting == Level(MOMENT + 5, 20)
    assert said[-1] == ""
    await conn.close()
    await other.close()


async def test_who_does_not_move_is_not_waited_for_twice(production: str) -> None:
    conn, clock = await connect(production), Clock()
    first, said = together(1, clock)
    await stand(conn, 1, MOMENT)
    await stand(conn, 2, MOMENT - 1)
    waiting = asyncio.create_task(first.wait_for_all(conn, MOMENT, final=False))
    while not said:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    clock.now_s = PATIENCE_S
    assert await waiting is None
    said.clear()
    assert await first.wait_for_all(conn, MOMENT, final=False) is None
    assert said == [""], "it was waited for again"
    follower, _ = together(2)
    await follower.wait_for_export(conn, MOMENT)  # it was let on
    await stand(conn, 2, MOMENT)
    assert await first.wait_for_all(conn, MOMENT, final=False) == Level(MOMENT, 20)
    await conn.close()


async def test_the_others_wait_for_the_export(production: str) -> None:
    conn = await connect(production)
    second, _ = together(2)
    await second.wait_for_export(conn, 0)
    waiting = asyncio.create_task(second.wait_for_export(conn, MOMENT))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    other = await connect(production)
    await other.execute(
        "INSERT INTO lake_version (version, sha256, exported_to_us) VALUES (1, '', $1)", MOMENT
    )
    await waiting
    stopping = asyncio.create_task(second.wait_for_export(conn, MOMENT + HOUR_US))
    await asyncio.sleep(0.05)
    second._stopping.set()
    with pytest.raises(StopAsked):
        await stopping
    await conn.close()
    await other.close()


async def test_at_the_end_everybody_has_to_have_finished(production: str) -> None:
    conn, clock = await connect(production), Clock()
    (first, _), (second, _) = together(1, clock), together(2)
    await stand(conn, 1, MOMENT)
    await stand(conn, 2, MOMENT)
    waiting = asyncio.create_task(first.wait_for_all(conn, MOMENT, final=True))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    other = await connect(production)
    await second.finish(other)
    assert second.done
    assert await waiting is not None
    assert first.done
    await second.begin(other)  # more came
    assert not second.done
    assert not (await first.look(conn))[1].finished
    await conn.close()
    await other.close()


async def test_nobody_publishes_during_an_export(production: str) -> None:
    conn, other = await connect(production), await connect(production)
    first, _ = together(1)
    taken = "SELECT pg_try_advisory_xact_lock_shared($1)"
    async with first.by_itself(conn):
        assert not await other.fetchval(taken, EXPORT_LOCK)
    assert await other.fetchval(taken, EXPORT_LOCK)
    await conn.close()
    await other.close()


async def test_a_gatherer_may_forget_what_all_have_stored(production: str) -> None:
    conn = await connect(production)
    first, _ = together(1)
    cursor = (
        "INSERT INTO gatherer_cursor (gatherer, system_identifier, reread_from_batch, seen_batch,"
        " shard) VALUES ($1, 1, $2, 9, $3)"
    )
    await conn.executemany(cursor, [(0, 8, 1), (0, 5, 2), (1, 7, 1)])
    assert await first.stored(conn) == {0: 4}
    await conn.close()
