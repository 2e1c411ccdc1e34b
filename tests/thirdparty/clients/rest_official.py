"""The exchange's own REST client of its present generation: what its models read, as JSON.

Every model is strict: a field that is missing or of another type is an exception here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kalshi_python_sync as kalshi


def plain(model: Any) -> Any:
    """A model as plain values."""
    return json.loads(model.model_dump_json(by_alias=True))


def pages(call: Callable[..., Any], name: str, **filters: Any) -> list[Any]:
    """All items of a paged list."""
    items: list[Any] = []
    cursor = None
    while True:
        page = call(cursor=cursor, **filters)
        items += map(plain, getattr(page, name))
        cursor = page.cursor
        if not cursor:
            return items


def main() -> None:
    configuration = kalshi.Configuration(ssl_ca_cert=os.environ["SSL_CERT_FILE"])
    configuration.proxy = os.environ["HTTPS_PROXY"]
    configuration.api_key_id = os.environ["KALSHI_API_KEY_ID"]
    key = Path(os.environ["KALSHI_PRIVATE_KEY_PATH"]).read_text(encoding="utf-8")
    configuration.private_key_pem = key
    client = kalshi.KalshiClient(configuration)
    market_api, events_api = kalshi.MarketApi(client), kalshi.EventsApi(client)
    exchange_api = kalshi.ExchangeApi(client)
    markets = pages(market_api.get_markets, "markets", limit=100)
    tickers = [market["ticker"] for market in markets]
    events = pages(events_api.get_events, "events", limit=200, with_nested_markets=True)
    books: dict[str, Any] = {}
    for at in range(0, len(tickers), 100):
        batch = market_api.get_market_orderbooks(tickers=tickers[at : at + 100])
        books |= {row.ticker: plain(row.orderbook_fp) for row in batch.orderbooks}
    series = market_api.get_series_list()
    answer = {
        "status": plain(exchange_api.get_exchange_status()),
        "series": [plain(row) for row in series.series],
        "one_series": plain(market_api.get_series(events[0]["series_ticker"]).series),
        "events": events,
        "one_event": plain(events_api.get_event(events[0]["event_ticker"])),
        "markets": markets,
        "one_market": plain(market_api.get_market(tickers[0]).market),
        "books": books,
        "one_book": plain(market_api.get_market_orderbook(tickers[0]).orderbook_fp),
        "trades": pages(market_api.get_trades, "trades", limit=200),
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
