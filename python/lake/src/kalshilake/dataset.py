"""A lake's table as a pyarrow Dataset, wherever the lake lies.

Purpose: Polars and DuckDB read Datasets lazily: columns that are not asked for, and row groups
whose statistics do not fit a filter, stay where they are, in S3 as in a directory. What `query`
builds on.

Invariants:
    L-44 the bytes are those of the pinned version: an object that was replaced since is read from
         superseded/ or refused when it is opened (objects), and its pages are checked.

Does not do: coverage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from kalshilake.schema import spec_of

if TYPE_CHECKING:
    from kalshilake.manifest import ObjectRecord
    from kalshilake.objects import ObjectReader
    from kalshilake.read import Lake

_FORMAT: Final = pads.ParquetFileFormat(
    default_fragment_scan_options=pads.ParquetFragmentScanOptions(
        pre_buffer=True, page_checksum_verification=True
    )
)


def dataset(lake: Lake, table: str) -> Any:
    """A pyarrow.dataset.Dataset of the table's rows in every object of the version, hour by hour.

    Nothing but the list of objects is read before a row is asked for. Columns as in
    docs/formats.md section 4. Raises LakeError for a table that does not exist; when it is read,
    for an object that is gone or altered.
    """
    records = {o.key: o for o in lake.records(table) if o.rows}
    schema = spec_of(table).schema
    if not records:
        return pads.dataset(schema.empty_table())
    system = pafs.PyFileSystem(_Objects(lake.reader, records))
    return pads.FileSystemDataset(
        [_FORMAT.make_fragment(key, system) for key in records], schema, _FORMAT, system
    )


class _Objects(pafs.FileSystemHandler):  # type: ignore[misc]  # pyarrow ships no types
    """Objects of a version as files to be read."""

    def __init__(self, reader: ObjectReader, records: dict[str, ObjectRecord]) -> None:
        super().__init__()
        self._reader, self._records = reader, records

    def get_type_name(self) -> str:
        return "kalshilake"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: Sequence[str]) -> list[Any]:
        known = self._records
        return [
            pafs.FileInfo(p, pafs.FileType.File, size=known[p].bytes)
            if p in known
            else pafs.FileInfo(p, pafs.FileType.NotFound)
            for p in paths
        ]

    def get_file_info_selector(self, selector: Any) -> list[Any]:
        _refuse(selector)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return self._reader.open(self._records[path])

    open_input_stream = open_input_file

    def _no(self, *given: Any, **more: Any) -> NoReturn:
        _refuse(given, more)

    copy_file = create_dir = delete_dir = delete_dir_contents = delete_file = _no
    delete_root_dir_contents = move = open_append_stream = open_output_stream = _no


def _refuse(*given: Any) -> NoReturn:
    raise NotImplementedError(f"a lake's version is only read ({given})")
