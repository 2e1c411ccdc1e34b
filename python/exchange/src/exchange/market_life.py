"""What recorded messages tell of a market and its trades, in the words of REST.

Purpose: a recording holds no answers of REST about markets; what its lifecycle messages and trades
say of them is told. Nothing is made up: what was not said keeps its former value.

Units: times int microseconds since 1970 UTC. Does not do: reading frames, the answers (rest).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from exchange.frames import time_text
from exchange.timeline import MarketSpec
from marketdata.rest_trades import read_trades

SECOND_US: Final = 1_000_000
STATUS_AFTER: Final = {
    "activated": "active",
    "deactivated": "inactive",
    "determined": "determined",
    "settled": "finalized",
}
NAMES: Final = ("title", "yes_sub_title", "no_sub_title", "rules_primary", "rules_secondary")


def told_by_lifecycle(spec: MarketSpec, status: str, body: Mapping[str, Any]) -> str:
    """The market's status after a lifecycle message; what else it says goes into `spec`.

    Values of a wrong kind are left out: the frame itself reaches the clients as it is.
    """
    for name, attribute in (("open_ts", "open_us"), ("close_ts", "close_us")):
        second = body.get(name)
        if isinstance(second, int):
            setattr(spec, attribute, second * SECOND_US)
    held = body.get("additional_metadata")
    metadata: Mapping[str, Any] = held if isinstance(held, dict) else {}
    for name in NAMES:
        if isinstance(metadata.get(name), str):
            spec.details[name] = metadata[name]
    event = metadata.get("event_ticker")
    if isinstance(event, str) and event:
        spec.event_ticker = event
    if isinstance(body.get("result"), str):
        spec.details |= {"result": body["result"], "expiration_value": body["result"]}
        if isinstance(body.get("settlement_value"), str):
            spec.details["settlement_value_dollars"] = body["settlement_value"]
    return STATUS_AFTER.get(str(body.get("event_type")), status)


def rest_form(msg: bytes, exchange_us: int) -> bytes:
    """The REST object of a trade message (JSON text of its `msg`)."""
    trade = orjson.loads(msg)
    trade["ticker"] = trade.pop("market_ticker")
    for name in ("ts", "ts_ms", "market_id"):
        trade.pop(name, None)
    trade.setdefault("created_time", time_text(exchange_us))
    return orjson.dumps(trade)


def rest_trades(record: Mapping[str, Any]) -> Iterator[tuple[int, str, bytes]]:
    """(exchange_us, ticker, REST object) of each trade of a `rest_trades` record that can be read:
    what REST had told the gatherer."""
    bodies = record.get("trades")
    for place, trade in read_trades(bodies).trades:
        assert trade.exchange_us is not None, "read_trades refuses a trade without a time"
        body = bodies[place] if isinstance(bodies, list) else bodies
        yield trade.exchange_us, trade.market, orjson.dumps(body)
