"""S3 as a store. Needs the extra `kalshilake[s3]`.

Purpose: put, conditional put, ranged get and list with exactly the rights the deduplicator's role
has: s3:PutObject, s3:GetObject, s3:ListBucket. One put an object, no multipart upload: the role
could not abort one. `delete` needs s3:DeleteObject, which only whoever compacts a lake has.

Checked on both sides: every put carries a SHA-256 that S3 compares with what arrived.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NoReturn

import boto3
import pyarrow as pa
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from kalshilake.store import Body, StoredObject, check_key, check_size, pieces
from marketdata.errors import LakeError, StorageError

ATTEMPTS: Final = 8
DELETE_KEYS: Final = 1_000  # in one request; S3 takes no more
_ABSENT: Final = frozenset({"NoSuchKey", "404", "NotFound"})
_TAKEN: Final = frozenset({"PreconditionFailed", "412"})


class S3Store:
    """A bucket and a prefix as a store."""

    def __init__(self, bucket: str, prefix: str, client: Any) -> None:
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._client = client

    @classmethod
    def from_uri(cls, uri: str) -> S3Store:
        """The store at `s3://bucket/prefix`; region and credentials as boto3 finds them."""
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise LakeError(f"{uri!r} names no bucket", hint="s3://bucket/prefix")
        config = Config(retries={"mode": "adaptive", "total_max_attempts": ATTEMPTS})
        return cls(bucket, prefix, boto3.client("s3", config=config))

    @property
    def location(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def get(self, key: str) -> bytes:
        try:
            reply = self._client.get_object(Bucket=self._bucket, Key=self._full(key))
            return bytes(reply["Body"].read())
        except (ClientError, BotoCoreError) as e:
            self._refused(key, e)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        return self._range(key, offset, length, {})

    def _range(self, key: str, offset: int, length: int, condition: dict[str, str]) -> bytes:
        if length <= 0:
            return b""
        try:
            reply = self._client.get_object(
                Bucket=self._bucket,
                Key=self._full(key),
                Range=f"bytes={offset}-{offset + length - 1}",
                **condition,
            )
            return bytes(reply["Body"].read())
        except (ClientError, BotoCoreError) as e:
            if _code(e) == "InvalidRange":
                return b""
            self._refused(key, e)

    def size(self, key: str) -> int | None:
        try:
            reply = self._client.head_object(Bucket=self._bucket, Key=self._full(key))
        except (ClientError, BotoCoreError) as e:
            if _code(e) in _ABSENT:
                return None
            self._refused(key, e)
        return int(reply["ContentLength"])

    def put(self, key: str, body: Body) -> None:
        self._put(key, body, {})

    def put_if_absent(self, key: str, body: bytes) -> bool:
        return self._put(key, body, {"IfNoneMatch": "*"})

    def _put(self, key: str, body: Body, condition: dict[str, str]) -> bool:
        check_size(body)
        sha256 = hashlib.sha256()
        for piece in pieces(body):
            sha256.update(piece)
        digest = base64.b64encode(sha256.digest()).decode()
        full = self._full(key)
        for _ in range(ATTEMPTS):
            if not isinstance(body, bytes):
                body.seek(0)
            try:
                self._client.put_object(
                    Bucket=self._bucket, Key=full, Body=body, ChecksumSHA256=digest, **condition
                )
            except (ClientError, BotoCoreError) as e:
                if condition and _code(e) in _TAKEN:
                    return False
                if condition and _code(e) == "ConditionalRequestConflict":
                    continue  # another put of this key was under way: ask again who won
                self._refused(key, e)
            return True
        raise StorageError(f"{key}: {ATTEMPTS} conditional writes conflicted in {self.location}")

    def list(self, prefix: str) -> Iterator[StoredObject]:
        pages = self._client.get_paginator("list_objects_v2")
        try:
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for entry in page.get("Contents", ()):
                    yield StoredObject(entry["Key"][len(self._prefix) :], int(entry["Size"]))
        except (ClientError, BotoCoreError) as e:
            self._refused(prefix, e)

    def open(self, key: str) -> pa.NativeFile:
        """Ranged reads of one state of the object: one that was replaced meanwhile is refused.

        Each read is one request for just these bytes: whoever reads much at once says so
        (`pre_buffer` of pyarrow joins what lies together).
        """
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=self._full(key))
        except (ClientError, BotoCoreError) as e:
            self._refused(key, e)
        condition = {"IfMatch": head["ETag"]}
        reader = _RangeReader(
            lambda offset, length: self._range(key, offset, length, condition),
            int(head["ContentLength"]),
        )
        return pa.PythonFile(reader, mode="r")

    def delete(self, keys: Sequence[str]) -> None:
        for at in range(0, len(keys), DELETE_KEYS):
            some = [{"Key": self._full(key)} for key in keys[at : at + DELETE_KEYS]]
            try:
                reply = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": some, "Quiet": True}
                )
            except (ClientError, BotoCoreError) as e:
                self._refused(keys[at], e)
            for refused in reply.get("Errors", ()):
                key = str(refused.get("Key"))
                raise StorageError(f"{key}: {self.location} refused: {refused.get('Code')}")

    def _full(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _refused(self, key: str, error: Exception) -> NoReturn:
        if _code(error) in _ABSENT:
            raise LakeError(f"{key} is not in {self.location}") from None
        if _code(error) in _TAKEN:
            raise LakeError(f"{key} was replaced while it was read", hint="read again") from None
        raise StorageError(f"{key}: {self.location} refused: {error}") from error


class _RangeReader(io.RawIOBase):
    """Random reading by ranged gets."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._fetch = fetch
        self._bytes = size
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self._bytes}[whence]
        self._offset = max(0, base + offset)
        return self._offset

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._bytes - self._offset)
        if wanted <= 0:
            return 0
        found = self._fetch(self._offset, wanted)
        buffer[: len(found)] = found
        self._offset += len(found)
        return len(found)


def _code(error: Exception) -> str:
    """S3's error code; empty for a failure before S3 answered."""
    return str(error.response["Error"].get("Code", "")) if isinstance(error, ClientError) else ""
