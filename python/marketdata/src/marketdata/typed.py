"""The short way of decoding: frames of the form in use now, read by msgspec into typed structs.

Purpose: the four message types that are nearly all of the traffic, without a dict and with memo
tables for the texts that come again. `wire.Decoder` tries this first and takes the general way for
whatever does not fit; `hot` reads the structs of changes itself.

Invariants:
- INV-21 what the short way reads, the general way (wire.decode_general) reads as the same event.
- INV-23 memo tables are caches: full or empty, the result is the same.
- A field that is absent, of another kind or unknown where it may matter is no error here: the frame
  goes the general way, which says what is wrong.

Does not do: any older form, errors, replies to commands (all wire).
"""

from __future__ import annotations

import struct
from typing import Annotated, Final, Literal, TypeAlias
from zlib import crc32

import google_crc32c
import msgspec

from marketdata import events, fields, units
from marketdata.events import TsPrecision

Payload: TypeAlias = bytes | bytearray | memoryview | str

MAX_MEMO_SIZES: Final = 65_536
"""Distinct size texts remembered. A full table starts anew: what comes often is soon back in it."""
MAX_MEMO_SECONDS: Final = 4_096
"""Distinct seconds remembered; a full table starts anew: old seconds do not come back."""
MAX_MEMO_TICKERS: Final = 1_000_000
"""Distinct tickers remembered as one string each. Past it, every frame brings its own string."""

_MICRO: Final = TsPrecision.MICRO
_MILLI: Final = TsPrecision.MILLI
_PRICES: Final = units.PRICES

SECOND_CHARS: Final = 20
"""`2026-11-22T12:34:56.`: the part of a time that is remembered as one."""
MILLI_CHARS: Final = 23
MILLIS: Final = {f"{n:03d}": n * units.US_PER_MS for n in range(1_000)}
"""The first three fraction digits -> microseconds."""
MICROS: Final[dict[str, int]] = {
    f"{n:03d}"[:kept] + "Z": n - n % 10 ** (3 - kept) for kept in range(4) for n in range(1_000)
}
"""The rest of a time, its trailing zeros cut or not -> microseconds: "7Z" -> 700."""

_Signed: TypeAlias = Annotated[int, msgspec.Meta(ge=-fields.MAX_NUMBER, le=fields.MAX_NUMBER)]
_Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=fields.MAX_NUMBER)]


class _DeltaMsg(msgspec.Struct, gc=False):
    """Only what is needed: market_id, ts_ms and the like are skipped without making objects."""

    market_ticker: str
    price_dollars: str
    delta_fp: str
    side: Literal["yes", "no"]
    ts: str


class DeltaFrame(msgspec.Struct, gc=False, tag_field="type", tag="orderbook_delta"):
    """A change with its time in microseconds."""

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


class TradeFrame(msgspec.Struct, gc=False, tag_field="type", tag="trade"):
    msg: _TradeMsg
    sid: _Number | None = None
    seq: _Number | None = None


