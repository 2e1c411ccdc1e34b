"""Rows of an hour as the bytes of one object, a row group at a time.

Purpose: `encode` sorts, checks, encodes, reads back and compares. An hour may be one table or parts
of it that follow each other in the table's order, so that a busy hour needs the memory of its
largest part and not of all its rows.

Invariants:
    L-8  equal rows give equal bytes: any input order, any process, any time of day, any parts.
    L-19 what was encoded was decoded again and is equal, row group by row group.

Does not do: storing, choosing what an hour holds. Bytes depend on the version of pyarrow, which
requirements.lock fixes; every object names it (`created_by`).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kalshilake import paths
from kalshilake.manifest import ObjectRecord, canonical
from kalshilake.row_groups import row_groups
from kalshilake.schema import (
    COMPRESSION,
    COMPRESSION_LEVEL,
    DATA_PAGE_BYTES,
    ROW_GROUP_ROWS,
    SCHEMA_VERSION,
    STATUSES,
    TableSpec,
)
from kalshilake.tables import sort_order, times_us
from marketdata.errors import LakeError

CERTIFICATE: Final = "kalshi_tape"  # key of the object's own metadata
SPOOLED_BYTES: Final = 16 * 1024 * 1024
TAIL_BYTES: Final = 8  # footer length and magic

Parts: TypeAlias = pa.Table | Iterable[pa.Table]


@dataclass(slots=True)
class _Seen:
    """What is known of the rows once they went by."""

    rows: int = 0
    min_us: int = 0
    max_us: int = 0
    first_market: str = ""
    last_market: str = ""

    def add(self, spec: TableSpec, part: pa.Table) -> None:
        """A part that has rows."""
        times = times_us(part.column(spec.time))
        markets = part.column("market_ticker")
        low, high = int(times.min()), int(times.max())
        if not self.rows:
            self.first_market, self.min_us, self.max_us = markets[0].as_py(), low, high
        self.min_us, self.max_us = min(self.min_us, low), max(self.max_us, high)
        self.last_market = markets[part.num_rows - 1].as_py()
        self.rows += part.num_rows


class _Hashing(io.RawIOBase):
    """A file that is written once from beginning to end, and its SHA-256 so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.written = 0
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(data)
        self.sha256.update(data)
        size = memoryview(data).nbytes
        self.written += size
        return size

    def tell(self) -> int:
        return self.written


def scratch_folder() -> str | None:
    """Where large temporary files go: /var/tmp where that exists, because /tmp may be memory."""
    return "/var/tmp" if Path("/var/tmp").is_dir() else None  # noqa: S108


def spooled() -> IO[bytes]:
    """An empty file for one object: in memory up to SPOOLED_BYTES, then without a name on disk."""
    return tempfile.SpooledTemporaryFile(SPOOLED_BYTES, dir=scratch_folder())


def encode(spec: TableSpec, hour_us: int, rows: Parts) -> tuple[bytes, ObjectRecord]:
    """(bytes of the object, its record). Pure: equal rows give equal bytes. As `encode_into`."""
    sink = io.BytesIO()
    record = encode_into(sink, spec, hour_us, rows)
    return sink.getvalue(), record


def encode_into(file: IO[bytes], spec: TableSpec, hour_us: int, rows: Parts) -> ObjectRecord:
    """Write the object's bytes into an empty file that can be read again; its record.

    `rows`: a table in any order, or parts that follow each other in the order of the table.

    Raises:
        LakeError: rows that do not fit the table or its hour, or parts that are not in order.
    """
    seen = _Seen()
    prints: list[bytes] = []
    sink = _Hashing(file)
    with _beside() as beside, _writer(spec, sink) as writer:
        for group in row_groups(_in_order(spec, hour_us, rows, seen), ROW_GROUP_ROWS):
            hashed = beside.submit(fingerprint, group)
            writer.write_table(_coded(spec, group), row_group_size=ROW_GROUP_ROWS)
            prints.append(hashed.result())  # one group at a time is in memory
        certificate = {
            "table": spec.name,
            "hour_us": hour_us,
            "rows": seen.rows,
            "schema": SCHEMA_VERSION,
            "body_bytes": sink.written,
            "body_sha256": sink.sha256.hexdigest(),
        }
        writer.add_key_value_metadata({CERTIFICATE: canonical(certificate).decode().strip()})
    _read_back(spec, file, prints, seen.rows, paths.object_key(spec.name, hour_us))
    return _record(spec, hour_us, seen, file, sink, len(prints))


def _beside() -> ThreadPoolExecutor:
    """A thread for hashing, which holds no lock, while this one encodes or decodes."""
    return ThreadPoolExecutor(1, thread_name_prefix="fingerprint")


def _writer(spec: TableSpec, sink: _Hashing) -> pq.ParquetWriter:
    """The writer of an object with everything that fixes its physical form."""
    schema = _coded(spec, spec.schema.empty_table()).schema
    return pq.ParquetWriter(
        sink,
        schema,
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
            schema, [(k, "ascending") for k in spec.key]
        ),
    )


