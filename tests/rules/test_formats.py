"""docs/formats.md says what the code does: it is what other programs are written against."""

from __future__ import annotations

import re

from marketdata import book, rows, segment
from runtime import spool_files
from tests.rules.tree import ROOT

TEXT = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")


def cells(section: str) -> list[list[str]]:
    """The table rows of a section."""
    body = re.split(r"^## ", TEXT, flags=re.MULTILINE)
    (found,) = [part for part in body if part.startswith(section)]
    lines = [line for line in found.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_record_kinds_are_those_of_the_codec() -> None:
    documented = {name: int(kind) for kind, name, _ in cells("1. Spool")}
    coded = {
        name.removeprefix("KIND_"): value
        for name, value in vars(segment).items()
        if name.startswith("KIND_")
    }
    assert documented == coded


def test_segment_facts_are_those_of_the_codec() -> None:
    assert f"`{segment.MAGIC.decode()}` ({len(segment.MAGIC)})" in TEXT
    assert f"Segment: {segment.HEADER_BYTES} bytes header" in TEXT
    assert f"At most {segment.MAX_RECORD_BYTES // 2**20} MiB" in TEXT
    assert f"`{spool_files.segment_name(1)}`" in TEXT
    assert f"`{spool_files.META_NAME}`" in TEXT
    assert f"`{spool_files.TORN_NAME}/`" in TEXT


def test_book_hash_is_the_documented_function() -> None:
    """Written here a second time, from the document's own numbers."""
    numbers = [int(found, 16) for found in re.findall(r"0x[0-9A-F]{16}", TEXT)]
    gamma, first, second = numbers
    mask = 2**64 - 1

    def constant(side: int, price: int) -> int:
        x = (side * 2**32 + price + gamma) & mask
        x = ((x ^ x >> 30) * first) & mask
        x = ((x ^ x >> 27) * second) & mask
        return (x ^ x >> 31) | 1

    for side in (0, 1):
        for price in (0, 1, 10_000, 960_000, 999_999, 1_000_000):
            assert book.level_constant(side, price) == constant(side, price)


def test_flag_bits_that_the_document_names_are_those_of_the_code() -> None:
    """One bit each, none twice; the words the document uses for them exist."""
    values = [flag.value for flag in rows.DeltaFlag]
    assert all(value.bit_count() == 1 for value in values)
    assert len(set(values)) == len(values)
    assert "FLOATING" in TEXT
    assert "FLOATING" in rows.DeltaFlag.__members__
    for kind in ("run_start", "run_end"):
        assert f"`{kind}`" in TEXT
        assert kind in vars(rows.ControlKind).values()


def test_lake_columns_are_those_of_the_schema() -> None:
    from kalshilake import schema

    coded = {name: table.schema.names for name, table in schema.TABLES.items()}
    documented = dict(row for row in cells("4. Lake"))
    assert set(documented) == set(coded)
    for table, names in coded.items():
        told = re.sub(r"\([^)]*\)", "", documented[table])
        assert [n for n in names if not re.search(rf"\b{n}\b", told)] == [], table
