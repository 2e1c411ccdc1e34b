"""An hour in parts: the same bytes as the whole, whatever the slices, in a file or not."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from dedup import hour_parts, hours, tape_rows
from dedup.hour_parts import HourParts, delta_parts
from dedup.publication import HOUR_US
from kalshilake.encode import encode
from kalshilake.schema import TABLES
from kalshilake.tables import deltas_table
from marketdata.rows import MERGED_ROW
from runtime.pgcopy import pack_rows
from runtime.postgres import connect, copy_in
from tests.window_outputs import T0, delta_rows

SPEC = TABLES["orderbook_deltas"]
NAMES = {1: "KX-C", 2: "KX-A", 3: "KX-B", 4: "KX-NONE"}


def hour(n: int, seed: int) -> np.ndarray:
    """Rows of three markets in the order of time; half of them are of one market."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(n, MERGED_ROW)
    rows["exchange_us"] = np.sort(rng.integers(T0, T0 + HOUR_US, n))
    rows["received_ns"] = rows["exchange_us"] * 1000 + rng.integers(0, 10**7, n)
    rows["market_id"] = rng.choice([1, 2, 2, 3], n)
    rows["market_seq"] = np.arange(n) + 1
    rows["epoch"], rows["sources"] = 1, 7
    rows["price"], rows["delta"] = rng.integers(1, 99, n) * 10_000, rng.integers(1, 900, n)
    return rows


@pytest.mark.parametrize("in_memory", [0, 10_000])
@pytest.mark.parametrize("part_rows", [40, 333, 100_000])
def test_parts_give_the_object_of_the_whole_hour(
    monkeypatch: pytest.MonkeyPatch, in_memory: int, part_rows: int
) -> None:
    """L-8 does not know how much memory there was."""
    monkeypatch.setattr(hour_parts, "IN_MEMORY_ROWS", in_memory)
    monkeypatch.setattr(hour_parts, "PART_ROWS", part_rows)
    rows = hour(2_000, part_rows)
    made = HourParts(NAMES)
    for piece in np.array_split(rows, 7):
        made.add(piece[np.random.default_rng(1).permutation(len(piece))])
    assert made.num_rows == 2_000
    assert made.spilled_rows == (0 if in_memory else 2_000)
    sizes = [part.num_rows for part in made]
    assert sum(sizes) == 2_000
    assert (len(sizes) > 1) == (part_rows < 2_000)
    whole = encode(SPEC, T0, deltas_table(rows, NAMES))
    assert encode(SPEC, T0, made) == whole
    assert encode(SPEC, T0, made) == whole  # a second time: it is compared with the lake's


def test_a_market_with_more_than_a_part_comes_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One hot market must not decide how much memory an export takes."""
    monkeypatch.setattr(hour_parts, "PART_ROWS", 100)
    rows = hour(4_000, 5)
    rows["market_id"] = 1
    made = HourParts(NAMES)
    for piece in np.array_split(rows, 80):
        made.add(piece)
    assert max(part.num_rows for part in made) <= 150
    assert encode(SPEC, T0, made) == encode(SPEC, T0, deltas_table(rows, NAMES))


def test_what_lies_in_the_file_is_not_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty view of each slice kept all of it: an hour of 18 million changes took 1.6 GB."""
    monkeypatch.setattr(hour_parts, "IN_MEMORY_ROWS", 0)
    made = HourParts(NAMES)
    made.add(hour(100, 1))
    pieces = np.array_split(hour(200_000, 2), 20)
    tracemalloc.start()
    try:
        for piece in pieces:
            made.add(piece.copy())
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made.spilled_rows == 200_100
    assert held < pieces[0].nbytes, "twenty slices, and not even one of them is held"


