"""The gatherer's write-ahead log: every frame is here before anyone looks into it.

Purpose: append records in memory, write and sync them in groups, tell how far they are durable.

What holds:
- `append` never blocks and never loses: bytes stay in memory until an fdatasync that covers them
  has returned. After any write or sync error everything since the last good sync is written again,
  at the same offsets (a failed sync may have thrown dirty pages away).
- `durable` moves only forward, over whole records, in order.
- One writer per directory, held by a lock that dies with the process.
- Every segment but the first begins with a STATE record that describes all records before it.
- The state a crash leaves is a valid prefix: see runtime.spool_files.recover.

Does not do: reading (runtime.spool_read), decoding, deciding what to keep.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from marketdata.errors import StorageError
from marketdata.segment import (
    HEADER_BYTES,
    KIND_CONTROL,
    KIND_END,
    KIND_FRAMES,
    KIND_MARKET,
    KIND_SEAL,
    KIND_STATE,
    Bytes,
    encode_frames,
    encode_header,
    encode_record,
    encode_seal,
)
from runtime.spool_files import (
    SEGMENT_BYTES_MAX,
    START,
    Position,
    Recovery,
    SpoolMeta,
    lock,
    numbers_in_use,
    read_meta,
    recover,
    segment_name,
    sync_directory,
    write_meta,
)
from runtime.spool_read import SpoolReader, SpoolRecord, start_of

__all__ = ["START", "Position", "SpoolReader", "SpoolRecord", "SpoolWriter", "start_of"]

SEGMENT_BYTES: Final = 64 * 1024 * 1024
GROUP_COMMIT_MS: Final = 100
BUFFER_FULL_BYTES: Final = 32 * 1024 * 1024  # waiting for the disk: stop reading sockets
BUFFER_MAX_BYTES: Final = 256 * 1024 * 1024  # what was already read when `full` was said must fit
RETRY_S: Final = 0.5  # after a disk error
WRITE_CHUNKS: Final = 256  # given to one write; the system takes at most 1,024


@dataclass(slots=True)
class _Pending:
    """Bytes for one segment file, not yet known to be durable."""

    segment: int
    offset: int
    chunks: list[bytes]
    length: int


class _Disk:
    """The files. Runs in the writer's one thread; holds no decision but how to write."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._segment = -1
        self._file: int | None = None
        self._name_unsynced = False

    def write(self, pending: Sequence[_Pending]) -> None:
        """Write and sync; after an OSError the same list is given again, whole."""
        try:
            for part in pending:
                self._switch(part.segment)
                self._write_part(part)
            if self._file is not None:
                os.fdatasync(self._file)
        except OSError:
            self.close()  # a descriptor that failed a sync may hide the next failure
            raise

    def _switch(self, segment: int) -> None:
        if self._segment == segment and self._file is not None:
            return
        if self._file is not None:
            os.fdatasync(self._file)
        self.close()
        path = self._directory / segment_name(segment)
        self._name_unsynced |= not path.exists()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._segment = segment
        if self._name_unsynced:
            sync_directory(self._directory)
            self._name_unsynced = False

    def _write_part(self, part: _Pending) -> None:
        assert self._file is not None, "a segment is open before its bytes are written"
        offset = part.offset
        for begin in range(0, len(part.chunks), WRITE_CHUNKS):
            left = [memoryview(chunk) for chunk in part.chunks[begin : begin + WRITE_CHUNKS]]
            while left:
                written = os.pwritev(self._file, left, offset)
                offset += written
                while left and written >= len(left[0]):
                    written -= len(left.pop(0))
                if left:
                    left[0] = left[0][written:]

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
        self._file = None


