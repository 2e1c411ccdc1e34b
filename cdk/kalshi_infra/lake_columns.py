"""Writes lake_columns.json: the columns of the lake's tables in the words of the Glue catalogue.

Run with the environment that has `kalshilake` (make aws-lake-columns); a test compares file and
schema. The CDK app itself reads only the file, so that it needs no pyarrow.

Unsigned 64-bit columns become `bigint`: Hive has no unsigned types, and the bits are the same.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS_PATH = Path(__file__).with_name("lake_columns.json")
_HIVE = {
    "string": "string",
    "timestamp[us, tz=UTC]": "timestamp",
    "int16": "smallint",
    "int32": "int",
    "int64": "bigint",
    "uint64": "bigint",
    "bool": "boolean",
}


def hive_type(kind: Any) -> str:
    """The Hive name of an Arrow type. Raises KeyError for a type that no table has had yet."""
    name = str(kind)
    if name.startswith("decimal128("):
        return f"decimal({kind.precision},{kind.scale})"
    if name.startswith("list<"):
        return f"array<{hive_type(kind.value_type)}>"
    if name.startswith("struct<"):
        inner = ",".join(f"{field.name}:{hive_type(field.type)}" for field in kind)
        return f"struct<{inner}>"
    return _HIVE[name]


def columns(tables: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """`[name, type]` of every column, by table."""
    return {
        name: [[field.name, hive_type(field.type)] for field in spec.schema]
        for name, spec in tables.items()
    }


def text(tables: Mapping[str, Any]) -> str:
    """The file's content."""
    return json.dumps(columns(tables), indent=1) + "\n"


def main() -> int:
    """Writes the file. Returns the exit code."""
    # By name: the CDK's own environment has no kalshilake, nor may its type check want it.
    schema = importlib.import_module("kalshilake.schema")
    COLUMNS_PATH.write_text(text(schema.TABLES), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