class _TickerMsg(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """Every field there is: the key is of all of them, so an unknown one goes the general way."""

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
    ts_ms: int | None = None
    market_id: str | None = None


class TickerFrame(msgspec.Struct, gc=False, tag_field="type", tag="ticker"):
    msg: _TickerMsg
    sid: _Number | None = None
    seq: _Number | None = None


_Pairs: TypeAlias = list[tuple[str, str]]


class _SnapshotMsg(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """An unknown field goes the general way: it may hold renamed levels (INV-22)."""

    market_ticker: str
    market_id: str | None = None
    yes_dollars_fp: _Pairs | None = None
    no_dollars_fp: _Pairs | None = None


class SnapshotFrame(msgspec.Struct, gc=False, tag_field="type", tag="orderbook_snapshot"):
    msg: _SnapshotMsg
    sid: _Number | None = None
    seq: _Number | None = None
    id: _Number | None = None


Frame: TypeAlias = DeltaFrame | TradeFrame | TickerFrame | SnapshotFrame


class Typed:
    """Reads frames by type, with the memo tables. One per thread.

    `frame` is msgspec's: it raises a ValueError or RecursionError for what does not fit. The
    tables are read directly by `hot`; a key that is not in one is read by the method of its kind.
    """

    __slots__ = ("_tickers", "frame", "seconds", "sizes")

    def __init__(self) -> None:
        self.frame = msgspec.json.Decoder(Frame).decode
        self.sizes: dict[str, int] = {}
        self.seconds: dict[str, int] = {}
        self._tickers: dict[str, str] = {}

    def event(self, frame: Frame) -> events.Decoded | None:
        """The event of a frame; None if it has to go the general way. Raises WireError."""
        if type(frame) is DeltaFrame:
            return self._delta(frame)
        if type(frame) is TickerFrame:
            return self._ticker_state(frame)
        if type(frame) is TradeFrame:
            return self._trade(frame)
        assert type(frame) is SnapshotFrame, "the fourth of four"
        return self._snapshot(frame)

    def _delta(self, frame: DeltaFrame) -> events.Delta | None:
        msg = frame.msg
        if not msg.ts:
            return None
        return events.Delta(
            self._tickers.get(msg.market_ticker) or self._ticker(msg.market_ticker),
            0 if msg.side == "yes" else 1,
            units.parse_price_micros(msg.price_dollars),
            self.size(msg.delta_fp),
            self.ts_us(msg.ts),
            _MICRO,
            frame.sid,
            frame.seq,
        )

    def _ticker_state(self, frame: TickerFrame) -> events.Ticker | None:
        msg = frame.msg
        if not msg.time:
            return None
        price, yes_bid, yes_ask = map(
            price_or_unset, (msg.price_dollars, msg.yes_bid_dollars, msg.yes_ask_dollars)
        )
        volume, interest, bid_size, ask_size, last_size = map(
            self.size,
            (msg.volume_fp, msg.open_interest_fp, msg.yes_bid_size_fp, msg.yes_ask_size_fp,
             msg.last_trade_size_fp),
        )  # fmt: skip
        exchange_us = self.ts_us(msg.time)
        key = payload_key(STATE.pack(
            exchange_us, volume, interest, msg.dollar_volume, msg.dollar_open_interest,
            bid_size, ask_size, last_size, price, yes_bid, yes_ask,
        ))  # fmt: skip
        return events.Ticker(
            self._tickers.get(msg.market_ticker) or self._ticker(msg.market_ticker),
            price, yes_bid, yes_ask, volume, interest, msg.dollar_volume,
            msg.dollar_open_interest, bid_size, ask_size, last_size, key, exchange_us, _MICRO,
            frame.sid, frame.seq,
        )  # fmt: skip

    def _trade(self, frame: TradeFrame) -> events.Trade:
        msg = frame.msg
        return events.Trade(
            self._tickers.get(msg.market_ticker) or self._ticker(msg.market_ticker),
            fields.trade_id(msg.trade_id),
            units.parse_price_micros(msg.yes_price_dollars),
            units.parse_price_micros(msg.no_price_dollars),
            fields.not_negative(self.size(msg.count_fp)),
            0 if msg.taker_outcome_side == "yes" else 1,
            msg.is_block_trade,
            units.ms_to_us(msg.ts_ms),
            _MILLI,
            frame.sid,
            frame.seq,
        )

    def _snapshot(self, frame: SnapshotFrame) -> events.Snapshot | None:
        msg = frame.msg
        yes, no = self._levels(msg.yes_dollars_fp), self._levels(msg.no_dollars_fp)
        if yes is None or no is None:
            return None
        market = self._tickers.get(msg.market_ticker) or self._ticker(msg.market_ticker)
        return events.Snapshot(market, yes, no, frame.sid, frame.seq, frame.id)

    def _levels(self, pairs: _Pairs | None) -> list[tuple[int, int]] | None:
        """Levels as the exchange prints them: ascending, four decimals, none empty. None where any
        is of another form. A gap is followed by thousands of snapshots, so this is hot."""
        out: list[tuple[int, int]] = []
        last, price, size = -1, _PRICES.get, self.sizes.get
        for at, quantity in pairs or ():
            micros, centi = price(at, -1), size(quantity)
            if centi is None:
                centi = self.size(quantity)
            if micros <= last or centi <= 0:
                return None
            out.append((micros, centi))
            last = micros
        return out

    def _ticker(self, text: str) -> str:
        fields.ticker(text)
        if len(self._tickers) < MAX_MEMO_TICKERS:
            self._tickers[text] = text
        return text

    def size(self, text: str) -> int:
        """As units.parse_size_centi, from the memo."""
        size = self.sizes.get(text)
        if size is None:
            size = units.parse_size_centi(text)
            if len(self.sizes) >= MAX_MEMO_SIZES:
                self.sizes.clear()
            self.sizes[text] = size
        return size

    def ts_us(self, text: str) -> int:
        """As units.parse_ts_us: the second from the memo, the fraction digits looked up."""
        try:
            second_us: int = self.seconds[text[:SECOND_CHARS]]
            return second_us + MILLIS[text[SECOND_CHARS:MILLI_CHARS]] + MICROS[text[MILLI_CHARS:]]
        except KeyError:
            exchange_us = units.parse_ts_us(text)
        if text[SECOND_CHARS - 1] == ".":
            if len(self.seconds) >= MAX_MEMO_SECONDS:
                self.seconds.clear()
            self.seconds[text[:SECOND_CHARS]] = exchange_us - exchange_us % units.US_PER_S
        return exchange_us


PRICES_OR_UNSET: Final = {**_PRICES, "": events.UNSET}
"""The prices in use, and that of a market that never traded."""


def price_or_unset(text: str) -> int:
    """A market that never traded has the price ""."""
    return units.parse_price_micros(text) if text else events.UNSET


def is_current_ticker(msg: fields.Message) -> bool:
    """Whether a ticker's `msg` has the fields of the form in use and no other."""
    try:
        msgspec.convert(msg, _TickerMsg)
    except msgspec.ValidationError:
        return False
    return bool(msg["time"])


STATE: Final = struct.Struct("<8q3i")
"""All that a ticker of the form in use says: exchange_us, volume, open_interest, dollar_volume,
dollar_open_interest, yes_bid_size, yes_ask_size, last_trade_size, price, yes_bid, yes_ask."""


def payload_key(content: bytes) -> int:
    """64 bits over a ticker's whole content: every gatherer finds the same.

    Two CRCs of different polynomials, at a fifth of the cost of a cryptographic hash: nobody gains
    by making two states of a market collide.
    """
    key: int = (google_crc32c.value(content) << 32) | crc32(content)
    return key