class SpoolWriter:
    """Appends to one spool directory. Made by `SpoolWriter.open`; used from one event loop.

    Run `run()` as a task: it is the group commit. `state` gives the payload of the STATE record
    that begins a new segment; it is called inside `append`, before the record that does not fit any
    more, and must describe the effect of every record appended so far.
    """

    def __init__(
        self,
        directory: Path,
        meta: SpoolMeta,
        found: Recovery,
        *,
        state: Callable[[], bytes],
        segment_bytes: int = SEGMENT_BYTES,
        group_commit_ms: int = GROUP_COMMIT_MS,
        lock_handle: int,
    ) -> None:
        assert HEADER_BYTES < segment_bytes <= SEGMENT_BYTES_MAX, segment_bytes
        self.directory = directory
        self.meta = meta
        self.recovery = found
        self.problem: str | None = None  # what the disk says, None when it takes our bytes
        self.bytes_appended = 0
        self.records_appended = 0
        self.commits = 0
        self.commit_errors = 0
        self.on_commit: Callable[[float], None] = lambda _: None  # seconds of each group commit
        self._state = state
        self._segment_bytes = segment_bytes
        self._group_commit_s = group_commit_ms / 1000
        self._lock = lock_handle
        self._disk = _Disk(directory)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._end = found.end
        self._durable = found.end
        self._sealed = found.sealed
        self._records = found.records  # in the segment of `_end`
        self._next_number = max(numbers_in_use(directory), default=0) + 1
        self._pending: list[_Pending] = []
        self._buffered = 0
        self._appended = asyncio.Event()
        self._moved = asyncio.Event()
        self._commit_lock = asyncio.Lock()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        state: Callable[[], bytes],
        created_ns: int,
        id_base: int,
        segment_bytes: int = SEGMENT_BYTES,
        group_commit_ms: int = GROUP_COMMIT_MS,
    ) -> SpoolWriter:
        """Open or make a spool: take the lock, cut a torn tail, sync what is there.

        `created_ns` and `id_base` are written when the spool is new; an old one keeps its own
        (`.meta`). Reads the last segment: run it before the event loop is busy.

        Raises:
            StorageError: the disk refuses, another process has the lock, or segments lie there
                without the SPOOL.json that gives them their identity.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            handle = lock(directory)
        except OSError as error:
            raise StorageError(f"cannot use {directory} as spool: {error}") from error
        try:
            meta = _identity(directory, created_ns, id_base)
            found = recover(directory)
        except OSError as error:
            os.close(handle)
            raise StorageError(f"cannot recover the spool {directory}: {error}") from error
        except StorageError:
            os.close(handle)
            raise
        return cls(
            directory,
            meta,
            found,
            state=state,
            segment_bytes=segment_bytes,
            group_commit_ms=group_commit_ms,
            lock_handle=handle,
        )

    @property
    def end(self) -> Position:
        """The position after the last appended record."""
        return self._end

    @property
    def durable(self) -> Position:
        """Everything before this position survives a power cut."""
        return self._durable

    @property
    def buffered_bytes(self) -> int:
        """Appended and not yet durable."""
        return self._buffered

    @property
    def full(self) -> bool:
        """Whether the caller must stop taking frames in, until `room` returns."""
        return self._buffered >= BUFFER_FULL_BYTES

    def append(self, kind: int, payload: bytes) -> Position:
        """Append one record in memory; returns the position after it.

        Raises:
            StorageError: BUFFER_MAX_BYTES wait for the disk; the caller went on after `full`.
        """
        if self._buffered >= BUFFER_MAX_BYTES:
            raise StorageError(
                f"{self._buffered} bytes wait for the spool's disk ({self.problem or 'slow'})",
                hint="stop reading while the spool is full",
            )
        record = encode_record(kind, payload)
        if self._sealed:
            self._begin_segment()
        elif self._end.offset + len(record) > self._segment_bytes and self._records > 0:
            self._seal()
            self._begin_segment()
        self._add(record)
        self._appended.set()
        return self._end

    def append_frames(
        self,
        conn: int,
        ordinal: int,
        base_ns: int,
        stamps_ns: Sequence[int] | None,
        frames: Sequence[Bytes],
    ) -> Position:
        """Append a FRAMES record; see marketdata.segment.encode_frames."""
        return self.append(KIND_FRAMES, encode_frames(conn, ordinal, base_ns, stamps_ns, frames))

    def append_control(self, body: Mapping[str, Any]) -> Position:
        """Append a CONTROL record: `k`, `conn`, `received_ns` and what its kind adds."""
        return self.append(KIND_CONTROL, _json(body))

    def append_markets(self, ids: Mapping[str, int]) -> Position:
        """Append a MARKET record: ids given since the last one."""
        return self.append(KIND_MARKET, _json({"ids": dict(ids)}))

    def _seal(self) -> None:
        self._add(encode_record(KIND_SEAL, encode_seal(self._records)))
        self._sealed = True

    def _begin_segment(self) -> None:
        number = self._next_number
        is_first = self._end == START
        state = None if is_first else encode_record(KIND_STATE, self._state())
        self._next_number += 1
        self._end, self._records, self._sealed = Position(number, 0), 0, False
        self._put(encode_header(number))
        if state is not None:
            self._add(state)

    def _add(self, record: bytes) -> None:
        self._put(record)
        self._records += 1
        self.records_appended += 1

    def _put(self, body: bytes) -> None:
        """Put bytes behind what is there, in memory."""
        segment, offset = self._end
        last = self._pending[-1] if self._pending else None
        if last is None or last.segment != segment:
            last = _Pending(segment, offset, [], 0)
            self._pending.append(last)
        last.chunks.append(body)
        last.length += len(body)
        self._end = Position(segment, offset + len(body))
        self._buffered += len(body)
        self.bytes_appended += len(body)

    async def run(self) -> None:
        """The group commit: for ever, every GROUP_COMMIT_MS in which something was appended."""
        while True:
            await self._appended.wait()
            await asyncio.sleep(self._group_commit_s)
            await self.sync()

    async def sync(self) -> None:
        """Return when everything appended before this call is durable; retries a failing disk."""
        goal = self._end
        while self._durable < goal:
            async with self._commit_lock:
                if self._durable < goal and not await self._commit():
                    await asyncio.sleep(RETRY_S)

    async def _commit(self) -> bool:
        """Write and sync what is pending now. False, with `problem` set, when the disk refused."""
        if not self._pending:
            return True
        taken, self._pending = self._pending, []
        end, size = self._end, self._buffered
        self._appended.clear()
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        write = loop.run_in_executor(self._thread, self._disk.write, taken)
        try:
            await asyncio.shield(write)
        except OSError as error:
            self._put_back(taken)
            self.problem = f"{type(error).__name__}: {error.strerror or error}"
            self.commit_errors += 1
            self._appended.set()
            return False
        except asyncio.CancelledError:
            # The thread goes on; wait for its end so that nothing is written twice at once.
            while not write.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([write])
            if write.exception() is None:
                self._settle(end, size)
            else:
                self._put_back(taken)
                self._appended.set()
            raise
        self._settle(end, size)
        self.on_commit(loop.time() - began_s)
        return True

    def _put_back(self, taken: list[_Pending]) -> None:
        """After an error: what was taken goes before what came meanwhile, at its own offsets."""
        self._pending = taken + self._pending

    def _settle(self, end: Position, size: int) -> None:
        self._durable = end
        self._buffered -= size
        self.problem = None
        self.commits += 1
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def wait_beyond(self, position: Position) -> Position:
        """Return the durable position as soon as it lies behind `position`: the tail has grown."""
        while self._durable <= position:
            await self._moved.wait()
        return self._durable

    async def room(self) -> None:
        """Return when `full` is over."""
        while self.full:
            await self._moved.wait()

    async def close(self, *, clean: bool = True) -> None:
        """Append END (a clean stop), make all durable, give the lock back.

        With `clean=False` nothing is appended and what is not durable is given up, as in a crash.
        """
        if clean:
            self.append(KIND_END, b"")
            await self.sync()
        await asyncio.to_thread(self._thread.shutdown)
        self._disk.close()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def reader(self, position: Position) -> SpoolReader:
        """A reader of this spool that follows the durable tail."""
        return SpoolReader(self.directory, position, durable=lambda: self._durable)


def _identity(directory: Path, created_ns: int, id_base: int) -> SpoolMeta:
    """The spool's own SPOOL.json, made when the directory holds nothing of a spool."""
    meta = read_meta(directory)
    if meta is not None:
        return meta
    if numbers_in_use(directory):
        raise StorageError(
            f"{directory} holds segments but no SPOOL.json",
            hint="move them away to begin a new spool; they stay readable",
        )
    meta = SpoolMeta(uuid.uuid4(), created_ns, id_base)
    write_meta(directory, meta)
    return meta


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
