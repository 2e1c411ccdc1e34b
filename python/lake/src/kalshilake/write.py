"""Writing hours and committing versions.

Purpose: `write_hour` makes one object from the rows of an hour (encode), stores it and certifies
it. `commit_version` adds records to the lake's list. Until a version lists it an object does not
exist. An hour that was joined with others (joined, compact) is written into the joined object.

Invariants:
    L-9  whatever byte a writer dies at, the newest version stays readable, and repeating the
         calls gives the lake an undisturbed writer would have left. Bytes that a later export of
         an hour replaces are kept first under superseded/, where pinned readers find them.
    L-10 of two writers that commit at once both find their records in the chain; no version is
         ever replaced.

Does not do: sorting and encoding (encode), choosing what an hour holds, deleting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kalshilake import paths
from kalshilake.encode import Parts, encode_into, spooled
from kalshilake.joined import absorbed, joined_of, put_object, put_record, stored_sha256
from kalshilake.manifest import LakeVersion, ObjectRecord, decode_hour, next_version
from kalshilake.schema import spec_of
from kalshilake.store import Store
from marketdata.errors import LakeError

COMMIT_ATTEMPTS: Final = 16


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
    with spooled() as body:
        record = encode_into(body, spec, hour_us, rows)
        if _is_joined(store, record):
            kept = paths.superseded_key(record.sha256)
            if stored_sha256(store, kept) != record.sha256:
                store.put(kept, body)
        else:
            put_object(store, record, body)
    put_record(store, record, watermark_us, dict(extra or {}))
    return record


def _is_joined(store: Store, record: ObjectRecord) -> bool:
    """Whether the newest version has this hour in an object of several hours: then its own object
    would be a second one of the hour to engines that read all objects of a day.

    Looked up in the version only where a commit record of several hours lies beside the hour.
    """
    beside = f"{record.key.rpartition('/')[0]}/_manifest-"
    if not any(found.key.endswith("h.json") for found in store.list(beside)):
        return False
    head = load_head(store)
    return head is not None and joined_of(head.version.objects, record) is not None


def read_hour_record(store: Store, table: str, hour_us: int) -> ObjectRecord | None:
    """The record beside an hour's object, None where the hour was never written."""
    key = paths.hour_manifest_key(table, hour_us)
    return None if store.size(key) is None else decode_hour(store.get(key), key)[0]


def commit_version(
    store: Store,
    records: Iterable[ObjectRecord],
    *,
    watermark_us: int,
    joins: Iterable[ObjectRecord] = (),
) -> Commit:
    """Add a version that lists `records` (in place of equal keys) and everything before.

    Nothing is written if nothing changes. A writer that loses the race for a number takes the
    winner's version as its base and tries the next. An hour that is joined with others there
    changes the joined object. `joins`: what records of several hours were made from; LakeError
    where the version before lists other bytes of these hours. LakeError after COMMIT_ATTEMPTS
    losses.
    """
    wanted, made_from = tuple(records), {part.key: part for part in joins}
    for _ in range(COMMIT_ATTEMPTS):
        head = load_head(store)
        objects = () if head is None else head.version.objects
        listed = _listed(store, objects, wanted, watermark_us)
        for record in listed:
            if store.size(record.key) != record.bytes:
                raise LakeError(f"{record.key}: not in {store.location} as it was written")
            _check_joins(objects, record, made_from)
        made = next_version(
            None if head is None else (head.version, head.sha256), listed, watermark_us
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


def _listed(
    store: Store,
    objects: Iterable[ObjectRecord],
    wanted: Iterable[ObjectRecord],
    watermark_us: int,
) -> list[ObjectRecord]:
    """The records for a version: of hours that `objects` join, the joined objects, rewritten."""
    joined = [o for o in objects if o.hours > 1]
    plain: list[ObjectRecord] = []
    changed: dict[str, tuple[ObjectRecord, list[ObjectRecord]]] = {}
    for record in wanted:
        into = joined_of(joined, record)
        if into is None:
            plain.append(record)
        else:
            changed.setdefault(into.key, (into, []))[1].append(record)
    return plain + [absorbed(store, into, hours, watermark_us) for into, hours in changed.values()]


def _check_joins(
    objects: Iterable[ObjectRecord], record: ObjectRecord, made_from: Mapping[str, ObjectRecord]
) -> None:
    """What a version lists of the hours that are joined is what they were joined from."""
    if record.hours == 1 or not made_from:
        return
    for listed in objects:
        if record.covers(listed) and listed.hours == 1 and made_from.get(listed.key) != listed:
            raise LakeError(f"{listed.key} changed while it was joined", hint="run it again")


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
