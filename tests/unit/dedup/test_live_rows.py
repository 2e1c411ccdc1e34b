"""Live rows in production: fenced, seen once beside the tape, removed in one statement."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from dedup.live import LIVE_ROW, Settled
from dedup.live_rows import FencedError, remove, take_over, write, write_settled
from dedup.tape_rows import Rows
from runtime.postgres import connect

T0 = 1_771_945_200_000_000


def rows(*ids: int, market: int = 1) -> Rows:
    """Live rows with these ids and numbers."""
    made = np.zeros(len(ids), LIVE_ROW)
    made["live_id"], made["market_seq"] = ids, ids
    made["exchange_us"], made["market_id"], made["epoch"] = T0, market, 1
    made["book_hash"] = 2**64 - 1
    return made


async def test_what_is_settled_is_not_seen_and_then_removed(production: str) -> None:
    conn = await connect(production)
    generation = await take_over(conn, 1)
    await write(conn, rows(1, 2, 3), 1, generation)
    await write(conn, rows(4, market=2), 1, generation)
    now = "SELECT market_id, market_seq FROM orderbook_now WHERE live ORDER BY 1, 2"
    assert [tuple(r) for r in await conn.fetch(now)] == [(1, 1), (1, 2), (1, 3), (2, 4)]
    await write_settled(conn, Settled({1: 2}))
    await write_settled(conn, Settled({}))
    assert [tuple(r) for r in await conn.fetch(now)] == [(1, 3), (2, 4)]
    assert await remove(conn, 2) == 0
    assert await remove(conn, 1) == 2
    assert [tuple(r) for r in await conn.fetch(now)] == [(1, 3), (2, 4)]
    assert await conn.fetchval("SELECT book_hash FROM orderbook_now WHERE market_seq = 3") == -1
    await conn.close()


async def test_a_new_generation_empties_its_shard_and_fences_the_one_before(
    production: str,
) -> None:
    first, second = await connect(production), await connect(production)
    old = await take_over(first, 1)
    await write(first, rows(1), 1, old)
    other = await take_over(first, 2)
    await write(first, rows(9, market=2), 2, other)
    new = await take_over(second, 1)
    assert new == old + 1
    with pytest.raises(FencedError):
        await write(first, rows(2), 1, old)
    await write(second, rows(3), 1, new)
    ids = [r[0] for r in await first.fetch("SELECT live_id FROM live_delta ORDER BY 1")]
    assert ids == [3, 9]
    await first.close()
    await second.close()


async def test_a_beginning_waits_for_the_transaction_that_is_on_its_way(production: str) -> None:
    """Rows of the former generation cannot come behind the beginning of the next one."""
    first, second = await connect(production), await connect(production)
    old = await take_over(first, 1)
    transaction = first.transaction()
    await transaction.start()
    await write(first, rows(1), 1, old)
    beginning = asyncio.create_task(take_over(second, 1))
    await asyncio.sleep(0.2)
    assert not beginning.done()
    await transaction.commit()
    await beginning
    assert await second.fetchval("SELECT count(*) FROM live_delta") == 0
    await first.close()
    await second.close()
