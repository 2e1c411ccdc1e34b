"""kalshi-py, a client of the cents generation: what its models read, as one JSON line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kalshi_py import KalshiAuthenticatedClient
from kalshi_py.api.default import get_exchange_status
from kalshi_py.api.market import (
    get_event,
    get_events,
    get_market,
    get_market_orderbook,
    get_markets,
    get_series,
    get_trades,
)


def reading(call: Callable[[], Any]) -> dict[str, Any]:
    """What a model read, or the field whose absence it does not bear."""
    try:
        return {"model": call().to_dict()}
    except KeyError as missing:
        return {"missing": str(missing.args[0])}


def main() -> None:
    key = Path(os.environ["KALSHI_PRIVATE_KEY_PATH"]).read_text(encoding="utf-8")
    client = KalshiAuthenticatedClient(os.environ["KALSHI_API_KEY_ID"], key)
    events = get_events.sync(client=client, limit=200)
    event = events.events[0]
    raw = get_markets.sync_detailed
    trades = get_trades.sync(client=client, limit=100)
    ticker = trades.trades[0].ticker
    answer = {
        "status": get_exchange_status.sync(client=client).to_dict(),
        "events": events.to_dict(),
        "one_event": reading(lambda: get_event.sync(event.event_ticker, client=client)),
        "series": json.loads(get_series.sync_detailed(event.series_ticker, client=client).content),
        "markets": reading(lambda: raw(client=client, limit=100).parsed),
        "one_market": reading(lambda: get_market.sync(ticker, client=client)),
        "book": get_market_orderbook.sync(ticker, client=client).to_dict(),
        "ticker": ticker,
        "trades": trades.to_dict(),
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
