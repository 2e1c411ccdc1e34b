"""A market's book and its depth: equal to what the reader rebuilds, and honest where nothing is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dedup.page.depth import (
    COLUMNS,
    UnknownMarketError,
    book_told,
    by_cent,
    columns_of,
    depth_told,
    markets_found,
)
from kalshilake import open_lake
from marketdata.book import Book, pack_levels
from runtime.embedded import EmbeddedPostgres
from runtime.postgres import connect
from tests.page_world import Tape, merged_tape


@pytest.fixture(scope="module")
def tape(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Tape:
    return asyncio.run(merged_tape(postgres_server, tmp_path_factory.mktemp("tape")))


async def test_books_are_those_of_the_lake(tape: Tape) -> None:
    conn = await connect(tape.production)
    lake = open_lake(str(tape.lake))
    for ticker in tape.stream.tickers:
        told = await book_told(conn, ticker)
        assert told["proven"], told["why"]
        rows = lake.deltas(ticker, on_gap="ignore")
        here = zip(rows["market_seq"].to_pylist(), rows["epoch"].to_pylist(), strict=True)
        assert told["market_seq"] == max(n for n, epoch in here if epoch == told["epoch"])
        view = lake.book(ticker, at=told["exchange_us"], on_gap="ignore")
        assert told["yes"] == [list(level) for level in view.yes_bids]
        assert told["no"] == [list(level) for level in view.no_bids]
    with pytest.raises(UnknownMarketError):
        await book_told(conn, "KXNONE")
    found = await markets_found(conn, tape.stream.tickers[0][-4:])
    assert tape.stream.tickers[0] in found["markets"]
    assert (await markets_found(conn, "%"))["markets"] == []
    await conn.close()


async def test_the_last_column_is_the_book_and_trades_lie_within(tape: Tape) -> None:
    conn = await connect(tape.production)
    for ticker in tape.stream.tickers:
        told, book = await depth_told(conn, ticker, 60), await book_told(conn, ticker)
        assert len(told["columns"]) == COLUMNS
        assert told["columns"][-1] == by_cent(Book(book["yes"], book["no"]))
        assert all(told["from_us"] <= t["us"] < told["to_us"] for t in told["trades"])
    await conn.close()


def frame(epoch: int, seq: int, us: int, yes: dict[int, int]) -> dict[str, Any]:
    return {"epoch": epoch, "market_seq": seq, "us": us, "levels": pack_levels(yes.items(), ())}


def change(epoch: int, seq: int, us: int, price: int, delta: int) -> dict[str, Any]:
    return {
        "epoch": epoch, "market_seq": seq, "us": us, "side": 0, "price": price, "delta": delta,
        "flags": 0,
    }  # fmt: skip


def test_before_the_first_keyframe_nothing_is_drawn_and_epochs_follow_each_other() -> None:
    """A second epoch begins from its own keyframe, never from the book before the gap."""
    frames = [frame(1, 0, 40, {10_000: 5}), frame(2, 0, 80, {20_000: 7})]
    rows = [change(1, 1, 50, 10_000, 1), change(2, 1, 90, 20_000, -7)]
    columns = columns_of(frames, rows, 0, COLUMNS)
    assert columns[39] is None
    assert columns[41] == {"bids": [[1, 5]], "offers": []}
    assert columns[51] == {"bids": [[1, 6]], "offers": []}
    assert columns[81] == {"bids": [[2, 7]], "offers": []}
    assert columns[-1] == {"bids": [], "offers": []}


def test_a_picture_has_whole_cents_of_yes() -> None:
    """Bids are rounded down and offers up: no spread is made smaller than it is."""
    book = Book([(123_400, 5), (129_900, 1)], [(500_000, 2), (499_900, 3)])
    assert by_cent(book) == {"bids": [[12, 6]], "offers": [[50, 2], [51, 3]]}