def _record(
    spec: TableSpec, hour_us: int, seen: _Seen, file: IO[bytes], sink: _Hashing, row_groups: int
) -> ObjectRecord:
    """The record of an object from its rows and bytes."""
    file.seek(sink.written - TAIL_BYTES)
    footer_bytes = int.from_bytes(file.read(TAIL_BYTES - 4), "little") + TAIL_BYTES
    file.seek(sink.written - footer_bytes)
    return ObjectRecord(
        key=paths.object_key(spec.name, hour_us),
        table=spec.name,
        hour_us=hour_us,
        rows=seen.rows,
        bytes=sink.written,
        sha256=sink.sha256.hexdigest(),
        footer_bytes=footer_bytes,
        footer_sha256=hashlib.sha256(file.read(footer_bytes)).hexdigest(),
        row_groups=row_groups,
        min_us=seen.min_us if seen.rows else hour_us,
        max_us=seen.max_us if seen.rows else hour_us,
        first_market=seen.first_market,
        last_market=seen.last_market,
        schema=SCHEMA_VERSION,
    )


# -- order -----------------------------------------------------------------------------------------


def _in_order(spec: TableSpec, hour_us: int, rows: Parts, seen: _Seen) -> Iterator[pa.Table]:
    """The parts that have rows, each sorted, one behind the other."""
    parts: Iterable[pa.Table] = [rows] if isinstance(rows, pa.Table) else rows
    if spec.name == "coverage":  # its intervals are checked against each other
        parts = [pa.concat_tables([spec.schema.empty_table(), *parts])]
    last: tuple[Any, ...] | None = None
    for part in parts:
        if not part.num_rows:
            continue
        ordered = _sorted(spec, hour_us, part)
        first = _key(spec, ordered, 0)
        if last is not None and first < last:
            raise LakeError(f"parts of {spec.name} are not in order: {first} comes after {last}")
        last = _key(spec, ordered, ordered.num_rows - 1)
        seen.add(spec, ordered)
        yield ordered


def _key(spec: TableSpec, rows: pa.Table, at: int) -> tuple[Any, ...]:
    """The sort key of one row; times and texts as Python compares them."""
    return tuple(rows.column(name)[at].as_py() for name in spec.key)


def _sorted(spec: TableSpec, hour_us: int, rows: pa.Table) -> pa.Table:
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


def _coded(spec: TableSpec, rows: pa.Table) -> pa.Table:
    """Text columns as dictionaries in order of first appearance: half the cost of plain text."""
    for i, field in enumerate(rows.schema):
        if field.name in spec.dictionary and pa.types.is_string(field.type):
            coded = pc.dictionary_encode(rows.column(i))
            rows = rows.set_column(
                i, pa.field(field.name, coded.type, nullable=field.nullable), coded
            )
    return rows


# -- reading back ----------------------------------------------------------------------------------


def _read_back(spec: TableSpec, file: IO[bytes], prints: list[bytes], count: int, key: str) -> None:
    """Decode what was encoded and compare: an encoder's bug must not become an archive's."""
    source = pa.PythonFile(file, mode="r")
    with _beside() as beside, pq.ParquetFile(source, page_checksum_verification=True) as parquet:
        if parquet.num_row_groups != len(prints) or parquet.metadata.num_rows != count:
            raise LakeError(f"{key}: {parquet.metadata.num_rows} of {count} rows read back")
        before: Future[bytes] | None = None  # the group before this one is hashed meanwhile
        for number in range(len(prints) + 1):
            found: Future[bytes] | None = None
            if number < len(prints):
                group = parquet.read_row_group(number).replace_schema_metadata(None)
                if group.schema != spec.schema:
                    raise LakeError(f"{key}: {group.schema} read back")
                found = beside.submit(fingerprint, group)
            if before is not None and before.result() != prints[number - 1]:
                raise LakeError(f"{key}: rows read back differ from the rows written")
            before = found
        certificate = (parquet.metadata.metadata or {}).get(CERTIFICATE.encode())
    if certificate is None or json.loads(certificate)["rows"] != count:
        raise LakeError(f"{key}: the object does not certify its {count} rows")


def fingerprint(rows: pa.Table) -> bytes:
    """SHA-256 over the values of a table: equal for equal rows, however Arrow holds them."""
    digest = hashlib.sha256(str(rows.num_rows).encode())
    for column in rows.combine_chunks().columns:
        for chunk in column.chunks:  # at most one
            _add(digest, chunk)
    return digest.digest()


def _add(digest: Any, array: pa.Array) -> None:
    """The values of one array; what stands under a null is nobody's."""
    kind = array.type
    digest.update(f"{kind} {len(array)}".encode())
    if array.null_count:
        digest.update(np.packbits(np.asarray(array.is_null())).tobytes())
    if pa.types.is_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0)
        digest.update(np.ascontiguousarray(lengths).tobytes())
        _add(digest, array.flatten())
        return
    if pa.types.is_struct(kind):
        for field in array.flatten():
            _add(digest, field)
        return
    plain = array.fill_null(_nothing(kind)) if array.null_count else array
    if pa.types.is_boolean(kind):
        digest.update(np.packbits(np.asarray(plain)).tobytes())
        return
    _, first, *text = plain.buffers()
    if text:
        offsets = np.frombuffer(first, "<i4")[plain.offset : plain.offset + len(plain) + 1]
        if len(plain):
            digest.update(np.diff(offsets).tobytes())
            digest.update(memoryview(text[0] or b"")[int(offsets[0]) : int(offsets[-1])])
        return
    width = kind.bit_width // 8
    start = plain.offset * width
    digest.update(memoryview(first or b"")[start : start + len(plain) * width])


def _nothing(kind: pa.DataType) -> pa.Scalar:
    """What takes a null's place."""
    if pa.types.is_string(kind):
        return pa.scalar("", kind)
    return pa.scalar(Decimal(0) if pa.types.is_decimal(kind) else 0, kind)
