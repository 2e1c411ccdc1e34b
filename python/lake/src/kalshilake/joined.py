"""One object of several hours: its rows are those of the hours' own objects, no others.

Purpose: `write_joined` makes the object of some hours of a table and its commit record. The hours'
objects are read from where an object goes that is no longer under its own name,
superseded/<sha256>.parquet; its certificate has their records (`joins`).

Invariants:
    L-38 a joined object is a function of the objects of its hours: equal hours give equal bytes,
         whenever and however often they are joined.
    L-39 before anything takes an hour's place, its bytes lie under superseded/, read back.

Does not do: choosing hours, listing the object in a version (write), taking away what it replaces
(compact).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kalshilake import paths
from kalshilake.encode import encode_into, spooled
from kalshilake.manifest import ObjectRecord, decode_record, encode_hour
from kalshilake.objects import ObjectReader
from kalshilake.schema import spec_of
from kalshilake.store import Store
from marketdata.errors import LakeError

CHECK_BYTES: Final = 8 * 1024 * 1024  # of an object that is read to be checked, in memory at once


def stored_sha256(store: Store, key: str) -> str | None:
    """SHA-256 of the object as the store gives it, None where there is none."""
    size = store.size(key)
    if size is None:
        return None
    digest = hashlib.sha256()
    for at in range(0, size, CHECK_BYTES):
        digest.update(store.get_range(key, at, min(CHECK_BYTES, size - at)))
    return digest.hexdigest()


def keep(store: Store, key: str, sha256: str) -> None:
    """Let the bytes that lie under `key` lie under superseded/, too. Raises LakeError where they
    are not those of the SHA-256, or the store does not give them back."""
    kept = paths.superseded_key(sha256)
    if stored_sha256(store, kept) == sha256:
        return
    body = store.get(key)
    if hashlib.sha256(body).hexdigest() != sha256:
        raise LakeError(f"{key}: altered since it was listed", hint=f"tape verify {store.location}")
    store.put(kept, body)
    if stored_sha256(store, kept) != sha256:
        raise LakeError(f"{kept}: {store.location} gave back other bytes than were written")


def hours_of(store: Store, joined: ObjectRecord) -> list[ObjectRecord]:
    """The records of the objects whose rows a joined object has, in time order. LakeError."""
    told = ObjectReader(store).certificate(joined).get("joins")
    if not isinstance(told, list) or not told:
        raise LakeError(f"{joined.key}: does not name the hours that it joins")
    return [decode_record(each, joined.key) for each in told]


def write_joined(
    store: Store,
    table: str,
    hour_us: int,
    hours: int,
    parts: Sequence[ObjectRecord],
    *,
    watermark_us: int,
) -> ObjectRecord:
    """Write the object of `hours` hours and its commit record; the record is for a version.

    `parts`: the records of its hours' objects, whose bytes lie under superseded/ (`keep`).
    Bytes that are there are not written again; others are kept under superseded/ first. Raises
    LakeError where the rows are not all there, StorageError where the store refuses.
    """
    ordered = sorted(parts, key=lambda record: record.hour_us)
    reader = ObjectReader(store)
    rows = in_market_order([reader.groups(part) for part in ordered], spec_of(table).subject)
    with spooled() as body:
        record = encode_into(body, spec_of(table), hour_us, rows, hours, ordered)
        if record.rows != sum(part.rows for part in ordered):
            raise LakeError(f"{record.key}: {record.rows} rows are not those of its hours")
        put_object(store, record, body)
    put_record(store, record, watermark_us, {})
    return record


def put_object(store: Store, record: ObjectRecord, body: Any) -> None:
    """Put an object under its name, what lay there kept; nothing where it lies there already."""
    before = stored_sha256(store, record.key)
    if before == record.sha256:
        return
    if before is not None:
        store.put_if_absent(paths.superseded_key(before), store.get(record.key))
    store.put(record.key, body)
    if stored_sha256(store, record.key) != record.sha256:
        raise LakeError(f"{record.key}: {store.location} gave back other bytes than were written")


def put_record(
    store: Store, record: ObjectRecord, watermark_us: int, extra: Mapping[str, Any]
) -> None:
    """Put the commit record beside an object unless it says the same already."""
    key = paths.hour_manifest_key(record.table, record.hour_us, record.hours)
    commit = encode_hour(record, watermark_us, extra)
    if store.size(key) is None or store.get(key) != commit:
        store.put(key, commit)


# -- order -----------------------------------------------------------------------------------------


def in_market_order(
    streams: Sequence[Iterator[pa.Table]], subject: str = "market_ticker"
) -> Iterator[pa.Table]:
    """The rows of objects whose hours follow each other, as parts for `encode_into`.

    Of each object one row group is in memory. Markets that all objects are done with go out
    together, unsorted; the one that the search for others stopped at, an object after the other.
    """
    heads = [_Head(stream, subject) for stream in streams]
    while waiting := [head for head in heads if head.rows is not None]:
        # Up to here, this name left out, no object can bring more than it holds now.
        bound = min(head.last for head in waiting)
        below = [part for head in waiting if (part := head.take(bound, itself=False)).num_rows]
        if below:
            yield pa.concat_tables(below)
        for head in waiting:
            while head.rows is not None and head.first == bound:
                yield head.take(bound, itself=True)


class _Head:
    """What is next of one object's rows."""

    def __init__(self, groups: Iterator[pa.Table], subject: str) -> None:
        self._groups, self._subject = groups, subject
        self.rows: pa.Table | None = None
        self._fill()

    def _fill(self) -> None:
        while self.rows is None or not self.rows.num_rows:
            self.rows = next(self._groups, None)
            if self.rows is None:
                return

    @property
    def first(self) -> str:
        """Of its markets; there are rows."""
        return str(self.rows.column(self._subject)[0]) if self.rows is not None else ""

    @property
    def last(self) -> str:
        """Of the markets it holds; there are rows."""
        return str(self.rows.column(self._subject)[-1]) if self.rows is not None else ""

    def take(self, bound: str, *, itself: bool) -> pa.Table:
        """The rows of markets before `bound` (`itself`: and of it) that it holds."""
        assert self.rows is not None, "only what has rows is asked"
        compare = pc.less_equal if itself else pc.less
        inside = compare(self.rows.column(self._subject), bound)
        n = int(np.count_nonzero(np.asarray(inside)))
        taken, self.rows = self.rows.slice(0, n), self.rows.slice(n)
        self._fill()
        return taken


# -- an hour that changes after it was joined ------------------------------------------------------


def joined_of(objects: Iterable[ObjectRecord], record: ObjectRecord) -> ObjectRecord | None:
    """The listed object that joins the hour of `record` with others, None where none does."""
    if record.hours > 1:
        return None
    return next((o for o in objects if o.hours > 1 and o.covers(record)), None)


def absorbed(
    store: Store, joined: ObjectRecord, changed: Sequence[ObjectRecord], watermark_us: int
) -> ObjectRecord:
    """The joined object with these of its hours as they are now, written in place; itself where
    nothing changed. The changed hours' bytes lie under superseded/ or under their own names."""
    parts = {part.key: part for part in hours_of(store, joined)}
    new = [record for record in changed if parts.get(record.key) != record]
    if not new and stored_sha256(store, joined.key) == joined.sha256:
        return joined
    for record in new:
        keep(store, record.key, record.sha256)
        parts[record.key] = record
    return write_joined(
        store, joined.table, joined.hour_us, joined.hours, list(parts.values()),
        watermark_us=watermark_us,
    )  # fmt: skip
