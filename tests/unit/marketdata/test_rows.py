"""marketdata.rows: layouts that several processes share must not shift by a byte."""

from __future__ import annotations

from enum import IntFlag

import numpy as np
import pytest

from marketdata.rows import (
    DELTA_ROW,
    GATHERERS_MAX,
    MERGED_ROW,
    SOURCE_REST,
    TRADE_ROW,
    ControlKind,
    ControlRow,
    DeltaFlag,
    GathererBatch,
    Side,
    SnapshotVerdict,
    TradeFlag,
)


def test_rows_are_packed_without_holes_and_aligned_for_their_widest_columns() -> None:
    """A hole would be uninitialised bytes in what must be byte-identical."""
    for dtype in (DELTA_ROW, MERGED_ROW):
        names = dtype.names or ()
        assert dtype.itemsize == sum(dtype[name].itemsize for name in names)
        widths = [dtype[name].itemsize for name in names]
        assert widths == sorted(widths, reverse=True)
    assert DELTA_ROW.itemsize == 56
    assert all(DELTA_ROW[name].kind in "iu" for name in DELTA_ROW.names or ())


@pytest.mark.parametrize(("flags", "row"), [(DeltaFlag, DELTA_ROW), (TradeFlag, TRADE_ROW)])
def test_every_flag_is_one_bit_and_fits_its_column(flags: type[IntFlag], row: np.dtype) -> None:
    bits = [flag.value for flag in flags]
    assert all(bit.bit_count() == 1 for bit in bits)
    assert len(set(bits)) == len(bits)
    assert max(bits) < np.iinfo(row["flags"]).max


def test_bits_of_sources_are_gatherers_or_rest_and_fit_a_smallint() -> None:
    assert SOURCE_REST.bit_length() - 1 == GATHERERS_MAX
    assert np.iinfo(MERGED_ROW["sources"]).max > SOURCE_REST


def test_codes_that_are_stored_never_change() -> None:
    """Rows of earlier years hold these numbers."""
    assert (Side.YES, Side.NO) == (0, 1)
    stored = [v.value for v in SnapshotVerdict]
    assert [v.name for v in SnapshotVerdict] == ["ANCHOR", "AGREES", "DIFFERS", "RESET"]
    assert stored == [0, 1, 2, 3]
    assert [(flag.name, flag.value) for flag in DeltaFlag] == [
        ("RESET", 1),
        ("FLOATING", 2),
        ("TS_INFERRED", 4),
        ("TS_MS_ONLY", 8),
        ("NEGATIVE", 16),
        ("TS_BACKWARD", 32),
        ("AMBIGUOUS", 64),
        ("DISPUTED", 128),
    ]


def test_control_kinds_are_distinct() -> None:
    kinds = [value for name, value in vars(ControlKind).items() if name.isupper()]
    assert len(kinds) == len(set(kinds)) == 9


def test_batches_and_control_rows_share_no_mutable_default() -> None:
    """One batch's rows must never appear in another's."""
    empty = np.empty(0, DELTA_ROW)
    first, second = GathererBatch(0, 1, 1, 0, empty), GathererBatch(1, 1, 1, 0, empty)
    first.markets[1] = "KXA"
    first.snapshots.append(None)  # type: ignore[arg-type]
    assert (second.markets, second.snapshots) == ({}, [])
    one, two = ControlRow(1, 0, 5, "problem", 1), ControlRow(1, 1, 5, "problem", 1)
    one.detail["x"] = 1
    assert two.detail == {}
