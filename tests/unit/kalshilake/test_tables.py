"""Rows of the merge as Arrow tables."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from kalshilake import tables
from kalshilake.schema import PRICE, SIZE, TABLES
from marketdata.errors import LakeError
from marketdata.rows import MERGED_ROW, DeltaFlag

T = 1_747_000_000_123_457


def test_decimals_are_exact_both_ways_at_the_ends_of_their_range() -> None:
    """One wrong sign bit or word and every price of the archive is wrong."""
    prices = np.array([0, 1, 999_999, 1_000_000, -1])
    assert tables.decimals(prices, PRICE).to_pylist() == [
        Decimal(int(p)).scaleb(-6) for p in prices
    ]
    sizes = np.array([10**18 - 1, -(10**18) + 1, 0, -5400])
    assert list(tables.units_of(tables.decimals(sizes, SIZE))) == list(sizes)
    assert tables.decimals(sizes, SIZE)[3].as_py() == Decimal("-54.00")


def test_decimals_with_more_digits_than_the_column_are_refused() -> None:
    """Arrow would store them unseen and another engine would read nonsense."""
    for bad in (10**18, -(10**18)):
        with pytest.raises(LakeError, match="does not fit"):
            tables.decimals(np.array([bad]), SIZE)
    assert (
        tables.decimals(np.array([10**18 - 1, 0]), PRICE, np.array([False, True]))[0].as_py()
        is None
    )


def test_units_of_slices_chunks_nulls_and_narrow_decimals() -> None:
    """Readers hand over slices and chunks, and other writers narrow decimals."""
    whole = tables.decimals(np.arange(10), PRICE, np.arange(10) != 4)
    assert list(tables.units_of(whole.slice(3, 3), absent=-7)) == [3, -7, 5]
    chunked = pa.chunked_array([whole.slice(0, 2), whole.slice(8, 2)])
    assert list(tables.units_of(chunked)) == [0, 1, 8, 9]
    assert list(tables.units_of(pa.chunked_array([], PRICE))) == []


def merged_rows(*rows: dict[str, int]) -> np.ndarray:
    base = {"exchange_us": T, "received_ns": T * 1000 + 999, "market_id": 4, "epoch": 1,
            "market_seq": 1, "price": 960_000, "side": 1, "delta": -5400, "sources": 5}  # fmt: skip
    made = np.zeros(len(rows), MERGED_ROW)
    for i, row in enumerate(rows):
        for name, value in {**base, **row}.items():
            made[name][i] = value
    return made


def test_deltas_and_resets_become_the_documented_columns() -> None:
    """A reset has no side, price or delta: zeros there would be a delta of nothing."""
    table = tables.deltas_table(
        merged_rows({}, {"market_seq": 2, "flags": int(DeltaFlag.RESET)}), {4: "MKT"}
    )
    assert table.schema.equals(TABLES["orderbook_deltas"].schema)
    first, second = table.to_pylist()
    moment = datetime(2025, 5, 11, 21, 46, 40, 123_457, tzinfo=UTC)
    assert first == {
        "market_ticker": "MKT", "exchange_ts": moment, "received_at": moment, "epoch": 1,
        "market_seq": 1, "kind": "delta", "side": "no", "price": Decimal("0.960000"),
        "delta": Decimal("-54.00"), "sources": 5, "flags": 0,
    }  # fmt: skip
    assert (second["kind"], second["side"], second["price"], second["delta"]) == (
        "reset", None, None, None,
    )  # fmt: skip


def test_deltas_without_a_ticker_or_with_a_foreign_side_are_refused() -> None:
    """A market id that nobody named would end as somebody else's row."""
    with pytest.raises(LakeError, match="without a ticker"):
        tables.deltas_table(merged_rows({}), {5: "MKT"})
    with pytest.raises(LakeError, match="codes"):
        tables.deltas_table(merged_rows({"side": 2}), {4: "MKT"})
    assert tables.deltas_table(merged_rows(), {}).num_rows == 0


def packed(yes: list[tuple[int, int]], no: list[tuple[int, int]]) -> bytes:
    return struct.pack("<II", len(yes), len(no)) + b"".join(
        struct.pack("<iq", *level) for level in (*yes, *no)
    )


