"""The tables' definition."""

from __future__ import annotations

from pathlib import Path

import pytest

from kalshilake.schema import TABLES, spec_of
from marketdata.errors import LakeError

FORMATS = Path(__file__).resolve().parents[3] / "docs" / "formats.md"


def test_every_column_is_named_in_the_format_document() -> None:
    """The document is what others code against; a column it lacks does not exist for them."""
    rows = {
        line.split("|")[1].strip(): line
        for line in FORMATS.read_text().split("## 4. Lake")[1].splitlines()
        if line.startswith("| ")
    }
    for name, spec in TABLES.items():
        missing = [c for c in spec.schema.names if c not in rows[name]]
        assert not missing, f"{name}: {missing} not in docs/formats.md"


def test_encodings_and_keys_name_columns_of_their_table() -> None:
    """A misspelt column name would silently get the default encoding."""
    for spec in TABLES.values():
        names = set(spec.schema.names)
        assert set(spec.key) | {spec.time} <= names
        assert set(spec.dictionary) | set(spec.delta_packed) <= names
        assert not set(spec.dictionary) & set(spec.delta_packed)
        assert all(not spec.schema.field(k).nullable for k in spec.key)


def test_an_unknown_table_is_refused_with_the_names_that_exist() -> None:
    """The usual mistake is `deltas` for `orderbook_deltas`."""
    with pytest.raises(LakeError, match="orderbook_deltas"):
        spec_of("deltas")
