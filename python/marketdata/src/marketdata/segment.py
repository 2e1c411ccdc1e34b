"""The spool's codec: records and segments as bytes, and the valid prefix of whatever a crash left.

Purpose: encode and decode docs/formats.md section 1. A segment is a 16-byte header and records; a
record is payload length u32, CRC32C u32 of (kind byte + payload), kind u8, payload; little-endian.

Invariants:
- INV-10 cut a segment anywhere, or flip any byte of it: `scan` gives exactly the whole records
  before the damage and says why it stopped; never a wrong record. Only a wrong magic raises.
- INV-11 `decode_frames(encode_frames(...))` gives the same frames and stamps, byte for byte.

Does not do: files, syncing, rotation, compression (runtime.spool), the meaning of JSON payloads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Final, NamedTuple, TypeAlias

import google_crc32c

from marketdata.errors import SegmentError

Bytes: TypeAlias = bytes | bytearray | memoryview

MAGIC: Final = b"KTSPOOL1"
KIND_FRAMES: Final = 1
KIND_CONTROL: Final = 2
KIND_STATE: Final = 3
KIND_MARKET: Final = 4
KIND_SEAL: Final = 5
KIND_END: Final = 6

MAX_RECORD_BYTES: Final = 64 * 1024 * 1024
"""Of a payload. A longer length field means damage, so that a reader never waits for 4 GiB."""
MAX_STAMP_NS: Final = 0xFFFF_FFFF
"""A FRAMES record spans at most this many nanoseconds (4.29 s) from its base stamp."""

_HEADER: Final = struct.Struct("<8sII")
_RECORD: Final = struct.Struct("<IIB")
_FRAMES: Final = struct.Struct("<IIQq")
_COUNT: Final = struct.Struct("<Q")
HEADER_BYTES: Final = _HEADER.size
RECORD_HEADER_BYTES: Final = _RECORD.size

# The CRC of the kind byte alone, to be extended by the payload without joining the two.
_KIND_CRC: Final = tuple(int(google_crc32c.value(bytes([kind]))) for kind in range(256))


class Torn(StrEnum):
    """Why a scan stopped before the end of the bytes. SHORT may grow; the others never heal."""

    SHORT = "short"  # the bytes end inside a header or record
    HEADER_CRC = "header_crc"  # our magic, but the segment header's checksum is wrong
    LENGTH = "length"  # a record claims more than MAX_RECORD_BYTES
    CRC = "crc"  # a whole record whose checksum is wrong


class Record(NamedTuple):
    """One whole record. `payload` looks into the scanned buffer: copy it to keep it."""

    offset: int  # of the record's first byte in the segment
    end_offset: int  # of the byte after it
    kind: int
    payload: memoryview


class FramesRecord(NamedTuple):
    """Frames of one connection in arrival order, bytes as received."""

    conn: int
    ordinal: int  # of the first frame within its connection, from 0
    received_ns: list[int]
    frames: list[memoryview]


def encode_header(number: int) -> bytes:
    """The 16 bytes a segment begins with. `number` is the one in its file name."""
    head = _HEADER.pack(MAGIC, number, 0)[:12]
    return head + int(google_crc32c.value(head)).to_bytes(4, "little")


def decode_header(data: Bytes) -> int:
    """The segment number.

    Raises:
        SegmentError: fewer than 16 bytes, another magic, or a wrong checksum.
    """
    if len(data) < HEADER_BYTES:
        raise SegmentError(f"segment header of {len(data)} bytes is shorter than {HEADER_BYTES}")
    magic, number, crc = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise SegmentError(f"magic {magic!r} is not a segment of this spool")
    if google_crc32c.value(bytes(data[:12])) != crc:
        raise SegmentError(f"segment header of number {number} has a wrong checksum")
    return int(number)


def encode_record(kind: int, payload: bytes) -> bytes:
    """One record, ready to append.

    Raises:
        SegmentError: the payload is over MAX_RECORD_BYTES; split it before.
    """
    if len(payload) > MAX_RECORD_BYTES:
        raise SegmentError(
            f"payload of {len(payload)} bytes is over the limit of {MAX_RECORD_BYTES}",
            hint="split the batch",
        )
    crc = google_crc32c.extend(_KIND_CRC[kind], payload)
    return _RECORD.pack(len(payload), crc, kind) + payload


def encode_frames(
    conn: int,
    ordinal0: int,
    base_ns: int,
    stamps_ns: Sequence[int] | None,
    frames: Sequence[Bytes],
) -> bytes:
    """Payload of a FRAMES record.

    Args:
        conn: connection id.
        ordinal0: ordinal of the first frame within the connection.
        base_ns: receive time (Unix ns) that the stamps count from.
        stamps_ns: one per frame, ns after `base_ns`, 0 to MAX_STAMP_NS. The caller closes a batch
            before its stamps leave that range (also when the wall clock steps back). None: all
            frames came together, at `base_ns`.
        frames: the frames' bytes.
    """
    n = len(frames)
    assert stamps_ns is None or len(stamps_ns) == n, "one stamp per frame"
    lengths = struct.pack(f"<{n}I", *map(len, frames))
    stamps = bytes(4 * n) if stamps_ns is None else struct.pack(f"<{n}I", *stamps_ns)
    return b"".join((_FRAMES.pack(conn, n, ordinal0, base_ns), lengths, stamps, *frames))


def decode_frames(payload: Bytes) -> FramesRecord:
    """The frames of a FRAMES payload, as views into it.

    Raises:
        SegmentError: counts and lengths do not add up to the payload (a writer's bug, for the CRC
            of the record was right).
    """
    view = memoryview(payload)
    size = len(view)
    if size < _FRAMES.size:
        raise SegmentError(f"frames payload of {size} bytes is shorter than {_FRAMES.size}")
    conn, n, ordinal, base_ns = _FRAMES.unpack_from(view)
    start = _FRAMES.size + 8 * n
    if start > size:
        raise SegmentError(f"frames payload of {size} bytes cannot hold the lengths of {n} frames")
    numbers = struct.unpack_from(f"<{2 * n}I", view, _FRAMES.size)
    frames = []
    for length in numbers[:n]:
        end = start + length
        frames.append(view[start:end])
        start = end
    if start != size:
        raise SegmentError(f"frames of {start} bytes stand in a payload of {size} bytes")
    received = [base_ns + stamp for stamp in numbers[n:]]
    return FramesRecord(conn, ordinal, received, frames)


def encode_seal(count: int) -> bytes:
    """Payload of the SEAL record: how many records stand before it."""
    return _COUNT.pack(count)


def decode_seal(payload: Bytes) -> int:
    """How many records a SEAL says stand before it. Raises SegmentError if it is not 8 bytes."""
    if len(payload) != _COUNT.size:
        raise SegmentError(f"seal of {len(payload)} bytes is not {_COUNT.size}")
    return int(_COUNT.unpack_from(payload)[0])


class Scan:
    """An iterator over the whole records of `buffer` from `offset` on.

    `end_offset` is the byte after the last good record so far (the place to cut or to go on from);
    after the iteration `torn` says why it stopped, None where the bytes end with a whole record.
    """

    __slots__ = ("_view", "end_offset", "torn")

    def __init__(self, buffer: Bytes, offset: int = 0) -> None:
        self._view = memoryview(buffer)
        self.end_offset = offset
        self.torn: Torn | None = None
        if offset == 0:
            self._read_header()

    def _read_header(self) -> None:
        head = bytes(self._view[:HEADER_BYTES])
        if not MAGIC.startswith(head[: len(MAGIC)]):
            raise SegmentError(f"magic {head[:8]!r} is not a segment of this spool")
        if len(head) < HEADER_BYTES:
            self.torn = Torn.SHORT
            return
        try:
            decode_header(head)
        except SegmentError:
            self.torn = Torn.HEADER_CRC
            return
        self.end_offset = HEADER_BYTES

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        view, offset = self._view, self.end_offset
        left = len(view) - offset
        if self.torn is not None or left == 0:
            raise StopIteration
        if left < RECORD_HEADER_BYTES:
            return self._stop(Torn.SHORT)
        length, crc, kind = _RECORD.unpack_from(view, offset)
        if length > MAX_RECORD_BYTES:
            return self._stop(Torn.LENGTH)
        if left < RECORD_HEADER_BYTES + length:
            return self._stop(Torn.SHORT)
        start = offset + RECORD_HEADER_BYTES
        end = start + length
        payload = view[start:end]
        if google_crc32c.extend(_KIND_CRC[kind], bytes(payload)) != crc:
            return self._stop(Torn.CRC)
        self.end_offset = end
        return Record(offset, end, kind, payload)

    def _stop(self, why: Torn) -> Record:
        self.torn = why
        raise StopIteration


def scan(buffer: Bytes, offset: int = 0) -> Scan:
    """Scan a segment: from its header at `offset` 0, else from a record boundary.

    Raises:
        SegmentError: at offset 0, the bytes do not begin with (a prefix of) our magic: foreign.
    """
    return Scan(buffer, offset)
