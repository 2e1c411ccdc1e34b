"""Rows by either clock, as careful about gaps as was asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from kalshilake import open_lake
from kalshilake.clocks import CLOCKS_APART_US as APART
from kalshilake.read import Lake
from kalshilake.tables import times_us
from marketdata.errors import IncompleteTape, LakeError
from tests.lake_receipts import DAY_US, Heard, heard
from tests.lake_world import START, make_world, world_tables, write_world


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Heard]:
    root = tmp_path_factory.mktemp("heard") / "lake"
    found = heard(root, make_world(23, markets=3, hours=3, events=150))
    return open_lake(root), found


def within(rows: pa.Table, a: int, b: int) -> pa.Table:
    times = times_us(rows.column("received_at"))
    return rows.filter(pa.array((times >= a) & (times < b)))


@pytest.mark.parametrize("table", ["deltas", "trades", "snapshots", "tickers"])
def test_by_receipt_no_row_is_missed_wherever_it_happened(
    told: tuple[Lake, Heard], table: str
) -> None:
    """Objects are named by the other clock; rows of hours and days before belong to the answer."""
    lake, found = told
    read = getattr(lake, table)
    whole = read(on_gap="ignore")
    late = 0
    for a in range(START - DAY_US, found.world.end_us + 4 * DAY_US, 1_200_000_007):
        b = a + 1_200_000_007
        rows, want = read(None, a, b, on_gap="ignore", clock="received"), within(whole, a, b)
        order = [("market_ticker", "ascending"), ("received_at", "ascending")]
        order += [(c, "ascending") for c in want.schema.names[1:] if c in ("exchange_ts", "epoch",
                  "market_seq", "trade_id")]  # fmt: skip
        assert rows.equals(want.sort_by(order))
        own = times_us(rows.column("exchange_ts"))
        late += int(((own < a - APART) | (own >= b + APART)).sum())
    assert late > 3 or table in ("snapshots", "tickers")


def test_a_search_by_exchange_time_alone_would_miss_rows(told: tuple[Lake, Heard]) -> None:
    """The control: what the search in the statistics is for."""
    lake, _ = told
    whole = lake.trades(on_gap="ignore")
    late = times_us(whole["received_at"]) - times_us(whole["exchange_ts"])
    at = int(np.argmax(late))
    us = int(times_us(whole["received_at"])[at])
    assert late[at] > 3_600_000_000
    got = lake.trades(None, us, us + 1, on_gap="ignore", clock="received")
    assert got["trade_id"].to_pylist() == [whole["trade_id"][at].as_py()]
    near = lake.rows("trades", None, us - 3_600_000_000, us + 3_600_000_000, None)
    assert got["trade_id"][0].as_py() not in near["trade_id"].to_pylist()


def test_a_read_by_receipt_is_refused_near_a_gap(told: tuple[Lake, Heard]) -> None:
    """What was lost in a gap would have been received about then."""
    lake, found = told
    refused = read = 0
    for market in found.world.markets:
        for epoch in market.epochs:
            a, b = epoch.from_us + APART, epoch.to_us - APART
            if a >= b:
                continue
            rows = lake.deltas(market.ticker, a, b, clock="received")
            read += rows.num_rows
            assert rows.equals(within(lake.deltas(market.ticker, on_gap="ignore"), a, b).sort_by(
                [("received_at", "ascending"), ("exchange_ts", "ascending"),
                 ("market_seq", "ascending")]))  # fmt: skip
            for span in ((a - 1, b), (a, b + 1)):
                with pytest.raises(IncompleteTape) as said:
                    lake.deltas(market.ticker, *span, clock="received")
                refused += len(said.value.intervals)
    assert read > 20
    assert refused >= 4


def test_a_row_that_came_late_from_a_gap_refuses_the_read(tmp_path: Path) -> None:
    """It was received in good times, and happened where the tape is not proven."""
    world = make_world(51, markets=1, hours=2, events=40)
    market = world.markets[0]
    one, two = market.epochs[:2]
    whole = world_tables(world)
    rows = whole["trades"].slice(0, 1)
    us = {"exchange_ts": (one.to_us + two.from_us) // 2, "received_at": two.from_us + 2 * APART}
    for name, value in us.items():
        place = rows.schema.get_field_index(name)
        column = pa.array([value]).cast(rows.schema.field(place).type)
        rows = rows.set_column(place, rows.schema.field(place), column)
    whole["trades"] = rows
    write_world(tmp_path, world, whole)
    lake = open_lake(tmp_path)
    span = (two.from_us + APART, two.to_us - APART)
    with pytest.raises(IncompleteTape) as refused:
        lake.trades(market.ticker, *span, clock="received")
    assert [i[1:4] for i in refused.value.intervals] == [(one.to_us, two.from_us, "gap")]
    marked = lake.trades(market.ticker, *span, clock="received", on_gap="column")
    assert marked["coverage"].to_pylist() == ["gap"]
    assert marked["complete"].to_pylist() == [False]
    other = (span[0], us["received_at"])
    assert lake.trades(market.ticker, *other, clock="received").num_rows == 0


def test_marks_by_receipt_are_complete_only_where_both_clocks_are(told: tuple[Lake, Heard]) -> None:
    """Row by row against the claims."""
    lake, found = told
    rows = lake.deltas(on_gap="column", clock="received")
    assert rows.num_rows == lake.deltas(on_gap="ignore").num_rows
    markets = {m.ticker: m for m in found.world.markets}
    for ticker, us, received, complete in zip(
        rows["market_ticker"].to_pylist(), times_us(rows["exchange_ts"]).tolist(),
        times_us(rows["received_at"]).tolist(), rows["complete"].to_pylist(), strict=True,
    ):  # fmt: skip
        epochs = markets[ticker].epochs
        own = any(e.from_us <= us < e.to_us for e in epochs)
        heard_well = any(e.from_us + APART <= received < e.to_us - APART for e in epochs)
        assert complete == (own and heard_well)
    assert 0 < pc.sum(rows["complete"].cast("int64")).as_py() < rows.num_rows


def test_columns_and_words_are_those_of_every_read(told: tuple[Lake, Heard]) -> None:
    """The clock's own column is not added to what was asked for."""
    lake, _ = told
    rows = lake.deltas(on_gap="column", clock="received", columns=["price"])
    assert rows.schema.names == ["price", "coverage", "complete"]
    assert lake.trades(on_gap="ignore", clock="received", columns=["count"]).num_columns == 1
    for wrong in ({"clock": "local"}, {"on_gap": "skip"}):
        with pytest.raises(LakeError, match="is unknown"):
            lake.trades(**wrong)
