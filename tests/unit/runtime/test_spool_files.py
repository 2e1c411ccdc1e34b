"""runtime.spool_files: recovery to the valid prefix, compression, retention."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import zstandard

from marketdata import segment
from marketdata.errors import StorageError
from runtime import spool_files
from runtime.spool_files import (
    START,
    Position,
    compress,
    compress_sealed,
    load,
    look,
    numbers_in_use,
    read_meta,
    recover,
    retain,
    segment_name,
    torn_count,
)
from runtime.spool_read import SpoolReader


def body_of(number: int, count: int = 5, *, sealed: bool = False) -> bytes:
    parts = [segment.encode_header(number)]
    parts += [segment.encode_record(2, b"%d-%d" % (number, i) + b"." * i) for i in range(count)]
    if sealed:
        parts.append(segment.encode_record(segment.KIND_SEAL, segment.encode_seal(count)))
    return b"".join(parts)


def write(folder: Path, number: int, body: bytes) -> Path:
    path = folder / segment_name(number)
    path.write_bytes(body)
    return path


def test_every_truncation_recovers_the_whole_records_before_it(tmp_path: Path) -> None:
    """A crash may end the file at any byte; the rest is kept aside, bit by bit."""
    whole = body_of(1)
    ends = [0, *(record.end_offset for record in segment.scan(whole))]
    for cut in range(len(whole)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        path = write(folder, 1, whole[:cut])
        found = recover(folder)
        expected = max(end for end in ends if end <= cut)
        if expected == 0:  # not one record: what is appended needs its STATE before it (seed 213)
            assert (found.end, path.exists()) == (START, False)
        else:
            assert found.end == Position(1, expected)
            assert path.read_bytes() == whole[:expected]
        left = whole[expected:cut]
        kept = [p.read_bytes() for p in (folder / "torn").glob("*")] if left else []
        assert b"".join(kept) == left
        assert len(found.torn) == bool(left)


def test_every_flipped_byte_recovers_the_records_before_it(tmp_path: Path) -> None:
    """Damage in the last segment: what stands before it is used, what follows is kept aside."""
    whole = body_of(1)
    bounds = [0, *(record.end_offset for record in segment.scan(whole))]
    for place in range(segment.HEADER_BYTES, len(whole)):
        folder = tmp_path / str(place)
        folder.mkdir()
        damaged = bytearray(whole)
        damaged[place] ^= 0x40
        write(folder, 1, bytes(damaged))
        end = max(bound for bound in bounds if bound <= place)
        assert recover(folder).end == (Position(1, end) if end else START)
        torn = [p.read_bytes() for p in (folder / "torn").iterdir()]
        assert torn == [bytes(damaged[end:])]


def test_a_damaged_header_does_not_spoil_the_records_behind_it(tmp_path: Path) -> None:
    damaged = bytearray(body_of(1))
    damaged[13] ^= 1  # its checksum
    write(tmp_path, 1, bytes(damaged))
    found = recover(tmp_path)
    assert (found.end, found.records, found.torn) == (Position(1, len(damaged)), 5, ())
    reader = SpoolReader(tmp_path, START)
    assert len(reader.read()) == 5
    assert reader.damage_count == 1
    reader.close()


def test_foreign_files_are_named_and_left_alone(tmp_path: Path) -> None:
    """Somebody put his notes here, or another program's file bears a segment's name."""
    write(tmp_path, 1, body_of(1))
    (tmp_path / "00000007.seg").write_bytes(b"not a segment of ours")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder.seg").mkdir()
    found = recover(tmp_path)
    assert found.foreign == ("00000007.seg", "folder.seg", "notes.txt")
    assert found.end.segment == 1
    assert numbers_in_use(tmp_path) == {1, 7}  # the next segment will be number 8
    assert (tmp_path / "00000007.seg").read_bytes() == b"not a segment of ours"


def test_an_empty_directory_is_a_fresh_spool(tmp_path: Path) -> None:
    found = recover(tmp_path)
    assert (found.end, found.sealed, found.torn, found.foreign) == (START, True, (), ())
    assert read_meta(tmp_path) is None
    assert torn_count(tmp_path) == 0


def test_a_sealed_last_segment_is_not_written_into(tmp_path: Path) -> None:
    """The crash came between the seal and the next segment's first byte."""
    write(tmp_path, 1, body_of(1, sealed=True))
    assert recover(tmp_path).sealed
    compress(tmp_path / segment_name(1))
    found = recover(tmp_path)
    assert (found.sealed, found.end) == (True, Position(1, len(body_of(1, sealed=True))))


