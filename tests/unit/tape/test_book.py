"""`tape book`."""

from __future__ import annotations

import json
from pathlib import Path

from kalshilake import BookView, open_lake
from tape.book import book_row, ladder
from tests.lake_world import World, as_levels


def view(yes: tuple[tuple[int, int], ...], no: tuple[tuple[int, int], ...]) -> BookView:
    return BookView("M", 0, 1, 5, yes, no, 7, "complete", 7, 0, 0)


def test_offers_are_no_bids_at_one_dollar_less_best_next_to_the_bids() -> None:
    """An offer of YES at 0.60 is a bid for NO at 0.40; sizes add up away from the middle."""
    made = ladder(view(((550_000, 100), (500_000, 50)), ((400_000, 30), (350_000, 20))), 10)
    assert made == [
        ("ask", "0.6500", "0.20", "0.50"),
        ("ask", "0.6000", "0.30", "0.30"),
        ("bid", "0.5500", "1.00", "1.00"),
        ("bid", "0.5000", "0.50", "1.50"),
    ]


def test_depth_keeps_the_levels_next_to_the_middle_and_zero_keeps_all() -> None:
    """The far end of a book is what one leaves out."""
    levels = tuple((p * 10_000, 100) for p in range(9, 0, -1))
    assert [r[1] for r in ladder(view(levels, ()), 2)] == ["0.0900", "0.0800"]
    assert len(ladder(view(levels, levels), 0)) == 18
    assert ladder(view((), ()), 5) == []


def test_the_ladder_of_a_proven_moment_is_printed_with_its_proof(
    run, lake: Path, world: World
) -> None:
    """Without a moment: the last proven one."""
    market = world.markets[0]
    last = market.epochs[-1]
    code, out, _ = run("book", lake, market.ticker)
    assert code == 0
    assert "complete, proven by gatherers 1 2 3" in out
    assert f"epoch {last.number}, event {len(last.events)}" in out


def test_json_is_the_whole_book_exactly(run, lake: Path, world: World) -> None:
    """Text, not floats: a script may compute with it."""
    market = world.markets[0]
    _, out, _ = run("book", lake, market.ticker, "--json")
    row = json.loads(out)
    truth = market.epochs[-1].book_after(len(market.epochs[-1].events))
    assert len(row["yes_bids"]) == len(as_levels(truth, 0))
    assert row == book_row(open_lake(lake).book(market.ticker))


def test_an_unproven_moment_is_refused_and_can_be_read_on_request(
    run, lake: Path, world: World
) -> None:
    """The gap is named; the view says that it is none of the proven ones."""
    market = world.markets[0]
    at = "2025-04-30T08:14:00Z"  # in the first gap of this world
    assert run("book", lake, market.ticker, "--at", at)[0] == 3
    code, out, _ = run("book", lake, market.ticker, "--at", at, "--on-gap", "ignore")
    assert code == 0
    assert "  gap\n" in out


def test_an_unknown_market_is_refused_with_a_near_name(run, lake: Path, world: World) -> None:
    """Tickers are long; most faults are one letter."""
    code, _, err = run("book", lake, world.markets[0].ticker[:-1])
    assert code == 2
    assert f"did you mean {world.markets[0].ticker}" in err
