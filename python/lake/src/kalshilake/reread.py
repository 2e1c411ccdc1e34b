"""What was encoded is decoded again and compared: an encoder's bug must not become an archive's.

Purpose: `fingerprint` of rows as they are to be, and `read_back` of an object against the
fingerprints of its row groups. A fingerprint finds accidents, not forgers: CRC32C of each column.

Invariants:
    L-19 what was encoded was decoded again and is equal, row group by row group.

Does not do: encoding (encode).
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import IO, Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kalshilake.schema import CERTIFICATE, TableSpec
from marketdata.errors import LakeError


def text_columns(spec: TableSpec) -> list[str]:
    """Columns of text that are held as dictionaries: decoding them plain would cost most."""
    return [f.name for f in spec.schema if f.name in spec.dictionary and pa.types.is_string(f.type)]


def read_back(spec: TableSpec, file: IO[bytes], prints: list[bytes], count: int, key: str) -> None:
    """Hold an object's bytes, which a file has from its beginning to its end, against what they are
    to be: the fingerprint of each row group, and the number of rows. Raises LakeError."""
    text = text_columns(spec)
    source = pa.PythonFile(file, mode="r")
    with pq.ParquetFile(source, page_checksum_verification=True, read_dictionary=text) as parquet:
        if parquet.num_row_groups != len(prints) or parquet.metadata.num_rows != count:
            raise LakeError(f"{key}: {parquet.metadata.num_rows} of {count} rows read back")
        for number, wanted in enumerate(prints):  # one group at a time is in memory
            group = parquet.read_row_group(number).replace_schema_metadata(None)
            plain = [f.type.value_type if f.name in text else f.type for f in group.schema]
            if group.schema.names != spec.schema.names or plain != spec.schema.types:
                raise LakeError(f"{key}: {group.schema} read back")
            if fingerprint(group.cast(spec.schema)) != wanted:
                raise LakeError(f"{key}: rows read back differ from the rows written")
        certificate = (parquet.metadata.metadata or {}).get(CERTIFICATE.encode())
    if certificate is None or json.loads(certificate)["rows"] != count:
        raise LakeError(f"{key}: the object does not certify its {count} rows")


class _Crc:
    """CRC32C of what it was given so far."""

    def __init__(self) -> None:
        self.value = 0

    def update(self, data: Any) -> None:
        """More bytes."""
        self.value = google_crc32c.extend(self.value, bytes(data))  # takes no views


def fingerprint(rows: pa.Table) -> bytes:
    """Of the values of a table: equal for equal rows, however Arrow holds them."""
    made = [rows.num_rows.to_bytes(8, "little")]
    for column in rows.combine_chunks().columns:
        crc = _Crc()
        for chunk in column.chunks:  # at most one
            _add(crc, chunk)
        made.append(crc.value.to_bytes(4, "little"))
    return b"".join(made)


def _add(digest: _Crc, array: pa.Array) -> None:
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
    if pa.types.is_boolean(kind):
        return pa.scalar(False, kind)  # noqa: FBT003
    return pa.scalar(Decimal(0) if pa.types.is_decimal(kind) else 0, kind)
