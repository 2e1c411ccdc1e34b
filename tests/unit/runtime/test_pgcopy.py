"""runtime.pgcopy: bytes that a real server takes and gives, and proof before belief on reading."""

from __future__ import annotations

import struct
from datetime import UTC, datetime

import asyncpg
import numpy as np
import pytest

from marketdata.errors import StorageError
from marketdata.rows import DELTA_ROW
from runtime import pgcopy, postgres
from runtime.pgcopy import (
    CONTROL_COPY,
    DELTA_COPY,
    HEADER,
    MARKET_COPY,
    SNAPSHOT_COPY,
    TICKER_COPY,
    TRADE_COPY,
    TRAILER,
    CopyLayout,
    pack_rows,
    pack_values,
    patch_column,
    unpack_rows,
)

LAYOUTS = [DELTA_COPY, SNAPSHOT_COPY, TRADE_COPY, TICKER_COPY, CONTROL_COPY, MARKET_COPY]


def deltas(count: int = 4) -> np.ndarray:
    """Rows with the extremes of every column among them."""
    rows = np.zeros(count, DELTA_ROW)
    rows["exchange_us"] = 1_770_000_000_000_001 + np.arange(count)
    rows["received_ns"] = 1_770_000_000_000_000_999
    rows["delta"] = [-(2**63), 2**63 - 1, 0, -1][:count]
    rows["book_hash"] = [0, 2**64 - 1, 2**63, 1][:count]
    rows["seq"] = [0, 2**32 - 1, 2**31, 7][:count]
    rows["price"] = [0, 1_000_000, 1, 960_000][:count]
    rows["market_id"] = 2**31 - 1
    rows["side"] = [0, 1, 0, 1][:count]
    rows["flags"] = [-1, 0, 1, 16][:count]
    return rows


def whole(body: bytes | bytearray) -> bytes:
    return HEADER + bytes(body) + TRAILER


async def test_layouts_are_the_tables_of_the_migration(connection: asyncpg.Connection) -> None:
    """A column added in SQL and forgotten here would shift every value behind it."""
    await postgres.migrate(connection, "gatherer_hot")
    for layout in LAYOUTS:
        found = await connection.fetch(
            "SELECT attname, format_type(atttypid, NULL) AS kind, attnotnull FROM pg_attribute"
            " WHERE attrelid = $1::text::regclass AND attnum > 0 ORDER BY attnum",
            layout.table,
        )
        kinds = {"timestamp with time zone": "timestamptz"}
        assert layout.columns == tuple(
            (row["attname"], kinds.get(row["kind"], row["kind"])) for row in found
        )
        assert all(row["attnotnull"] for row in found)


async def test_packed_rows_survive_a_real_server_bit_by_bit(
    connection: asyncpg.Connection,
) -> None:
    """Unsigned hashes and sequence numbers, extremes of every width, times in microseconds."""
    await postgres.migrate(connection, "gatherer_hot")
    rows = deltas()
    packed = pack_rows(DELTA_COPY, rows, batch_id=41)
    assert await postgres.copy_in(connection, DELTA_COPY, packed) == 4
    body = await postgres.copy_out(
        connection, f"SELECT {', '.join(DELTA_COPY.names)} FROM orderbook_delta ORDER BY price"
    )
    rows["batch_id"] = 41
    got = unpack_rows(DELTA_COPY, body, DELTA_ROW)
    assert got.tobytes() == np.sort(rows, order="price").tobytes()
    told = await connection.fetchval("SELECT min(exchange_ts) FROM orderbook_delta")
    assert told == datetime(2026, 2, 2, 2, 40, 0, 1, tzinfo=UTC)


async def test_variable_rows_survive_a_real_server(connection: asyncpg.Connection) -> None:
    await connection.execute(
        "CREATE TABLE odd (a smallint, b integer, c bigint, d timestamptz, e uuid, f bytea,"
        " g text, h jsonb)"
    )
    kinds = ("smallint", "integer", "bigint", "timestamptz", "uuid", "bytea", "text", "jsonb")
    layout = CopyLayout("odd", list(zip("abcdefgh", kinds, strict=True)))
    rows: list[list[object]] = [
        [-1, 2**31 - 1, -(2**63), 1_500_000, bytes(range(16)), b"\x00\xff", "é\n", '{"k": [1]}'],
        [None] * 8,
    ]
    assert await postgres.copy_in(connection, layout, pack_values(layout, rows)) == 2
    first, second = await connection.fetch("SELECT * FROM odd ORDER BY a NULLS LAST")
    assert tuple(first)[:3] == (-1, 2**31 - 1, -(2**63))
    assert first["d"] == datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    assert (first["e"].bytes, first["f"], first["g"]) == (bytes(range(16)), b"\x00\xff", "é\n")
    assert first["h"] == '{"k": [1]}'
    assert all(value is None for value in second)


async def test_a_large_copy_goes_in_chunks_and_arrives_whole(
    connection: asyncpg.Connection,
) -> None:
    """More than COPY_CHUNK_BYTES in one part, and several parts in one COPY."""
    await connection.execute("CREATE TABLE wide (a bigint NOT NULL, b bytea NOT NULL)")
    layout = CopyLayout("wide", [("a", "bigint"), ("b", "bytea")])
    parts = [
        pack_values(layout, [(i, bytes([i]) * 700_000) for i in range(begin, begin + 4)])
        for begin in (0, 4)
    ]
    assert await postgres.copy_in(connection, layout, *parts) == 8
    assert await connection.fetchval("SELECT sum(length(b)) FROM wide") == 8 * 700_000


