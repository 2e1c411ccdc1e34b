"""The spool's directory: names, identity, recovery after a crash, compression, retention.

Purpose: everything about the files of docs/formats.md section 1 that is not appending or reading
records.

What holds:
- A file that is not ours is never changed or removed; it is named in `SpoolFiles.foreign`.
- A torn tail is copied to `torn/` and synced before the segment is cut.
- A compressed segment replaces the plain one only after its bytes were read back and compared.
- A segment is removed only when it lies wholly before the cursor that the caller gives.

Does not do: appending (runtime.spool), reading (runtime.spool_read), bytes (marketdata.segment).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import zstandard

from marketdata.errors import SegmentError, StorageError
from marketdata.segment import HEADER_BYTES, KIND_SEAL, scan

FORMAT: Final = 1
META_NAME: Final = "SPOOL.json"
LOCK_NAME: Final = "SPOOL.lock"
TORN_NAME: Final = "torn"
SEGMENT_BYTES_MAX: Final = 1024 * 1024 * 1024  # of one segment, before compression
COMPRESSION_LEVEL: Final = 3
TORN_MAX: Final = 10_000  # torn tails kept at one place
LOOKS_MAX: Final = 100  # a listing is repeated when a file vanished while it was looked at
RETAIN_BYTES: Final = 20 * 1024**3  # of segments that every consumer has passed

_SEGMENT: Final = re.compile(r"^(\d{8})\.seg(\.zst)?$")
_INDEX: Final = re.compile(r"^\d{8}\.idx$")
_UNFINISHED: Final = re.compile(r"^(\d{8}\.(seg\.zst|idx)|SPOOL\.json)\.part$")


class Position(NamedTuple):
    """A place in a spool: segment number and offset in its uncompressed bytes. Ordered."""

    segment: int
    offset: int


START: Final = Position(0, 0)


@dataclass(frozen=True, slots=True)
class SpoolMeta:
    """SPOOL.json: what a spool is. `id_base`: where this spool's market, run and conn ids begin."""

    spool_uid: uuid.UUID
    created_ns: int
    id_base: int


@dataclass(slots=True)
class SpoolFiles:
    """What lies in a spool directory. `segments`: number -> path, ascending."""

    segments: dict[int, Path] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What opening a spool found. `sealed`: the last segment is finished, the next append opens a
    new one."""

    end: Position
    sealed: bool
    records: int  # whole records in the last segment
    torn: tuple[str, ...]  # files that now hold what was cut off
    foreign: tuple[str, ...]


def segment_name(number: int) -> str:
    """File name of a segment that is being written or is not compressed."""
    return f"{number:08d}.seg"


def index_name(number: int) -> str:
    """File name of a segment's index (runtime.spool_index)."""
    return f"{number:08d}.idx"


def sync_directory(directory: Path) -> None:
    """Make names that were added to or removed from a directory durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, body: bytes) -> None:
    """Write a whole file so that after a crash it is either the old or the new one."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as target:
        target.write(body)
        target.flush()
        os.fsync(target.fileno())
    part.replace(path)
    sync_directory(path.parent)


