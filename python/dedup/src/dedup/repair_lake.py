"""What the lake lost, made again from production, byte for byte.

Purpose: production notes of every object its SHA-256 and how far the tape was closed when it was
exported. That is all it takes to make the object, its commit record and the list again.

What holds:
- An object is put back only if the bytes made now are those that were noted; others are told and
  left out: a lake with a hole that is known is better than one with another history.
- A list that was the newest is made again under its own number with its own bytes; where several
  are gone, one list takes their place.

Does not do: objects whose bytes were changed (`tape verify` finds those), bytes under superseded/,
hours that are exported again anyway (dedup.export).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from kalshilake import paths
from kalshilake.encode import Parts, encode_into, spooled
from kalshilake.manifest import ObjectRecord
from kalshilake.schema import spec_of
from kalshilake.store import Store
from kalshilake.write import read_hour_record
from marketdata.errors import LakeError
from runtime.postgres import Connection

CHECKED_US: Final = 48 * paths.US_PER_HOUR
"""Looked for at each start: what the last two days hold. A loss further back is no crash."""


@dataclass(frozen=True, slots=True)
class Noted:
    """One object as production knows it. `watermark_us` 0: from before it was noted."""

    key: str
    table: str
    hour_us: int
    n_bytes: int
    sha256: str
    watermark_us: int
    n_rows: int


async def noted_objects(conn: Connection, *, since_newest_us: int | None = None) -> list[Noted]:
    """What production says is in the lake, by key; `since_newest_us`: only so far back."""
    rows = await conn.fetch(
        "SELECT key, table_name, hour_us, n_bytes, sha256, watermark_us, n_rows FROM export_object"
        " WHERE $1::bigint IS NULL OR hour_us > (SELECT max(hour_us) FROM export_object) - $1"
        " ORDER BY key",
        since_newest_us,
    )
    return [Noted(*row) for row in rows]


def lost(store: Store, noted: Sequence[Noted]) -> list[Noted]:
    """Those that are not there whole: the object, or the commit record beside it. Of an hour that
    was joined with others (kalshilake.compact) the object is what lies under superseded/."""
    sizes: dict[str, int] = {}
    for folder in sorted({item.key.rpartition("/")[0] for item in noted}):
        sizes.update((found.key, found.bytes) for found in store.list(f"{folder}/"))
    joined = _joined_hours(sizes)
    return [
        item
        for item in noted
        if _size(store, sizes, item, joined) != item.n_bytes
        or paths.hour_manifest_key(item.table, item.hour_us) not in sizes
    ]


def _size(
    store: Store, sizes: dict[str, int], item: Noted, joined: frozenset[tuple[str, int]]
) -> int | None:
    if item.key not in sizes and (item.table, item.hour_us) in joined:
        return store.size(paths.superseded_key(item.sha256))
    return sizes.get(item.key)


def _joined_hours(keys: Iterable[str]) -> frozenset[tuple[str, int]]:
    """(table, hour) of everything that objects of several hours among these hold."""
    made: set[tuple[str, int]] = set()
    for key in keys:
        try:
            table, hour_us, hours = paths.parse_object_key(key)
        except LakeError:
            continue  # a commit record
        if hours > 1:
            made.update((table, hour_us + n * paths.US_PER_HOUR) for n in range(hours))
    return frozenset(made)


def stored_body(store: Store, item: Noted) -> bytes:
    """The bytes that were noted, wherever they lie. Raises LakeError."""
    if store.size(item.key) is None:
        folder = item.key.rpartition("/")[0]
        keys = [found.key for found in store.list(f"{folder}/")]
        if (item.table, item.hour_us) in _joined_hours(keys):
            return store.get(paths.superseded_key(item.sha256))
    return store.get(item.key)


def listed_again(store: Store, noted: Sequence[Noted]) -> list[ObjectRecord] | None:
    """The records of all these objects, from their commit records; None where one is missing or is
    of other bytes than were noted: then the list cannot be made again."""
    made: list[ObjectRecord] = []
    for item in noted:
        try:
            record = read_hour_record(store, item.table, item.hour_us)
        except LakeError:
            record = None
        if record is None or record.sha256 != item.sha256:
            return None
        made.append(record)
    return made


def record_of(table: str, hour_us: int, rows: Parts) -> ObjectRecord:
    """The record that an object of these rows has, without writing it."""
    with spooled() as body:
        return encode_into(body, spec_of(table), hour_us, rows)
