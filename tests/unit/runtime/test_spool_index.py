"""The index file beside a segment: made once, believed only if whole, gone with its segment."""

from __future__ import annotations

from pathlib import Path

import pytest

from marketdata.errors import StorageError
from runtime.spool_files import (
    Position,
    compress_sealed,
    index_name,
    load,
    look,
    recover,
    retain,
)
from runtime.spool_index import index_compressed, read_index, write_index
from tests.unit.runtime.test_spool_files import body_of, write


def test_compressed_segments_get_their_index_and_plain_ones_wait(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write(tmp_path, number, body_of(number, sealed=True))
    compress_sealed(tmp_path, Position(3, 0))
    assert index_compressed(tmp_path, Position(2, 0)) == 1
    assert index_compressed(tmp_path, Position(3, 0)) == 1
    assert index_compressed(tmp_path, Position(3, 0)) == 0
    index = read_index(tmp_path, 2)
    assert index is not None
    assert index.plain_bytes == len(load(look(tmp_path).segments[2]))
    assert read_index(tmp_path, 3) is None
    assert look(tmp_path).foreign == []


def test_an_index_goes_with_its_segment_and_a_half_written_one_at_recovery(tmp_path: Path) -> None:
    for number in (1, 2):
        write(tmp_path, number, body_of(number, sealed=True))
        write_index(tmp_path, number, body_of(number, sealed=True))
    (tmp_path / "00000002.idx.part").write_bytes(b"half")
    assert retain(tmp_path, Position(2, 0), retain_bytes=0) == ["00000001.seg"]
    assert not (tmp_path / index_name(1)).exists()
    assert recover(tmp_path).foreign == ()
    assert not (tmp_path / "00000002.idx.part").exists()
    assert (tmp_path / index_name(2)).exists()


@pytest.mark.parametrize("body", [b"", b"junk", b"\x28\xb5\x2f\xfd"])
def test_a_damaged_index_is_named(tmp_path: Path, body: bytes) -> None:
    (tmp_path / index_name(1)).write_bytes(body)
    with pytest.raises(StorageError, match=r"00000001\.idx is damaged"):
        read_index(tmp_path, 1)
