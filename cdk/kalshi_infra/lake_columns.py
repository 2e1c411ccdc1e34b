"""Writes lake_columns.json: the columns of the lake's tables in the words of the Glue catalogue.

Run with the environment that has `kalshilake` (make aws-lake-columns); a test compares file and
schema. The CDK app itself reads only the file, so that it needs no pyarrow.

The words are those of `kalshilake.ddl`, which also writes statements for Athena and Trino.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS_PATH = Path(__file__).with_name("lake_columns.json")


def columns(tables: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """`[name, type]` of every column, by table."""
    # By name: the CDK's own environment has no kalshilake, nor may its type check want it.
    ddl = importlib.import_module("kalshilake.ddl")
    return {
        name: [[field.name, ddl.hive_type(field.type)] for field in spec.schema]
        for name, spec in tables.items()
    }


def text(tables: Mapping[str, Any]) -> str:
    """The file's content."""
    return json.dumps(columns(tables), indent=1) + "\n"


def main() -> int:
    """Writes the file. Returns the exit code."""
    schema = importlib.import_module("kalshilake.schema")
    COLUMNS_PATH.write_text(text(schema.TABLES), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
