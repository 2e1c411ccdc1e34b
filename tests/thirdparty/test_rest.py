"""REST clients against the truth: what they read of a finished play."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from exchange.truth import Truth, read_truth
from tests.exchange_client import Keys, private_pem
from tests.thirdparty.compare import (
    TRADE_FIELDS,
    Book,
    books_differing,
    differing,
    texts,
    true_books,
)
from tests.thirdparty.rig import Stage, stage

PLAY = ("--synthetic", "120", "--seconds", "20")
REST_TRADE_FIELDS = (*TRADE_FIELDS, "ticker")

# Fields that the December 2025 models require and that the exchange removed since: the integer
# cents and counts on 12 March 2026, the price units on 9 July, the rest without a date.
REMOVED = {
    "response_price_units", "yes_bid", "yes_ask", "no_bid", "no_ask", "last_price", "volume",
    "volume_24h", "open_interest", "notional_value", "previous_yes_bid", "previous_yes_ask",
    "previous_price", "liquidity", "category", "risk_limit_cents", "tick_size",
    "price", "count", "yes_price", "no_price", "orderbook",
}  # fmt: skip


@pytest.fixture
async def played(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path, *PLAY) as made:
        await made.done()
        yield made


def truth_of(made: Stage) -> Truth:
    return read_truth(made.running.truth)


def trade_faults(shown: list[dict[str, Any]], truth: Truth) -> list[str]:
    """Trades newest first, under REST's name for the market."""
    true = [{**row, "ticker": row["market_ticker"]} for row in reversed(truth.trades)]
    return differing(
        "trade",
        [texts(row, REST_TRADE_FIELDS) for row in shown],
        [texts(row, REST_TRADE_FIELDS) for row in true],
    )


def quote_faults(markets: list[dict[str, Any]], truth: Truth, books: dict[str, Book]) -> list[str]:
    """Every market once, its best prices those of its book, its volume that of the last state."""
    newest = {row["market_ticker"]: row for row in truth.tickers}
    faults = differing("market", [m["ticker"] for m in markets], truth.markets)
    for market in markets:
        name = market["ticker"]
        yes = max(books[name]["yes"], default=0)
        no = max(books[name]["no"], default=0)
        true = [f"{yes / 1_000_000:.4f}", f"{1 - no / 1_000_000:.4f}", f"{no / 1_000_000:.4f}"]
        shown = [market[f"{quote}_dollars"] for quote in ("yes_bid", "yes_ask", "no_bid")]
        faults += differing(f"quotes of {name}", shown, true)
        if name in newest:
            for field in ("volume_fp", "open_interest_fp"):
                faults += differing(f"{field} of {name}", [market[field]], [newest[name][field]])
    return faults


async def test_pykalshi(played: Stage, say: Callable[[str], None]) -> None:
    """Its default addresses, its signature, its models; a stranger's key is refused."""
    apart = played.folder / "apart"
    apart.mkdir()
    stranger = private_pem(Keys.make(apart), apart / "private.pem")
    client = await played.start("rest_pykalshi.py", str(stranger))
    answer, _ = await client.answer()
    truth = truth_of(played)
    books = true_books(truth)
    assert answer["status"]["exchange_active"] is True
    assert len(answer["books"]) == len(truth.markets)
    assert books_differing(answer["books"], books) == []
    assert quote_faults(answer["markets"], truth, books) == []
    assert trade_faults(answer["trades"], truth) == []
    assert answer["series"]["ticker"] == answer["events"][0]["series_ticker"]
    assert answer["not_found"] == "not_found"
    assert answer["stranger"] == "INCORRECT_API_KEY_SIGNATURE"
    assert set(played.proxy.asked) == {"external-api.kalshi.com"}
    say(f"pykalshi REST: {len(answer['books'])} books, {len(answer['trades'])} trades")


