"""pykalshi's feed and its own book: what arrived, as one JSON line.

Runs in the environment of the clients, with its default addresses of the exchange. Reads the number
of frames that the exchange sent from stdin and ends when so many have been dispatched.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from typing import Any

from pykalshi import KalshiClient, MarketStatus, OrderbookManager

WAIT_S = 60


def main() -> None:
    client = KalshiClient()
    opened = client.get_markets(status=MarketStatus.OPEN, limit=1000, fetch_all=True)
    tickers = [market.ticker for market in opened]
    books: dict[str, OrderbookManager] = {}
    kinds: Counter[str] = Counter()
    deltas: list[list[Any]] = []
    trades: list[dict[str, Any]] = []
    states: list[dict[str, Any]] = []
    feed = client.feed()

    @feed.on("orderbook_delta")
    def on_book(message: Any) -> None:
        kinds[type(message).__name__] += 1
        book = books.setdefault(message.market_ticker, OrderbookManager(message.market_ticker))
        if hasattr(message, "yes_dollars"):
            book.apply_snapshot(message.yes_dollars, message.no_dollars)
        else:
            book.apply_delta(message.side, message.price_dollars, message.delta_fp)
            row = [message.market_ticker, message.side, message.price_dollars, message.delta_fp]
            deltas.append([*row, message.ts_ms, message.ts])

    @feed.on("trade")
    def on_trade(message: Any) -> None:
        kinds[type(message).__name__] += 1
        trades.append(message.model_dump())

    @feed.on("ticker")
    def on_ticker(message: Any) -> None:
        kinds[type(message).__name__] += 1
        states.append(message.model_dump())

    @feed.on("error")
    def on_error(message: Any) -> None:
        kinds[f"error {message}"] += 1

    feed.subscribe("trade")
    feed.subscribe("ticker", market_tickers=tickers)
    feed.subscribe("orderbook_delta", market_tickers=tickers)
    feed.start()
    expected = int(sys.stdin.readline())
    until_s = time.monotonic() + WAIT_S
    while feed.messages_received < expected and time.monotonic() < until_s:
        time.sleep(0.02)
    feed.stop()
    answer = {
        "received": feed.messages_received,
        "reconnects": feed.reconnect_count,
        "tickers": tickers,
        "kinds": kinds,
        "deltas": deltas,
        "trades": trades,
        "states": states,
        "books": {name: {"yes": book.yes, "no": book.no} for name, book in books.items()},
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
