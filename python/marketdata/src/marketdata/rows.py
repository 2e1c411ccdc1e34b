"""Row layouts that cross a process border: gatherer -> database -> deduplicator -> production.

Purpose: one place for the integers, flags and numpy layouts that the gatherer's sink writes, the
deduplicator's puller reads, the merge consumes and the publisher writes. Units as everywhere:
price in micro-dollars (int32), sizes in 1/100 contract (int64), `exchange_us` and `received_ns`
int64 UTC.

Does not do: packing for PostgreSQL's COPY (runtime.pgcopy), decoding of frames (wire), decisions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Any, Final

import numpy as np
import numpy.typing as npt


class Side(IntEnum):
    """Which book side a level belongs to. Both sides are bids; NO prices stay on the NO scale."""

    YES = 0
    NO = 1


class DeltaFlag(IntFlag):
    """Bits of `flags` on a delta row, at the gatherer and in production alike."""

    RESET = 1  # an empty snapshot that emptied a non-empty book; price, side and delta are 0
    # No snapshot yet in this run, or none since a change that could not be read: book_hash is
    # relative (it starts at 0 with the run, at another value after such a change).
    FLOATING = 2
    TS_INFERRED = 4  # the frame had no time; exchange_us is that of the event before it
    TS_MS_ONLY = 8  # the frame had only ts_ms: the last three digits of exchange_us are 000
    NEGATIVE = 16  # the level went below zero at this gatherer: its book was wrong
    TS_BACKWARD = 32  # exchange time went back within one market of one connection
    AMBIGUOUS = 64  # production only: a cut no data can decide; neighbourhood not complete
    DISPUTED = 128  # production only: gatherers contradict each other and no audit decides


class TradeFlag(IntFlag):
    """Bits of `flags` on a trade row, at the gatherer and in production alike."""

    BLOCK = 1  # off book: no change of a level goes with it
    REST = 2  # no frame brought it: REST listed it afterwards; run_id names the request


GATHERERS_MAX: Final = 14
"""Bits 0 to 13 of `sources` are gatherers."""

SOURCE_REST: Final = 1 << 14
"""Bit of `sources` on a merged trade: no gatherer's frames had it, those named found it by REST."""


class SnapshotVerdict(IntEnum):
    """What a snapshot said about the running book."""

    ANCHOR = 0  # first of this market in this run (also after a cut): its hash is taken over
    AGREES = 1  # audit passed
    DIFFERS = 2  # audit failed: the run is cut here for this market; anchors what follows
    RESET = 3  # empty and the running book was not: an event; a RESET row stands in orderbook_delta


class ControlKind:
    """Values of `ControlRow.kind`."""

    CONN_OPEN: Final = "conn_open"  # reason "", detail {conn_uid, handshake, local, url}
    # reason: closed_by_us | closed_by_peer | reset | stall | died ...
    CONN_CLOSE: Final = "conn_close"
    # run_id, sid, seq = first seq, detail {channel, start: subscribed|gap}
    RUN_START: Final = "run_start"
    # run_id, seq = last in-sequence seq, reason: gap|close|error|unsubscribed
    RUN_END: Final = "run_end"
    MARKET_REMOVED: Final = "market_removed"  # a market left the subscription at seq
    # a frame kept but not understood; reason = TapeError.reason, detail {...}
    PROBLEM: Final = "problem"
    GATHERER_END: Final = "gatherer_end"  # clean stop: nothing more comes until the next conn_open
    # trades that REST listed and no frame had brought; run_id = that of their rows, exchange_us =
    # latest seen before, detail: rest_trades.trades_detail
    REST_TRADES: Final = "rest_trades"
    # a window of seconds compared with REST to its end; reason "" or why it was left out; detail as
    # rest_trades.window_detail makes it
    REST_WINDOW: Final = "rest_window"


# One row of the gatherer's orderbook_delta, native byte order, times already as Unix integers.
DELTA_ROW: Final = np.dtype(
    [
        ("exchange_us", "i8"),
        ("received_ns", "i8"),
        ("delta", "i8"),
        ("book_hash", "u8"),  # H after the event (relative to the run's start while FLOATING)
        ("market_id", "i4"),  # the gatherer's own id
        ("run_id", "i4"),
        ("seq", "u4"),  # low 32 bits of the exchange's seq
        ("batch_id", "i4"),
        ("price", "i4"),
        ("side", "i2"),
        ("flags", "i2"),
    ]
)

# One row of the gatherer's trade; fields as in TradeRow.
TRADE_ROW: Final = np.dtype(
    [
        ("exchange_us", "i8"),
        ("received_ns", "i8"),
        ("trade_id", "V16"),
        ("count", "i8"),
        ("seq", "i8"),
        ("market_id", "i4"),
        ("run_id", "i4"),
        ("yes_price", "i4"),
        ("no_price", "i4"),
        ("taker_side", "i2"),
        ("flags", "i2"),
    ]
)

