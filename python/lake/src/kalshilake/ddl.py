"""The lake's tables in the words of query engines: CREATE TABLE for Athena and for Trino.

Purpose: one schema (kalshilake.schema), several texts. Athena computes partitions from the path
(projection), so nothing has to be registered when an hour is written; so does Trino's Hive
connector with `hive.partition-projection-enabled`, and with `hive.timestamp-precision=MICROSECONDS`
it gives times whole.

What holds: names, order and widths of columns are those of the objects; unsigned 64-bit columns are
`bigint` with the same bits, because neither engine has them.

Does not do: versions. An engine that lists folders reads what lies there: an hour that was written
and not yet committed, too. Where that matters ask for times up to a version's watermark.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from kalshilake.schema import TABLES, TableSpec
from marketdata.errors import LakeError

FIRST_YEAR: Final = 2024
LAST_YEAR: Final = 2040
PARTITIONS: Final = {"year": (FIRST_YEAR, LAST_YEAR, 4), "month": (1, 12, 2), "day": (1, 31, 2)}
"""Key -> (first, last, digits in the path)."""
_HIVE: Final = {
    "string": "string", "timestamp[us, tz=UTC]": "timestamp", "int16": "smallint", "int32": "int",
    "int64": "bigint", "uint64": "bigint", "bool": "boolean",
}  # fmt: skip
_TRINO: Final = {**_HIVE, "string": "varchar", "timestamp[us, tz=UTC]": "timestamp(6)",
                 "int32": "integer"}  # fmt: skip


def hive_type(kind: Any) -> str:
    """The Hive name of an Arrow type. Raises KeyError for a type that no table has had yet."""
    name = str(kind)
    if name.startswith("decimal128("):
        return f"decimal({kind.precision},{kind.scale})"
    if name.startswith("list<"):
        return f"array<{hive_type(kind.value_type)}>"
    if name.startswith("struct<"):
        return f"struct<{','.join(f'{f.name}:{hive_type(f.type)}' for f in kind)}>"
    return _HIVE[name]


def trino_type(kind: Any) -> str:
    """The Trino name of an Arrow type. Raises KeyError for a type that no table has had yet."""
    name = str(kind)
    if name.startswith("decimal128("):
        return f"decimal({kind.precision}, {kind.scale})"
    if name.startswith("list<"):
        return f"array({trino_type(kind.value_type)})"
    if name.startswith("struct<"):
        return f"row({', '.join(f'{_quoted(f.name)} {trino_type(f.type)}' for f in kind)})"
    return _TRINO[name]


def projection(location: str) -> dict[str, str]:
    """Table properties from which Athena computes the partitions below `location`."""
    found = {"projection.enabled": "true"}
    for key, (first, last, digits) in PARTITIONS.items():
        found[f"projection.{key}.type"] = "integer"
        found[f"projection.{key}.range"] = f"{first},{last}"
        if digits != len(str(first)):
            found[f"projection.{key}.digits"] = str(digits)
    return {**found, "storage.location.template": _template(location)}


def _template(location: str) -> str:
    """The folder of a partition, with its keys as `${key}`."""
    return location + "/".join(f"{key}=${{{key}}}" for key in PARTITIONS) + "/"


def ddl(engine: str, lake: str, schema: str = "kalshi") -> str:
    """Statements that make `schema` and every table of the lake at `s3://bucket/prefix` in it.

    Raises:
        LakeError: another engine, or a lake that is not on S3.
    """
    if not lake.startswith("s3://"):
        raise LakeError(f"{lake!r} is not on S3", hint="s3://bucket/prefix")
    makers: dict[str, Callable[[TableSpec, str, str], str]] = {"athena": _athena, "trino": _trino}
    if engine not in makers:
        raise LakeError(f"no engine {engine!r}", hint=", ".join(makers))
    made = {"athena": f"CREATE DATABASE IF NOT EXISTS {schema};",
            "trino": f"CREATE SCHEMA IF NOT EXISTS hive.{schema};"}[engine]  # fmt: skip
    place = f"{lake.rstrip('/')}/parquet/"
    parts = [makers[engine](spec, f"{place}{spec.name}/", schema) for spec in TABLES.values()]
    return "\n\n".join([made, *parts]) + "\n"


def _athena(spec: TableSpec, location: str, schema: str) -> str:
    columns = ",\n".join(f"  `{f.name}` {hive_type(f.type)}" for f in spec.schema)
    keys = ", ".join(f"`{key}` int" for key in PARTITIONS)
    properties = ",\n".join(f"  '{k}' = '{v}'" for k, v in projection(location).items())
    return (
        f"CREATE EXTERNAL TABLE IF NOT EXISTS {schema}.{spec.name} (\n{columns}\n)\n"
        f"PARTITIONED BY ({keys})\nSTORED AS PARQUET\nLOCATION '{location}'\n"
        f"TBLPROPERTIES (\n{properties}\n);"
    )


def _trino(spec: TableSpec, location: str, schema: str) -> str:
    columns = [f"  {_quoted(f.name)} {trino_type(f.type)}" for f in spec.schema]
    for key, (first, last, digits) in PARTITIONS.items():
        projected = (
            "partition_projection_type = 'integer', "
            f"partition_projection_range = ARRAY['{first}', '{last}']"
        )
        if digits != len(str(first)):
            projected += f", partition_projection_digits = {digits}"
        columns.append(f"  {_quoted(key)} integer WITH ({projected})")
    keys = ", ".join(f"'{key}'" for key in PARTITIONS)
    return (
        f"CREATE TABLE IF NOT EXISTS hive.{schema}.{spec.name} (\n" + ",\n".join(columns) + "\n)\n"
        f"WITH (\n  external_location = '{location}',\n  format = 'PARQUET',\n"
        f"  partitioned_by = ARRAY[{keys}],\n  partition_projection_enabled = true,\n"
        f"  partition_projection_location_template = '{_template(location)}'\n);"
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
