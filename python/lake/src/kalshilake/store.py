"""Where a lake lies: a small interface, and the directory form of it.

Purpose: put, put-if-absent, get, list over relative keys with `/`. The deduplicator's role has no
right to delete: `delete` is for `kalshilake.compact` alone, which a person runs who has it.

Durability of LocalStore: `put` and `put_if_absent` return after the bytes and their directory
entry are synced; a reader sees the old object or the new one, never a part. Unfinished writes lie
under `.tmp/` and are no part of the lake; what a killed process left there, the next writer on that
host takes away before its first write.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final, Protocol, TypeAlias

import pyarrow as pa

from marketdata.errors import LakeError, StorageError

TEMPORARY: Final = ".tmp"
PIECE_BYTES: Final = 1 << 20  # of a file, in memory at once
MAX_OBJECT_BYTES: Final = 2 << 30  # an hour of one table; S3 takes 5 GiB in one put


Body: TypeAlias = bytes | IO[bytes]
"""What is stored: bytes, or a file that can be sought, from its beginning to its end."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A key that exists and its size in bytes."""

    key: str
    bytes: int


class Store(Protocol):
    """What a lake needs of a place. Absent objects raise LakeError, refusals StorageError."""

    @property
    def location(self) -> str:
        """Where it is, for messages: a directory or s3://bucket/prefix."""

    def get(self, key: str) -> bytes:
        """The whole object."""

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer only at the end of the object."""

    def size(self, key: str) -> int | None:
        """Bytes of the object, None where there is none."""

    def put(self, key: str, body: Body) -> None:
        """Write or replace; atomic for readers, durable on return."""

    def put_if_absent(self, key: str, body: bytes) -> bool:
        """Write unless the key exists; False if it does. Of two writers exactly one gets True."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Every object whose key begins with `prefix`, in key order."""

    def open(self, key: str) -> pa.NativeFile:
        """The object for random reading."""

    def delete(self, keys: Sequence[str]) -> None:
        """Take these objects away, durable on return; those that are not there are no error."""


def check_size(body: Body) -> None:
    """LakeError where it is more than one object may hold."""
    size = len(body) if isinstance(body, bytes) else body.seek(0, os.SEEK_END)
    if size > MAX_OBJECT_BYTES:
        raise LakeError(f"an object of {size} bytes is over the limit {MAX_OBJECT_BYTES}")


def pieces(body: Body) -> Iterator[bytes]:
    """All of it, PIECE_BYTES at a time."""
    if isinstance(body, bytes):
        yield body
        return
    body.seek(0)
    while piece := body.read(PIECE_BYTES):
        yield piece


def check_key(key: str) -> str:
    """`key` if it stays inside a lake; LakeError otherwise."""
    path = PurePosixPath(key)
    if not key or path.is_absolute() or ".." in path.parts or str(path) != key or "\\" in key:
        raise LakeError(f"{key!r} is not a key inside a lake")
    return key


class LocalStore:
    """A directory as a store; made on the first write."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names = itertools.count(1)  # next() is atomic: threads may share a store
        self._host = socket.gethostname()  # a lake may lie on a disk that several hosts share
        self._swept = False

    @property
    def location(self) -> str:
        return str(self._root)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def get(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise _absent(key, self.location) from None
        except OSError as e:
            raise StorageError(f"{key}: {e.strerror} under {self._root}") from e

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        try:
            with self._path(key).open("rb") as f:
                f.seek(offset)
                return f.read(length)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise _absent(key, self.location) from None
        except OSError as e:
            raise StorageError(f"{key}: {e.strerror} under {self._root}") from e

    def size(self, key: str) -> int | None:
        path = self._path(key)
        return path.stat().st_size if path.is_file() else None

    def put(self, key: str, body: Body) -> None:
        path = self._path(key)
        try:
            temporary = self._write_temporary(body)
            self._make_folder(path.parent)
            temporary.replace(path)
            _sync_folder(path.parent)
        except OSError as e:
            raise StorageError(f"{key}: {e.strerror} under {self._root}") from e

    def put_if_absent(self, key: str, body: bytes) -> bool:
        path = self._path(key)
        try:
            temporary = self._write_temporary(body)
            try:
                self._make_folder(path.parent)
                os.link(temporary, path)  # refuses an existing name, unlike rename
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(path.parent)
        except OSError as e:
            raise StorageError(f"{key}: {e.strerror} under {self._root}") from e
        return True

    def list(self, prefix: str) -> Iterator[StoredObject]:
        # The folder part of the prefix bounds the walk; the rest is compared as text.
        folder = self._root / prefix.rpartition("/")[0]
        found = []
        for path in folder.rglob("*") if folder.is_dir() else ():
            key = path.relative_to(self._root).as_posix()
            if key.startswith(prefix) and not key.startswith(TEMPORARY + "/") and path.is_file():
                found.append(StoredObject(key, path.stat().st_size))
        yield from sorted(found, key=lambda o: o.key)

    def open(self, key: str) -> pa.NativeFile:
        path = self._path(key)
        try:
            return pa.memory_map(str(path)) if path.stat().st_size else pa.BufferReader(b"")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise _absent(key, self.location) from None
        except OSError as e:
            raise StorageError(f"{key}: {e.strerror} under {self._root}") from e

    def delete(self, keys: Sequence[str]) -> None:
        folders = set()
        for key in keys:
            path = self._path(key)
            try:
                path.unlink(missing_ok=True)
            except OSError as e:
                raise StorageError(f"{key}: {e.strerror} under {self._root}") from e
            folders.add(path.parent)
        for folder in folders:
            if folder.is_dir():
                _sync_folder(folder)

    def _write_temporary(self, body: Body) -> Path:
        check_size(body)
        folder = self._root / TEMPORARY
        folder.mkdir(parents=True, exist_ok=True)
        if not self._swept:  # two threads at once find the same and nothing of each other's
            _sweep_temporary(folder, self._host)
            self._swept = True
        path = folder / f"{self._host}.{os.getpid()}-{id(self)}-{next(self._names)}"
        with path.open("wb") as f:
            for piece in pieces(body):
                f.write(piece)
            f.flush()
            os.fsync(f.fileno())
        return path

    def _make_folder(self, folder: Path) -> None:
        """Make `folder`; each new name is synced in its parent, or a power cut could lose it."""
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            _sync_folder(path.parent)


def open_store(location: str | Path) -> Store:
    """The store at a directory or `s3://bucket/prefix`; nothing is read yet."""
    text = str(location)
    if text.startswith("s3://"):
        # boto3 is an extra: a reader of directories does without it.
        from kalshilake.s3 import S3Store  # noqa: PLC0415

        return S3Store.from_uri(text)
    if "://" in text:
        raise LakeError(
            f"{text!r} is no place for a lake", hint="a directory or s3://bucket/prefix"
        )
    return LocalStore(Path(text))


def _sweep_temporary(folder: Path, host: str) -> None:
    """Take away unfinished writes of processes of this host that are no more."""
    for path in folder.iterdir():
        owner, _, rest = path.name.rpartition(".")
        pid = rest.partition("-")[0]
        if owner == host and pid.isdigit() and not _lives(int(pid)):
            path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another account's
    return True


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _absent(key: str, location: str) -> LakeError:
    return LakeError(f"{key} is not in {location}")
