"""Writing hours and committing versions.

Purpose: `write_hour` makes one object from one Arrow table: sorted totally, encoded, read back and
compared, stored, certified. `commit_version` adds records to the lake's list. Until a version
lists it an object does not exist.

Invariants:
    L-8  equal rows give equal bytes: any input order, any process, any time of day.
    L-9  whatever byte a writer dies at, the newest version stays readable, and repeating the
         calls gives the lake an undisturbed writer would have left. Bytes that a later export of
         an hour replaces are kept first under superseded/, where pinned readers find them.
    L-10 of two writers that commit at once both find their records in the chain; no version is
         ever replaced.

Does not do: choosing what an hour holds, deleting, merging small objects. Bytes depend on the
version of pyarrow, which requirements.lock fixes; every object names it (`created_by`).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kalshilake import paths
from kalshilake.manifest import (
    LakeVersion,
    ObjectRecord,
    canonical,
    decode_hour,
    encode_hour,
    next_version,
)
from kalshilake.schema import (
    COMPRESSION,
    COMPRESSION_LEVEL,
    DATA_PAGE_BYTES,
    ROW_GROUP_ROWS,
    SCHEMA_VERSION,
    STATUSES,
    TableSpec,
    spec_of,
)
from kalshilake.store import Store
from kalshilake.tables import sort_order, times_us
from marketdata.errors import LakeError

CERTIFICATE: Final = "kalshi_tape"  # key of the object's own metadata
TAIL_BYTES: Final = 8  # footer length and magic
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
    rows: pa.Table,
    *,
    watermark_us: int,
    extra: Mapping[str, Any] | None = None,
) -> ObjectRecord:
    """Write one object and its commit record; the record is for `commit_version`.

    `hour_us` is the hour's first microsecond; every row's time column must lie in that hour.
    `watermark_us` and `extra` (JSON values) go to the commit record only, never into the object.
    An hour whose bytes are already there is not written again. Raises LakeError for rows that do
    not fit the table, StorageError where the store refuses.
    """
    spec = spec_of(table)
    key = paths.object_key(table, hour_us)
    body, ordered = encode(spec, hour_us, rows)
    record = describe(spec, hour_us, ordered, body)
    _read_back(body, ordered, key)
    before = store.get(key) if store.size(key) is not None else None
    if before != body:
        if before is not None:
            store.put_if_absent(paths.superseded_key(_sha256(before)), before)
        store.put(key, body)
        if _sha256(store.get(key)) != record.sha256:
            raise LakeError(f"{key}: {store.location} gave back other bytes than were written")
    commit = encode_hour(record, watermark_us, dict(extra or {}))
    hour_key = paths.hour_manifest_key(table, hour_us)
    if store.size(hour_key) is None or store.get(hour_key) != commit:
        store.put(hour_key, commit)
    return record


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


def encode(spec: TableSpec, hour_us: int, rows: pa.Table) -> tuple[bytes, pa.Table]:
    """(bytes of the object, the rows in its order). Pure: equal rows give equal bytes."""
    ordered = _in_order(spec, hour_us, rows)
    coded = _dictionaries(spec, ordered)
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        coded.schema,
        compression=COMPRESSION,
        compression_level=COMPRESSION_LEVEL,
        use_dictionary=list(spec.dictionary),
        column_encoding=dict.fromkeys(spec.delta_packed, "DELTA_BINARY_PACKED"),
        data_page_size=DATA_PAGE_BYTES,
        write_statistics=True,
        write_page_index=True,
        write_page_checksum=True,
        store_schema=False,
        store_decimal_as_integer=True,
        sorting_columns=pq.SortingColumn.from_ordering(
            coded.schema, [(k, "ascending") for k in spec.key]
        ),
    ) as writer:
        writer.write_table(coded, row_group_size=ROW_GROUP_ROWS)
        body_bytes = sink.tell()
        certificate = {
            "table": spec.name,
            "hour_us": hour_us,
            "rows": ordered.num_rows,
            "schema": SCHEMA_VERSION,
            "body_bytes": body_bytes,
            "body_sha256": _sha256(sink.getbuffer()[:body_bytes]),
        }
        writer.add_key_value_metadata({CERTIFICATE: canonical(certificate).decode().strip()})
    return sink.getvalue(), ordered


def describe(spec: TableSpec, hour_us: int, ordered: pa.Table, body: bytes) -> ObjectRecord:
    """The record of an object from its rows (in order) and bytes."""
    footer_bytes = int.from_bytes(body[-TAIL_BYTES:-4], "little") + TAIL_BYTES
    times = times_us(ordered.column(spec.time))
    markets = ordered.column("market_ticker")
    n = ordered.num_rows
    return ObjectRecord(
        key=paths.object_key(spec.name, hour_us),
        table=spec.name,
        hour_us=hour_us,
        rows=n,
        bytes=len(body),
        sha256=_sha256(body),
        footer_bytes=footer_bytes,
        footer_sha256=_sha256(body[-footer_bytes:]),
        row_groups=pq.read_metadata(pa.BufferReader(body)).num_row_groups,
        min_us=int(times.min()) if n else hour_us,
        max_us=int(times.max()) if n else hour_us,
        first_market=markets[0].as_py() if n else "",
        last_market=markets[n - 1].as_py() if n else "",
        schema=SCHEMA_VERSION,
    )


def _in_order(spec: TableSpec, hour_us: int, rows: pa.Table) -> pa.Table:
    if rows.schema.names != spec.schema.names:
        raise LakeError(f"{spec.name} has columns {spec.schema.names}, got {rows.schema.names}")
    plain = rows.cast(spec.schema).replace_schema_metadata(None)
    for field in spec.schema:
        if not field.nullable and plain.column(field.name).null_count:
            raise LakeError(f"column {field.name} of {spec.name} may not be null")
    times = times_us(plain.column(spec.time))
    outside = (times < hour_us) | (times >= hour_us + paths.US_PER_HOUR)
    if outside.any():
        seen = paths.at(int(times[outside][0]))
        raise LakeError(
            f"{int(outside.sum())} rows of {spec.name} lie outside the hour "
            f"{paths.at(hour_us):%Y-%m-%dT%H} (the first is of {seen:%Y-%m-%dT%H:%M:%S.%f})"
        )
    if spec.name == "coverage":
        _check_coverage(plain, hour_us)
    order = sort_order(plain, spec.key)
    if not np.array_equal(order, np.arange(len(order))):
        plain = plain.take(pa.array(order))
    return plain.combine_chunks()


def _check_coverage(rows: pa.Table, hour_us: int) -> None:
    """An interval ends with its hour at the latest, so that one hour's object tells all of it."""
    start, end = times_us(rows.column("from_ts")), times_us(rows.column("to_ts"))
    wrong = (end <= start) | (end > hour_us + paths.US_PER_HOUR)
    if wrong.any():
        raise LakeError(f"{int(wrong.sum())} coverage intervals are empty or outlast their hour")
    names = [rows.column(c).to_pylist() for c in ("market_ticker", "channel")]
    line: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for market, channel, a, b in zip(*names, start.tolist(), end.tolist(), strict=True):
        line.setdefault((market, channel), []).append((a, b))
    for (market, channel), spans in line.items():
        spans.sort()
        if any(one[1] != two[0] for one, two in itertools.pairwise(spans)):
            raise LakeError(f"coverage of {market} {channel} overlaps or has a hole within an hour")
    unknown = set(rows.column("status").unique().to_pylist()) - set(STATUSES)
    if unknown:
        raise LakeError(f"coverage status {min(unknown)!r} is unknown")


def _dictionaries(spec: TableSpec, ordered: pa.Table) -> pa.Table:
    """Text columns as dictionaries in order of first appearance: half the cost of plain text."""
    for i, field in enumerate(ordered.schema):
        if field.name in spec.dictionary and pa.types.is_string(field.type):
            coded = pc.dictionary_encode(ordered.column(i))
            ordered = ordered.set_column(
                i, pa.field(field.name, coded.type, nullable=field.nullable), coded
            )
    return ordered


def _read_back(body: bytes, ordered: pa.Table, key: str) -> None:
    """Decode what was encoded and compare: an encoder's bug must not become an archive's."""
    with pq.ParquetFile(pa.BufferReader(body), page_checksum_verification=True) as parquet:
        found = parquet.read()
        certificate = (parquet.metadata.metadata or {}).get(CERTIFICATE.encode())
    if not found.replace_schema_metadata(None).equals(ordered):
        raise LakeError(f"{key}: rows read back differ from the rows written")
    if certificate is None or json.loads(certificate)["rows"] != ordered.num_rows:
        raise LakeError(f"{key}: the object does not certify its {ordered.num_rows} rows")


def _sha256(body: bytes | memoryview) -> str:
    return hashlib.sha256(body).hexdigest()
