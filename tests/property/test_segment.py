"""INV-10: whatever a crash did to a segment, exactly the whole records before it are read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from marketdata import segment
from marketdata.errors import SegmentError
from tests.property import strategies as gen

Parts = list[tuple[int, bytes]]


def read(data: bytes) -> tuple[Parts, segment.Scan]:
    """All records of a segment as (kind, payload), and the scan at its end."""
    found = segment.scan(data)
    return [(r.kind, bytes(r.payload)) for r in found], found


def ends(parts: Parts) -> list[int]:
    """Offset after each record."""
    out, at = [], segment.HEADER_BYTES
    for _, payload in parts:
        at += segment.RECORD_HEADER_BYTES + len(payload)
        out.append(at)
    return out


@given(st.integers(0, 2**32 - 1), st.lists(gen.records, max_size=6))
def test_whole_segment_reads_back(number: int, parts: Parts) -> None:
    """The plain case."""
    data = gen.segment_bytes(number, parts)
    got, found = read(data)
    assert got == parts
    assert found.torn is None
    assert segment.decode_header(data[:16]) == number


@given(st.lists(gen.records, max_size=4))
def test_every_truncation_gives_the_whole_records_before_it(parts: Parts) -> None:
    """Every cut, not a sample of them."""
    data = gen.segment_bytes(1, parts)
    boundaries = ends(parts)
    for cut in range(len(data)):
        got, found = read(data[:cut])
        n = sum(end <= cut for end in boundaries)
        assert got == parts[:n]
        at_boundary = cut in (segment.HEADER_BYTES, *boundaries)
        assert (found.torn is None) == at_boundary
        if cut >= segment.HEADER_BYTES:
            assert found.end_offset == (boundaries[n - 1] if n else segment.HEADER_BYTES)


@given(st.lists(gen.records, min_size=1, max_size=4), st.data())
def test_any_changed_byte_gives_the_whole_records_before_it(
    parts: Parts, data: st.DataObject
) -> None:
    """A CRC32C finds every change of one byte; the records after it are not trusted either."""
    raw = bytearray(gen.segment_bytes(1, parts))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        got, found = read(bytes(raw))
    except SegmentError:
        assert at < len(segment.MAGIC)
        return
    n = sum(end <= at for end in ends(parts)) if at >= segment.HEADER_BYTES else 0
    assert got == parts[:n]
    assert found.torn is not None


@given(st.lists(gen.records, max_size=4), st.binary(max_size=64))
def test_any_bytes_after_the_end_never_add_a_wrong_record(parts: Parts, tail: bytes) -> None:
    """A tail that happens to be whole records is one; here it is random, so it is damage."""
    data = gen.segment_bytes(1, parts)
    got, found = read(data + tail)
    assert got == parts
    assert found.end_offset == len(data)


@given(
    st.lists(st.tuples(st.integers(0, segment.MAX_STAMP_NS), st.binary(max_size=30)), max_size=8)
)
def test_frames_survive_encode_and_decode(pairs: list[tuple[int, bytes]]) -> None:
    """INV-11."""
    payload = segment.encode_frames(9, 2**40, 10**18, [p[0] for p in pairs], [p[1] for p in pairs])
    got = segment.decode_frames(payload)
    assert [bytes(f) for f in got.frames] == [p[1] for p in pairs]
    assert got.received_ns == [10**18 + p[0] for p in pairs]
