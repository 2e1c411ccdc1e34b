"""What the arbiter hands to the publisher: one `WindowOutput` is one transaction.

The publisher writes, in ONE transaction: all rows, the evidence (upsert by the keys that
marketdata.coverage names), `market_states` (upsert by ticker), `named_states` (upsert by name,
delete where the value is None) and `positions`. After a restart it loads the last committed states
with `Arbiter.load` and pulls each gatherer again from `reread_from_batch` on.

`market_id` in `deltas` and `market` in the other rows are indexes into `tickers` of the same output
(ascending by ticker); the publisher maps them to production's ids. Rows are in a fixed total order:
deltas by (ticker, epoch, market_seq), all others by (ticker, time, identity).

Does not do: any decision, I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from marketdata.coverage import AuditPoint, EpochStart, Mark, MarketClaim, RunProgress
from marketdata.evidence import Change
from marketdata.rows import (
    MERGED_ROW,
    TICKER_ROW,
    TRADE_ROW,
    DeltaRows,
    TickerRows,
    TradeRows,
)
from marketdata.share import Share


@dataclass(frozen=True, slots=True)
class ArbiterSettings:
    """Named limits of the arbiter. `*_us` is exchange time, `*_ns` time of a gatherer's own clock.

    Those that decide the result (a changed one needs a new tape): window_us, engine_skew_us,
    match_window_us, float_hold_ns, merge. The others only decide how long to wait.
    """

    window_us: int = 5_000_000  # grid of exchange time: the unit of work
    grace_ns: int = (
        2_000_000_000  # commits must be this far past the first sight of the next window
    )
    idle_hold_ns: int = 15_000_000_000  # an open run silent for so long holds nothing up
    float_hold_ns: int = 30_000_000_000  # how long rows before a snapshot wait for it
    patience_ns: int = 60_000_000_000  # a gatherer that far behind the others is left out
    engine_skew_us: int = 100_000  # margin for clocks of the exchange's engines and interleaving
    match_window_us: int = 2_000  # rule 10, second mode: never wider
    merge: Literal["runs", "content"] = "runs"
    share: Share = field(default_factory=Share)  # of the markets; evidence is taken of all of them


@dataclass(frozen=True, slots=True)
class MergedSnapshot:
    """A keyframe: the book after the first `market_seq` events of `epoch`."""

    market: int
    epoch: int
    market_seq: int
    exchange_us: int
    received_ns: int
    book_hash: int
    levels: bytes
    sources: int


class MergedTrade(NamedTuple):
    """A public trade, once: a row of MERGED_TRADE by name. Fields as in rows.TradeRow."""

    market: int
    exchange_us: int
    received_ns: int
    trade_id: bytes
    count: int  # type: ignore[assignment]  # a field, in place of tuple.count
    yes_price: int
    no_price: int
    taker_side: int
    flags: int
    sources: int


class MergedTicker(NamedTuple):
    """A ticker state, once: a row of MERGED_TICKER by name. Fields as in rows.TickerRow."""

    market: int
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
    price: int
    yes_bid: int
    yes_ask: int
    sources: int


def _merged(fields: Sequence[str], row: np.dtype[np.void]) -> np.dtype[np.void]:
    """The layout of merged rows: the gatherer's widths, with `market` and `sources` around them."""
    kept: list[Any] = [(name, row[name]) for name in fields[1:-1]]
    return np.dtype([("market", "i4"), *kept, ("sources", "i2")])


MERGED_TRADE: Final = _merged(MergedTrade._fields, TRADE_ROW)
MERGED_TICKER: Final = _merged(MergedTicker._fields, TICKER_ROW)


@dataclass(frozen=True, slots=True)
class EpochRow:
    """An epoch opens. `reason`: first | gap | book_equal | disputed. Key (ticker, epoch)."""

    ticker: str
    epoch: int
    from_us: int
    start_hash: int
    reason: str


@dataclass(frozen=True, slots=True)
class GapRow:
    """Between two epochs: nobody can say what happened in (from_us, to_us). Key (ticker, epoch).

    `epoch` is the one that opens after it. `kind`: gap (books differ) | book_equal (books
    agree, which proves nothing about events) | disputed.
    """

    ticker: str
    epoch: int
    from_us: int
    to_us: int
    hash_before: int
    hash_after: int
    kind: str


@dataclass(frozen=True, slots=True)
class QuarantineRow:
    """Rows that were kept and not merged, with the reason.

    `rows` has dtype DELTA_ROW as read (market_id is the gatherer's own); for trades and tickers
    `rows` is empty and `n_rows` counts them.
    """

    ticker: str
    gatherer: int
    run_id: int
    reason: (
        str  # unanchored | unaligned | contradicted | disputed | late | broken_chain | cut_group
    )
    from_us: int
    to_us: int
    n_rows: int
    rows: DeltaRows


@dataclass(frozen=True, slots=True)
class GathererPosition:
    """Where to read again after a restart; `seen_batch` is the last one read."""

    gatherer: int
    reread_from_batch: int
    seen_batch: int


@dataclass(slots=True)
class WindowOutput:
    """Everything that one closed window adds to production."""

    window: int  # index on the grid: [window * window_us, (window + 1) * window_us)
    from_us: int
    to_us: int  # every later output holds only what became known after this window
    tickers: list[str] = field(default_factory=list)
    deltas: DeltaRows = field(default_factory=lambda: np.empty(0, MERGED_ROW))
    snapshots: list[MergedSnapshot] = field(default_factory=list)
    trades: TradeRows = field(default_factory=lambda: np.empty(0, MERGED_TRADE))
    # Each once, ascending by id; whether one is in production already, production is asked.
    late_trades: TradeRows = field(default_factory=lambda: np.empty(0, MERGED_TRADE))
    ticker_rows: TickerRows = field(default_factory=lambda: np.empty(0, MERGED_TICKER))
    epochs: list[EpochRow] = field(default_factory=list)
    gaps: list[GapRow] = field(default_factory=list)
    quarantine: list[QuarantineRow] = field(default_factory=list)
    progress: list[RunProgress] = field(default_factory=list)
    claims: list[MarketClaim] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    audits: list[AuditPoint] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)  # in what the exchange had shown: alerts
    market_states: dict[str, bytes] = field(default_factory=dict)
    named_states: dict[str, bytes | None] = field(default_factory=dict)
    positions: list[GathererPosition] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)  # names: see arbitrate.COUNTS
    # (reason, detail) of gate.closed_by: no part of the result, it may depend on who answered when.
    closed_by: tuple[str, str] = field(default=("watermark", ""), compare=False)


def epoch_starts(output: WindowOutput) -> list[EpochStart]:
    """The epoch rows of an output in the form that coverage wants."""
    return [EpochStart(e.ticker, e.epoch, e.from_us) for e in output.epochs]