# One row of the gatherer's ticker; fields as in TickerRow.
TICKER_ROW: Final = np.dtype(
    [
        ("exchange_us", "i8"),
        ("received_ns", "i8"),
        ("payload_key", "u8"),
        ("volume", "i8"),
        ("open_interest", "i8"),
        ("dollar_volume", "i8"),
        ("dollar_open_interest", "i8"),
        ("yes_bid_size", "i8"),
        ("yes_ask_size", "i8"),
        ("last_trade_size", "i8"),
        ("market_id", "i4"),
        ("price", "i4"),
        ("yes_bid", "i4"),
        ("yes_ask", "i4"),
    ]
)


def _with_batch(row: np.dtype[np.void]) -> np.dtype[np.void]:
    """The layout as the table has it: the gatherer learns the batch only when it commits."""
    fields: list[Any] = [*row.descr, ("batch_id", "i4")]
    return np.dtype(fields)


# Rows of the gatherer's trade and ticker as the deduplicator reads them.
BATCH_TRADE: Final = _with_batch(TRADE_ROW)
BATCH_TICKER: Final = _with_batch(TICKER_ROW)

# One row of production's orderbook_delta.
MERGED_ROW: Final = np.dtype(
    [
        ("exchange_us", "i8"),
        ("received_ns", "i8"),  # the smallest of all witnesses
        ("delta", "i8"),
        ("book_hash", "u8"),
        ("market_seq", "i8"),  # from 1 within (market, epoch), no hole
        ("market_id", "i4"),  # production's id
        ("epoch", "i4"),  # from 1 within a market; a new one opens only with a gap row
        ("price", "i4"),
        ("side", "i2"),
        ("flags", "i2"),
        ("sources", "i2"),  # bit g set: gatherer g is a witness
    ]
)

DeltaRows = npt.NDArray[np.void]
TradeRows = npt.NDArray[np.void]
TickerRows = npt.NDArray[np.void]


@dataclass(slots=True)
class SnapshotRow:
    """A snapshot as a gatherer stored it. `levels` is `book.pack_levels` form."""

    # Inferred: the latest exchange time this gatherer had seen on the sid (else anywhere).
    exchange_us: int
    received_ns: int
    book_hash: int
    running_hash: int  # H before the snapshot (relative if the run was floating)
    market_id: int
    run_id: int
    seq: int
    batch_id: int
    verdict: int
    flags: int  # DeltaFlag.FLOATING if the market was floating before this snapshot
    levels: bytes


@dataclass(slots=True)
class TradeRow:
    """A public trade. `taker_side`: 0 yes, 1 no, -1 not told. `flags`: TradeFlag.

    Of a trade that came by REST `seq` is its place in the record.
    """

    exchange_us: int
    received_ns: int
    trade_id: bytes  # 16 bytes, any 128-bit value
    count: int
    market_id: int
    run_id: int
    seq: int
    batch_id: int
    yes_price: int
    no_price: int
    taker_side: int
    flags: int


@dataclass(slots=True)
class TickerRow:
    """A ticker state; sizes are -1 where the frame had none.

    `payload_key` is a 64-bit hash of all its fields.
    """

    exchange_us: int
    received_ns: int
    payload_key: int
    volume: int
    open_interest: int
    dollar_volume: int
    dollar_open_interest: int
    yes_bid_size: int
    yes_ask_size: int
    last_trade_size: int
    market_id: int
    batch_id: int
    price: int
    yes_bid: int
    yes_ask: int


@dataclass(slots=True)
class ControlRow:
    """Something that happened to a connection, a run or the gatherer itself (append-only)."""

    batch_id: int
    ord: int  # position within the batch: control rows and data rows share no order except by seq
    received_ns: int
    kind: str
    conn_id: int
    run_id: int = 0
    sid: int = 0
    seq: int = 0
    market_id: int = 0
    exchange_us: int = 0  # latest exchange time seen on that sid
    reason: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class GathererBatch:
    """What the deduplicator pulled from one gatherer in one read.

    Whole committed batches only, in order.
    """

    gatherer: int  # index 0.., the bit in `sources`
    first_batch_id: int
    last_batch_id: int
    max_received_ns: int  # everything received up to here is committed
    deltas: DeltaRows  # dtype DELTA_ROW, in batch order, within a batch in arrival order
    snapshots: list[SnapshotRow] = field(default_factory=list)
    trades: TradeRows = field(default_factory=lambda: np.empty(0, BATCH_TRADE))
    tickers: TickerRows = field(default_factory=lambda: np.empty(0, BATCH_TICKER))
    controls: list[ControlRow] = field(default_factory=list)
    markets: dict[int, str] = field(default_factory=dict)  # new market id -> ticker
    life: bytes = b""  # what the reader wants to know again after a restart; "": nothing
