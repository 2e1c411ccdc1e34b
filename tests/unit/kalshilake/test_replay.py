"""The tape, as the verifier replays it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from kalshilake import encode
from kalshilake.tables import times_us
from kalshilake.verify import verify
from kalshilake.verify.replay import Tape
from kalshilake.verify.report import Report
from marketdata.book import level_constant
from tests import lake_tamper as tamper
from tests.lake_world import START, Epoch, Event, Market, World, make_world, write_world

P = 400_000


def told(root: Path) -> list[tuple[str, str]]:
    return [(f.key, f.problem) for f in verify(str(root)).findings]


def line(*deltas: int | None, keyframes: list[int], hours: int = 1, before: int = 100) -> World:
    """One market, one epoch: deltas on one level ten minutes apart; None is a reset."""
    step = 600_000_000
    events = [
        Event(START + (i + 1) * step, reset=d is None, price=0 if d is None else P, delta=d or 0,
              flags=int(d is None))
        for i, d in enumerate(deltas)
    ]  # fmt: skip
    end = START + hours * 3_600_000_000
    epoch = Epoch(1, START, end, {(0, P): before}, events, keyframes)
    return World(0, hours, [Market("KX-A", [epoch])])


def test_the_level_constants_are_those_of_the_tape() -> None:
    """Computed twice, by two pieces of code."""
    tape = Tape(Report(""))
    for side in (0, 1):
        for price in (0, 1, 10_000, 999_999, 1_000_000):
            assert tape._constant((side, price)) == level_constant(side, price)


@pytest.mark.parametrize("keyframes", [[0], [3], [0, 3], [1, 2, 4], [4]])
def test_a_whole_tape_is_found_good_wherever_its_keyframes_stand(
    keyframes: list[int], tmp_path: Path
) -> None:
    """Anchored before, behind, or in the middle."""
    write_world(tmp_path, line(5, -7, 3, -1, keyframes=keyframes))
    assert told(tmp_path) == []


def test_a_reset_before_the_first_keyframe_is_no_fault(tmp_path: Path) -> None:
    """The book before it is known to nobody; after it it is empty."""
    world = line(5, None, 8, 2, keyframes=[4], before=100)
    write_world(tmp_path, world)
    assert told(tmp_path) == []
    world.markets[0].epochs[0].keyframes = [2, 3]
    write_world(tmp_path / "b", world)
    assert told(tmp_path / "b") == []


def removed(*seqs: int):
    def edit(rows: pa.Table) -> pa.Table:
        return rows.filter(pc.invert(pc.is_in(rows["market_seq"], pa.array(seqs, pa.int64()))))

    return edit


def test_a_hole_is_named_with_the_numbers_that_are_missing(tmp_path: Path) -> None:
    """Lists may all fit: the numbers do not."""
    write_world(tmp_path, line(5, -7, 3, -1, keyframes=[0]))
    key = tamper.keys_of(tmp_path, "orderbook_deltas")[0]
    tamper.rewrite(tmp_path, key, removed(2, 3), 4)
    assert told(tmp_path) == [(key, "KX-A: events 2 to 3 of epoch 1 are missing")]


def test_a_removed_beginning_is_a_hole_too(tmp_path: Path) -> None:
    """Numbers begin with 1."""
    write_world(tmp_path, line(5, -7, 3, -1, keyframes=[4]))
    key = tamper.keys_of(tmp_path, "orderbook_deltas")[0]
    tamper.rewrite(tmp_path, key, removed(1), 4)
    assert (key, "KX-A: events 1 to 1 of epoch 1 are missing") in told(tmp_path)


def test_a_removed_end_is_told_by_the_keyframe_after_it(tmp_path: Path) -> None:
    """Nothing follows that would show a hole, but a book stands on it."""
    write_world(tmp_path, line(5, -7, 3, -1, keyframes=[0, 4]))
    key = tamper.keys_of(tmp_path, "orderbook_deltas")[0]
    tamper.rewrite(tmp_path, key, removed(3, 4), 4)
    assert any("stands after event 4" in p and key in p for _, p in told(tmp_path))


def test_a_removed_end_without_a_keyframe_after_it_is_the_stated_limit(tmp_path: Path) -> None:
    """Said in the docstring: only a SHA-256 kept elsewhere finds it."""
    write_world(tmp_path, line(5, -7, 3, -1, keyframes=[0]))
    anchor = verify(str(tmp_path)).sha256
    key = tamper.keys_of(tmp_path, "orderbook_deltas")[0]
    tamper.rewrite(tmp_path, key, removed(4), 4)
    assert told(tmp_path) == []
    assert verify(str(tmp_path), sha256=anchor).findings


def test_an_hour_taken_out_of_the_middle_is_named_at_its_edges(tmp_path: Path) -> None:
    """Objects are hours; numbers run through them."""
    write_world(tmp_path, line(*range(1, 17), keyframes=[0], hours=3))
    keys = tamper.keys_of(tmp_path, "orderbook_deltas")
    assert len(keys) == 3
    tamper.rewrite(tmp_path, keys[1], lambda t: t.slice(0, 0), 4)
    found = told(tmp_path)
    assert [k for k, _ in found] == [keys[2]]
    assert keys[0] in found[0][1]


def test_a_time_that_steps_back_over_an_hours_border_is_no_hole(tmp_path: Path) -> None:
    """Objects are cut by time, numbers are not: the next hour may hold an earlier number."""
    world = line(*range(1, 10), keyframes=[0, 9], hours=2)
    events = world.markets[0].epochs[0].events
    events[4].us, events[5].us = START + 3_600_000_005, START + 3_599_999_990
    write_world(tmp_path, world)
    assert told(tmp_path) == []


def test_a_repeated_event_is_named(tmp_path: Path) -> None:
    """The same number at another time is no repeated key, but it is twice."""
    write_world(tmp_path, line(5, -7, 3, -1, keyframes=[0]))
    key = tamper.keys_of(tmp_path, "orderbook_deltas")[0]

    def twice(rows: pa.Table) -> pa.Table:
        later = pa.array(times_us(rows["exchange_ts"]) + 1).cast(rows.schema.field(1).type)
        return pa.concat_tables(
            [rows, rows.set_column(1, rows.schema.field(1), [later]).slice(1, 1)]
        )

    tamper.rewrite(tmp_path, key, twice, 4)
    assert (key, "KX-A: event 2 of epoch 1 is there twice") in told(tmp_path)


def test_a_negative_level_is_named_once_an_epoch(tmp_path: Path) -> None:
    """A book cannot owe; one fault must not be told a thousand times."""
    write_world(tmp_path, line(5, -7, 3, -1, 1, keyframes=[0]))
    key = tamper.keys_of(tmp_path, "orderbook_deltas")[0]

    def all_minus(rows: pa.Table) -> pa.Table:
        at = rows.schema.names.index("delta")
        minus = pa.array([Decimal("-2.00")] * rows.num_rows, rows.schema.field(at).type)
        return rows.set_column(at, rows.schema.field(at), minus)

    tamper.rewrite(tmp_path, key, all_minus, 4)
    assert told(tmp_path) == [(key, "KX-A: event 1 of epoch 1 makes a level negative")]


def test_a_keyframe_that_is_not_the_book_of_the_deltas_is_named(tmp_path: Path) -> None:
    """Its hash may fit its levels: the chain does not lead to it."""
    other = line(5, -7, 3, -1, keyframes=[0, 2], before=100)
    write_world(tmp_path, other)
    forged = line(5, -6, 3, -1, keyframes=[0, 2], before=100)
    write_world(tmp_path / "forged", forged)
    key = tamper.keys_of(tmp_path, "orderbook_snapshots")[0]
    theirs = pa.parquet.read_table(tmp_path / "forged" / key, partitioning=None)
    tamper.rewrite(tmp_path, key, lambda _: theirs, 4)
    assert [k for k, p in told(tmp_path) if "is not the book" in p] == [key]


def test_a_hash_that_is_not_that_of_its_levels_is_named(tmp_path: Path) -> None:
    """Readers start from keyframes."""
    write_world(tmp_path, line(5, keyframes=[0, 1]))
    key = tamper.keys_of(tmp_path, "orderbook_snapshots")[0]

    def other(rows: pa.Table) -> pa.Table:
        at = rows.schema.names.index("book_hash")
        return rows.set_column(at, rows.schema.field(at), pa.array(np.arange(2), pa.uint64()))

    tamper.rewrite(tmp_path, key, other, 4)
    assert any("book_hash" in p for _, p in told(tmp_path))


@pytest.mark.parametrize(
    ("column", "value"),
    [("kind", "trade"), ("kind", "reset"), ("side", None), ("side", "maybe"), ("flags", 1)],
)
def test_an_event_of_a_wrong_kind_is_named(tmp_path: Path, column: str, value: object) -> None:
    """kind, side and the flag say the same or the row says nothing."""
    write_world(tmp_path, line(5, -7, keyframes=[0]))
    key = tamper.keys_of(tmp_path, "orderbook_deltas")[0]

    def other(rows: pa.Table) -> pa.Table:
        at = rows.schema.names.index(column)
        values = [value, *rows.column(column).to_pylist()[1:]]
        return rows.set_column(
            at, rows.schema.field(at), pa.array(values, rows.schema.field(at).type)
        )

    tamper.rewrite(tmp_path, key, other, 4)
    assert any("wrong kind" in p for _, p in told(tmp_path))


def test_worlds_have_what_the_replay_must_survive() -> None:
    """Otherwise the six good worlds of test_verify prove little."""
    epochs = [
        e for s in range(6) for m in make_world(s, hours=2, events=50).markets for e in m.epochs
    ]
    assert any(e.reset for p in epochs for e in p.events)
    assert any(e.flags & 32 for p in epochs for e in p.events)
    assert any(min(p.keyframes) > 0 for p in epochs if p.keyframes)
    assert encode.ROW_GROUP_ROWS > 0
