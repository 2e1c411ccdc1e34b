"""Row layouts: what one process packs and another unpacks must not shift by a byte."""

from __future__ import annotations

import numpy as np

from marketdata import rows


def test_layouts_are_packed_without_holes() -> None:
    """The bulk packers of COPY and struct count on it."""
    for layout in (rows.DELTA_ROW, rows.MERGED_ROW):
        fields = [layout[name] for name in layout.names or ()]
        assert layout.itemsize == sum(field.itemsize for field in fields)
        assert not layout.hasobject


def test_prices_are_int32_and_sizes_and_times_int64() -> None:
    """Micro-dollars fit 32 bits; a cumulated size and a time in nanoseconds do not."""
    for layout in (rows.DELTA_ROW, rows.MERGED_ROW):
        assert layout["price"] == np.dtype("i4")
        for name in ("delta", "exchange_us", "received_ns"):
            assert layout[name] == np.dtype("i8")
        assert layout["book_hash"] == np.dtype("u8")


def test_flags_are_single_bits_that_fit_their_column() -> None:
    """Two flags on one bit would say each other's word."""
    flags = [flag.value for flag in rows.DeltaFlag]
    assert all(value & (value - 1) == 0 for value in flags)
    assert max(flags) < 2**15


def test_sides_and_verdicts_have_the_documented_numbers() -> None:
    """They stand in databases and files: a change of number is a change of format."""
    assert [(side.name, side.value) for side in rows.Side] == [("YES", 0), ("NO", 1)]
    verdicts = [(verdict.name, verdict.value) for verdict in rows.SnapshotVerdict]
    assert verdicts == [("ANCHOR", 0), ("AGREES", 1), ("DIFFERS", 2), ("RESET", 3)]


def test_batches_do_not_share_their_lists() -> None:
    """A default that is one list for all batches would mix two gatherers' rows."""
    empty = np.empty(0, dtype=rows.DELTA_ROW)
    one, two = (rows.GathererBatch(g, 1, 1, 0, empty) for g in (0, 1))
    one.trades.append(rows.TradeRow(*([0] * 2), b"", *([0] * 9)))
    assert two.trades == []
    first, second = (rows.ControlRow(1, 0, 0, rows.ControlKind.RUN_START, 1) for _ in range(2))
    first.detail["x"] = 1
    assert second.detail == {}
