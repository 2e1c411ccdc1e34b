"""runtime.spool_read: every record once, in order, from any position."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from marketdata import segment
from marketdata.errors import StorageError
from runtime.spool import START, Position, SpoolReader, SpoolRecord, SpoolWriter, start_of
from runtime.spool_files import compress, look


@pytest.fixture
async def directory(tmp_path: Path) -> Path:
    """A closed spool of several segments; its CONTROL records count from 0."""
    writer = SpoolWriter.open(
        tmp_path, state=lambda: b"s", created_ns=1, id_base=0, segment_bytes=1000
    )
    for number in range(120):
        writer.append(segment.KIND_CONTROL, b"%d" % number + b"." * (number % 50))
    await writer.close()
    assert len(look(tmp_path).segments) > 4
    return tmp_path


def drain(reader: SpoolReader, bytes_max: int = 100) -> list[SpoolRecord]:
    found: list[SpoolRecord] = []
    while some := reader.read(bytes_max):
        found += some
    reader.close()
    return found


def numbers(found: list[SpoolRecord]) -> list[int]:
    return [
        int(bytes(record.payload).rstrip(b"."))
        for record in found
        if record.kind == segment.KIND_CONTROL
    ]


@pytest.mark.parametrize("bytes_max", [1, 37, 1000, 10**7])
def test_the_amount_read_at_once_does_not_change_what_is_read(
    directory: Path, bytes_max: int
) -> None:
    assert numbers(drain(SpoolReader(directory, START), bytes_max)) == list(range(120))


def test_reading_from_the_end_of_any_record_gives_exactly_the_rest(directory: Path) -> None:
    """A cursor in the database is the end of the last consumed record."""
    everything = drain(SpoolReader(directory, START))
    for index, record in enumerate(everything):
        rest = drain(SpoolReader(directory, record.end))
        assert [r.at for r in rest] == [r.at for r in everything[index + 1 :]]


def test_compressed_segments_read_like_plain_ones_at_the_same_positions(directory: Path) -> None:
    before = drain(SpoolReader(directory, START))
    before_payloads = [bytes(record.payload) for record in before]
    paths = sorted(look(directory).segments.values())
    for path in paths[:-1]:
        compress(path)
    after = drain(SpoolReader(directory, START))
    assert [(r.at, r.end, r.kind) for r in after] == [(r.at, r.end, r.kind) for r in before]
    assert [bytes(record.payload) for record in after] == before_payloads
    middle = before[len(before) // 2]
    assert drain(SpoolReader(directory, middle.end))[0].at == before[len(before) // 2 + 1].at


def test_a_segment_compressed_while_it_is_read_goes_on(directory: Path) -> None:
    reader = SpoolReader(directory, START)
    first = reader.read(100)
    for path in sorted(look(directory).segments.values())[:-1]:
        compress(path)
    assert numbers(first + drain(reader)) == list(range(120))


def test_removed_segments_are_passed_over(directory: Path) -> None:
    """Retention removed what every consumer had passed; a new consumer begins behind it."""
    paths = sorted(look(directory).segments.values())
    paths[0].unlink()
    found = drain(SpoolReader(directory, START))
    assert found[0].at == Position(2, segment.HEADER_BYTES)
    assert found[0].kind == segment.KIND_STATE
    assert start_of(found[3].at) == Position(2, 0)


def test_damage_in_a_middle_segment_is_named_and_the_rest_is_read(directory: Path) -> None:
    """One bad sector must not hide the hours behind it, and must not pass unseen."""
    path = sorted(look(directory).segments.values())[1]
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    reader = SpoolReader(directory, START)
    found = drain(reader)
    assert reader.damage_count == 1
    assert reader.damage[0].startswith("00000002.seg: unreadable from offset")
    seen = numbers(found)
    assert seen == sorted(set(seen))
    assert 0 < 120 - len(seen) < 40
    assert {record.at.segment for record in found} == set(look(directory).segments)


def test_a_segment_cut_at_a_record_border_is_noticed_by_its_successor(directory: Path) -> None:
    """The checksums of what is left are right; only the missing seal tells, so reading goes on."""
    path = sorted(look(directory).segments.values())[1]
    body = path.read_bytes()
    ends = [record.end_offset for record in segment.scan(body)]
    path.write_bytes(body[: ends[-3]])
    reader = SpoolReader(directory, START)
    drain(reader)
    assert reader.damage == ["00000002.seg: ends without a seal"]


def test_a_seal_that_counts_otherwise_is_noticed(tmp_path: Path) -> None:
    """Negative control of the second count: a record was taken out and the rest closed up."""
    parts = [segment.encode_record(2, b"%d" % n) for n in range(5)]
    seal = segment.encode_record(segment.KIND_SEAL, segment.encode_seal(5))
    path = tmp_path / "00000001.seg"
    path.write_bytes(b"".join([segment.encode_header(1), *parts, seal]))
    whole = SpoolReader(tmp_path, START)
    drain(whole)
    assert whole.damage == []
    path.write_bytes(b"".join([segment.encode_header(1), *parts[:2], *parts[3:], seal]))
    reader = SpoolReader(tmp_path, START)
    drain(reader)
    assert reader.damage == ["00000001.seg: 4 records before its seal, which says otherwise"]


def test_a_segment_under_a_wrong_name_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "00000002.seg").write_bytes(
        segment.encode_header(1) + segment.encode_record(2, b"0")
    )
    reader = SpoolReader(tmp_path, START)
    assert len(drain(reader)) == 1
    assert reader.damage == ["00000002.seg: its header says segment 1"]


def test_a_missing_middle_segment_is_noticed(directory: Path) -> None:
    """Somebody deleted a file: what was in it is lost, and this must be visible."""
    first = drain(SpoolReader(directory, START))
    sorted(look(directory).segments.values())[1].unlink()
    reader = SpoolReader(directory, START)
    assert {r.at for r in drain(reader)} == {r.at for r in first if r.at.segment != 2}
    assert reader.damage == ["00000001.seg: the next segment there is has number 3"]
    reader = SpoolReader(directory, Position(2, 40))
    assert drain(reader)[0].at == Position(3, segment.HEADER_BYTES)
    assert reader.damage_count == 1


def test_a_damaged_compressed_segment_raises(directory: Path) -> None:
    path = min(look(directory).segments.values())
    target = compress(path)
    body = bytearray(target.read_bytes())
    body[-6] ^= 1
    target.write_bytes(body)
    with pytest.raises(StorageError, match=r"00000001\.seg\.zst"):
        SpoolReader(directory, START).read()


def test_a_headless_last_segment_waits_and_a_middle_one_is_passed(tmp_path: Path) -> None:
    (tmp_path / "00000001.seg").write_bytes(segment.encode_header(1)[:7])
    reader = SpoolReader(tmp_path, START)
    assert reader.read() == []
    (tmp_path / "00000002.seg").write_bytes(
        segment.encode_header(2) + segment.encode_record(2, b"0")
    )
    assert [record.at.segment for record in drain(reader)] == [2]
    assert reader.damage == ["00000001.seg: has no whole header"]


async def test_a_live_reader_follows_over_many_segments(tmp_path: Path) -> None:
    """Writer and reader at once, small segments: every record once, in order, none early."""
    writer = SpoolWriter.open(
        tmp_path,
        state=lambda: b"",
        created_ns=1,
        id_base=0,
        segment_bytes=700,
        group_commit_ms=1,
    )
    commits = asyncio.create_task(writer.run())
    seen: list[int] = []

    async def follow() -> None:
        reader = writer.reader(START)
        while len(seen) < 400:
            found = reader.read(300)
            if not found:
                await writer.wait_beyond(reader.position)
            for record in found:
                assert record.end <= writer.durable
            seen.extend(numbers(found))
        reader.close()

    following = asyncio.create_task(follow())
    for number in range(400):
        writer.append(segment.KIND_CONTROL, b"%d" % number)
        if number % 7 == 0:
            await asyncio.sleep(0.0005)
    await following
    assert seen == list(range(400))
    commits.cancel()
    await writer.close()


def test_an_empty_directory_has_no_records(tmp_path: Path) -> None:
    assert SpoolReader(tmp_path, START).read() == []
