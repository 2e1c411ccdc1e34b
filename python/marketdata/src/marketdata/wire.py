"""The exchange's WebSocket messages: frames to events, commands to frames.

Purpose: `Decoder.decode` turns one frame into one event of `marketdata.events`, in every form the
exchange has used (integer cents, both forms side by side, fixed-point strings; `ts` without `ts_ms`
and the reverse). The form is told by the fields a frame has, never by its date.

Invariants:
- INV-20 `decode` returns an event or raises a `WireError`; no bytes make it raise anything else.
- INV-21 the short way (typed: messages of the current form) and the general way give the same
  event.
- INV-22 an absent required field is `MissingField`, never 0; a list of levels under an unknown key
  is `MissingField` too, so that a renamed field never reads as an empty book.

Does not do: sequence checks, time of receipt, REST bodies (rest_bodies), keeping raw frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from marketdata import events, fields
from marketdata.errors import MalformedFrame, MissingField, WireError
from marketdata.fields import Message
from marketdata.typed import STATE, Frame, Payload, Typed, is_current_ticker, payload_key


class Envelope(NamedTuple):
    """What can be read of a frame that is not understood. Fields that cannot are None."""

    type: str | None
    sid: int | None
    seq: int | None
    id: int | None
    market: str | None


class Decoder:
    """Decodes frames; `typed` holds the short way and its memo tables. One per thread."""

    __slots__ = ("typed",)

    def __init__(self) -> None:
        self.typed = Typed()

    def decode(self, payload: Payload) -> events.Decoded:
        """One event.

        Raises:
            MalformedFrame: not JSON, or not an object with a type, or a part of the wrong kind.
            MissingField: a required field is absent.
            OffScale: a number or time that has no exact integer form, or is out of range.
        """
        try:
            frame = self.typed.frame(payload)
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            return decode_general(payload)
        return self.finish(frame, payload)

    def finish(self, frame: Frame, payload: Payload) -> events.Decoded:
        """The event of a frame that was read by type. Raises as `decode`."""
        return self.typed.event(frame) or decode_general(payload)


def decode_general(payload: Payload) -> events.Decoded:
    """One event in any form the exchange has used. Raises as `Decoder.decode`."""
    message = _load(payload)
    kind = message.get("type")
    if not isinstance(kind, str):
        raise MalformedFrame(f"frame has the type {kind!r}, not a text")
    sid = fields.number_or_none(message, "sid")
    seq = fields.number_or_none(message, "seq")
    build = _MESSAGES.get(kind)
    if build is not None:
        return build(_msg(message), sid, seq, fields.number_or_none(message, "id"))
    reply = _REPLIES.get(kind)
    if reply is not None:
        return reply(message, sid, seq, fields.number_or_none(message, "id"))
    return events.Unknown(kind, sid, seq, fields.number_or_none(message, "id"))


def _load(payload: Payload) -> Message:
    try:
        message = msgspec.json.decode(payload)
    except (ValueError, RecursionError) as error:
        raise MalformedFrame(f"frame is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise MalformedFrame(f"frame is a JSON {type(message).__name__}, not an object")
    return message


def _msg(message: Message) -> Message:
    msg = fields.require(message, "msg")
    if not isinstance(msg, dict):
        raise MalformedFrame(f"field 'msg' is a JSON {type(msg).__name__}, not an object")
    return msg


def _delta(msg: Message, sid: int | None, seq: int | None, _id: int | None) -> events.Delta:
    market = fields.ticker(msg.get("market_ticker"))
    side = fields.text(msg, "side")
    if side not in ("yes", "no"):
        raise MalformedFrame(f"side {side!r} is neither yes nor no")
    exchange_us, precision = fields.exchange_time(msg)
    price, delta = fields.price(msg, "price"), fields.size(msg, "delta")
    return events.Delta(
        market, 0 if side == "yes" else 1, price, delta, exchange_us, precision, sid, seq
    )


def _snapshot(msg: Message, sid: int | None, seq: int | None, id_: int | None) -> events.Snapshot:
    market = fields.ticker(msg.get("market_ticker"))
    yes, no = fields.levels(msg)
    return events.Snapshot(market, yes, no, sid, seq, id_)


def trade_of(msg: Message, market: str, sid: int | None, seq: int | None) -> events.Trade:
    """The trade of a WebSocket `msg` or of a REST trade object; `market` is already checked."""
    exchange_us, precision = fields.exchange_time(msg)
    return events.Trade(
        market,
        fields.trade_id_or_none(msg),
        fields.price(msg, "yes_price"),
        fields.price(msg, "no_price"),
        fields.not_negative(fields.size(msg, "count")),
        fields.taker_side(msg),
        msg.get("is_block_trade") is True,
        exchange_us,
        precision,
        sid,
        seq,
    )


def _trade(msg: Message, sid: int | None, seq: int | None, _id: int | None) -> events.Trade:
    return trade_of(msg, fields.ticker(msg.get("market_ticker")), sid, seq)


def _ticker(msg: Message, sid: int | None, seq: int | None, _id: int | None) -> events.Ticker:
    market = fields.ticker(msg.get("market_ticker"))
    exchange_us, precision = fields.exchange_time(msg)
    price, yes_bid, yes_ask = (
        fields.price(msg, name, unset_allowed=True) for name in ("price", "yes_bid", "yes_ask")
    )
    volume, interest = (fields.size(msg, name) for name in ("volume", "open_interest"))
    dollar_volume, dollar_interest = (
        fields.integer(fields.require(msg, name), name)
        for name in ("dollar_volume", "dollar_open_interest")
    )
    bid_size, ask_size, last_size = (
        fields.size_or_unset(msg, name)
        for name in ("yes_bid_size", "yes_ask_size", "last_trade_size")
    )
    if is_current_ticker(msg):
        content = STATE.pack(
            exchange_us, volume, interest, dollar_volume, dollar_interest,
            bid_size, ask_size, last_size, price, yes_bid, yes_ask,
        )  # fmt: skip
    else:
        content = msgspec.json.encode(msg, order="sorted")
    return events.Ticker(
        market, price, yes_bid, yes_ask, volume, interest, dollar_volume, dollar_interest,
        bid_size, ask_size, last_size, payload_key(content), exchange_us, precision, sid, seq,
    )  # fmt: skip


def _lifecycle(
    msg: Message, sid: int | None, seq: int | None, *, is_multivariate: bool
) -> events.MarketLifecycle:
    market = fields.ticker(msg.get("market_ticker"))
    event_type = fields.text(msg, "event_type")
    return events.MarketLifecycle(market, event_type, is_multivariate, msg, sid, seq)


def _market_lifecycle(
    msg: Message, sid: int | None, seq: int | None, _id: int | None
) -> events.MarketLifecycle:
    return _lifecycle(msg, sid, seq, is_multivariate=False)


def _multivariate_lifecycle(
    msg: Message, sid: int | None, seq: int | None, _id: int | None
) -> events.MarketLifecycle:
    return _lifecycle(msg, sid, seq, is_multivariate=True)


def _event_lifecycle(
    msg: Message, sid: int | None, seq: int | None, _id: int | None
) -> events.EventLifecycle:
    event = fields.ticker(msg.get("event_ticker"), "event_ticker")
    return events.EventLifecycle(event, msg, sid, seq)


def _event_fee_update(
    msg: Message, sid: int | None, seq: int | None, _id: int | None
) -> events.EventFeeUpdate:
    event = fields.ticker(msg.get("event_ticker"), "event_ticker")
    return events.EventFeeUpdate(event, msg, sid, seq)


def _subscribed(
    message: Message, sid: int | None, _seq: int | None, id_: int | None
) -> events.Subscribed:
    if message.get("msg") is None:  # the oldest form names neither channel nor sid
        return events.Subscribed(id_, None, sid)
    msg = _msg(message)
    sid = fields.number_or_none(msg, "sid")
    if sid is None:
        raise MissingField("field 'sid' of a subscribed reply is absent")
    return events.Subscribed(id_, fields.text(msg, "channel"), sid)


def _ok(message: Message, sid: int | None, seq: int | None, id_: int | None) -> events.Ok:
    msg = message.get("msg")
    if isinstance(msg, list):
        return events.Ok(id_, sid, seq, None, [_subscription(entry) for entry in msg])
    holder = message if msg is None else _msg(message)
    return events.Ok(id_, sid, seq, _tickers(holder), None)


def _subscription(entry: object) -> tuple[str, int]:
    if not isinstance(entry, dict):
        raise MalformedFrame(f"subscription {entry!r} is not an object")
    return fields.text(entry, "channel"), fields.integer(fields.require(entry, "sid"), "sid")


def _tickers(holder: Message) -> list[str] | None:
    listed = holder.get("market_tickers")
    if listed is None:
        return None
    if not isinstance(listed, list):
        raise MalformedFrame(f"field 'market_tickers' is {listed!r}, not a list")
    return [fields.ticker(entry, "market_tickers") for entry in listed]


def _unsubscribed(
    _message: Message, sid: int | None, seq: int | None, id_: int | None
) -> events.Unsubscribed:
    return events.Unsubscribed(id_, sid, seq)


def _error(message: Message, sid: int | None, seq: int | None, id_: int | None) -> events.Error:
    msg = _msg(message)
    code = fields.integer(fields.require(msg, "code"), "code")
    markets = _tickers(msg) or []
    if msg.get("market_ticker") is not None:
        markets.append(fields.ticker(msg["market_ticker"]))
    return events.Error(code, fields.text_or(msg, "msg"), markets, id_, sid, seq)


_Build: TypeAlias = Callable[[Message, int | None, int | None, int | None], events.Decoded]

# By type. Data messages get their `msg`, replies the whole message.
_MESSAGES: Final[dict[str, _Build]] = {
    "orderbook_delta": _delta,
    "orderbook_snapshot": _snapshot,
    "trade": _trade,
    "ticker": _ticker,
    "market_lifecycle_v2": _market_lifecycle,
    "multivariate_market_lifecycle": _multivariate_lifecycle,
    "event_lifecycle": _event_lifecycle,
    "event_fee_update": _event_fee_update,
}
_REPLIES: Final[dict[str, _Build]] = {
    "subscribed": _subscribed,
    "ok": _ok,
    "unsubscribed": _unsubscribed,
    "error": _error,
}


def envelope(payload: Payload) -> Envelope:
    """What a refused frame still tells: its sequence number must not look like a gap."""
    try:
        message = _load(payload)
    except MalformedFrame:
        return Envelope(None, None, None, None, None)
    kind = message.get("type")
    msg = message.get("msg")
    sid, seq, id_ = (_or_none(message, name) for name in ("sid", "seq", "id"))
    try:
        market = fields.ticker(msg.get("market_ticker")) if isinstance(msg, dict) else None
    except WireError:
        market = None
    return Envelope(kind if isinstance(kind, str) else None, sid, seq, id_, market)


def _or_none(message: Message, name: str) -> int | None:
    try:
        return fields.number_or_none(message, name)
    except WireError:
        return None


_MARKET: Final = frozenset({"market_ticker", "market_id"})
_TIMES: Final = frozenset({"ts", "ts_ms", "time"})
_KNOWN: Final[dict[str, frozenset[str]]] = {
    "orderbook_delta": _MARKET
    | _TIMES
    | {"price", "price_dollars", "delta", "delta_fp", "side", "client_order_id", "subaccount"},
    "orderbook_snapshot": _MARKET | {key for keys in fields.LEVEL_KEYS for key in keys},
    "trade": _MARKET
    | _TIMES
    | {"trade_id", "yes_price", "yes_price_dollars", "no_price", "no_price_dollars", "count"}
    | {"count_fp", "taker_side", "taker_outcome_side", "taker_book_side", "is_block_trade"},
    "ticker": _MARKET
    | _TIMES
    | {"price", "price_dollars", "yes_bid", "yes_bid_dollars", "yes_ask", "yes_ask_dollars"}
    | {"volume", "volume_fp", "open_interest", "open_interest_fp", "dollar_volume"}
    | {"dollar_open_interest", "yes_bid_size_fp", "yes_ask_size_fp", "last_trade_size_fp"},
}
_ENVELOPE: Final = frozenset({"type", "sid", "seq", "id", "msg"})


def extras(payload: Payload) -> dict[str, Any]:
    """Fields of a frame that no event carries, by name (`msg.` before those inside `msg`).

    Lifecycle events carry their whole body, so they have no extras inside `msg`.
    """
    message = _load(payload)
    found = {name: value for name, value in message.items() if name not in _ENVELOPE}
    known, msg = _KNOWN.get(str(message.get("type"))), message.get("msg")
    if known is not None and isinstance(msg, dict):
        found |= {f"msg.{name}": value for name, value in msg.items() if name not in known}
    return found


def subscribe(
    id: int,  # noqa: A002 - the exchange's own name
    channels: Iterable[str],
    market_tickers: Iterable[str] | None = None,
    *,
    use_yes_price: bool = False,
    skip_ticker_ack: bool = True,
    send_initial_snapshot: bool | None = None,
) -> bytes:
    """A subscribe command. Without tickers: all markets (not for orderbook_delta).

    `use_yes_price` is sent explicitly wherever it matters: its default is announced to flip.
    """
    channels = list(channels)
    params: Message = {"channels": channels}
    if market_tickers is not None:
        params["market_tickers"] = list(market_tickers)
        params["skip_ticker_ack"] = skip_ticker_ack
    if "orderbook_delta" in channels:
        params["use_yes_price"] = use_yes_price
    if send_initial_snapshot is not None:
        params["send_initial_snapshot"] = send_initial_snapshot
    return _command(id, "subscribe", params)


def update_subscription(
    id: int,  # noqa: A002 - the exchange's own name
    sid: int,
    action: Literal["add_markets", "delete_markets", "get_snapshot"],
    market_tickers: Iterable[str],
) -> bytes:
    """Add or remove markets, or ask for fresh snapshots of some."""
    tickers = list(market_tickers)
    return _command(
        id, "update_subscription", {"sids": [sid], "market_tickers": tickers, "action": action}
    )


def unsubscribe(id: int, sids: Iterable[int]) -> bytes:  # noqa: A002 - the exchange's own name
    """End subscriptions."""
    return _command(id, "unsubscribe", {"sids": list(sids)})


def list_subscriptions(id: int) -> bytes:  # noqa: A002 - the exchange's own name
    """Ask which channels this connection is subscribed to."""
    return _command(id, "list_subscriptions", None)


def _command(id_: int, name: str, params: Message | None) -> bytes:
    command: Message = {"id": id_, "cmd": name}
    if params is not None:
        command["params"] = params
    return msgspec.json.encode(command)
