"""A spool looked at from outside: what is in it, and whether it is whole.

Purpose: one summary a segment for `tape spool ls`, and every fault with its file for `verify`.
What is checked: each segment's header and number; each record's checksum (the scanner's); seals and
their counts; that no number is missing; that an index is that of its segment's bytes; that every
STATE record is exactly the state to which the records of the segment before it lead, so that a
reader may begin at any segment; that the ids which the spool gave out are those that its frames
give.
Works on a spool that is being written: the last segment may then end in the middle of a record.
Does not do: changing anything (the writer moves torn tails), databases (spool_rebuild).
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gatherer.intake import Decoding, restore
from marketdata import segment
from marketdata.continuity import Continuity
from marketdata.errors import SegmentError, StorageError
from runtime.spool import Position, SpoolRecord
from runtime.spool_files import SpoolMeta, index_name, load, look, read_meta
from runtime.spool_index import read_index

DECODED_NOW = 200  # records between two times that rows are let go


@dataclass(slots=True)
class SegmentSummary:
    """One file. `faults`: what is wrong with it, in words."""

    number: int
    file: str
    file_bytes: int
    plain_bytes: int = 0
    records: int = 0
    frames: int = 0
    first_ns: int = 0
    last_ns: int = 0
    sealed: bool = False
    markets: int | None = None  # by its index; None: it has none
    faults: list[str] = field(default_factory=list)


def meta_of(directory: Path) -> SpoolMeta:
    """The spool's identity. Raises StorageError where there is no spool."""
    found = read_meta(directory) if directory.is_dir() else None
    if found is None:
        raise StorageError(f"{directory} is no spool: it has no SPOOL.json")
    return found


def bodies(directory: Path) -> Iterator[tuple[SegmentSummary, bytes]]:
    """Every segment in order, with its uncompressed bytes; a compressed one that is damaged has its
    fault and no bytes."""
    for number, path in sorted(look(directory).segments.items()):
        summary = SegmentSummary(number, path.name, path.stat().st_size)
        try:
            body = load(path) if path.suffix == ".zst" else path.read_bytes()
        except StorageError as error:
            summary.faults.append(str(error))
            body = b""
        summary.plain_bytes = len(body)
        summary.markets = _indexed(directory, summary, body)
        yield summary, body


def _indexed(directory: Path, summary: SegmentSummary, body: bytes) -> int | None:
    """How many markets the index names; an index of other bytes is a fault."""
    try:
        index = read_index(directory, summary.number)
    except StorageError as error:
        summary.faults.append(str(error))
        return None
    if index is None:
        return None
    if body and index.plain_sha256 != hashlib.sha256(body).hexdigest():
        summary.faults.append(f"{index_name(summary.number)} is the index of other bytes")
    return len(index.markets)


def records_of(summary: SegmentSummary, body: bytes, *, is_last: bool) -> Iterator[SpoolRecord]:
    """The whole records; what is wrong is noted in the summary as it is met."""
    if not body:
        return
    _check_header(summary, body)
    reader = segment.scan(body, segment.HEADER_BYTES)
    last_kind = None
    for record in reader:
        summary.records += 1
        last_kind = record.kind
        if record.kind == segment.KIND_FRAMES:
            _count(summary, record.payload)
        elif record.kind == segment.KIND_SEAL:
            said = segment.decode_seal(record.payload)
            if said != summary.records - 1:
                summary.faults.append(f"its seal counts {said} records, {summary.records - 1} are")
        at, end = record.offset, record.end_offset
        number = summary.number
        yield SpoolRecord(Position(number, at), Position(number, end), record.kind, record.payload)
    summary.sealed = last_kind == segment.KIND_SEAL
    if reader.end_offset < len(body) and not (is_last and reader.torn is segment.Torn.SHORT):
        summary.faults.append(f"unreadable from offset {reader.end_offset} ({reader.torn})")
    if not summary.sealed and not is_last:
        summary.faults.append("ends without a seal")


def _check_header(summary: SegmentSummary, body: bytes) -> None:
    try:
        number = segment.decode_header(body[: segment.HEADER_BYTES])
    except SegmentError as error:
        summary.faults.append(str(error))
        return
    if number != summary.number:
        summary.faults.append(f"its header says segment {number}")


def _count(summary: SegmentSummary, payload: memoryview) -> None:
    batch = segment.decode_frames(payload)
    summary.frames += len(batch.frames)
    if batch.received_ns:
        summary.first_ns = summary.first_ns or batch.received_ns[0]
        summary.last_ns = batch.received_ns[-1]


def listed(directory: Path) -> Iterator[SegmentSummary]:
    """The summaries, without decoding any frame."""
    meta_of(directory)
    last = max(look(directory).segments, default=0)
    for summary, body in bodies(directory):
        for _ in records_of(summary, body, is_last=summary.number == last):
            pass
        yield summary


def verified(directory: Path) -> Iterator[SegmentSummary]:
    """The summaries after everything was looked at, one as soon as it is done."""
    meta = meta_of(directory)
    numbers = sorted(look(directory).segments)
    decoding: Decoding | None = None
    before: int | None = None
    for summary, body in bodies(directory):
        if before is not None and summary.number != before + 1:
            summary.faults.append(f"the segment before it has number {before}")
            decoding = None
        is_first = before is None
        before = summary.number
        records = records_of(summary, body, is_last=summary.number == numbers[-1])
        try:
            decoding = _follow(summary, records, decoding, meta, is_first=is_first)
        except (StorageError, SegmentError, ValueError, KeyError) as error:
            told = str(error).split("\n", maxsplit=1)[0]
            summary.faults.append(f"its records cannot be followed: {told}")
            decoding = None
        yield summary


def _follow(
    summary: SegmentSummary,
    records: Iterator[SpoolRecord],
    decoding: Decoding | None,
    meta: SpoolMeta,
    *,
    is_first: bool,
) -> Decoding:
    """Apply a segment to the state that the one before it left, comparing where it says its own."""
    for place, record in enumerate(records):
        if place == 0 and record.kind == segment.KIND_STATE:
            told = restore(record.payload)
            if decoding is not None and _form(record.payload) != decoding.continuity.export():
                summary.faults.append("its STATE is not what the segment before it leads to")
            decoding = Decoding(told)
            continue
        if decoding is None:
            if not is_first:
                summary.faults.append("begins without a STATE")
            decoding = Decoding(Continuity(meta.id_base))
        decoding.apply(record)
        if place % DECODED_NOW == 0:
            decoding.forget()
    decoding = decoding or Decoding(Continuity(meta.id_base))
    decoding.forget()
    return decoding


def _form(payload: memoryview) -> Any:
    return json.loads(zlib.decompress(payload))
