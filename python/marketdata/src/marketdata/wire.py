"""The exchange's WebSocket messages: frames to events, commands to frames.

Purpose: `Decoder.decode` turns one frame into one event of `marketdata.events`, in every form the
exchange has used (integer cents, both forms side by side, fixed-point strings; `ts` without `ts_ms`
and the reverse). The form is told by the fields a frame has, never by its date.

Invariants:
- INV-20 `decode` returns an event or raises a `WireError`; no bytes make it raise anything else.
- INV-21 the typed path (delta, trade, ticker of the current form) and the general path give the
  same event.
- INV-22 an absent required field is `MissingField`, never 0; a list of levels under an unknown key
  is `MissingField` too, so that a renamed field never reads as an empty book.
- INV-23 memo tables are caches: full or empty, the result is the same.

Does not do: sequence checks, time of receipt, REST bodies (rest_bodies), keeping raw frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from marketdata import events, fields, units
from marketdata.errors import MalformedFrame, MissingField, OffScale, WireError
from marketdata.events import TsPrecision
from marketdata.fields import Message

Payload: TypeAlias = bytes | bytearray | memoryview | str

MAX_MEMO_SIZES: Final = 65_536
"""Distinct size texts remembered. Past it, a size is parsed each time."""
MAX_MEMO_SECONDS: Final = 4_096
"""Distinct seconds remembered; when full the table starts anew: old seconds do not come back."""
MAX_MEMO_TICKERS: Final = 1_000_000
"""Distinct tickers remembered as one string each. Past it, every frame brings its own string."""

_MICRO: Final = TsPrecision.MICRO
_MILLI: Final = TsPrecision.MILLI
_NONE: Final = TsPrecision.NONE
_PRICES: Final = units.PRICES
_FRACTION_SCALE: Final = (0, 100_000, 10_000, 1_000, 100, 10, 1)

_Signed: TypeAlias = Annotated[int, msgspec.Meta(ge=-fields.MAX_NUMBER, le=fields.MAX_NUMBER)]
_Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=fields.MAX_NUMBER)]


class _DeltaMsg(msgspec.Struct, gc=False):
    """Only what is needed: market_id and the like are skipped without making objects of them."""

    market_ticker: str
    price_dollars: str
    delta_fp: str
    side: Literal["yes", "no"]
    ts: str | None = None
    ts_ms: _Number | None = None


class _DeltaFrame(msgspec.Struct, gc=False, tag_field="type", tag="orderbook_delta"):
    msg: _DeltaMsg
    sid: _Number | None = None
    seq: _Number | None = None


class _TradeMsg(msgspec.Struct, gc=False):
    market_ticker: str
    trade_id: str
    yes_price_dollars: str
    no_price_dollars: str
    count_fp: str
    taker_outcome_side: Literal["yes", "no"]
    ts_ms: _Number
    is_block_trade: bool = False
    ts: int | None = None  # only that it is no text: a text would be finer than ts_ms
    time: None = None
    created_time: None = None


class _TradeFrame(msgspec.Struct, gc=False, tag_field="type", tag="trade"):
    msg: _TradeMsg
    sid: _Number | None = None
    seq: _Number | None = None


class _TickerMsg(msgspec.Struct, gc=False):
    market_ticker: str
    price_dollars: str
    yes_bid_dollars: str
    yes_ask_dollars: str
    volume_fp: str
    open_interest_fp: str
    dollar_volume: _Signed
    dollar_open_interest: _Signed
    yes_bid_size_fp: str
    yes_ask_size_fp: str
    last_trade_size_fp: str
    time: str
    ts: int | None = None  # as in a trade: a text would come before `time`


class _TickerFrame(msgspec.Struct, gc=False, tag_field="type", tag="ticker"):
    msg: msgspec.Raw  # read twice: by its fields, and whole for its key
    sid: _Number | None = None
    seq: _Number | None = None


class Envelope(NamedTuple):
    """What can be read of a frame that is not understood. Fields that cannot are None."""

    type: str | None
    sid: int | None
    seq: int | None
    id: int | None
    market: str | None


class Decoder:
    """Decodes frames; holds the memo tables of the hot path. One per thread."""

    __slots__ = ("_seconds", "_sizes", "_ticker_msg", "_tickers", "_typed")

    def __init__(self) -> None:
        self._typed = msgspec.json.Decoder(_DeltaFrame | _TradeFrame | _TickerFrame)
        self._ticker_msg = msgspec.json.Decoder(_TickerMsg)
        self._sizes: dict[str, int] = {}
        self._seconds: dict[str, int] = {}
        self._tickers: dict[str, str] = {}

    def decode(self, payload: Payload) -> events.Decoded:
        """One event.

        Raises:
            MalformedFrame: not JSON, or not an object with a type, or a part of the wrong kind.
            MissingField: a required field is absent.
            OffScale: a number or time that has no exact integer form, or is out of range.
        """
        try:
            frame = self._typed.decode(payload)
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            return self._decode_general(payload)
        if type(frame) is not _DeltaFrame:
            return self._decode_other(frame, payload)
        msg = frame.msg
        ts, ts_ms = msg.ts, msg.ts_ms
        exchange_us: int | None
        if ts:
            exchange_us, precision = self._ts_us(ts), _MICRO
        elif ts_ms is not None:
            exchange_us, precision = units.ms_to_us(ts_ms), _MILLI
        else:
            exchange_us, precision = None, _NONE
        price = _PRICES.get(msg.price_dollars)
        delta = self._sizes.get(msg.delta_fp)
        return events.Delta(
            self._tickers.get(msg.market_ticker) or self._ticker(msg.market_ticker),
            0 if msg.side == "yes" else 1,
            units.parse_price_micros(msg.price_dollars) if price is None else price,
            self._size_centi(msg.delta_fp) if delta is None else delta,
            exchange_us,
            precision,
            frame.sid,
            frame.seq,
        )

    def _decode_other(self, frame: _TradeFrame | _TickerFrame, payload: Payload) -> events.Decoded:
        if type(frame) is _TradeFrame:
            return self._trade(frame)
        assert type(frame) is _TickerFrame, "the third of three"
        try:
            msg = self._ticker_msg.decode(frame.msg)
        except (ValueError, RecursionError):
            return self._decode_general(payload)
        exchange_us, precision = self._ts_us(msg.time), _MICRO
        size = units.parse_size_centi
        return events.Ticker(
            self._tickers.get(msg.market_ticker) or self._ticker(msg.market_ticker),
            _price_or_unset(msg.price_dollars),
            _price_or_unset(msg.yes_bid_dollars),
            _price_or_unset(msg.yes_ask_dollars),
            size(msg.volume_fp),
            size(msg.open_interest_fp),
            msg.dollar_volume,
            msg.dollar_open_interest,
            size(msg.yes_bid_size_fp),
            size(msg.yes_ask_size_fp),
            size(msg.last_trade_size_fp),
            _payload_key(_load(frame.msg)),
            exchange_us,
            precision,
            frame.sid,
            frame.seq,
        )

    def _trade(self, frame: _TradeFrame) -> events.Trade:
        msg = frame.msg
        return events.Trade(
            self._tickers.get(msg.market_ticker) or self._ticker(msg.market_ticker),
            fields.trade_id(msg.trade_id),
            units.parse_price_micros(msg.yes_price_dollars),
            units.parse_price_micros(msg.no_price_dollars),
            _not_negative(units.parse_size_centi(msg.count_fp)),
            0 if msg.taker_outcome_side == "yes" else 1,
            msg.is_block_trade,
            units.ms_to_us(msg.ts_ms),
            _MILLI,
            frame.sid,
            frame.seq,
        )

    def _decode_general(self, payload: Payload) -> events.Decoded:
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

    def _ticker(self, text: str) -> str:
        fields.ticker(text)
        if len(self._tickers) < MAX_MEMO_TICKERS:
            self._tickers[text] = text
        return text

    def _size_centi(self, text: str) -> int:
        size = units.parse_size_centi(text)
        if len(self._sizes) < MAX_MEMO_SIZES:
            self._sizes[text] = size
        return size

    def _ts_us(self, text: str) -> int:
        """As units.parse_ts_us: the second from the memo, the fraction digits added."""
        second_us = self._seconds.get(text[:19])
        if second_us is not None and text[-1] == "Z" and text.isascii():
            fraction = text[20:-1]
            if text[19] == "." and len(fraction) < 7 and fraction.isdigit():
                return second_us + int(fraction) * _FRACTION_SCALE[len(fraction)]
        exchange_us = units.parse_ts_us(text)
        if len(self._seconds) >= MAX_MEMO_SECONDS:
            self._seconds.clear()
        self._seconds[text[:19]] = exchange_us - exchange_us % units.US_PER_S
        return exchange_us


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


def _price_or_unset(text: str) -> int:
    """A market that never traded has the price ""."""
    return units.parse_price_micros(text) if text else events.UNSET


def _not_negative(count: int) -> int:
    if count < 0:
        raise OffScale(f"count {count} of a trade is below zero")
    return count


def _payload_key(msg: Message) -> int:
    """64 bits over all fields in the order of their names: every gatherer finds the same."""
    digest = blake2b(msgspec.json.encode(msg, order="sorted"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def trade_of(msg: Message, market: str, sid: int | None, seq: int | None) -> events.Trade:
    """The trade of a WebSocket `msg` or of a REST trade object; `market` is already checked."""
    exchange_us, precision = fields.exchange_time(msg)
    return events.Trade(
        market,
        fields.trade_id_or_none(msg),
        fields.price(msg, "yes_price"),
        fields.price(msg, "no_price"),
        _not_negative(fields.size(msg, "count")),
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
    exchange_us, precision = fields.exchange_time(msg)
    return events.Ticker(
        market=fields.ticker(msg.get("market_ticker")),
        price=fields.price(msg, "price", unset_allowed=True),
        yes_bid=fields.price(msg, "yes_bid", unset_allowed=True),
        yes_ask=fields.price(msg, "yes_ask", unset_allowed=True),
        volume=fields.size(msg, "volume"),
        open_interest=fields.size(msg, "open_interest"),
        dollar_volume=fields.integer(fields.require(msg, "dollar_volume"), "dollar_volume"),
        dollar_open_interest=fields.integer(
            fields.require(msg, "dollar_open_interest"), "dollar_open_interest"
        ),
        yes_bid_size=fields.size_or_unset(msg, "yes_bid_size"),
        yes_ask_size=fields.size_or_unset(msg, "yes_ask_size"),
        last_trade_size=fields.size_or_unset(msg, "last_trade_size"),
        payload_key=_payload_key(msg),
        exchange_us=exchange_us,
        ts_precision=precision,
        sid=sid,
        seq=seq,
    )


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
