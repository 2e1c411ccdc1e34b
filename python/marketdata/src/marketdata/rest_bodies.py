"""Bodies of the exchange's REST answers: markets, events, series, trades, books, errors.

Purpose: read what a recorder needs of a body and keep the body whole. Both forms: fixed-point
strings (since March 2026) and integer cents.

Invariants:
- One bad item never hides the others of its page: it is in `problems`.
- A page's cursor is "" exactly where there is no next page.
- `canonical_json` of equal bodies is equal, in any order of their keys; a database takes it.

Does not do: HTTP, paging, retries (gatherer.rest), deciding which markets to record (plan).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from marketdata import fields
from marketdata.errors import MalformedFrame, MissingField, WireError
from marketdata.events import Trade
from marketdata.fields import Message
from marketdata.wire import trade_of

MAX_ERROR_CHARS: Final = 300
"""Of an error text that is no JSON of ours: enough for a proxy's message, not its whole page."""

# An escaped NUL, but not an escaped backslash before "u0000".
_NUL: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")

Item = TypeVar("Item")


class Page(NamedTuple, Generic[Item]):
    """One page. `cursor` is "" on the last."""

    items: list[Item]
    cursor: str
    problems: list[WireError]


class Market(NamedTuple):
    """A market object. Times are microseconds, None where absent or unset."""

    ticker: str
    event_ticker: str
    status: str
    title: str
    open_us: int | None
    close_us: int | None
    created_us: int | None
    updated_us: int | None
    is_multivariate: bool
    exchange_index: int  # 0 before the exchange was sharded
    body: Message


class Event(NamedTuple):
    """An event object. `markets` are there where they were asked for."""

    event_ticker: str
    series_ticker: str
    title: str
    markets: list[Market]
    problems: list[WireError]  # of its markets
    body: Message


class Series(NamedTuple):
    """A series object."""

    ticker: str
    title: str
    category: str
    body: Message


class OrderBook(NamedTuple):
    """A book as REST gives it: (price, size) ascending. No time, no place in any sequence."""

    ticker: str
    yes: list[tuple[int, int]]
    no: list[tuple[int, int]]


class ErrorBody(NamedTuple):
    """An error, in any of its three forms. `code` is "" where the body had none."""

    code: str
    message: str


def market(body: Message) -> Market:
    """A market object, from `/markets` or nested in an event."""
    index = fields.number_or_none(body, "exchange_index")
    return Market(
        ticker=fields.ticker(body.get("ticker"), "ticker"),
        event_ticker=fields.ticker(body.get("event_ticker"), "event_ticker"),
        status=fields.text(body, "status"),
        title=fields.text_or(body, "title"),
        open_us=fields.time_or_none(body, "open_time"),
        close_us=fields.time_or_none(body, "close_time"),
        created_us=fields.time_or_none(body, "created_time"),
        updated_us=fields.time_or_none(body, "updated_time"),
        is_multivariate=bool(fields.text_or(body, "mve_collection_ticker")),
        exchange_index=0 if index is None else index,
        body=body,
    )


def event(body: Message) -> Event:
    """An event object; markets nested in it that cannot be read are in its `problems`."""
    nested = body.get("markets") or []
    markets, problems = _read_all(nested, "markets", market)
    return Event(
        event_ticker=fields.ticker(body.get("event_ticker"), "event_ticker"),
        series_ticker=fields.ticker(body.get("series_ticker"), "series_ticker"),
        title=fields.text_or(body, "title"),
        markets=markets,
        problems=problems,
        body=body,
    )


def series(body: Message) -> Series:
    """A series object."""
    ticker = fields.ticker(body.get("ticker"), "ticker")
    return Series(ticker, fields.text_or(body, "title"), fields.text_or(body, "category"), body)


def trade(body: Message) -> Trade:
    """A trade object of `/markets/trades`: the WebSocket's event, without sid and seq."""
    return trade_of(body, fields.ticker(body.get("ticker"), "ticker"), None, None)


def order_book(body: Message, ticker: str) -> OrderBook:
    """The body of `/markets/{ticker}/orderbook`, or one entry of `/markets/orderbooks`."""
    for key in ("orderbook_fp", "orderbook"):
        book = body.get(key)
        if isinstance(book, dict):
            yes, no = fields.levels(book)
            return OrderBook(ticker, yes, no)
    raise MissingField("field 'orderbook_fp' is absent")


def markets_page(body: Message) -> Page[Market]:
    """The body of `/markets`."""
    return _page(body, "markets", market)


def events_page(body: Message) -> Page[Event]:
    """The body of `/events` or `/events/multivariate`."""
    return _page(body, "events", event)


def series_page(body: Message) -> Page[Series]:
    """The body of `/series`: one list, never paged."""
    return _page(body, "series", series)


def trades_page(body: Message) -> Page[Trade]:
    """The body of `/markets/trades` or `/historical/trades`."""
    return _page(body, "trades", trade)


def order_books_page(body: Message) -> Page[OrderBook]:
    """The body of `/markets/orderbooks`."""

    def entry(item: Message) -> OrderBook:
        return order_book(item, fields.ticker(item.get("ticker"), "ticker"))

    return _page(body, "orderbooks", entry)


def error_body(raw: bytes) -> ErrorBody:
    """Code and message of an error answer, in any form; a text that is no JSON is cut."""
    try:
        body = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        return ErrorBody("", raw[:MAX_ERROR_CHARS].decode("utf-8", "replace"))
    inner = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(inner, dict):
        parts = [str(inner[name]) for name in ("message", "details") if inner.get(name)]
        return ErrorBody(str(inner.get("code") or ""), ": ".join(parts)[:MAX_ERROR_CHARS])
    return ErrorBody("", str(inner)[:MAX_ERROR_CHARS])


def canonical_json(body: Message) -> bytes:
    """The body with sorted keys; a NUL in a text, which no database takes, becomes U+FFFD."""
    return _NUL.sub(rb"\1\\ufffd", msgspec.json.encode(body, order="sorted"))


def _page(body: Message, name: str, read: Callable[[Message], Item]) -> Page[Item]:
    items, problems = _read_all(fields.require(body, name), name, read)
    return Page(items, fields.text_or(body, "cursor"), problems)


def _read_all(
    listed: Any, name: str, read: Callable[[Message], Item]
) -> tuple[list[Item], list[WireError]]:
    if not isinstance(listed, list):
        raise MalformedFrame(f"field {name!r} is {listed!r:.80}, not a list")
    items: list[Item] = []
    problems: list[WireError] = []
    for entry in listed:
        try:
            if not isinstance(entry, dict):
                raise MalformedFrame(f"item {entry!r:.80} of {name!r} is not an object")
            items.append(read(entry))
        except WireError as problem:
            problems.append(problem)
    return items, problems
