"""The spool is the only copy of what was heard: its codec gives back every byte or says why not."""

from __future__ import annotations

import struct

import google_crc32c
import pytest

from marketdata import segment
from marketdata.errors import SegmentError
from marketdata.segment import Torn

HEAD = segment.encode_header(7)


def test_crc32c_is_the_compiled_one_and_the_castagnoli_polynomial() -> None:
    """The check value of CRC-32C; a pure Python fallback would be a hundred times slower."""
    assert google_crc32c.value(b"123456789") == 0xE3069283
    assert google_crc32c.implementation == "c"


def test_header_is_the_documented_sixteen_bytes() -> None:
    """docs/formats.md section 1, packed by hand."""
    start = b"KTSPOOL1" + struct.pack("<I", 7)
    assert start + struct.pack("<I", google_crc32c.value(start)) == HEAD
    assert segment.decode_header(HEAD) == 7


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (HEAD[:15], "shorter"),
        (b"X" + HEAD[1:], "magic"),
        (HEAD[:-1] + bytes([HEAD[-1] ^ 1]), "checksum"),
    ],
)
def test_header_that_is_not_ours_is_refused(data: bytes, says: str) -> None:
    """A file of somebody else is kept and named, never read as records."""
    with pytest.raises(SegmentError, match=says):
        segment.decode_header(data)


def test_record_is_the_documented_form() -> None:
    """Length, CRC of kind and payload, kind, payload."""
    got = segment.encode_record(segment.KIND_CONTROL, b"{}")
    assert got == struct.pack("<IIB", 2, google_crc32c.value(b"\x02{}"), 2) + b"{}"
    assert len(got) == segment.RECORD_HEADER_BYTES + 2


def test_record_over_the_limit_is_refused_when_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no reader would accept must not be written."""
    monkeypatch.setattr(segment, "MAX_RECORD_BYTES", 4)
    segment.encode_record(1, b"1234")
    with pytest.raises(SegmentError, match="over the limit"):
        segment.encode_record(1, b"12345")


def test_frames_come_back_with_their_receive_times() -> None:
    """INV-11, with an empty frame and one of bytes that are not UTF-8."""
    payload = segment.encode_frames(
        3, 40, 1_000, [0, 5, segment.MAX_STAMP_NS], [b"a", b"", b"\xff\0"]
    )
    got = segment.decode_frames(payload)
    assert (got.conn, got.ordinal) == (3, 40)
    assert got.received_ns == [1_000, 1_005, 1_000 + segment.MAX_STAMP_NS]
    assert [bytes(f) for f in got.frames] == [b"a", b"", b"\xff\0"]
    assert segment.decode_frames(segment.encode_frames(1, 0, 0, [], [])).frames == []


def test_frames_without_a_stamp_each_are_our_bug() -> None:
    """Stamps and frames that do not pair up would shift every receive time after them."""
    with pytest.raises(AssertionError):
        segment.encode_frames(1, 0, 0, [0], [])
    with pytest.raises(struct.error):
        segment.encode_frames(1, 0, 0, [segment.MAX_STAMP_NS + 1], [b"a"])


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"\0" * 23, "shorter"),
        (struct.pack("<IIQq", 1, 2, 0, 0) + b"\0" * 15, "cannot hold"),
        (struct.pack("<IIQqII", 1, 1, 0, 0, 3, 0) + b"ab", "stand in"),
        (struct.pack("<IIQqII", 1, 1, 0, 0, 1, 0) + b"ab", "stand in"),
    ],
)
def test_frames_payload_that_does_not_add_up_is_refused(payload: bytes, says: str) -> None:
    """Its CRC was right, so this is a writer's bug: it must be seen, not half read."""
    with pytest.raises(SegmentError, match=says):
        segment.decode_frames(payload)


def test_seal_counts_the_records_before_it() -> None:
    """The reader compares the count with what it read."""
    assert segment.decode_seal(segment.encode_seal(12)) == 12
    with pytest.raises(SegmentError, match="seal"):
        segment.decode_seal(b"1234")


def whole(*payloads: bytes) -> bytes:
    """A segment of CONTROL records."""
    return HEAD + b"".join(segment.encode_record(segment.KIND_CONTROL, p) for p in payloads)


def test_scan_gives_every_record_with_its_place() -> None:
    """The offsets are the positions cursors are made of."""
    data = whole(b"one", b"", b"three")
    found = segment.scan(data)
    rows = [(r.offset, r.end_offset, r.kind, bytes(r.payload)) for r in found]
    assert [r[3] for r in rows] == [b"one", b"", b"three"]
    assert rows[0][0] == segment.HEADER_BYTES
    assert [r[1] for r in rows[:-1]] == [r[0] for r in rows[1:]]
    assert (found.end_offset, found.torn) == (len(data), None)


def test_scan_from_a_boundary_goes_on_there() -> None:
    """A consumer starts at its cursor, not at the header."""
    data = whole(b"one", b"two")
    boundary = next(segment.scan(data)).end_offset
    assert [bytes(r.payload) for r in segment.scan(data, boundary)] == [b"two"]
    assert list(segment.scan(data, len(data))) == []


@pytest.mark.parametrize(
    ("data", "torn", "end"),
    [
        (b"", Torn.SHORT, 0),
        (HEAD[:5], Torn.SHORT, 0),
        (HEAD[:15], Torn.SHORT, 0),
        (HEAD[:12] + b"\0\0\0\0", Torn.HEADER_CRC, 0),
        (HEAD + b"\0" * 8, Torn.SHORT, 16),
        (HEAD + b"\0" * 9, Torn.CRC, 16),
        (HEAD + b"\0" * 4096, Torn.CRC, 16),
        (HEAD + b"\xff" * 9, Torn.LENGTH, 16),
        (whole(b"abc")[:-1], Torn.SHORT, 16),
        (whole(b"abc")[:-1] + b"x", Torn.CRC, 16),
    ],
)
def test_scan_of_a_torn_segment_says_why_it_stopped(data: bytes, torn: Torn, end: int) -> None:
    """Zeros after the end are what some file systems leave after a power failure."""
    found = segment.scan(data)
    assert list(found) == []
    assert list(found) == []
    assert (found.torn, found.end_offset) == (torn, end)


def test_scan_of_a_foreign_file_raises() -> None:
    """Not ours: the caller keeps it and names it."""
    for data in (b"PAR1", b"KTSPOOL2" + HEAD[8:], b"KX"):
        with pytest.raises(SegmentError, match="magic"):
            segment.scan(data)
