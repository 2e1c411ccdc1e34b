"""An hour of production as Arrow tables: its rows, no others, whatever order the heap has."""

from __future__ import annotations

import random

import numpy as np

from dedup import hours, tape_rows
from dedup.publication import HOUR_US
from marketdata.rows import MERGED_ROW
from runtime.pgcopy import pack_rows
from runtime.postgres import connect, copy_in
from tests.window_outputs import T0, delta_rows


async def test_an_hour_is_half_open_to_the_microsecond(production: str) -> None:
    """A row on the border belongs to one hour, never to two or none."""
    times = [T0 - 1, T0, T0 + HOUR_US - 1, T0 + HOUR_US]
    rows = delta_rows([(us, 1, 1, n + 1, 10_000, 5, n) for n, us in enumerate(times)])
    conn = await connect(production)
    await copy_in(conn, tape_rows.DELTA_COPY, pack_rows(tape_rows.DELTA_COPY, rows))
    found = await hours.hour_rows(conn, tape_rows.DELTA_COPY, T0, MERGED_ROW)
    assert sorted(found["exchange_us"].tolist()) == times[1:3]
    await conn.close()


async def test_tables_of_an_empty_hour_have_their_columns(production: str) -> None:
    """Quiet hours exist; they are no special case for whoever reads."""
    conn = await connect(production)
    for read in (hours.trade_table, hours.ticker_table, hours.snapshot_table):
        assert (await read(conn, T0, {})).num_rows == 0
    await conn.close()


async def test_values_come_back_exactly(production: str) -> None:
    """Absent sizes are null, ids are hex, a taker side nobody told is null."""
    conn = await connect(production)
    trade = np.array(
        [(T0, 1, bytes(range(16)), 150, 1, 420_000, 580_000, -1, 1, 7)], tape_rows.TRADE_ROW
    )
    ticker = np.array(
        [(T0, 1, 2**64 - 1, 100, 2, 3, 4, -1, 600, -1, 1, 8, 9, 10, 2)], tape_rows.TICKER_ROW
    )
    await copy_in(conn, tape_rows.TRADE_COPY, pack_rows(tape_rows.TRADE_COPY, trade))
    await copy_in(conn, tape_rows.TICKER_COPY, pack_rows(tape_rows.TICKER_COPY, ticker))
    (row,) = (await hours.trade_table(conn, T0, {1: "A"})).to_pylist()
    assert row["trade_id"] == bytes(range(16)).hex()
    assert str(row["count"]) == "1.50"
    assert row["taker_side"] is None
    assert row["is_block_trade"] is True
    (state,) = (await hours.ticker_table(conn, T0, {1: "A"})).to_pylist()
    assert state["payload_key"] == 2**64 - 1
    assert state["yes_bid_size"] is None
    assert str(state["yes_ask_size"]) == "6.00"
    await conn.close()


def test_moments_are_exact() -> None:
    """A float of seconds would lose microseconds here."""
    for us in (T0 + 1, T0 + 999_999, random.Random(1).randint(T0, T0 * 2)):
        made = hours.moment(us)
        assert int(made.timestamp()) * 1_000_000 + made.microsecond == us
