"""The lake's tables as statements, read back by a parser of SQL."""

from __future__ import annotations

import re

import pytest
import sqlglot
from sqlglot import exp

from kalshilake import ddl, paths
from kalshilake.schema import TABLES
from marketdata.errors import LakeError

PLACE = "s3://kalshi-data-prod"
HOUR = 1_778_709_600_000_000  # 2026-05-13T22


def statements(engine: str) -> list[exp.Create]:
    """Every statement but the first, which makes the schema."""
    found = sqlglot.parse(ddl.ddl(engine, PLACE), dialect=engine)
    assert all(isinstance(each, exp.Create) for each in found), "not a statement of this dialect"
    assert found[0].kind in ("SCHEMA", "DATABASE")
    return found[1:]


def columns(made: exp.Create) -> dict[str, str]:
    """Name -> type of the table's own columns, without spaces and case."""
    return {
        c.name: re.sub(r"\s", "", c.args["kind"].sql(dialect="hive")).lower()
        for c in made.this.expressions
        if isinstance(c, exp.ColumnDef)
    }


@pytest.mark.parametrize("engine", ["athena", "trino"])
def test_every_table_has_the_columns_of_its_objects(engine: str) -> None:
    """Engines read columns by name: one that is named otherwise is silently null."""
    made = {each.this.this.name: columns(each) for each in statements(engine)}
    assert set(made) == set(TABLES)
    for name, found in made.items():
        own = {k: v for k, v in found.items() if k not in ddl.PARTITIONS}
        assert list(own) == TABLES[name].schema.names
        if engine == "athena":
            assert own == {f.name: ddl.hive_type(f.type) for f in TABLES[name].schema}


def test_widths_are_those_of_the_schema() -> None:
    """By hand, for one column of each kind."""
    text = ddl.ddl("athena", PLACE)
    for line in (
        "`price` decimal(9,6)", "`delta` decimal(18,2)", "`exchange_ts` timestamp",
        "`book_hash` bigint", "`sources` smallint", "`is_block_trade` boolean", "`epoch` int",
        "`yes` array<struct<price:decimal(9,6),size:decimal(18,2)>>",
    ):  # fmt: skip
        assert f"  {line}" in text, line
    text = ddl.ddl("trino", PLACE)
    for line in (
        '"price" decimal(9, 6)', '"exchange_ts" timestamp(6)', '"book_hash" bigint',
        '"yes" array(row("price" decimal(9, 6), "size" decimal(18, 2)))', '"epoch" integer',
    ):  # fmt: skip
        assert f"  {line}" in text, line


def test_projected_partitions_are_the_folders_of_objects() -> None:
    """A digit less, and Athena looks for month=5 where month=05 lies."""
    for name in TABLES:
        location = f"{PLACE}/parquet/{name}/"
        found = ddl.projection(location)
        template = found["storage.location.template"]
        moment = paths.at(HOUR)
        for key, (first, last, digits) in ddl.PARTITIONS.items():
            value = getattr(moment, key)
            assert first <= value <= last
            assert found[f"projection.{key}.range"] == f"{first},{last}"
            assert int(found.get(f"projection.{key}.digits", digits)) == digits
            template = template.replace(f"${{{key}}}", f"{value:0{digits}}")
        assert f"{PLACE}/{paths.object_key(name, HOUR)}".startswith(template)
        assert "$" not in template


@pytest.mark.parametrize("engine", ["athena", "trino"])
def test_locations_are_the_tables_folders(engine: str) -> None:
    text = ddl.ddl(engine, f"{PLACE}/some/prefix/")
    for name in TABLES:
        assert f"'{PLACE}/some/prefix/parquet/{name}/'" in text


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(LakeError, match="not on S3"):
        ddl.ddl("athena", "/var/lib/lake")
    with pytest.raises(LakeError, match="athena, trino") as told:
        ddl.ddl("presto", PLACE)
    assert "presto" in str(told.value)
