"""A small spool as a gatherer writes it: segments, two connections, frames of every kind."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gatherer.intake import Decoding, LiveIntake, recover
from gatherer.sink import Sink, SinkSettings
from runtime.clock import Clock
from runtime.spool import SpoolWriter
from tests.frame_streams import FrameStream

SEGMENT_BYTES = 64 * 1024
FRAMES = 1_200


async def write_spool(folder: Path, dsn: str = "", *, odd: int = 40, clean: bool = True) -> None:
    """Two connections one after the other; with `dsn` a sink commits the rows as they come.

    `odd`: one frame in so many is out of the ordinary (a gap, a fault, another form).
    """
    holder: list[Decoding] = []
    spool = SpoolWriter.open(
        folder,
        state=lambda: holder[0].state(),  # noqa: PLW0108 - it is made below
        created_ns=1,
        id_base=10,
        segment_bytes=SEGMENT_BYTES,
        group_commit_ms=1,
    )
    holder.append(recover(spool))
    live, clock = LiveIntake(spool, holder[0], wake_rows=300), Clock(0)
    writing = asyncio.create_task(spool.run())
    sink = Sink(SinkSettings(dsn, flush_ms=5, flush_rows=300), spool, live, clock) if dsn else None
    committing = asyncio.create_task(sink.run()) if sink else None
    for seed in (1, 2):
        conn_id = live.next_conn_id()
        live.control(
            {"k": "connect", "conn": conn_id, "conn_uid": f"u{seed}", "handshake": "h",
             "local": "l", "url": "w"},
            clock.wall_ns(),
        )  # fmt: skip
        stream = FrameStream(seed, odd)
        live.absorb(conn_id, stream.opening(), clock.wall_ns())
        frames = stream.frames(FRAMES)
        for at in range(0, FRAMES, 60):
            live.absorb(conn_id, frames[at : at + 60], clock.wall_ns())
            await asyncio.sleep(0)
        live.control({"k": "close", "conn": conn_id, "reason": "reset"}, clock.wall_ns())
    if clean:
        live.end()
    await spool.sync()
    if sink and committing:
        sink.drain()
        await committing
    writing.cancel()
    await asyncio.wait([writing])
    await spool.close(clean=False)
