"""Reading a spool: from a position, through sealed and compressed segments, along the live tail.

Purpose: one stream of records for live intake, for catching up from disk, and for tools.

What holds:
- Records come in the order they were appended, each once, whole and with a right CRC.
- With `durable` given, nothing behind that position is given out.
- Damage inside a segment that is not the last ends that segment early, is named in `damage`, and
  reading goes on with the next segment.

Does not do: interpret payloads, move or cut files (only the writer may).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from marketdata.errors import SegmentError, StorageError
from marketdata.segment import (
    HEADER_BYTES,
    KIND_SEAL,
    MAX_RECORD_BYTES,
    RECORD_HEADER_BYTES,
    Torn,
    decode_header,
    decode_seal,
    scan,
)
from runtime.spool_files import Position, load, look

READ_BYTES: Final = 4 * 1024 * 1024  # taken from a file at once
DAMAGE_MAX: Final = 100  # places named; more are only counted


class SpoolRecord(NamedTuple):
    """One record. `at` is its first byte; `end` the position after it: a consumer's next cursor."""

    at: Position
    end: Position
    kind: int
    payload: memoryview


class SpoolReader:
    """Records from `position` on; `START` or a missing (removed) segment means the next there is.

    `durable` tells how far may be read (the writer's `durable`); without it everything whole is
    read, as for a spool that nobody writes. Not thread-safe.
    """

    def __init__(
        self,
        directory: Path,
        position: Position,
        *,
        durable: Callable[[], Position] | None = None,
    ) -> None:
        self._directory = directory
        self._durable = durable
        self._position = position
        self._file: int | None = None
        self._body: bytes | None = None  # of a compressed segment
        self._opened = -1
        self._counted: int | None = None  # records since the segment's start, None if begun inside
        self._path: Path | None = None
        self._last_kind: int | None = None  # in the open segment, None before the first record
        self.damage: list[str] = []
        self.damage_count = 0

    @property
    def position(self) -> Position:
        """Where the next record is looked for."""
        return self._position

    def close(self) -> None:
        """Close the open segment; reading again opens it again."""
        if self._file is not None:
            os.close(self._file)
        self._file, self._body, self._opened = None, None, -1

    def read(self, bytes_max: int = READ_BYTES) -> list[SpoolRecord]:
        """The next records, about `bytes_max` of them; empty when there are no more for now.

        Raises:
            StorageError: the disk cannot be read, or a compressed segment is damaged.
        """
        while True:
            if not self._open():
                return []
            limit = self._limit()
            records = self._scan(limit, bytes_max)
            if records:
                return records
            if not self._leave(limit):
                return []

    def _open(self) -> bool:
        """Have the segment of the position open; False when there is none yet."""
        if self._opened == self._position.segment:
            return True
        self.close()
        segments = look(self._directory).segments
        later = [number for number in segments if number >= self._position.segment]
        if not later:
            return False
        number = min(later)
        if self._durable is not None and number > self._durable().segment:
            return False
        if number != self._position.segment:
            if self._position.segment > 0:  # somebody had read it, so it was there
                self._note(f"segment {self._position.segment} before it is missing")
            self._position = Position(number, 0)
        self._path = segments[number]
        if self._path.suffix == ".zst":
            self._body = load(self._path)
        else:
            try:
                self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return self._open()  # compressed between the look and the open
        self._opened, self._last_kind = number, None
        return self._enter()

    def _enter(self) -> bool:
        """At offset 0: check the header and step over it. False while it is not whole yet."""
        if self._position.offset > 0:
            self._counted = None
            return True
        head = self._bytes(0, HEADER_BYTES)
        if len(head) < HEADER_BYTES:
            return self._skip_headless()
        try:
            number = decode_header(head)
        except SegmentError as error:
            self._note(str(error))
            number = self._opened
        if number != self._opened:
            self._note(f"its header says segment {number}")
        self._counted = 0
        self._position = Position(self._opened, HEADER_BYTES)
        return True

    def _skip_headless(self) -> bool:
        """A segment without a whole header: wait if it is the last, else go on behind it."""
        later = [n for n in look(self._directory).segments if n > self._opened]
        if later:
            self._note("has no whole header")
            self._position = Position(min(later), 0)
        self.close()
        return bool(later) and self._open()

    def _limit(self) -> int:
        """Offset up to which the open segment may be read now."""
        size = len(self._body) if self._body is not None else os.fstat(self._handle()).st_size
        if self._durable is not None:
            durable = self._durable()
            if durable.segment == self._opened:
                return min(size, durable.offset)
            if durable.segment < self._opened:
                return 0
        return size

    def _handle(self) -> int:
        assert self._file is not None, "no segment is open"
        return self._file

    def _bytes(self, start: int, end: int) -> bytes:
        if self._body is not None:
            return self._body[start:end]
        try:
            return os.pread(self._handle(), end - start, start)
        except OSError as error:
            raise StorageError(f"cannot read {self._path}: {error}") from error

    def _scan(self, limit: int, bytes_max: int) -> list[SpoolRecord]:
        """Whole records between the position and `limit`; at least one if there is one."""
        begin = self._position.offset
        want = min(limit, begin + max(bytes_max, RECORD_HEADER_BYTES))
        while begin < limit:
            # The scanner takes offset 0 for a segment header: put something before the records.
            buffer = b"\x00" * HEADER_BYTES + self._bytes(begin, want)
            shift = begin - HEADER_BYTES
            found = scan(buffer, HEADER_BYTES)
            records = [
                SpoolRecord(
                    Position(self._opened, record.offset + shift),
                    Position(self._opened, record.end_offset + shift),
                    record.kind,
                    record.payload,
                )
                for record in found
            ]
            if records:
                self._position = records[-1].end
                self._check_seal(records)
                return records
            if found.torn is not Torn.SHORT or want >= limit:
                return []
            claimed = int.from_bytes(buffer[HEADER_BYTES : HEADER_BYTES + 4], "little")
            want = min(limit, begin + RECORD_HEADER_BYTES + min(claimed, MAX_RECORD_BYTES))
        return []

    def _check_seal(self, records: list[SpoolRecord]) -> None:
        """A second count, by other code than the CRCs, that no record of a segment is missing."""
        last = records[-1]
        self._last_kind = last.kind
        if self._counted is None:
            return
        self._counted += len(records)
        if last.kind == KIND_SEAL and decode_seal(last.payload) != self._counted - 1:
            self._note(f"{self._counted - 1} records before its seal, which says otherwise")

    def _leave(self, limit: int) -> bool:
        """Go to the next segment if this one is over; False when more may still come here."""
        if self._durable is not None and self._durable().segment <= self._opened:
            return False  # the common case of a live tail: no listing of the directory
        later = [n for n in look(self._directory).segments if n > self._opened]
        if not later:
            return False
        if self._position.offset < limit:
            self._note(f"unreadable from offset {self._position.offset} to {limit}")
        elif self._last_kind not in (None, KIND_SEAL):
            self._note("ends without a seal")
        if min(later) != self._opened + 1:
            self._note(f"the next segment there is has number {min(later)}")
        self._position = Position(min(later), 0)
        return True

    def _note(self, what: str) -> None:
        self.damage_count += 1
        if len(self.damage) < DAMAGE_MAX:
            self.damage.append(f"{self._path.name if self._path else '?'}: {what}")


def start_of(position: Position) -> Position:
    """Where to begin in order to know the state at `position`.

    The start of its segment: there stands a STATE record, except in a spool's first segment, where
    the state is empty.
    """
    return Position(position.segment, 0)
