"""Sums of hours: from evidence and from an object alike, and summed again when they change."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dedup.coverage_rows import coverage_records
from dedup.page.calendar import (
    MARKETS_SHOWN,
    Calendar,
    Cell,
    cells_of_evidence,
    cells_of_table,
    hours_of,
    markets_told,
    rows_of,
    series_of,
)
from dedup.proof import Evidence
from dedup.publication import HOUR_US, publication_of
from dedup.publish import Publisher
from kalshilake import tables
from kalshilake.schema import STATUSES
from kalshilake.store import LocalStore
from marketdata import coverage
from marketdata.coverage import OPEN_US, EpochStart, Mark, MarketClaim, RunProgress
from tests.window_outputs import T0, window_output

HOUR = T0 - T0 % HOUR_US


def evidence() -> Evidence:
    """KXA-1 is complete but for a gap, KXA-2 and KXB-1 are complete for a while."""
    made = Evidence(tickers=["KXA-1", "KXA-2", "KXB-1"])
    made.progress = [
        RunProgress(0, 1, "orderbook", HOUR, HOUR + 1000, ended=False, reason=""),
        RunProgress(0, 2, "trade", HOUR, HOUR + 500, ended=False, reason=""),
    ]
    made.claims = [MarketClaim(t, 0, 1, HOUR, OPEN_US, valid=True, reason="") for t in made.tickers]
    made.epochs = [EpochStart(t, 1, HOUR) for t in made.tickers]
    made.marks = [Mark("KXA-1", "gap", HOUR + 100, HOUR + 130, "error")]
    return made


def told(cells: dict[str, dict[str, Cell]]) -> dict[str, dict[str, object]]:
    return {c: {s: cell.told() for s, cell in of.items()} for c, of in cells.items()}


def test_an_object_and_its_evidence_have_the_same_sums() -> None:
    found = evidence()
    by_evidence = cells_of_evidence(found, HOUR, HOUR + HOUR_US)
    records = coverage_records(found, HOUR, HOUR + HOUR_US)
    by_table = cells_of_table(tables.records_table("coverage", records))
    assert told(by_evidence) == told(by_table)
    cell = by_evidence["orderbook"]["KXA"]
    assert (cell.markets, cell.lacking) == (2, 1)
    assert cell.us[STATUSES.index("gap")] == 30
    assert cell.us[STATUSES.index("complete")] == 2000 - 30
    assert by_evidence["trade"]["KXB"].us[0] == 500
    assert cells_of_table(tables.records_table("coverage", [])) == {"orderbook": {}, "trade": {}}


@given(st.randoms(use_true_random=False))
def test_markets_with_the_same_evidence_are_summed_as_if_each_were_looked_at(
    rng: random.Random,
) -> None:
    """Of markets that are alike one is looked at for all; here many are, and many nearly."""
    made = Evidence(tickers=[f"KX{n % 3}-{n}" for n in range(12)])
    made.progress = [
        RunProgress(g, g, channel, HOUR - 5, HOUR + 80 + g, ended=False, reason="")
        for g, channel in enumerate(("orderbook", "orderbook", "trade"))
    ]
    for ticker in (*made.tickers, "KX9-another"):
        for gatherer in range(2):
            if rng.random() < 0.8:
                a, b = rng.choice([-9, -8, 20]), rng.choice([60, OPEN_US - HOUR])
                valid = rng.random() < 0.7
                made.claims.append(
                    MarketClaim(ticker, gatherer, gatherer, HOUR + a, HOUR + b, valid, "")
                )
        if rng.random() < 0.2:
            kind = rng.choice(("gap", "disputed", "unproven", "late"))
            a = rng.choice([-9, 25])
            made.marks.append(Mark(ticker, kind, HOUR + a, HOUR + a + rng.choice([9, 40]), "x"))
        for epoch in range(rng.choice([0, 1, 1, 1, 2])):
            made.epochs.append(EpochStart(ticker, epoch + 1, HOUR + rng.choice([-9, -5, 20])))
    expected: dict[tuple[str, str], list[int]] = {}
    lacking: Counter[tuple[str, str]] = Counter()
    for ticker in made.tickers:
        one = replace(made, tickers=[ticker])
        for channel, of in cells_of_evidence(one, HOUR, HOUR + 100).items():
            us = [0] * len(STATUSES)
            for i in coverage.intervals(one, HOUR, HOUR + 100):
                if i.channel == channel:
                    us[STATUSES.index(i.status)] += i.to_us - i.from_us
            assert [cell.us.tolist() for cell in of.values()] == [us]
            key = channel, series_of(ticker)
            expected[key] = [a + b for a, b in zip(expected.get(key, [0] * 6), us, strict=True)]
            lacking[key] += sum(us) > us[STATUSES.index("complete")] + us[STATUSES.index("dark")]
    cells = cells_of_evidence(made, HOUR, HOUR + 100)
    found = {(c, s): cell for c, of in cells.items() for s, cell in of.items()}
    assert {key: cell.us.tolist() for key, cell in found.items()} == expected
    assert {key: cell.lacking for key, cell in found.items()} == dict(lacking)
    assert {cell.markets for cell in found.values()} == {4}


def test_series_is_what_a_name_begins_with() -> None:
    assert [series_of(t) for t in ("KXBTC-26-T1", "KXBTC")] == ["KXBTC", "KXBTC"]


def test_markets_that_lack_most_come_first_with_their_reason() -> None:
    rows = [
        {"market": i["market_ticker"], "channel": i["channel"], "from_us": i["from_ts"],
         "to_us": i["to_ts"], "status": i["status"], "reason": i["reason"]}
        for i in coverage_records(evidence(), HOUR, HOUR + 1000)
    ]  # fmt: skip
    found = markets_told(rows, "orderbook")
    assert [m["name"] for m in found["markets"]] == ["KXA-1", "KXA-2", "KXB-1"]
    assert found["markets"][0]["reasons"] == [{"status": "gap", "reason": "error", "us": 30}]
    assert found["markets"][0]["lack_us"] == 30
    many = [
        {**rows[0], "channel": "orderbook", "market": f"M{n}"} for n in range(MARKETS_SHOWN + 3)
    ]
    assert markets_told(many, "orderbook")["left_out"] == 3


async def test_the_running_hour_is_summed_as_far_as_it_is_closed(
    production: str, tmp_path: Path
) -> None:
    """Evidence that is not exported: the calendar has it, a series' markets and a market too."""
    output = window_output(0, ["KXA-1", "KXB-1"])
    output.progress = [RunProgress(0, 1, "orderbook", T0, T0 + 900, ended=False, reason="")]
    output.claims = [
        MarketClaim(t, 0, 1, T0, OPEN_US, valid=True, reason="") for t in ("KXA-1", "KXB-1")
    ]
    output.marks = [Mark("KXB-1", "gap", T0 + 100, T0 + 130, "error")]
    publisher = Publisher(production, {})
    await publisher.open()
    made = publication_of([output], {}, {})
    await publisher.commit(made, {})
    conn = await publisher.connection()
    store = LocalStore(tmp_path)
    calendar = Calendar(store)
    await calendar.look(conn)
    hours = [us for us, _, _ in calendar.newest("orderbook", 5)]
    assert HOUR in hours
    _, to_us, cells = next(h for h in calendar.newest("orderbook", 5) if h[0] == HOUR)
    assert to_us == min(made.closed_to_us, HOUR + HOUR_US)
    assert set(cells) == {"KXA", "KXB"}
    assert cells["KXB"].lacking == 1
    day_us = HOUR - HOUR % (24 * HOUR_US)
    found = calendar.hours("orderbook", day_us, "")
    assert [s["name"] for s in found["series"]] == ["KXB", "KXA"], "what lacks comes first"
    assert [s["name"] for s in calendar.hours("orderbook", day_us, "XA")["series"]] == ["KXA"]
    rows, _ = await rows_of(conn, store, HOUR, series="KXB")
    assert {r["market"] for r in rows} == {"KXB-1"}
    rows, _ = await rows_of(conn, store, HOUR, market="KXA-1")
    assert {r["market"] for r in rows} == {"KXA-1"}
    assert await rows_of(conn, store, HOUR + 50 * HOUR_US, market="KXA-1") == (
        [],
        HOUR + 50 * HOUR_US,
    )
    assert [h.noted for h in await hours_of(conn, HOUR)] == [None]
    await publisher.close()


def test_a_cell_tells_plain_integers() -> None:
    assert Cell(np.array([1, 2, 3, 4, 5, 6]), 7, 8).told() == {
        "us": [1, 2, 3, 4, 5, 6], "markets": 7, "lacking": 8,
    }  # fmt: skip