async def test_official_client_of_the_present_generation(
    played: Stage, say: Callable[[str], None]
) -> None:
    """3.34.0: every object passes strict models made from the exchange's OpenAPI document."""
    client = await played.start("rest_official.py")
    answer, _ = await client.answer()
    truth = truth_of(played)
    books = true_books(truth)
    shown = {
        name: {"yes": book["yes_dollars"], "no": book["no_dollars"]}
        for name, book in answer["books"].items()
    }
    assert set(shown) == set(truth.markets)
    assert books_differing(shown, books) == []
    assert answer["one_book"] == answer["books"][truth.markets[0]]
    assert quote_faults(answer["markets"], truth, books) == []
    assert trade_faults(answer["trades"], truth) == []
    nested = [market["ticker"] for event in answer["events"] for market in event["markets"]]
    assert sorted(nested) == sorted(truth.markets)
    assert answer["one_market"] == answer["markets"][0]
    assert answer["one_series"] in answer["series"]
    assert {s["ticker"] for s in answer["series"]} == {e["series_ticker"] for e in answer["events"]}
    assert answer["one_event"]["event"]["event_ticker"] == answer["events"][0]["event_ticker"]
    assert answer["status"]["trading_active"] is True
    say(
        f"kalshi-python-sync 3.34.0: {len(answer['markets'])} markets, {len(answer['events'])} "
        f"events, {len(answer['books'])} books, {len(answer['trades'])} trades"
    )
    # Negative controls: the comparison is only worth what it finds.
    name = next(name for name, book in shown.items() if book["yes"])
    wrong = {name: {"yes": shown[name]["yes"][1:], "no": shown[name]["no"]}}
    assert books_differing(wrong, books) == [f"book {name} differs"]
    assert trade_faults(answer["trades"][::-1], truth) != []
    market = {**answer["markets"][0], "yes_bid_dollars": "0.9999"}
    assert quote_faults([market, *answer["markets"][1:]], truth, books) != []


async def test_official_client_of_december_2025(played: Stage, say: Callable[[str], None]) -> None:
    """3.2.0 reads what has not changed since, and misses exactly what the exchange removed.

    Whatever it asks for is served and signed for; the bodies are those that the present client
    reads. To serve integer cents again would please it and be wrong.
    """
    client = await played.start("rest_cents.py")
    answer, _ = await client.answer()
    truth = truth_of(played)
    books = true_books(truth)
    assert {row["status"] for row in answer.values()} == {200}
    read = {name for name, row in answer.items() if "model" in row}
    assert read == {"status", "series", "one_series", "events"}
    missed = {name: row["faults"] for name, row in answer.items() if "faults" in row}
    assert set(missed) == {"one_event", "markets", "one_market", "book", "trades"}
    for faults in missed.values():
        assert {value for _, value in faults} == {None}
        assert {field for field, _ in faults} <= REMOVED
    shown = answer["book"]["body"]["orderbook_fp"]
    ticker = answer["one_market"]["body"]["market"]["ticker"]
    book = {"yes": shown["yes_dollars"], "no": shown["no_dollars"]}
    assert books_differing({ticker: book}, books) == []
    newest = truth.trades[-len(answer["trades"]["body"]["trades"]) :]
    assert [row["trade_id"] for row in answer["trades"]["body"]["trades"]] == [
        row["trade_id"] for row in reversed(newest)
    ]
    say(f"kalshi-python-async 3.2.0: models read {sorted(read)}, miss removed fields in the rest")


async def test_kalshi_py(played: Stage, say: Callable[[str], None]) -> None:
    """Its models are of the cents generation too; all but the Market object bear the change."""
    client = await played.start("rest_kalshi_py.py")
    answer, _ = await client.answer()
    truth = truth_of(played)
    assert answer["status"]["trading_active"] is True
    assert {event["event_ticker"] for event in answer["events"]["events"]}
    for name in ("markets", "one_market", "one_event"):
        assert answer[name].get("missing") in REMOVED, name
    shown = answer["book"]["orderbook_fp"]
    book = {"yes": shown["yes_dollars"], "no": shown["no_dollars"]}
    assert books_differing({answer["ticker"]: book}, true_books(truth)) == []
    ids = [row["trade_id"] for row in answer["trades"]["trades"]]
    assert ids == [row["trade_id"] for row in reversed(truth.trades[-len(ids) :])]
    assert answer["series"]["series"]["ticker"] == answer["events"]["events"][0]["series_ticker"]
    say(f"kalshi-py 2.0.6.6: {len(ids)} trades, a book, events, series, status")
