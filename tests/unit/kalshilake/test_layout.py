"""Single objects, as the verifier sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kalshilake.schema import LEVELS, PRICE, TABLES, TIME
from kalshilake.tables import decimals
from kalshilake.verify import verify
from kalshilake.verify.layout import FORMAT, plain, side_levels
from tests import lake_tamper as tamper


def problems(root: Path, key: str) -> str:
    return " | ".join(f.problem for f in verify(str(root)).findings if f.key == key)


def test_the_format_is_that_of_the_writer() -> None:
    """Written twice, on purpose; a difference is a bug in one of them."""
    assert FORMAT.keys() == TABLES.keys()
    for name, (columns, key, time) in FORMAT.items():
        spec = TABLES[name]
        assert columns == [(f.name, f"{f.type}{'?' if f.nullable else ''}") for f in spec.schema]
        assert (tuple(key), time) == (spec.key, spec.time)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.take([1, 0, *range(2, t.num_rows)]), "out of order"),
        (lambda t: t.take([0, 0, *range(1, t.num_rows)]), "repeat a key"),
        (lambda t: t.rename_columns(["ticker", *t.schema.names[1:]]), "columns are not"),
        (lambda t: t.drop_columns(["sources"]), "columns are not"),
        (lambda t: t.set_column(1, t.schema.field(1), [_shifted(t)]), "outside its hour"),
    ],
)
def test_an_object_of_another_layout_is_named_with_what_is_wrong(
    lake_copy: Path, edit, words: str
) -> None:
    """Even with every list fixed up."""
    key = tamper.keys_of(lake_copy, "trades")[0]
    tamper.rewrite(lake_copy, key, edit, 3)
    assert words in problems(lake_copy, key)


def _shifted(rows: pa.Table) -> pa.Array:
    times = np.asarray(rows["exchange_ts"].cast(pa.int64())) + 3_600_000_000
    return pa.array(times).cast(TIME)


def test_other_rows_than_listed_are_told_by_their_number(lake_copy: Path) -> None:
    """Nothing was fixed up: every figure of the list contradicts the object."""
    key = tamper.keys_of(lake_copy, "trades")[0]
    tamper.rewrite(lake_copy, key, lambda t: t.slice(1), 0)
    assert "rows in 1 row groups where the list says" in problems(lake_copy, key)


def test_each_wrong_figure_of_an_entry_is_told(lake_copy: Path) -> None:
    """The list is checked against the object in every figure a reader relies on."""
    key = tamper.keys_of(lake_copy, "trades")[0]
    good = tamper.newest(lake_copy).read_bytes()
    for name, value, words in (
        ("bytes", 3, "bytes where"), ("sha256", "0" * 64, "its SHA-256"), ("rows", 0, "rows"),
        ("footer_sha256", "0" * 64, "footer"), ("row_groups", 9, "row groups"),
        ("min_us", 1, "times or markets"), ("last_market", "ZZ", "times or markets"),
        ("schema", 2, "certifies another"),
    ):  # fmt: skip
        tamper.edit_version(
            tamper.newest(lake_copy),
            lambda b, n=name, v=value: [o.update({n: v}) for o in b["objects"] if o["key"] == key],
            sealed=True,
        )
        assert words in problems(lake_copy, key), name
        tamper.newest(lake_copy).write_bytes(good)


def test_a_listed_object_that_is_absent_or_no_parquet_is_named(lake_copy: Path) -> None:
    """The rest of the lake is checked all the same."""
    key = tamper.keys_of(lake_copy, "trades")[0]
    (lake_copy / key).write_bytes(b"not parquet")
    assert "cannot be read" in problems(lake_copy, key)
    (lake_copy / key).unlink()
    assert problems(lake_copy, key) == "is listed and absent"


def test_an_object_without_a_certificate_is_named(lake_copy: Path) -> None:
    """Rows rewritten unchanged by another program are still not what was certified."""
    key = tamper.keys_of(lake_copy, "trades")[0]
    tamper.rewrite(lake_copy, key, lambda t: t, 3)
    assert "carries no certificate" in problems(lake_copy, key)


def test_values_come_out_exact_from_slices_chunks_and_nulls() -> None:
    """The check computes with these integers."""
    prices = decimals(np.arange(6) * 10_000, PRICE, np.arange(6) != 2)
    assert plain(prices.slice(1, 3)) == [10_000, None, 30_000]
    assert plain(pa.chunked_array([prices.slice(0, 1), prices.slice(5)])) == [0, 50_000]
    assert plain(pa.chunked_array([], PRICE)) == []
    assert plain(pa.array([5, None], TIME)) == [5, None]
    assert plain(pa.array([2**64 - 1], pa.uint64())) == [2**64 - 1]
    made = pa.array([[], [{"price": 1, "size": 2}], []], LEVELS)
    assert side_levels(pa.chunked_array([made])) == [[], [(1_000_000, 200)], []]
    assert side_levels(pa.chunked_array([made.slice(1)])) == [[(1_000_000, 200)], []]
    assert side_levels(pa.chunked_array([], LEVELS)) == []
