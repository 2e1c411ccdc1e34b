"""A spool written from a script, as a gatherer writes one: records, states, segments, seals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from exchange.capture import scan_capture
from gatherer.intake import Decoding, LiveIntake, recover
from runtime.spool import Position, SpoolWriter
from runtime.spool_files import compress_sealed, look
from runtime.spool_index import index_compressed
from tests.recording_worlds import START_US, Script

STEP_NS = 1_000_000
Row = tuple[int, int, bytes | dict[str, Any]]


async def record(
    folder: Path, script: Script, *, segment_bytes: int = 4_096, first: int = 0, clean: bool = True
) -> None:
    """Writes the script, one entry a millisecond, the first after `first` of them."""
    start_ns = START_US * 1_000 + first * STEP_NS
    rows = [(start_ns + n * STEP_NS, *entry) for n, entry in enumerate(script)]
    await record_at(folder, rows, segment_bytes=segment_bytes, clean=clean)


async def record_at(
    folder: Path, rows: Iterable[Row], *, segment_bytes: int = 4_096, clean: bool = True
) -> None:
    """Writes rows of (received_ns, connection, frame or control body)."""
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
    for at_ns, conn, entry in rows:
        if isinstance(entry, dict):
            live.control({**entry, "conn": conn}, at_ns)
        else:
            live.absorb(conn, [entry], at_ns)
    if clean:
        live.end()
    await spool.sync()
    await spool.close(clean=False)


def capture_rows(path: Path) -> Iterator[Row]:
    """A recorded capture as the gatherer that it was would have written it."""
    last = 0
    ns = 0
    for row in scan_capture(path).frames():
        ns = row.received_us * 1_000
        if row.conn != last:
            if last:
                yield ns, last, {"k": "close", "reason": "reset"}
            yield ns, row.conn, {"k": "connect"}
            last = row.conn
        yield ns, row.conn, orjson.dumps(row.frame)
    yield ns, last, {"k": "close", "reason": "closed_by_us", "code": 1000}


def pack(folder: Path, *, index: bool = True) -> None:
    """Compresses every segment but the last, as the gatherer does in time."""
    last = Position(max(look(folder).segments), 0)
    compress_sealed(folder, last, 1_000)
    if index:
        index_compressed(folder, last, 1_000)
