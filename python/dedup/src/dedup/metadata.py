"""What the gatherers learned through REST of markets and events, for the lake's tables.

Purpose: read market and event history from the gatherers' second databases and choose, for each
market, one description that does not depend on who is asked when.

What holds: of all gatherers' rows known by `known_ns` the newest counts (ties: the smaller text);
a market nobody described by then has the oldest row there is, or none. So the same databases and
the same `known_ns` give the same rows.

Does not do: fetching from the exchange, judging contents.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from marketdata.errors import OffScale
from marketdata.units import parse_time_or_unset
from runtime.postgres import Connection


@dataclass(frozen=True, slots=True)
class Described:
    """One row of `market_history` or `event_history`: when it was first seen, and its JSON text."""

    name: str
    valid_from_ns: int
    body: str


def choose(rows: Iterable[Described], known_ns: int) -> dict[str, Described]:
    """name -> the description that counts at `known_ns`."""
    chosen: dict[str, Described] = {}
    for row in sorted(rows, key=lambda r: (r.valid_from_ns, r.body)):
        held = chosen.get(row.name)
        if held is None or held.valid_from_ns < row.valid_from_ns <= known_ns:
            chosen[row.name] = row
    return chosen


async def read_markets(conn: Connection, tickers: Sequence[str]) -> list[Described]:
    """Every description of these markets that one gatherer has."""
    rows = await conn.fetch(
        "SELECT ticker, valid_from_ns, body FROM market_history WHERE ticker = ANY($1::text[])",
        list(tickers),
    )
    return [Described(r["ticker"], r["valid_from_ns"], r["body"]) for r in rows]


async def read_events(conn: Connection, events: Sequence[str]) -> list[Described]:
    """Every description of these events that one gatherer has."""
    rows = await conn.fetch(
        "SELECT event_ticker, valid_from_ns, body FROM event_history"
        " WHERE event_ticker = ANY($1::text[])",
        list(events),
    )
    return [Described(r["event_ticker"], r["valid_from_ns"], r["body"]) for r in rows]


def market_record(
    ticker: str, first_us: int, described: Described | None, events: Mapping[str, Described]
) -> dict[str, Any]:
    """One row of the lake's `markets` table; what nobody told is absent."""
    record: dict[str, Any] = {"market_ticker": ticker, "first_seen": first_us}
    if described is None:
        return record
    body = json.loads(described.body)
    event_ticker = _text(body, "event_ticker")
    event = events.get(event_ticker or "")
    series = _text(body, "series_ticker")
    if series is None and event is not None:
        series = _text(json.loads(event.body), "series_ticker")
    record |= {
        "event_ticker": event_ticker,
        "series_ticker": series,
        "title": _text(body, "title"),
        "status": _text(body, "status"),
        "open_ts": _time_us(body, "open_time"),
        "close_ts": _time_us(body, "close_time"),
        "body": described.body,
    }
    return record


def event_record(
    event_ticker: str, first_us: int, series: str | None, described: Described | None
) -> dict[str, Any]:
    """One row of the lake's `events` table; `first_us`: of the market that showed it. `series`: as
    its market tells, where the event's own description does not."""
    record: dict[str, Any] = {
        "event_ticker": event_ticker, "first_seen": first_us, "series_ticker": series,
    }  # fmt: skip
    if described is None:
        return record
    body = json.loads(described.body)
    exclusive = body.get("mutually_exclusive")
    return record | {
        "series_ticker": _text(body, "series_ticker") or series,
        "title": _text(body, "title"),
        "sub_title": _text(body, "sub_title"),
        "category": _text(body, "category"),
        "mutually_exclusive": exclusive if isinstance(exclusive, bool) else None,
        "strike_ts": _time_us(body, "strike_date"),
        "strike_period": _text(body, "strike_period"),
        "body": described.body,
    }


def event_of(described: Described) -> str | None:
    """The event a market belongs to, as its description tells."""
    return _text(json.loads(described.body), "event_ticker")


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    return value if isinstance(value, str) else None


def _time_us(body: Mapping[str, Any], name: str) -> int | None:
    """A time as the exchange wrote it; one that cannot be read stays in `body` alone."""
    text = _text(body, name)
    if text is None:
        return None
    try:
        return parse_time_or_unset(text)
    except OffScale:
        return None
