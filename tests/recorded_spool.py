"""A spool written from a script, as a gatherer writes one: records, states, segments, seals."""

from __future__ import annotations

from pathlib import Path

from gatherer.intake import Decoding, LiveIntake, recover
from runtime.spool import Position, SpoolWriter
from runtime.spool_files import compress_sealed, look
from runtime.spool_index import index_compressed
from tests.recording_worlds import START_US, Script

STEP_NS = 1_000_000


async def record(
    folder: Path, script: Script, *, segment_bytes: int = 4_096, first: int = 0, clean: bool = True
) -> None:
    """Writes the script, one entry a millisecond after `first` of them; frames of one connection
    in a row within 4 ms come together, as from one wake-up."""
    holder: list[Decoding] = []
    spool = SpoolWriter.open(
        folder,
        state=lambda: holder[0].state(),  # noqa: PLW0108 - it is made below
        created_ns=1,
        id_base=0,
        segment_bytes=segment_bytes,
        group_commit_ms=1,
    )
    holder.append(recover(spool))
    live = LiveIntake(spool, holder[0])
    for n, (conn, entry) in enumerate(script, first):
        at_ns = START_US * 1_000 + n * STEP_NS
        if isinstance(entry, dict):
            live.control({**entry, "conn": conn}, at_ns)
        else:
            live.absorb(conn, [entry], at_ns)
    if clean:
        live.end()
    await spool.sync()
    await spool.close(clean=False)


def pack(folder: Path, *, index: bool = True) -> None:
    """Compresses every segment but the last, as the gatherer does in time."""
    last = Position(max(look(folder).segments), 0)
    compress_sealed(folder, last, 1_000)
    if index:
        index_compressed(folder, last, 1_000)
