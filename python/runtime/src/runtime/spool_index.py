"""The index beside a sealed segment: `NNNNNNNN.idx`, JSON compressed with zstd.

Purpose: write it once when a segment is compressed, read it to leave segments shut.
Invariants: an index is derived: it may be missing or removed at any time, and one that does not fit
its segment is said to be damaged, never believed (`tape spool verify` compares the SHA-256).
Does not do: what is in it (marketdata.segment_index).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import zstandard

from marketdata.errors import SegmentError, StorageError
from marketdata.segment_index import SegmentIndex, from_form, index_of, to_form
from runtime.spool_files import Position, index_name, load, look, write_durably

INDEX_BYTES_MAX: Final = 256 * 1024 * 1024  # uncompressed
LEVEL: Final = 3


def read_index(directory: Path, number: int) -> SegmentIndex | None:
    """The index of a segment; None where there is none.

    Raises:
        StorageError: the file is damaged.
    """
    path = directory / index_name(number)
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        text = zstandard.ZstdDecompressor().decompress(body, max_output_size=INDEX_BYTES_MAX)
        return from_form(json.loads(text))
    except (zstandard.ZstdError, ValueError, SegmentError) as error:
        raise StorageError(
            f"{path} is damaged: {error}", hint="remove it: it is made from the segment again"
        ) from error


def write_index(directory: Path, number: int, body: bytes) -> SegmentIndex:
    """Make the index of a segment's uncompressed bytes."""
    index = index_of(body)
    text = json.dumps(to_form(index), separators=(",", ":")).encode()
    packed = zstandard.ZstdCompressor(LEVEL, write_checksum=True).compress(text)
    write_durably(directory / index_name(number), packed)
    return index


def index_compressed(directory: Path, before: Position, count_max: int = 4) -> int:
    """Give compressed segments before a position the index they lack; returns how many got one."""
    done = 0
    for number, path in sorted(look(directory).segments.items()):
        if number >= before.segment or done >= count_max:
            break
        if path.suffix == ".zst" and not (directory / index_name(number)).exists():
            write_index(directory, number, load(path))
            done += 1
    return done
