"""Reading back what was encoded."""

from __future__ import annotations

import io

import pyarrow as pa
import pytest

from kalshilake.encode import encode
from kalshilake.reread import fingerprint, read_back, text_columns
from kalshilake.schema import TABLES
from marketdata.errors import LakeError
from tests.lake_rows import HOUR
from tests.lake_rows import delta_rows as rows

SPEC = TABLES["orderbook_deltas"]


def _changed(table: pa.Table, name: str) -> pa.Table:
    """One value of one column is another one."""
    values = table.column(name).to_pylist()
    other = next(v for v in values if v != values[5])
    values[5] = other
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(name), pa.array(values, table.schema.types[at]))


@pytest.mark.parametrize("name", SPEC.schema.names)
def test_a_fingerprint_sees_every_column(name: str) -> None:
    """The comparison of what was written with what is read must not pass over a column."""
    table = rows(40)
    if len(set(table.column(name).to_pylist())) == 1:  # the same everywhere: change it all
        first = table.column(name)[0].as_py()
        other = {int: lambda v: v + 1, str: lambda v: v + "x"}[type(first)](first)
        at = table.schema.get_field_index(name)
        column = pa.array([other] * 40, table.schema.types[at])
        changed = table.set_column(at, table.schema.field(name), column)
    else:
        changed = _changed(table, name)
    assert fingerprint(changed) != fingerprint(table)


def test_a_fingerprint_is_of_the_values_only() -> None:
    """However Arrow holds them: chunks, offsets, what stands under a null."""
    table = rows(400)
    again = pa.concat_tables([table.slice(0, 123), table.slice(123)])
    assert fingerprint(again) == fingerprint(table)
    padded = pa.concat_tables([rows(3), table]).slice(3)
    assert fingerprint(padded) == fingerprint(table)
    values = pa.array([None, b"b", None], pa.binary()).cast(pa.string())
    other = pa.array(["", "b", "c"]).filter(pa.array([True, True, True]))
    masked = pa.Array.from_buffers(
        pa.string(), 3, [pa.py_buffer(bytes([0b010])), *other.buffers()[1:]]
    )
    one, two = (pa.table({"a": column}) for column in (values, masked))
    assert one.equals(two)
    assert fingerprint(one) == fingerprint(two)
    assert fingerprint(one) != fingerprint(pa.table({"a": pa.array(["", "b", ""])}))


def test_books_have_fingerprints_too() -> None:
    """Lists of levels: another size, another split between two rows, none instead of empty."""
    kind = pa.list_(pa.struct([("price", pa.int32()), ("size", pa.int64())]))

    def made(books: list[list[tuple[int, int]] | None]) -> bytes:
        named = [b and [{"price": p, "size": s} for p, s in b] for b in books]
        return fingerprint(pa.table({"yes": pa.array(named, kind)}))

    first = made([[(1, 5), (2, 6)], [(3, 7)]])
    assert made([[(1, 5), (2, 6)], [(3, 7)]]) == first
    assert len({first, made([[(1, 5)], [(2, 6), (3, 7)]]), made([[(1, 5), (2, 8)], [(3, 7)]])}) == 3
    assert made([[], []]) != made([[], None])


def test_what_is_not_as_it_is_to_be_is_refused() -> None:
    """Other rows, fewer groups, another number of rows: each for itself."""
    table = rows(300)
    body, record = encode(SPEC, HOUR, table)
    order = [(name, "ascending") for name in SPEC.key]
    right = fingerprint(table.sort_by(order).cast(SPEC.schema))
    read_back(SPEC, io.BytesIO(body), [right], 300, record.key)
    wrong = fingerprint(rows(299))
    for prints, count in (([wrong], 300), ([right, right], 300), ([], 300), ([right], 299)):
        with pytest.raises(LakeError, match="read back"):
            read_back(SPEC, io.BytesIO(body), prints, count, record.key)


def test_text_that_is_held_as_dictionaries_is_named() -> None:
    assert text_columns(SPEC) == ["market_ticker", "kind", "side"]
    assert "body" not in text_columns(TABLES["markets"])


def test_every_type_that_may_be_null_has_a_fingerprint_without_it() -> None:
    """A table with a null in each column that may have one can be written at all."""
    for spec in TABLES.values():
        nulls = pa.table(
            [pa.nulls(2, f.type) for f in spec.schema], schema=pa.schema(
                [pa.field(f.name, f.type) for f in spec.schema]
            )
        )  # fmt: skip
        assert fingerprint(nulls) == fingerprint(nulls.slice(0))
        assert fingerprint(nulls) != fingerprint(nulls.slice(1))