def read_meta(directory: Path) -> SpoolMeta | None:
    """SPOOL.json, None when there is none yet."""
    path = directory / META_NAME
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        body = json.loads(text)
        if body["format"] != FORMAT:
            raise StorageError(f"{path} says format {body['format']}, this program knows {FORMAT}")
        return SpoolMeta(
            uuid.UUID(str(body["spool_uid"])), int(body["created_ns"]), int(body["id_base"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} is damaged: {error}", hint="move the directory away, a new spool is made"
        ) from error


def write_meta(directory: Path, meta: SpoolMeta) -> None:
    """Write SPOOL.json of a new spool."""
    body = {
        "format": FORMAT,
        "spool_uid": str(meta.spool_uid),
        "created_ns": meta.created_ns,
        "id_base": meta.id_base,
    }
    write_durably(directory / META_NAME, json.dumps(body).encode("ascii") + b"\n")


def lock(directory: Path) -> int:
    """Take the writer's lock; the returned descriptor holds it until it is closed."""
    handle = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise StorageError(
            f"the spool {directory} is in use by another process", hint="stop that process first"
        ) from error
    return handle


def look(directory: Path) -> SpoolFiles:
    """List a spool directory. A plain segment wins over its compressed twin (a crash left both)."""
    for _ in range(LOOKS_MAX):
        try:
            return _look_once(directory)
        except FileNotFoundError:
            if not directory.is_dir():
                raise
            # A segment was compressed meanwhile: its other name may be missing from this listing.
    raise StorageError(f"{directory} changes faster than it can be listed")


def _look_once(directory: Path) -> SpoolFiles:
    found = SpoolFiles()
    for name in sorted(entry.name for entry in directory.iterdir()):
        path = directory / name
        match = _SEGMENT.match(name)
        if match is None or path.is_dir():
            ours = name in {META_NAME, LOCK_NAME, TORN_NAME} or _UNFINISHED.match(name)
            if not ours and _INDEX.match(name) is None:
                found.foreign.append(name)
        elif match[2] is None and not _is_ours(path):
            found.foreign.append(name)
        else:
            found.segments.setdefault(int(match[1]), path)
    return found


def _is_ours(path: Path) -> bool:
    """Whether a file begins like a segment; an empty one is a segment whose header was lost."""
    with path.open("rb") as source:
        head = source.read(HEADER_BYTES)
    try:
        scan(head)
    except SegmentError:
        return False
    return True


def numbers_in_use(directory: Path) -> set[int]:
    """Every segment number that a file name of the directory bears, foreign files included."""
    matches = (_SEGMENT.match(entry.name) for entry in directory.iterdir())
    return {int(match[1]) for match in matches if match is not None}


def recover(directory: Path) -> Recovery:
    """Bring the last segment to its valid prefix and make what is there durable.

    Called by the writer, under its lock, before anything is appended.
    """
    for entry in directory.iterdir():
        if _UNFINISHED.match(entry.name) is not None:
            entry.unlink()  # a copy of what still lies beside it
    torn: list[str] = []
    while True:
        found = look(directory)
        end, sealed, records = START, True, 0
        if found.segments:
            number, path = max(found.segments.items())
            if path.suffix == ".zst":  # only sealed segments are compressed
                end = Position(number, plain_size(path))
            else:
                records, last_kind, end_offset = _cut_torn_tail(directory, number, path, torn)
                if end_offset == 0:
                    continue  # not one record survived: the file went to torn/ whole
                end, sealed = Position(number, end_offset), last_kind == KIND_SEAL
        return Recovery(end, sealed, records, tuple(torn), tuple(found.foreign))


def _cut_torn_tail(
    directory: Path, number: int, path: Path, torn: list[str]
) -> tuple[int, int, int]:
    """Whole records, kind of the last one, and length of the valid prefix; the rest is moved.

    A damaged header does not spoil the records behind it: each has its own checksum. A segment
    without a record goes whole, its header too: what is appended to a segment follows its STATE.
    """
    body = path.read_bytes()
    records = last_kind = end = 0
    if len(body) >= HEADER_BYTES:
        reader = scan(body, HEADER_BYTES)
        for record in reader:
            records, last_kind = records + 1, record.kind
        end = reader.end_offset
    if records == 0:
        end = 0
    if end < len(body):
        torn.append(_keep_torn(directory, number, end, body[end:]))
    if end == 0:
        path.unlink()
        sync_directory(directory)
        return 0, 0, 0
    with path.open("r+b") as target:
        target.truncate(end)
        os.fsync(target.fileno())
    sync_directory(directory)
    return records, last_kind, end


def _keep_torn(directory: Path, number: int, offset: int, body: bytes) -> str:
    """Store a torn tail beside the segments; a second one at the same place gets a counter."""
    folder = directory / TORN_NAME
    folder.mkdir(exist_ok=True)
    for count in range(TORN_MAX):
        name = f"{number:08d}-{offset:010d}" + (f"-{count}" if count else "") + ".bin"
        if not (folder / name).exists():
            write_durably(folder / name, body)
            sync_directory(directory)
            return f"{TORN_NAME}/{name}"
    raise StorageError(f"{folder} holds {TORN_MAX} torn tails of segment {number} at {offset}")


def torn_count(directory: Path) -> int:
    """How many torn tails were kept since the spool was made."""
    folder = directory / TORN_NAME
    return sum(1 for _ in folder.glob("*.bin")) if folder.is_dir() else 0


def plain_size(path: Path) -> int:
    """Uncompressed length of a compressed segment, from its header."""
    with path.open("rb") as source:
        head = source.read(64)
    try:
        size = zstandard.frame_content_size(head)
    except zstandard.ZstdError as error:
        raise StorageError(f"{path} is not a compressed segment: {error}") from error
    if not HEADER_BYTES <= size <= SEGMENT_BYTES_MAX:
        raise StorageError(f"{path} claims {size} bytes, no segment of ours has that many")
    return int(size)


def sealed_size(directory: Path, number: int) -> int:
    """Uncompressed length of a segment that is not written any more; 0 where it is not there."""
    plain = directory / segment_name(number)
    try:
        return plain.stat().st_size
    except FileNotFoundError:
        packed = plain.with_name(f"{plain.name}.zst")
        return plain_size(packed) if packed.exists() else 0


def load(path: Path) -> bytes:
    """The whole uncompressed bytes of a compressed segment."""
    size = plain_size(path)
    try:
        body = zstandard.ZstdDecompressor().decompress(path.read_bytes(), max_output_size=size)
    except zstandard.ZstdError as error:
        raise StorageError(f"{path} does not decompress: {error}") from error
    if len(body) != size:
        raise StorageError(f"{path} holds {len(body)} bytes and claims {size}")
    return body


def compress(path: Path) -> Path:
    """Replace a sealed segment by its compressed form. Run it in a thread: it takes seconds.

    A crash at any point leaves the plain file, or both, or the compressed one.
    """
    body = path.read_bytes()
    target = path.with_name(path.name + ".zst")
    write_durably(
        target, zstandard.ZstdCompressor(COMPRESSION_LEVEL, write_checksum=True).compress(body)
    )
    if load(target) != body:
        target.unlink()
        raise StorageError(f"{target} read back differs from {path}; the plain segment is kept")
    path.unlink()
    sync_directory(path.parent)
    return target


def compress_sealed(directory: Path, before: Position, count_max: int = 4) -> list[Path]:
    """Compress sealed segments wholly before `before` (the slowest consumer), oldest first."""
    done: list[Path] = []
    for number, path in sorted(look(directory).segments.items()):
        if number >= before.segment or len(done) >= count_max:
            break
        if path.suffix == ".seg":
            done.append(compress(path))
    return done


def retain(
    directory: Path, before: Position, retain_bytes: int = RETAIN_BYTES, oldest_ns: int = 0
) -> list[str]:
    """Remove the oldest segments wholly before `before` while together they exceed the limit, or
    while they were last written before `oldest_ns` (wall clock)."""
    passed = [(n, p) for n, p in sorted(look(directory).segments.items()) if n < before.segment]
    total = sum(path.stat().st_size for _, path in passed)
    removed: list[str] = []
    for number, path in passed:
        found = path.stat()
        if total <= retain_bytes and found.st_mtime_ns >= oldest_ns:
            break
        total -= found.st_size
        path.unlink()
        (directory / index_name(number)).unlink(missing_ok=True)
        removed.append(path.name)
    if removed:
        sync_directory(directory)
    return removed
