"""What the tasks on executors do, without a cluster; on a real one: tests/spark."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from kalshilake import open_lake, spark
from kalshilake.schema import TIME
from kalshilake.series import BOOKS
from kalshilake.verify import verify
from marketdata.errors import IncompleteTape, LakeError
from tests import lake_tamper as tamper
from tests.lake_world import World


def pinned(root: Path) -> spark._Pinned:
    return spark._Pinned.of(open_lake(root), str(root))


def asked(pairs: list[tuple[str, int]]) -> pa.RecordBatch:
    names, times = zip(*pairs, strict=True)
    return pa.record_batch([pa.array(names), pa.array(times).cast(TIME)], ["market_ticker", "at"])


def test_books_of_instants_are_those_of_the_lake(pristine: Path, world: World) -> None:
    lake = open_lake(pristine)
    pairs = [
        (market.ticker, event.us)
        for market in world.markets
        for epoch in market.epochs
        for event in epoch.events[::3]
    ]
    batches = [asked(pairs[:10]), asked(pairs[10:])]
    made = pa.Table.from_batches(spark._books_at(pinned(pristine), "ignore", iter(batches)))
    assert made.schema == spark.BOOK
    assert made.num_rows == len(pairs) > 20
    for row, (name, us) in zip(made.to_pylist(), pairs, strict=True):
        view = lake.book(name, us, on_gap="ignore")
        got = [
            [(int(e["price"].scaleb(6)), int(e["size"].scaleb(2))) for e in row[side]]
            for side in ("yes", "no")
        ]
        assert got == [list(view.yes_bids), list(view.no_bids)]
        assert (row["book_hash"], row["epoch"]) == (f"{view.book_hash:016x}", view.epoch)


def test_a_task_asks_for_each_of_its_markets(pristine: Path, world: World) -> None:
    names = [m.ticker for m in world.markets]
    ask = partial(spark._books, start=None, end=None, every="5s", depth=3, on_gap="column")
    tasks = [
        pa.record_batch([pa.array(some)], ["market_ticker"]) for some in (names[:1], names[1:])
    ]
    made = pa.Table.from_batches(spark._asked(pinned(pristine), ask, iter(tasks)), BOOKS)
    want = open_lake(pristine).books(names, every="5s", depth=3, on_gap="column")
    assert made.sort_by([("market_ticker", "ascending"), ("at", "ascending")]).equals(
        want.sort_by([("market_ticker", "ascending"), ("at", "ascending")])
    )


def test_a_gap_and_another_lake_are_refused(pristine: Path, world: World) -> None:
    late = asked([(world.markets[0].ticker, world.end_us + 10**9)])
    with pytest.raises(IncompleteTape):
        list(spark._books_at(pinned(pristine), "raise", iter([late])))
    with pytest.raises(LakeError, match="another one on this machine"):
        replace(pinned(pristine), sha256="0" * 64).open()


@pytest.mark.parametrize("table", ["orderbook_deltas", "orderbook_snapshots", "coverage", "trades"])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_shares_of_the_verifier_find_together_what_one_finds(
    lake_copy: Path, table: str, parts: int
) -> None:
    """A byte, and a change that every list was made to fit."""

    def together() -> set[tuple[str, str]]:
        batch = pa.record_batch([pa.array(range(parts), pa.int32())], ["n"])
        rows = pa.Table.from_batches(
            spark._verify(str(lake_copy), parts, iter([batch])), spark.FINDING
        )
        return {(r["key"], r["problem"]) for r in rows.to_pylist()}

    assert together() == set()
    key = tamper.keys_of(lake_copy, table)[-1]
    tamper.flip(lake_copy / key, 40)
    want = {(f.key, f.problem) for f in verify(str(lake_copy)).findings}
    assert want
    assert together() == want


def test_a_share_judges_its_own_markets_only(lake_copy: Path) -> None:
    """Or every task would do the work of all: one share finds what is wrong in a chain."""
    key = tamper.keys_of(lake_copy, "orderbook_deltas")[0]
    tamper.drop_row_group(lake_copy, key, 1, 4)
    found = [{f.problem for f in verify(str(lake_copy), share=(n, 3)).findings} for n in range(3)]
    alone = {f.problem for f in verify(str(lake_copy)).findings}
    assert set.union(*found) == alone
    assert any(each < alone for each in found)
