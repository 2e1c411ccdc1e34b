"""The exchange's own REST client of December 2025: what its strict models take and what they miss.

One JSON line: for each call its body as served, what the model read of it, or the fields it misses.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import kalshi_python_async as kalshi
from pydantic import ValidationError


async def call(api: Any, name: str, *arguments: Any, **filters: Any) -> dict[str, Any]:
    """The raw body of a call, and its model or the faults that the model finds in it."""
    answer = await getattr(api, f"{name}_without_preload_content")(*arguments, **filters)
    row: dict[str, Any] = {"status": answer.status, "body": json.loads(await answer.read())}
    try:
        model = await getattr(api, name)(*arguments, **filters)
    except ValidationError as refusal:
        row["faults"] = [[str(fault["loc"][0]), fault["input"]] for fault in refusal.errors()]
    else:
        row["model"] = json.loads(model.model_dump_json(by_alias=True))
    return row


async def main(key: str) -> None:
    configuration = kalshi.Configuration(ssl_ca_cert=os.environ["SSL_CERT_FILE"])
    configuration.api_key_id = os.environ["KALSHI_API_KEY_ID"]
    configuration.private_key_pem = key
    client = kalshi.KalshiClient(configuration)
    market_api, events_api = kalshi.MarketApi(client), kalshi.EventsApi(client)
    try:
        events = await call(events_api, "get_events", limit=200)
        one = events["body"]["events"][0]
        markets = await call(market_api, "get_markets", limit=100)
        ticker = markets["body"]["markets"][0]["ticker"]
        answer = {
            "status": await call(kalshi.ExchangeApi(client), "get_exchange_status"),
            "series": await call(market_api, "get_series_list", ""),
            "one_series": await call(market_api, "get_series", one["series_ticker"]),
            "events": events,
            "one_event": await call(events_api, "get_event", one["event_ticker"]),
            "markets": markets,
            "one_market": await call(market_api, "get_market", ticker),
            "book": await call(market_api, "get_market_orderbook", ticker),
            "trades": await call(market_api, "get_trades", limit=100),
        }
    finally:
        await client.close()
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    pem = Path(os.environ["KALSHI_PRIVATE_KEY_PATH"]).read_text(encoding="utf-8")
    asyncio.run(main(pem))
