"""Rows of an hour, or of some hours, as the bytes of one object, a row group at a time.

Purpose: `encode` sorts, checks, encodes, reads back and compares. An hour may be one table or parts
of it that follow each other in the table's order, so that a busy hour needs the memory of its
largest part and of two row groups, not of all its rows.

Invariants:
    L-8  equal rows give equal bytes: any input order, any process, any time of day, any parts.

Does not do: decoding and comparing (reread), storing, choosing what an hour holds. Bytes depend on
the version of pyarrow, which requirements.lock fixes; every object names it (`created_by`).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kalshilake import paths
from kalshilake.manifest import ObjectRecord, canonical
from kalshilake.reread import fingerprint, read_back, text_columns
from kalshilake.row_groups import row_groups
from kalshilake.schema import (
    CERTIFICATE,
    COMPRESSION,
    COMPRESSION_LEVEL,
    DATA_PAGE_BYTES,
    ROW_GROUP_ROWS,
    SCHEMA_VERSION,
    STATUSES,
    TableSpec,
)
from kalshilake.tables import run_starts, sort_order, times_us
from marketdata.errors import LakeError

SPOOLED_BYTES: Final = 16 * 1024 * 1024
TAIL_BYTES: Final = 8  # footer length and magic
LONG_RUN: Final = 8  # equal values of a column on end, on average
PROBED: Final = 1_024  # of a column, to see whether its runs are long

T = TypeVar("T")
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
        markets = part.column(spec.subject)
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


def encode_into(
    file: IO[bytes],
    spec: TableSpec,
    hour_us: int,
    rows: Parts,
    hours: int = 1,
    joins: Sequence[ObjectRecord] = (),
) -> ObjectRecord:
    """Write the object's bytes into an empty file that can be read again; its record.

    `rows`: a table in any order, or parts that follow each other in the order of the table.
    `hours`: how many of them, from `hour_us` on, the object joins, and `joins` the objects whose
    rows these are; the certificate has their records.

    Raises:
        LakeError: rows that do not fit the table or its hours, or parts that are not in order.
    """
    key = paths.object_key(spec.name, hour_us, hours)
    end_us = hour_us + hours * paths.US_PER_HOUR
    seen = _Seen()
    prints: list[bytes] = []
    sink = _Hashing(file)
    with _writer(spec, sink) as writer:
        groups = row_groups(
            _in_order(spec, (hour_us, end_us), rows, seen), ROW_GROUP_ROWS, subject=spec.subject
        )
        for coded, found in _one_ahead((_coded(spec, g), fingerprint(g)) for g in groups):
            writer.write_table(coded, row_group_size=ROW_GROUP_ROWS)
            prints.append(found)
        certificate = {
            "table": spec.name,
            "hour_us": hour_us,
            "rows": seen.rows,
            "schema": SCHEMA_VERSION,
            "body_bytes": sink.written,
            "body_sha256": sink.sha256.hexdigest(),
        }
        if joins:
            certificate["joins"] = [asdict(record) for record in joins]
        writer.add_key_value_metadata({CERTIFICATE: canonical(certificate).decode().strip()})
    read_back(spec, file, prints, seen.rows, key)
    return _record(spec, key, hour_us, seen, file, sink, len(prints))


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The items; the next one is made in another thread while one is used."""
    with ThreadPoolExecutor(1, "prepare") as beside:
        waiting = beside.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = beside.submit(next, items, None)
            yield item


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
    spec: TableSpec,
    key: str,
    hour_us: int,
    seen: _Seen,
    file: IO[bytes],
    sink: _Hashing,
    row_groups: int,
) -> ObjectRecord:
    """The record of an object from its rows and bytes."""
    file.seek(sink.written - TAIL_BYTES)
    footer_bytes = int.from_bytes(file.read(TAIL_BYTES - 4), "little") + TAIL_BYTES
    file.seek(sink.written - footer_bytes)
    return ObjectRecord(
        key=key,
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


def _in_order(
    spec: TableSpec, span: tuple[int, int], rows: Parts, seen: _Seen
) -> Iterator[pa.Table]:
    """The parts that have rows, each sorted, one behind the other."""
    parts: Iterable[pa.Table] = [rows] if isinstance(rows, pa.Table) else rows
    if spec.name == "coverage":  # its intervals are checked against each other
        parts = [pa.concat_tables([spec.schema.empty_table(), *parts])]
    last: tuple[Any, ...] | None = None
    for part in parts:
        if not part.num_rows:
            continue
        ordered = _sorted(spec, span, part)
        first = _key(spec, ordered, 0)
        if last is not None and first < last:
            raise LakeError(f"parts of {spec.name} are not in order: {first} comes after {last}")
        last = _key(spec, ordered, ordered.num_rows - 1)
        seen.add(spec, ordered)
        yield ordered


def _key(spec: TableSpec, rows: pa.Table, at: int) -> tuple[Any, ...]:
    """The sort key of one row; times and texts as Python compares them."""
    return tuple(rows.column(name)[at].as_py() for name in spec.key)


def _sorted(spec: TableSpec, span: tuple[int, int], rows: pa.Table) -> pa.Table:
    if rows.schema.names != spec.schema.names:
        raise LakeError(f"{spec.name} has columns {spec.schema.names}, got {rows.schema.names}")
    plain = rows.cast(spec.schema).replace_schema_metadata(None)
    for field in spec.schema:
        if not field.nullable and plain.column(field.name).null_count:
            raise LakeError(f"column {field.name} of {spec.name} may not be null")
    times = times_us(plain.column(spec.time))
    outside = (times < span[0]) | (times >= span[1])
    if outside.any():
        seen = paths.at(int(times[outside][0]))
        raise LakeError(
            f"{int(outside.sum())} rows of {spec.name} lie outside the hour "
            f"{paths.at(span[0]):%Y-%m-%dT%H} (the first is of {seen:%Y-%m-%dT%H:%M:%S.%f})"
        )
    if spec.name == "coverage":
        _check_coverage(plain)
    order = sort_order(plain, spec.key)
    if not np.array_equal(order, np.arange(len(order))):
        plain = plain.take(pa.array(order))
    return plain.combine_chunks()


def _check_coverage(rows: pa.Table) -> None:
    """An interval ends with its hour at the latest, so that one hour's rows tell all of it."""
    start, end = times_us(rows.column("from_ts")), times_us(rows.column("to_ts"))
    hour = start - start % paths.US_PER_HOUR
    wrong = (end <= start) | (end > hour + paths.US_PER_HOUR)
    if wrong.any():
        raise LakeError(f"{int(wrong.sum())} coverage intervals are empty or outlast their hour")
    names = [rows.column(c).to_pylist() for c in ("market_ticker", "channel")]
    line: dict[tuple[str, str, int], list[tuple[int, int]]] = {}
    for *of, a, b in zip(*names, hour.tolist(), start.tolist(), end.tolist(), strict=True):
        line.setdefault(tuple(of), []).append((a, b))
    for (market, channel, _), spans in line.items():
        spans.sort()
        if any(one[1] != two[0] for one, two in itertools.pairwise(spans)):
            raise LakeError(f"coverage of {market} {channel} overlaps or has a hole within an hour")
    unknown = set(rows.column("status").unique().to_pylist()) - set(STATUSES)
    if unknown:
        raise LakeError(f"coverage status {min(unknown)!r} is unknown")


def _coded(spec: TableSpec, rows: pa.Table) -> pa.Table:
    """Text columns as dictionaries in order of first appearance: half the cost of plain text."""
    for name in text_columns(spec):
        at = rows.schema.get_field_index(name)
        coded = _run_coded(rows.column(at).chunk(0))  # a row group is in one piece
        field = pa.field(name, coded.type, nullable=rows.schema.field(at).nullable)
        rows = rows.set_column(at, field, coded)
    return rows


def _run_coded(column: pa.Array) -> pa.Array:
    """dictionary_encode, which looks at each value; of values that come in long runs, at each run:
    a fourth of the cost."""
    few = len(column) // LONG_RUN
    probe = column.slice(0, PROBED)
    if column.null_count or len(run_starts(probe)) * LONG_RUN > len(probe):
        return pc.dictionary_encode(column)
    begins = run_starts(column)
    if len(begins) > few:
        return pc.dictionary_encode(column)
    coded = pc.dictionary_encode(column.take(pa.array(begins)))
    lengths = np.diff(np.append(begins, len(column)))
    indices = np.repeat(np.asarray(coded.indices), lengths)
    return pa.DictionaryArray.from_arrays(pa.array(indices), coded.dictionary, safe=False)
