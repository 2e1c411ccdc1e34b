"""A spool's disk in memory: what was synced survives, the rest may survive in part, torn.

Purpose: carry the real `SpoolWriter` (append, group commit, segments, retries) and the real intake
on bytes that a crash cuts at any byte. `SimReader` stands for `SpoolReader`, `reopen` for
`spool_files.recover`; both use the real codec.

Invariants: SIM-4 `durable` holds a copy of every byte that a sync has confirmed, made at that
moment: what the spool checker compares with.

Does not do: compression and retention of segments (tests of runtime do).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from marketdata.segment import HEADER_BYTES, KIND_SEAL, scan
from runtime.spool import SpoolWriter
from runtime.spool_files import START, Position, Recovery, SpoolMeta, segment_name
from runtime.spool_read import SpoolRecord
from tests.sim.virtual import Process, SimExecutor, Story


class SimDisk:
    """The files of one spool directory, and what was confirmed of them."""

    def __init__(self, meta: SpoolMeta, rng: random.Random, story: Story, who: str) -> None:
        self.meta = meta
        self.segments: dict[int, bytearray] = {}
        self.durable: dict[int, bytearray] = {}
        self.in_flight: list[Any] = []
        self.rng = rng
        self.story = story
        self.who = who
        self.sync_ms = (1, 12)
        self.errors = 0
        self.torn = 0

    def iterdir(self) -> list[SimpleNamespace]:
        """As a directory, for numbers_in_use."""
        return [SimpleNamespace(name=segment_name(number)) for number in self.segments]

    # -- the writer's thread

    def begin(self, func: Callable[..., Any], args: tuple[Any, ...]) -> float:
        """A write and sync begin; returns how long they take."""
        self.in_flight = list(args[0]) if args else []
        return self.rng.randint(*self.sync_ms) / 1000

    def write(self, pending: Sequence[Any]) -> None:
        """The write and sync are done (as `_Disk.write`)."""
        if self.errors and self.rng.random() < 0.1:
            self.errors -= 1
            self.story.fault("disk_error", self.who)
            raise OSError(5, "input/output error")
        for part in pending:
            self._put(part, b"".join(part.chunks))
        self.in_flight = []
        for number, body in self.segments.items():
            held = self.durable.setdefault(number, bytearray())
            held += body[len(held) :]

    def _put(self, part: Any, body: bytes) -> None:
        segment = self.segments.setdefault(part.segment, bytearray())
        if len(segment) < part.offset:
            raise AssertionError("a write leaves a hole in a segment")
        segment[part.offset : part.offset + len(body)] = body

    def close(self) -> None:
        """As `_Disk.close`."""

    # -- death and return

    def crash(self, unwritten: Sequence[Any]) -> None:
        """The process dies. Of what was not confirmed a prefix may have reached the disk."""
        waiting = [*self.in_flight, *unwritten]
        self.in_flight = []
        left = self.rng.randint(0, sum(part.length for part in waiting)) if waiting else 0
        if self.rng.random() < 0.3:
            left = 0
        for part in waiting:
            body = b"".join(part.chunks)[:left]
            left -= len(body)
            if body:
                self._put(part, body)
        if waiting and any(
            len(b) > len(self.durable.get(n, b"")) for n, b in self.segments.items()
        ):
            self.story.fault("torn_write", self.who)

    def reopen(self) -> Recovery:
        """Imitates spool_files.recover: the last segment to its valid prefix."""
        end, sealed, records, torn = START, True, 0, []
        while self.segments:
            number = max(self.segments)
            body = self.segments[number]
            count = last_kind = cut = 0
            if len(body) >= HEADER_BYTES:
                reader = scan(bytes(body), HEADER_BYTES)
                for record in reader:
                    count, last_kind = count + 1, record.kind
                cut = reader.end_offset
            if count == 0:
                cut = 0
            if cut < len(body):
                torn.append(f"{number:08d}-{cut:010d}.bin")
                self.torn += 1
                self.story.fault("torn_tail_cut", self.who, f"{len(body) - cut} bytes")
            if cut == 0:
                del self.segments[number]
                continue
            del body[cut:]
            end, sealed, records = Position(number, cut), last_kind == KIND_SEAL, count
            break
        return Recovery(end, sealed, records, tuple(torn), ())

    def lost(self) -> str:
        """What of the confirmed bytes is not there; "" if all is."""
        for number, body in self.durable.items():
            if self.segments.get(number, b"")[: len(body)] != body:
                return f"segment {number}: bytes that were confirmed are gone"
        return ""


class SimSpool(SpoolWriter):
    """The real writer on a SimDisk."""

    def __init__(
        self, disk: SimDisk, process: Process, *, state: Callable[[], bytes], segment_bytes: int
    ) -> None:
        super().__init__(
            disk,  # type: ignore[arg-type]  # only its names are listed
            disk.meta,
            disk.reopen(),
            state=state,
            segment_bytes=segment_bytes,
            lock_handle=-1,
        )
        self._disk = _Handle(disk)  # type: ignore[assignment]
        self._thread.shutdown()
        self._thread = SimExecutor(disk.begin)  # type: ignore[assignment]
        self.disk = disk
        process.on_death.append(self._died)
        self._dead = False

    def _died(self) -> None:
        if not self._dead:
            self._dead = True
            taken = {id(part) for part in self.disk.in_flight}
            self.disk.crash([part for part in self._pending if id(part) not in taken])
            self._disk.dead = True  # type: ignore[attr-defined]

    def reader(self, position: Position) -> Any:
        return SimReader(self.disk, position, durable=lambda: self._durable)


class _Handle:
    """A process' way to its disk, until it is dead."""

    def __init__(self, disk: SimDisk) -> None:
        self.disk = disk
        self.dead = False

    def write(self, pending: Sequence[Any]) -> None:
        if self.dead:
            raise OSError(9, "the process is dead")
        self.disk.write(pending)

    def close(self) -> None:
        """Nothing."""


class SimReader:
    """Imitates SpoolReader: whole records in order, none behind `durable`."""

    def __init__(
        self, disk: SimDisk, position: Position, *, durable: Callable[[], Position] | None = None
    ) -> None:
        self._disk = disk
        self._position = position
        self._durable = durable

    def read(self, bytes_max: int = 1 << 22) -> list[SpoolRecord]:
        """The next records; empty when there are no more for now."""
        while True:
            later = [n for n in sorted(self._disk.segments) if n >= self._position.segment]
            if not later:
                return []
            number = later[0]
            if number != self._position.segment:
                self._position = Position(number, 0)
            limit = len(self._disk.segments[number])
            if self._durable is not None:
                durable = self._durable()
                if durable.segment < number:
                    return []
                if durable.segment == number:
                    limit = min(limit, durable.offset)
            body = bytes(self._disk.segments[number][:limit])
            offset = max(self._position.offset, HEADER_BYTES)
            found = []
            if limit >= HEADER_BYTES:
                for record in scan(body, offset):
                    found.append(
                        SpoolRecord(
                            Position(number, record.offset),
                            Position(number, record.end_offset),
                            record.kind,
                            record.payload,
                        )
                    )
                    if record.end_offset - offset > bytes_max:
                        break
            if found:
                self._position = found[-1].end
                return found
            if len(later) < 2:
                return []
            if self._durable is not None and self._durable().segment <= number:
                return []
            self._position = Position(later[1], 0)

    def close(self) -> None:
        """Nothing is open."""