def test_snapshots_keep_levels_on_their_side_and_a_full_hash() -> None:
    """Hashes use all 64 bits; books may lack a side or both."""
    books = [
        packed([(10_000, 5), (990_000, 700)], [(20_000, 1)]),
        packed([], []),
        packed([], [(1, 2)]),
    ]
    table = tables.snapshots_table(
        ["A", "B", "C"], np.array([T] * 3), np.array([T * 1000] * 3), np.array([1] * 3),
        np.array([0, 4, 5]), np.array([2**64 - 1, 0, 7], np.uint64), books, np.array([7] * 3),
    )  # fmt: skip
    assert table.column("book_hash")[0].as_py() == 2**64 - 1
    assert table.column("yes")[0].as_py() == [
        {"price": Decimal("0.010000"), "size": Decimal("0.05")},
        {"price": Decimal("0.990000"), "size": Decimal("7.00")},
    ]
    assert [len(v.as_py()) for v in table.column("no")] == [1, 0, 1]
    assert tables.levels_at(table.column("yes"), 0).tolist() == [(10_000, 5), (990_000, 700)]
    assert tables.levels_at(table.column("no"), 1).tolist() == []
    assert tables.levels_at(table.column("no"), 2).tolist() == [(1, 2)]


@pytest.mark.parametrize(
    "blob", [b"", b"\0" * 7, packed([(1, 2)], [])[:-1], packed([], []) + b"\0"]
)
def test_a_packed_book_of_the_wrong_length_is_refused(blob: bytes) -> None:
    """A cut blob must not become a thinner book."""
    with pytest.raises(LakeError, match="packed book"):
        tables.unpack_columns([blob])


def test_trades_and_tickers_say_absent_with_null() -> None:
    """Not told is not yes, and no size is not a size of zero."""
    trades = tables.trades_table(
        ["A", "A"], np.array([T, T]), np.array([T, T]) * 1000, [b"\x01" * 16, b"\xff" * 16],
        np.array([400_000] * 2), np.array([600_000] * 2), np.array([100, 1]), np.array([-1, 1]),
        np.array([0, 1]), np.array([1, 2]),
    )  # fmt: skip
    assert [r["taker_side"] for r in trades.to_pylist()] == [None, "no"]
    assert trades.column("trade_id")[1].as_py() == "ff" * 16
    assert trades.column("is_block_trade").to_pylist() == [False, True]
    nullable = [f.name for f in TABLES["tickers"].schema if f.nullable]
    tickers = tables.tickers_table(
        ["A"], np.array([T]), np.array([T * 1000]), np.array([2**63], np.uint64), np.array([3]),
        {name: np.array([-1 if "size" in name else 10]) for name in nullable},
    )  # fmt: skip
    row = tickers.to_pylist()[0]
    assert (row["yes_bid_size"], row["price"]) == (None, Decimal("0.000010"))
    assert (row["dollar_volume"], row["payload_key"]) == (10, 2**63)


def test_records_take_times_as_microseconds_and_refuse_what_does_not_fit() -> None:
    """Coverage and markets come as plain rows."""
    row = {"market_ticker": "M", "channel": "orderbook", "from_ts": T, "to_ts": T + 1,
           "status": "complete", "reason": "", "sources": 7, "audits": 0, "epoch": 1}  # fmt: skip
    table = tables.records_table("coverage", [row])
    assert tables.times_us(table.column("to_ts"))[0] == T + 1
    with pytest.raises(LakeError, match="sources"):
        tables.records_table("coverage", [row | {"sources": 2**20}])
    with pytest.raises(LakeError, match="nulls"):
        tables.records_table("coverage", [row | {"status": None}])


def test_sort_order_is_total_or_refused() -> None:
    """Rows with equal keys would lie in the order of their arrival: other bytes each time."""
    table = pa.table({"t": ["b", "a", "é", "b"], "n": pa.array([2, 9, 1, 1], pa.int64())})
    assert list(tables.sort_order(table, ("t", "n"))) == [1, 3, 0, 2]
    with pytest.raises(LakeError, match="repeat a key"):
        tables.sort_order(table, ("t",))
    with pytest.raises(LakeError, match="nulls"):
        tables.sort_order(pa.table({"t": ["a", None]}), ("t",))
    assert list(tables.sort_order(table.slice(0, 0), ("t", "n"))) == []
