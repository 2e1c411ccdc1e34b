"""Edits of a lake by somebody who knows the format, from careless to thorough.

`fix` tells how far the forger goes after changing an object:
    0  nothing else is touched
    1  the entry in the newest version gets the new SHA-256 and sizes
    2  and the version's seal
    3  and the commit record beside the object
    4  and the object is written by the product's own writer, so that its certificate fits, and
       every version is made anew: only the tape itself, or a SHA-256 kept elsewhere, can tell
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kalshilake import paths, write
from kalshilake.manifest import canonical
from kalshilake.schema import TABLES
from kalshilake.store import LocalStore

Edit = Callable[[pa.Table], pa.Table]


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def newest(root: Path) -> Path:
    return max((root / "manifest").glob("v*.json"))


def entry_of(root: Path, key: str) -> dict[str, Any]:
    return next(o for o in json.loads(newest(root).read_bytes())["objects"] if o["key"] == key)


def keys_of(root: Path, table: str) -> list[str]:
    """Objects of a table that hold rows, in time order."""
    listed = json.loads(newest(root).read_bytes())["objects"]
    return [o["key"] for o in listed if o["table"] == table and o["rows"]]


def seal(body: dict[str, Any]) -> bytes:
    body = {k: v for k, v in body.items() if k != "seal"}
    return canonical(body | {"seal": sha(canonical(body))})


def edit_version(path: Path, edit: Callable[[dict[str, Any]], None], *, sealed: bool) -> None:
    body = json.loads(path.read_bytes())
    edit(body)
    path.write_bytes(seal(body) if sealed else canonical(body))


def rechain(root: Path) -> None:
    """Make every version's SHA-256 of the one before fit again."""
    before = "0" * 64
    for path in sorted((root / "manifest").glob("v*.json")):
        body = json.loads(path.read_bytes())
        body["previous_sha256"] = before
        path.write_bytes(seal(body))
        before = sha(path.read_bytes())


def replace_bytes(root: Path, key: str, body: bytes, fix: int) -> None:
    """Put other bytes under a key and fix up the lists as far as `fix` says (at most 3)."""
    (root / key).write_bytes(body)
    if fix < 1:
        return
    tail = int.from_bytes(body[-8:-4], "little") + 8
    meta = pq.read_metadata(pa.BufferReader(body))
    told = {
        "sha256": sha(body), "bytes": len(body), "footer_bytes": tail, "rows": meta.num_rows,
        "footer_sha256": sha(body[-tail:]), "row_groups": meta.num_row_groups,
    }  # fmt: skip

    def update(version: dict[str, Any]) -> None:
        for entry in version["objects"]:
            if entry["key"] == key:
                entry.update(told)

    edit_version(newest(root), update, sealed=fix >= 2)
    if fix >= 3:
        beside = root / paths.hour_manifest_key(*paths.parse_object_key(key))
        record = json.loads(beside.read_bytes())
        record["object"].update(told)
        beside.write_bytes(canonical(record))


def rewrite(root: Path, key: str, edit: Edit, fix: int) -> None:
    """Read an object, change its rows, write it back as pyarrow would, or better."""
    table, hour, _ = paths.parse_object_key(key)
    rows = edit(pq.read_table(root / key, partitioning=None))
    if fix < 4:
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd", store_schema=False,
                       store_decimal_as_integer=True)  # fmt: skip
        replace_bytes(root, key, sink.getvalue().to_pybytes(), fix)
        return
    (root / key).unlink()  # or the writer would keep the former bytes
    watermark = json.loads(newest(root).read_bytes())["watermark_us"]
    record = write.write_hour(LocalStore(root), table, hour, rows, watermark_us=watermark)
    assert record.table in TABLES
    for path in (root / "manifest").glob("v*.json"):
        edit_version(
            path,
            lambda body: [e.update(asdict(record)) for e in body["objects"] if e["key"] == key],
            sealed=True,
        )
    rechain(root)


def flip(path: Path, at: int) -> None:
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(bytes(body))


def drop_row_group(root: Path, key: str, group: int, fix: int) -> None:
    """Leave one row group out; the rest is copied as it lies."""
    parquet = pq.ParquetFile(root / key)
    kept = [g for g in range(parquet.num_row_groups) if g != group]
    if fix >= 4:
        rewrite(root, key, lambda _: parquet.read_row_groups(kept), fix)
        return
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, parquet.schema_arrow, compression="zstd", store_schema=False,
        store_decimal_as_integer=True,
    ) as writer:  # fmt: skip
        for g in kept:
            writer.write_table(parquet.read_row_group(g))
        writer.add_key_value_metadata(parquet.metadata.metadata)
    replace_bytes(root, key, sink.getvalue().to_pybytes(), fix)