def test_a_second_torn_tail_at_the_same_place_does_not_replace_the_first(tmp_path: Path) -> None:
    for tail in (b"first", b"second"):
        write(tmp_path, 1, body_of(1) + tail)
        recover(tmp_path)
    assert sorted(p.read_bytes() for p in (tmp_path / "torn").iterdir()) == [b"first", b"second"]
    assert torn_count(tmp_path) == 2


def test_compression_keeps_every_byte_and_leaves_one_file(tmp_path: Path) -> None:
    body = body_of(1, 500, sealed=True)
    target = compress(write(tmp_path, 1, body))
    assert load(target) == body
    assert [p.name for p in tmp_path.iterdir()] == ["00000001.seg.zst"]
    assert target.stat().st_size < len(body)


def test_compression_that_reads_back_wrong_keeps_the_plain_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, 1, body_of(1, sealed=True))
    monkeypatch.setattr(spool_files, "load", lambda _: b"something else")
    with pytest.raises(StorageError, match="the plain segment is kept"):
        compress(path)
    assert [p.name for p in tmp_path.iterdir()] == ["00000001.seg"]


def test_a_crash_during_compression_leaves_a_readable_spool(tmp_path: Path) -> None:
    """At any point there is the plain file, or both; a part file is thrown away."""
    body = body_of(1, sealed=True)
    path = write(tmp_path, 1, body)
    write(tmp_path, 2, body_of(2))
    (tmp_path / "00000001.seg.zst.part").write_bytes(b"half of it")
    assert recover(tmp_path).foreign == ()
    assert not (tmp_path / "00000001.seg.zst.part").exists()
    compress(path)
    path.write_bytes(body)  # both are there, as before the unlink
    assert look(tmp_path).segments[1] == path


def test_only_segments_before_the_slowest_consumer_are_compressed(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write(tmp_path, number, body_of(number, sealed=number < 3))
    assert compress_sealed(tmp_path, Position(2, 100)) == [tmp_path / "00000001.seg.zst"]
    assert compress_sealed(tmp_path, Position(3, 0)) == [tmp_path / "00000002.seg.zst"]
    assert compress_sealed(tmp_path, Position(3, 0)) == []


def test_retention_removes_the_oldest_and_never_what_is_still_needed(tmp_path: Path) -> None:
    for number in range(1, 6):
        write(tmp_path, number, body_of(number, sealed=True))
    size = (tmp_path / segment_name(1)).stat().st_size
    assert retain(tmp_path, Position(4, 0), retain_bytes=2 * size) == ["00000001.seg"]
    assert retain(tmp_path, Position(4, 0), retain_bytes=0) == ["00000002.seg", "00000003.seg"]
    assert retain(tmp_path, START, retain_bytes=0) == []
    assert sorted(look(tmp_path).segments) == [4, 5]


@pytest.mark.parametrize(
    "body", [b"", b"zstd?", zstandard.compress(b"x"), zstandard.compress(bytes(100))[:-3]]
)
def test_a_damaged_compressed_segment_is_named_in_an_error(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "00000001.seg.zst"
    path.write_bytes(body)
    with pytest.raises(StorageError, match=r"00000001\.seg\.zst"):
        load(path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 2}', '{"format": 1, "spool_uid": 5}'])
def test_a_damaged_or_newer_identity_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "SPOOL.json").write_text(text)
    with pytest.raises(StorageError, match=r"SPOOL\.json"):
        read_meta(tmp_path)


def test_identity_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash before the rename leaves no SPOOL.json, and its part file is no foreign file."""

    def crash(*_: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="power cut"):
        spool_files.write_durably(tmp_path / "SPOOL.json", b"{}")
    assert read_meta(tmp_path) is None
    assert look(tmp_path).foreign == []


def test_the_size_of_a_sealed_segment_is_that_of_its_plain_bytes(tmp_path: Path) -> None:
    """However it lies there; one that was removed counts nothing."""
    body = body_of(1, 200, sealed=True)
    path = write(tmp_path, 1, body)
    assert spool_files.sealed_size(tmp_path, 1) == len(body)
    compress(path)
    assert not path.exists()
    assert spool_files.sealed_size(tmp_path, 1) == len(body)
    assert spool_files.sealed_size(tmp_path, 2) == 0
