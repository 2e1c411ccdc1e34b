"""A gatherer's hot database made again from its spool.

What holds: the rows are those that the gatherer committed (they are a function of the records);
only how they are dealt into batches may differ. A rebuild that was broken off goes on where its
cursor stands.
Does not do: anything while a gatherer writes the spool (it holds the lock), rows of segments that
retention has removed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from gatherer.intake import Decoding, LiveIntake, recover
from gatherer.sink import Sink, SinkSettings
from gatherer.spool_check import meta_of
from marketdata.errors import StorageError
from runtime.clock import Clock
from runtime.postgres import connect, migrate, plainly
from runtime.spool import Position, SpoolWriter
from runtime.spool_files import look

CONNECT_TRIES = 5


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What was done. `first_segment`: where the spool begins; older rows are not in it."""

    rows: int
    batches: int
    first_segment: int
    end: Position


async def rebuild(directory: Path, dsn: str, clock: Clock) -> Rebuilt:
    """Commit everything that the spool holds.

    Raises:
        StorageError: no spool, a gatherer is writing it, or the database holds rows of another one.
    """
    meta = meta_of(directory)
    segments = look(directory).segments
    if not segments:
        raise StorageError(f"{directory} has no segments: there is nothing to rebuild from")
    first = min(segments)
    await _prepare(dsn, str(meta.spool_uid), first)
    holder: list[Decoding] = []
    spool = SpoolWriter.open(
        directory,
        state=lambda: holder[0].state(),  # noqa: PLW0108 - it is made below
        created_ns=meta.created_ns,
        id_base=meta.id_base,
    )
    try:
        holder.append(await asyncio.to_thread(recover, spool))
        intake = LiveIntake(spool, holder[0])
        sink = Sink(SinkSettings(dsn), spool, intake, clock)
        sink.drain()
        await sink.run()
        end = spool.end
    finally:
        await spool.close(clean=False)
    return Rebuilt(sink.status.rows, sink.status.batches, first, end)


async def _prepare(dsn: str, spool_uid: str, first: int) -> None:
    """The tables, and the cursor at the first segment there is."""
    connection = await connect(dsn, tries_max=CONNECT_TRIES)
    try:
        await migrate(connection, "gatherer_hot")
        known = await connection.fetch("SELECT spool_uid::text FROM spool_cursor")
        if {row["spool_uid"] for row in known} - {spool_uid}:
            raise StorageError(
                f"{plainly(dsn)} holds rows of another spool", hint="rebuild into a new database"
            )
        if not known and await connection.fetchval("SELECT count(*) FROM ingest_batch"):
            raise StorageError(f"{plainly(dsn)} holds rows already", hint="use a new database")
        if not known and first > 0:
            await connection.execute(
                "INSERT INTO spool_cursor (spool_uid, segment, offset_bytes, batch_id)"
                " VALUES ($1::uuid, $2, 0, 0)",
                spool_uid,
                first,
            )
    except asyncpg.PostgresError as error:
        raise StorageError(f"{plainly(dsn)} refuses: {error}") from error
    finally:
        connection.terminate()