async def test_an_hour_of_production_is_read_whole(
    production: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half open at both ends, however the slices fell."""
    monkeypatch.setattr(hour_parts, "SLICE_ROWS", 60)
    inside = hour(1_500, 9)
    borders = delta_rows([(us, 1, 1, n + 1, 10_000, 5, n) for n, us in enumerate(
        [T0 - 1, T0, T0 + HOUR_US - 1, T0 + HOUR_US]
    )])  # fmt: skip
    conn = await connect(production)
    for rows in (inside, borders):
        rows["market_seq"] += len(inside) * (rows is borders)
        await copy_in(conn, tape_rows.DELTA_COPY, pack_rows(tape_rows.DELTA_COPY, rows))
    parts_done: list[int] = []
    made = await delta_parts(conn, T0, NAMES, lambda: parts_done.append(1))
    slices = len(parts_done)
    assert slices > 10, "each slice is told: an hour may take minutes"
    whole = await hours.hour_rows(conn, tape_rows.DELTA_COPY, T0, MERGED_ROW)
    assert made.num_rows == len(whole) == 1_502
    assert encode(SPEC, T0, made) == encode(SPEC, T0, deltas_table(whole, NAMES))
    assert len(parts_done) > slices, "and each part of rows, wherever it is made"
    empty = await delta_parts(conn, T0 + 5 * HOUR_US, NAMES)
    assert (empty.num_rows, list(empty)) == (0, [])
    await conn.close()


async def test_a_burst_after_a_quiet_stretch_is_not_one_slice(
    production: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices grow while nothing happens: what comes then was read whole, 4.5 million rows at once.
    Of one second all is taken, however much: time is not cut finer."""
    monkeypatch.setattr(hour_parts, "SLICE_ROWS", 20)
    monkeypatch.setattr(hour_parts, "SLICE_MAX_ROWS", 40)
    rows = hour(1_500, 4)
    late = T0 + 50 * 60_000_000
    rows["exchange_us"] = np.sort(late + np.random.default_rng(4).integers(0, 300_000_000, 1_500))
    rows["exchange_us"][:100] = np.arange(100) + late
    conn = await connect(production)
    await copy_in(conn, tape_rows.DELTA_COPY, pack_rows(tape_rows.DELTA_COPY, rows))
    sizes: list[int] = []
    add = HourParts.add

    def counted(self: HourParts, part: np.ndarray) -> None:
        sizes.append(len(part))
        add(self, part)

    monkeypatch.setattr(HourParts, "add", counted)
    made = await delta_parts(conn, T0, NAMES)
    await conn.close()
    assert sum(sizes) == 1_500
    assert sorted(sizes)[-2] <= 40
    assert max(sizes) >= 100
    assert encode(SPEC, T0, made) == encode(SPEC, T0, deltas_table(rows, NAMES))


async def test_the_block_index_knows_every_row_before_an_hour_is_read(production: str) -> None:
    """Else each slice of the hour is looked for in all rows of the day."""
    conn = await connect(production)
    rows = hour(9_000, 9)  # more than one of the index's ranges of 32 pages
    parts = "SELECT inhrelid FROM pg_inherits WHERE inhparent = 'orderbook_delta'::regclass"
    for part in await conn.fetch(parts):  # autovacuum would do it, too, in its own time
        name = await conn.fetchval("SELECT $1::oid::regclass::text", part["inhrelid"])
        await conn.execute(f"ALTER TABLE {name} SET (autovacuum_enabled = off)")
    await copy_in(conn, tape_rows.DELTA_COPY, pack_rows(tape_rows.DELTA_COPY, rows))
    unknown = (
        "SELECT sum(brin_summarize_new_values(indexrelid)) FROM pg_index"
        f" WHERE indrelid IN ({parts}) AND NOT indisprimary"
    )
    look = conn.transaction()
    await look.start()
    assert await conn.fetchval(unknown) > 0, "the negative control"
    await look.rollback()
    await delta_parts(conn, T0, NAMES)
    assert await conn.fetchval(unknown) == 0
    assert await conn.fetchval("SHOW enable_seqscan") == "on"
    await conn.close()
