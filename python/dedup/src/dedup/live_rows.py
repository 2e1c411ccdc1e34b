"""The statements of the early path: live rows are written, fenced, said to be on the tape, removed.

What holds: a live row is in production only under the newest generation of its shard. Rows are
never updated; those on the tape are removed many at a time, after the tape's own transaction said
so.

Does not do: deciding what is given out (live), when to write (live_path).
"""

from __future__ import annotations

from dedup.live import LIVE_COPY, Settled
from dedup.tape_rows import Rows
from marketdata.errors import StorageError
from runtime.pgcopy import pack_rows
from runtime.postgres import Connection, copy_in


class FencedError(StorageError):
    """Another deduplicator has begun to write live rows."""


async def take_over(conn: Connection, shard: int) -> int:
    """Begin a new generation of live rows, without those of the former ones; its number."""
    async with conn.transaction():
        generation = await conn.fetchval(
            "INSERT INTO live_generation AS g (shard, generation) VALUES ($1, 1)"
            " ON CONFLICT (shard) DO UPDATE SET generation = g.generation + 1"
            " RETURNING generation",
            shard,
        )
        await conn.execute("DELETE FROM live_delta WHERE shard = $1", shard)
    return int(generation)


async def write(conn: Connection, rows: Rows, shard: int, generation: int) -> None:
    """Write rows of this generation.

    Raises:
        FencedError: another one has begun.
    """
    body = pack_rows(LIVE_COPY, rows, shard=shard)
    async with conn.transaction():
        found = await conn.fetchval(
            "SELECT generation FROM live_generation WHERE shard = $1 FOR SHARE", shard
        )
        if found != generation:
            raise FencedError(f"generation {found} of live rows has begun, this was {generation}")
        await copy_in(conn, LIVE_COPY, body)


async def remove(conn: Connection, shard: int) -> int:
    """Remove the rows that are on the tape; how many."""
    status = await conn.execute(
        "DELETE FROM live_delta AS l USING live_done AS d"
        " WHERE l.market_id = d.market_id AND l.live_id <= d.live_id AND l.shard = $1",
        shard,
    )
    return int(status.split()[-1])


async def write_settled(conn: Connection, settled: Settled) -> None:
    """In the transaction of the tape: up to which live row each market's are on it."""
    if settled.upto:
        await conn.execute(
            "INSERT INTO live_done (market_id, live_id)"
            " SELECT * FROM unnest($1::int[], $2::bigint[])"
            " ON CONFLICT (market_id) DO UPDATE SET live_id = excluded.live_id",
            list(settled.upto),
            list(settled.upto.values()),
        )
