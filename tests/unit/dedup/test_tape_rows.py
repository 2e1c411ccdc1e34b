"""Rows of the tape keep every bit on their way into production and back."""

from __future__ import annotations

import numpy as np
import pytest

from dedup import tape_rows
from marketdata.errors import StorageError
from marketdata.rows import MERGED_ROW
from runtime.pgcopy import HEADER, TRAILER, pack_rows, unpack_rows
from runtime.postgres import connect, copy_in, copy_out
from tests.window_outputs import delta_rows

EXTREME = delta_rows([(1_771_945_200_000_001, 7, 2, 2**31 - 1, 1_000_000, -(2**63), 2**64 - 1)])


def test_packing_and_reading_back_gives_the_same_rows() -> None:
    """The exporter reads what the publisher wrote."""
    body = HEADER + bytes(pack_rows(tape_rows.DELTA_COPY, EXTREME)) + TRAILER
    assert unpack_rows(tape_rows.DELTA_COPY, body, MERGED_ROW).tolist() == EXTREME.tolist()


def test_a_number_too_large_for_its_column_is_refused() -> None:
    """market_seq has four bytes in production: a wrapped one would be a silent lie."""
    rows = EXTREME.copy()
    rows["market_seq"] = 2**31
    with pytest.raises(StorageError, match="market_seq"):
        pack_rows(tape_rows.DELTA_COPY, rows)


def test_native_layout_has_integers_for_times_and_unsigned_keys() -> None:
    """Times are microseconds, 64-bit hashes have no sign."""
    assert tape_rows.TICKER_ROW.names is not None
    assert tape_rows.TICKER_ROW.names[0] == "exchange_us"
    assert tape_rows.TICKER_ROW["payload_key"] == np.dtype("u8")
    assert tape_rows.TRADE_ROW["trade_id"] == np.dtype("V16")


async def test_a_real_server_agrees_on_columns_and_bits(production: str) -> None:
    """The layouts are those of the migration, column by column."""
    conn = await connect(production)
    await copy_in(conn, tape_rows.DELTA_COPY, pack_rows(tape_rows.DELTA_COPY, EXTREME))
    names = ", ".join(tape_rows.DELTA_COPY.names)
    body = await copy_out(conn, f"SELECT {names} FROM orderbook_delta")
    assert unpack_rows(tape_rows.DELTA_COPY, body, MERGED_ROW).tolist() == EXTREME.tolist()
    for layout in (
        tape_rows.DELTA_COPY,
        tape_rows.SNAPSHOT_COPY,
        tape_rows.TRADE_COPY,
        tape_rows.TICKER_COPY,
    ):
        found = await conn.fetch(
            "SELECT attname, atttypid::regtype::text AS kind FROM pg_attribute"
            " WHERE attrelid = $1::regclass AND attnum > 0 ORDER BY attnum",
            layout.table,
        )
        kinds = {"timestamp with time zone": "timestamptz"}
        there = [(r["attname"], kinds.get(r["kind"], r["kind"])) for r in found]
        assert there == list(layout.columns)
    await conn.close()
