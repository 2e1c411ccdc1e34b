"""Values as commands print them."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pyarrow as pa

from kalshilake.schema import LEVELS, PRICE, SIZE, TIME
from tape.arrow import plain_rows, show


def table() -> pa.Table:
    return pa.table(
        {
            "at": pa.array([1_747_000_000_123_457, None]).cast(TIME),
            "yes_bid": pa.array([Decimal("0.42"), None], PRICE),
            "size": pa.array([Decimal("15.5"), None], SIZE),
            "yes": pa.array([[{"price": Decimal("0.4"), "size": Decimal(2)}] * 5, None], LEVELS),
            "sources": pa.array([5, 0], pa.int16()),
            "other": pa.array([Decimal("1.2500"), None], pa.decimal128(9, 4)),
            "day": pa.array([dt.date(2026, 5, 1), None]),
            "raw": pa.array([b"\x01\xff", None]),
        }
    )


def test_values_are_exact_text() -> None:
    """No float is made of a price, an absent value stays absent."""
    one, two = plain_rows(table())
    assert one == {
        "at": "2025-05-11T21:46:40.123457Z", "yes_bid": "0.4200", "size": "15.50",
        "yes": [["0.4000", "2.00"]] * 5, "sources": "1 3", "other": "1.25",
        "day": "2026-05-01", "raw": "01ff",
    }  # fmt: skip
    assert two == dict.fromkeys(one) | {"sources": ""}


def test_a_long_ladder_is_cut_on_a_screen_and_whole_in_csv(capsys) -> None:
    """A table is for eyes, CSV for programs."""
    kept = {"as_json": False, "parquet": None, "limit": 1, "noun": "rows"}
    show(table(), as_csv=False, **kept)
    shown = capsys.readouterr().out
    assert "0.4000x2.00 0.4000x2.00 0.4000x2.00 ..." in shown
    assert "and 1 more rows" in shown
    show(table(), as_csv=True, **kept)
    assert capsys.readouterr().out.count('""0.4000""') == 5
