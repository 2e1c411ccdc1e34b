"""What clients print against the truth log. Pure: the exchange's log in, differences out.

Numbers are compared as integers read with Decimal here, not with the texts or parsers of the
project; nothing is rounded.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from exchange.truth import (
    FAULT_SENT,
    KIND_DELTA,
    KIND_RESET,
    SEND_DELTA,
    SEND_SNAPSHOT,
    SEND_TICKER,
    SEND_TRADE,
    Truth,
)

Book = dict[str, dict[int, int]]
SIDES = ("yes", "no")
SHOWN = 3


def micros(text: str) -> int:
    """Micro-dollars of a price text."""
    return whole(Decimal(text) * 1_000_000)


def centi(text: str) -> int:
    """Hundredths of a contract of a size text."""
    return whole(Decimal(text) * 100)


def whole(value: Decimal) -> int:
    assert value == int(value), f"{value} is not whole at the tape's scale"
    return int(value)


def true_books(truth: Truth) -> dict[str, Book]:
    """Every market's book at the end of the play."""
    given: dict[int, list[dict[str, Any]]] = {}
    for row in truth.books:
        given.setdefault(row["at"], []).append(row)
    books: dict[str, Book] = {}
    for at in range(len(truth.events) + 1):
        for row in given.get(at, ()):
            sides = {side: dict(row[side]) for side in SIDES}
            books[truth.markets[row["market"]]] = sides
        if at < len(truth.events):
            market, kind, side, price, delta, _ = truth.events[at].tolist()
            book = books[truth.markets[market]]
            if kind == KIND_RESET:
                book["yes"], book["no"] = {}, {}
            elif kind == KIND_DELTA:
                levels = book[SIDES[side]]
                levels[price] = levels.get(price, 0) + delta
                if not levels[price]:
                    del levels[price]
    return books


def sent(truth: Truth, kind: int) -> list[int]:
    """What the only connection was sent of a kind, in order: numbers in the truth's own lists."""
    rows = truth.sends[(truth.sends["kind"] == kind) & (truth.sends["fault"] == FAULT_SENT)]
    assert set(rows["conn"].tolist()) <= {1}, "one client, one connection"
    numbers: list[int] = rows["event"].tolist()
    return numbers


def true_deltas(truth: Truth) -> list[list[Any]]:
    """The changes sent: [ticker, side, price, delta, ms]."""
    rows: list[list[Any]] = []
    for at in sent(truth, SEND_DELTA):
        market, _, side, price, delta, exchange_us = truth.events[at].tolist()
        rows.append([truth.markets[market], SIDES[side], price, delta, exchange_us // 1000])
    return rows


def book_of(shown: dict[str, Any]) -> Book:
    """A client's book: levels as pairs or as a mapping of texts."""
    pairs = {side: dict(shown[side] or ()) for side in SIDES}
    return {side: {micros(p): centi(q) for p, q in held.items()} for side, held in pairs.items()}


def differing(name: str, found: list[Any], true: list[Any]) -> list[str]:
    """Differences between two lists, item by item; the first few are shown."""
    lines = [
        f"{name} {at}: {f} != {t}"
        for at, (f, t) in enumerate(zip(found, true, strict=False))
        if f != t
    ]
    if len(found) != len(true):
        lines.insert(0, f"{name}: {len(found)} found, {len(true)} true")
    return lines[:SHOWN]


def books_differing(shown: dict[str, dict[str, Any]], true: dict[str, Book]) -> list[str]:
    """Markets whose book is not the exchange's, of those that are shown."""
    return [
        f"book {ticker} differs" for ticker, book in shown.items() if book_of(book) != true[ticker]
    ]


def texts(row: dict[str, Any], names: tuple[str, ...]) -> list[Any]:
    """The named fields of a message, as they were written."""
    return [row[name] for name in names]


TRADE_FIELDS = (
    "trade_id", "count_fp", "yes_price_dollars", "no_price_dollars", "taker_outcome_side",
    "taker_book_side",
)  # fmt: skip
FEED_TRADE_FIELDS = (*TRADE_FIELDS, "market_ticker", "ts_ms")
STATE_FIELDS = (
    "market_ticker", "market_id", "price_dollars", "yes_bid_dollars", "yes_ask_dollars",
    "yes_bid_size_fp", "yes_ask_size_fp", "last_trade_size_fp", "volume_fp", "open_interest_fp",
    "dollar_volume", "dollar_open_interest", "ts_ms",
)  # fmt: skip


def feed_faults(answer: dict[str, Any], truth: Truth) -> list[str]:
    """Everything in which a feed's answer is not what the exchange sent on its connection."""
    changes = true_deltas(truth)
    deltas = [
        [ticker, side, micros(price), centi(delta), ts_ms]
        for ticker, side, price, delta, ts_ms, _ in answer["deltas"]
    ]
    for at, (row, true) in enumerate(zip(deltas, changes, strict=False)):
        if row[-1] is None:  # a change with `ts` only, which this client reads through a float
            near = abs((answer["deltas"][at][-1] or 0) - true[-1]) <= 1
            row[-1] = true[-1] if near else None
    trades = [truth.trades[line] for line in sent(truth, SEND_TRADE)]
    states = [truth.tickers[line] for line in sent(truth, SEND_TICKER)]
    kinds = {
        "OrderbookDeltaMessage": len(deltas),
        "OrderbookSnapshotMessage": len(sent(truth, SEND_SNAPSHOT)),
        "TradeMessage": len(trades),
        "TickerMessage": len(states),
    }
    faults = differing("delta", deltas, changes)
    faults += differing(
        "trade",
        [texts(row, FEED_TRADE_FIELDS) for row in answer["trades"]],
        [texts(row, FEED_TRADE_FIELDS) for row in trades],
    )
    faults += differing(
        "ticker",
        [texts(row, STATE_FIELDS) for row in answer["states"]],
        [texts(row, STATE_FIELDS) for row in states],
    )
    if answer["kinds"] != kinds:
        faults.append(f"messages by model: {answer['kinds']} != {kinds}")
    if set(answer["books"]) != set(answer["tickers"]):
        faults.append("not every subscribed market has a book")
    return faults + books_differing(answer["books"], true_books(truth))
