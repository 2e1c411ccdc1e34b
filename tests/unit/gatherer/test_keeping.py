"""When a segment may go: past its size or age, and past every cursor."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import asyncpg

from gatherer.keeping import Keeper, SegmentMarks, readers_of
from gatherer.sink import SinkStatus
from runtime.clock import Clock
from runtime.config import GathererSettings
from runtime.embedded import EmbeddedPostgres, free_port
from runtime.spool_files import Position, look, segment_name
from tests.databases import fresh_database
from tests.unit.runtime.test_spool_files import body_of, write


def test_marks_tell_which_segment_a_batch_has_passed() -> None:
    marks = SegmentMarks()
    assert marks.passed(10**9) == 0
    marks.note(3, 100)
    marks.note(3, 140)  # the same segment: its first mark counts
    marks.note(5, 200)
    assert marks.passed(99) == 0
    assert marks.passed(100) == 3
    assert marks.passed(199) == 3
    assert marks.passed(200) == 5


def keeper(folder: Path, dsn: str, **more: Any) -> tuple[Keeper, SinkStatus]:
    values: dict[str, Any] = {
        "spool_dir": folder,
        "timescale_dsn": dsn,
        "spool_retain_bytes": 0,
        "spool_retain_hours": 1,
        "spool_await_reader": True,
    }
    status = SinkStatus()
    status.cursor, status.batch_id = Position(4, 0), 40
    settings = cast(GathererSettings, SimpleNamespace(**values | more))
    return Keeper(settings, status, Clock()), status


def spool(folder: Path) -> None:
    for number in range(1, 6):
        write(folder, number, body_of(number, sealed=True))


async def test_nothing_goes_before_the_deduplicator_has_stored_it(
    tmp_path: Path, cluster: EmbeddedPostgres
) -> None:
    spool(tmp_path)
    dsn = await fresh_database(cluster, "gatherer_hot")
    keeping, status = keeper(tmp_path, dsn)
    await keeping.once()
    assert keeping.removed == 0
    assert "no deduplicator has told" in keeping.reason
    conn = await asyncpg.connect(dsn)
    try:
        await conn.execute("SELECT tell_reader_cursor(39)")
        await keeping.once()
        assert (keeping.removed, keeping.reason) == (0, "")
        await conn.execute("SELECT tell_reader_cursor(40)")
        await keeping.once()
        assert keeping.removed == 3
        assert sorted(look(tmp_path).segments) == [4, 5]
        status.cursor, status.batch_id = Position(5, 0), 50
        await keeping.once()
        assert keeping.removed == 3, "batch 50 is not stored yet"
    finally:
        await conn.close()


async def test_where_nobody_reads_the_sink_alone_decides(tmp_path: Path) -> None:
    spool(tmp_path)
    dsn = f"postgresql://postgres@127.0.0.1:{free_port()}/none"
    keeping, _ = keeper(tmp_path, dsn, spool_await_reader=False)
    await keeping.once()
    assert sorted(look(tmp_path).segments) == [4, 5]


async def test_a_database_that_is_away_holds_everything(tmp_path: Path) -> None:
    spool(tmp_path)
    keeping, _ = keeper(tmp_path, f"postgresql://postgres@127.0.0.1:{free_port()}/none")
    await keeping.once()
    assert keeping.removed == 0
    assert keeping.reason
    assert sorted(look(tmp_path).segments) == [1, 2, 3, 4, 5]


async def test_segments_go_by_age_although_there_is_room(tmp_path: Path) -> None:
    spool(tmp_path)
    for number in (1, 2):
        name = tmp_path / (segment_name(number))
        os.utime(name, (1_000_000, 1_000_000))
    keeping, status = keeper(
        tmp_path, "postgresql://none", spool_await_reader=False, spool_retain_bytes=10**12
    )
    status.cursor = Position(2, 0)
    await keeping.once()
    # The first was compressed just now, so it is young again; that is late, never early.
    assert sorted(look(tmp_path).segments) == [1, 2, 3, 4, 5]
    os.utime(look(tmp_path).segments[1], (1_000_000, 1_000_000))
    await keeping.once()
    assert sorted(look(tmp_path).segments) == [2, 3, 4, 5]


async def test_the_lowest_reader_counts(cluster: EmbeddedPostgres) -> None:
    dsn = await fresh_database(cluster, "gatherer_hot")
    conn = await asyncpg.connect(dsn)
    try:
        await conn.execute("INSERT INTO reader_cursor VALUES ('one', 7), ('two', 5)")
        assert (await readers_of(dsn)).batch_id == 5
        await conn.execute("SELECT tell_reader_cursor(9); SELECT tell_reader_cursor(4)")
        assert (await readers_of(dsn)).batch_id == 4, "a new tape may begin further back"
    finally:
        await conn.close()
