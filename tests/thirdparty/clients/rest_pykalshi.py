"""pykalshi's REST client with its default addresses: what it read, as one JSON line."""

from __future__ import annotations

import json
import sys
from typing import Any

from pykalshi import KalshiClient
from pykalshi.exceptions import AuthenticationError, ResourceNotFoundError


def refused(call: Any, kind: type[Exception]) -> str:
    """The code of the refusal that a call must get."""
    try:
        call()
    except kind as refusal:
        return str(getattr(refusal, "error_code", ""))
    return "not refused"


def main() -> None:
    client = KalshiClient()
    markets = client.get_markets(limit=50, fetch_all=True)
    events = client.get_events(limit=50, fetch_all=True)
    series = client.get_series(events[0].series_ticker)
    books = {}
    for market in markets:
        book = market.get_orderbook().orderbook
        books[market.ticker] = {"yes": book.yes_dollars, "no": book.no_dollars}
    trades = client.get_trades(limit=200, fetch_all=True)
    stranger = KalshiClient(private_key_path=sys.argv[1])
    answer = {
        "status": client.exchange.get_status().model_dump(),
        "series": series.data.model_dump(),
        "events": [event.data.model_dump() for event in events],
        "markets": [market.data.model_dump(mode="json") for market in markets],
        "books": books,
        "trades": [trade.model_dump(mode="json") for trade in trades],
        "not_found": refused(lambda: client.get_market("KXNONE"), ResourceNotFoundError),
        "stranger": refused(lambda: stranger.get_market(markets[0].ticker), AuthenticationError),
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