def test_patch_sets_one_column_of_all_rows_in_place() -> None:
    """batch_id is known only at the commit, after the rows were packed."""
    packed = pack_rows(DELTA_COPY, deltas())
    patch_column(DELTA_COPY, packed, "batch_id", 77)
    got = unpack_rows(DELTA_COPY, whole(packed), DELTA_ROW)
    want = deltas()
    want["batch_id"] = 77
    assert got.tobytes() == want.tobytes()
    patch_column(DELTA_COPY, packed, "exchange_ts", 5)
    assert (unpack_rows(DELTA_COPY, whole(packed), DELTA_ROW)["exchange_us"] == 5).all()


def test_struct_of_a_layout_gives_the_same_bytes_as_the_bulk_form() -> None:
    """A row packed on arrival and one packed at the flush are the same row."""
    row = deltas(1)
    one: list[int] = [len(DELTA_COPY.columns)]
    widths = {"smallint": 2, "integer": 4, "bigint": 8, "timestamptz": 8}
    for name, kind in DELTA_COPY.columns:
        value = int(row[{"exchange_ts": "exchange_us"}.get(name, name)][0])
        one += [widths[kind], pgcopy.to_pg_us(value) if kind == "timestamptz" else value]
    assert DELTA_COPY.row_struct is not None
    assert DELTA_COPY.row_struct.pack(*one) == bytes(pack_rows(DELTA_COPY, row))
    assert DELTA_COPY.row_struct.size == DELTA_COPY.row_bytes


def test_unpacking_takes_fields_the_table_lacks_from_the_caller() -> None:
    layout = CopyLayout("small", [("a", "integer"), ("b", "integer")])
    body = whole(pack_values(layout, [(1, 2), (3, 4)]))
    got = unpack_rows(layout, body, np.dtype([("b", "i8"), ("gatherer", "i2")]), gatherer=2)
    assert got.tolist() == [(2, 2), (4, 2)]


def test_no_rows_is_an_answer_and_no_bytes_is_none() -> None:
    assert len(unpack_rows(DELTA_COPY, whole(b""), DELTA_ROW)) == 0
    with pytest.raises(StorageError, match="gave no bytes"):
        unpack_rows(DELTA_COPY, b"", DELTA_ROW)


def test_every_cut_of_an_answer_is_refused() -> None:
    """A connection that breaks in the middle must never look like fewer rows."""
    body = whole(pack_rows(DELTA_COPY, deltas()))
    for end in range(len(body)):
        with pytest.raises(StorageError):
            unpack_rows(DELTA_COPY, body[:end], DELTA_ROW)


def test_every_flipped_length_word_is_refused() -> None:
    """A column that became NULL or changed its type shows in the lengths, which are all checked."""
    packed = pack_rows(DELTA_COPY, deltas())
    assert DELTA_COPY.dtype is not None
    for name in DELTA_COPY.dtype.names or ():
        if not name.startswith("#"):
            continue
        offset = DELTA_COPY.dtype.fields[name][1]  # type: ignore[index]
        damaged = bytearray(packed)
        damaged[2 * DELTA_COPY.row_bytes + offset + 1] ^= 1
        with pytest.raises(StorageError, match=r"fields|null or not"):
            unpack_rows(DELTA_COPY, whole(damaged), DELTA_ROW)


def test_a_foreign_header_is_refused() -> None:
    body = bytearray(whole(pack_rows(DELTA_COPY, deltas())))
    body[0] ^= 1
    with pytest.raises(StorageError, match="header we do not know"):
        unpack_rows(DELTA_COPY, body, DELTA_ROW)


def test_infinity_and_times_out_of_range_are_refused_both_ways() -> None:
    """PostgreSQL's two sentinels would otherwise become dates of the year 294247."""
    rows = deltas()
    for wild in (2**63 - 1, -(2**63), pgcopy.TS_US_MAX + 1, pgcopy.TS_US_MIN - 1):
        rows["exchange_us"][1] = wild
        with pytest.raises(StorageError):
            pack_rows(DELTA_COPY, rows)
        with pytest.raises(StorageError):
            pgcopy.to_pg_us(wild)
    layout = CopyLayout("t", [("exchange_ts", "timestamptz")])
    for sentinel in (2**63 - 1, -(2**63)):
        body = whole(struct.pack(">hiq", 1, 8, sentinel))
        with pytest.raises(StorageError, match="infinity"):
            unpack_rows(layout, body, np.dtype([("exchange_us", "i8")]))
        with pytest.raises(StorageError, match="infinity"):
            pgcopy.from_pg_us(sentinel)
    assert pgcopy.from_pg_us(pgcopy.to_pg_us(123)) == 123


def test_a_value_too_wide_for_its_column_is_refused_not_wrapped() -> None:
    layout = CopyLayout("t", [("price", "integer")])
    dtype = np.dtype([("price", "i8")])
    assert pack_rows(layout, np.array([(2**31 - 1,)], dtype))
    with pytest.raises(StorageError, match=r"t\.price: a value does not fit 4 bytes"):
        pack_rows(layout, np.array([(2**31,)], dtype))


def test_text_with_a_zero_character_is_refused_with_a_plain_message() -> None:
    with pytest.raises(StorageError, match="zero character"):
        pack_values(MARKET_COPY, [(1, 2, "A\x00B")])
