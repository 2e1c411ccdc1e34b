"""Writing hours and committing versions.

Purpose: `write_hour` makes one object from the rows of an hour (encode), stores it and certifies
it. `commit_version` adds records to the lake's list. Until a version lists it an object does not
exist.

Invariants:
    L-9  whatever byte a writer dies at, the newest version stays readable, and repeating the
         calls gives the lake an undisturbed writer would have left. Bytes that a later export of
         an hour replaces are kept first under superseded/, where pinned readers find them.
    L-10 of two writers that commit at once both find their records in the chain; no version is
         ever replaced.

Does not do: sorting and encoding (encode), choosing what an hour holds, deleting, merging small
objects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kalshilake import paths
from kalshilake.encode import Parts, encode_into, spooled
from kalshilake.manifest import (
    LakeVersion,
    ObjectRecord,
    decode_hour,
    encode_hour,
    next_version,
)
from kalshilake.schema import spec_of
from kalshilake.store import Store
from marketdata.errors import LakeError

COMMIT_ATTEMPTS: Final = 16
CHECK_BYTES: Final = 8 * 1024 * 1024  # of an object that is read to be checked, in memory at once


@dataclass(frozen=True, slots=True)
class Commit:
    """A version in the chain and the SHA-256 of its bytes: what a reader cites."""

    version: LakeVersion
    sha256: str
    changed: bool


def write_hour(
    store: Store,
    table: str,
    hour_us: int,
    rows: Parts,
    *,
    watermark_us: int,
    extra: Mapping[str, Any] | None = None,
) -> ObjectRecord:
    """Write one object and its commit record; the record is for `commit_version`.

    `rows`: a table in any order, or parts that follow each other in the table's order (encode).
    `hour_us` is the hour's first microsecond; every row's time column must lie in that hour.
    `watermark_us` and `extra` (JSON values) go to the commit record only, never into the object.
    An hour whose bytes are already there is not written again. Raises LakeError for rows that do
    not fit the table, StorageError where the store refuses.
    """
    spec = spec_of(table)
    key = paths.object_key(table, hour_us)
    with spooled() as body:
        record = encode_into(body, spec, hour_us, rows)
        before = _stored_sha256(store, key)
        if before != record.sha256:
            if before is not None:
                store.put_if_absent(paths.superseded_key(before), store.get(key))
            store.put(key, body)
            if _stored_sha256(store, key) != record.sha256:
                raise LakeError(f"{key}: {store.location} gave back other bytes than were written")
    commit = encode_hour(record, watermark_us, dict(extra or {}))
    hour_key = paths.hour_manifest_key(table, hour_us)
    if store.size(hour_key) is None or store.get(hour_key) != commit:
        store.put(hour_key, commit)
    return record


def _stored_sha256(store: Store, key: str) -> str | None:
    """SHA-256 of the object as the store gives it, None where there is none."""
    size = store.size(key)
    if size is None:
        return None
    digest = hashlib.sha256()
    for at in range(0, size, CHECK_BYTES):
        digest.update(store.get_range(key, at, min(CHECK_BYTES, size - at)))
    return digest.hexdigest()


def read_hour_record(store: Store, table: str, hour_us: int) -> ObjectRecord | None:
    """The record beside an hour's object, None where the hour was never written."""
    key = paths.hour_manifest_key(table, hour_us)
    return None if store.size(key) is None else decode_hour(store.get(key), key)[0]


def commit_version(store: Store, records: Iterable[ObjectRecord], *, watermark_us: int) -> Commit:
    """Add a version that lists `records` (in place of equal keys) and everything before.

    Nothing is written if nothing changes. A writer that loses the race for a number takes the
    winner's version as its base and tries the next. LakeError after COMMIT_ATTEMPTS losses.
    """
    wanted = tuple(records)
    for record in wanted:
        if store.size(record.key) != record.bytes:
            raise LakeError(f"{record.key}: not in {store.location} as it was written")
    for _ in range(COMMIT_ATTEMPTS):
        head = load_head(store)
        made = next_version(
            None if head is None else (head.version, head.sha256), wanted, watermark_us
        )
        if made is None:
            assert head is not None, "only an existing version can be unchanged"
            return head
        body = made.encode()
        if store.put_if_absent(paths.version_key(made.version), body):
            return Commit(made, _sha256(body), changed=True)
    raise LakeError(
        f"{COMMIT_ATTEMPTS} other writers committed to {store.location} meanwhile",
        hint="one deduplicator writes a lake",
    )


def load_head(store: Store) -> Commit | None:
    """The newest version, None in a lake without any."""
    numbers = [
        n
        for o in store.list(paths.MANIFEST_PREFIX)
        if (n := paths.parse_version_key(o.key)) is not None
    ]
    return load_version(store, max(numbers)) if numbers else None


def load_version(store: Store, number: int) -> Commit:
    """One version by number. Raises LakeError if it is absent or altered."""
    key = paths.version_key(number)
    raw = store.get(key)
    version = LakeVersion.decode(raw, key)
    if version.version != number:
        raise LakeError(f"{key}: calls itself version {version.version}")
    return Commit(version, _sha256(raw), changed=False)


def _sha256(body: bytes | memoryview) -> str:
    return hashlib.sha256(body).hexdigest()
