"""A spool that is whole has no fault; each planted one is named with its file."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from gatherer.spool_check import SegmentSummary, listed, meta_of, verified
from marketdata import segment
from marketdata.errors import StorageError
from runtime.spool_files import compress, look
from runtime.spool_index import write_index
from tests.spool_world import FRAMES, write_spool


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    asyncio.run(write_spool(tmp_path / "spool"))
    return tmp_path / "spool"


def faults(spool: Path) -> list[str]:
    return [f"{each.file}: {fault}" for each in verified(spool) for fault in each.faults]


def test_a_whole_spool_has_no_fault_and_tells_what_is_in_it(spool: Path) -> None:
    summaries = list(listed(spool))
    assert len(summaries) > 3
    assert [each.number for each in summaries] == list(range(1, len(summaries) + 1))
    assert sum(each.frames for each in summaries) >= 2 * FRAMES
    assert all(each.sealed for each in summaries[:-1])
    assert all(each.first_ns <= each.last_ns for each in summaries)
    assert faults(spool) == []


def test_compressed_segments_are_the_same(spool: Path) -> None:
    plain = [(each.records, each.frames, each.plain_bytes) for each in listed(spool)]
    for path in list(look(spool).segments.values())[:2]:
        compress(path)
    assert [(each.records, each.frames, each.plain_bytes) for each in listed(spool)] == plain
    assert faults(spool) == []


def test_an_index_of_other_bytes_is_a_fault(spool: Path) -> None:
    bodies = {number: path.read_bytes() for number, path in look(spool).segments.items()}
    write_index(spool, 1, bodies[1])
    assert faults(spool) == []
    assert next(iter(listed(spool))).markets
    write_index(spool, 1, bodies[2])
    assert faults(spool) == ["00000001.seg: 00000001.idx is the index of other bytes"]
    (spool / "00000001.idx").write_bytes(b"x")
    (fault,) = faults(spool)
    assert "00000001.idx is damaged" in fault


def test_the_end_of_a_spool_that_is_being_written_is_no_fault(spool: Path) -> None:
    last = max(look(spool).segments.items())[1]
    last.write_bytes(last.read_bytes()[:-3])
    assert faults(spool) == []


def _flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def _other_header(path: Path) -> None:
    path.write_bytes(segment.encode_header(77) + path.read_bytes()[segment.HEADER_BYTES :])


def _rewritten(path: Path, change: Callable[[list[tuple[int, bytes]]], None]) -> None:
    """The same segment with other records, its checksums right again."""
    body = path.read_bytes()
    records = [(r.kind, bytes(r.payload)) for r in segment.scan(body, segment.HEADER_BYTES)]
    change(records)
    parts = [segment.encode_record(kind, payload) for kind, payload in records]
    path.write_bytes(body[: segment.HEADER_BYTES] + b"".join(parts))


def _lost_record(path: Path) -> None:
    _rewritten(path, lambda records: records.pop(2))


def _lost_record_and_counted(path: Path) -> None:
    """A record is gone and the seal agrees: only the next STATE can tell."""

    def change(records: list[tuple[int, bytes]]) -> None:
        records.pop(2)
        records[-1] = (segment.KIND_SEAL, segment.encode_seal(len(records) - 1))

    _rewritten(path, change)


def _wrong_state(path: Path) -> None:
    def change(records: list[tuple[int, bytes]]) -> None:
        form = json.loads(zlib.decompress(records[0][1]))
        form["last_received_ns"] = int(form["last_received_ns"]) + 1
        records[0] = (segment.KIND_STATE, zlib.compress(json.dumps(form).encode()))

    _rewritten(path, change)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_flip, "unreadable from offset"),
        (_cut, "ends without a seal"),
        (_other_header, "header"),
        (_lost_record, "its seal counts"),
        (_lost_record_and_counted, "00000003.seg: its STATE is not what the segment before it"),
        (_wrong_state, "00000002.seg: its STATE is not what the segment before it leads to"),
        (Path.unlink, "00000003.seg: the segment before it has number 1"),
    ],
)
def test_a_planted_fault_is_named(spool: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(spool / "00000002.seg")
    assert any(says in fault for fault in faults(spool)), faults(spool)


def test_a_damaged_compressed_segment_is_named(spool: Path) -> None:
    path = compress(spool / "00000002.seg")
    body = bytearray(path.read_bytes())
    body[-20] ^= 1
    path.write_bytes(body)
    assert any("does not decompress" in fault for fault in faults(spool))


def test_what_is_no_spool_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StorageError, match="is no spool"):
            meta_of(place)
    assert SegmentSummary(1, "x", 0).faults == []
