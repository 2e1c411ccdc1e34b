"""Recordings made by hand, frame by frame, for tests of the arbiter.

`Hand` plays one gatherer the way the real one works: a run floats until its first snapshot, an
empty snapshot of a non-empty book is a reset, a differing one cuts. Times are in milliseconds of
exchange time; receive times follow them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dedup.arbitrate import Arbiter
from dedup.output import ArbiterSettings, WindowOutput
from marketdata.book import hash_levels, level_constant, pack_levels
from marketdata.rows import (
    BATCH_TICKER,
    BATCH_TRADE,
    DELTA_ROW,
    ControlRow,
    DeltaFlag,
    GathererBatch,
    SnapshotRow,
    SnapshotVerdict,
    TickerRow,
    TradeFlag,
    TradeRow,
)

T0_US = 1_700_000_000_000_000
MASK = 0xFFFFFFFFFFFFFFFF
QUICK = ArbiterSettings(
    window_us=1_000_000, grace_ns=0, idle_hold_ns=5_000_000_000, float_hold_ns=5_000_000_000,
    patience_ns=10_000_000_000,
)  # fmt: skip
REQUEST_RUNS = 1_000_000  # runs of REST records lie apart from those of subscriptions
Book = dict[int, int]


def us(ms: float) -> int:
    return T0_US + round(ms * 1000)


def book_hash(book: Book) -> int:
    return hash_levels(book.items(), [])


def columns(rows: Iterable[TradeRow | TickerRow], layout: np.dtype[Any]) -> np.ndarray:
    """Rows by name as the columns of a layout."""
    return np.array([tuple(getattr(row, name) for name in layout.names) for row in rows], layout)


@dataclass
class _Market:
    h: int = 0
    anchored: bool = False
    rows: int = 0


@dataclass
class Hand:
    """One gatherer. `commit` gives what happened since the last one as a batch."""

    gatherer: int
    markets: tuple[str, ...] = ("A", "B", "C")
    run_id: int = 0
    conn: int = 0
    seq: int = 0
    now_ns: int = 0
    batch_id: int = 0
    rows: list[np.ndarray] = field(default_factory=list)
    snaps: list[SnapshotRow] = field(default_factory=list)
    controls: list[ControlRow] = field(default_factory=list)
    trades: list[TradeRow] = field(default_factory=list)
    tickers: list[TickerRow] = field(default_factory=list)
    state: dict[str, _Market] = field(default_factory=dict)
    latest_us: int = T0_US
    requests: int = 0

    def _tick(self, ms: float | None = None) -> int:
        if ms is not None:
            self.now_ns = max(self.now_ns, us(ms) * 1000)
        self.now_ns += 1
        return self.now_ns

    def control(self, kind: str, **more: object) -> None:
        self.controls.append(
            ControlRow(0, len(self.controls), self._tick(), kind, self.conn, **more)  # type: ignore[arg-type]
        )

    def start(self, ms: float, kind: str = "subscribed", channel: str = "orderbook_delta") -> None:
        """A run begins; after a subscription on a new connection, after a gap on the same."""
        self._tick(ms)
        if kind == "subscribed":
            self.conn += 1
            self.seq = 0
            self.control("conn_open")
        self.run_id += 1
        self.state = {}
        self.control("run_start", run_id=self.run_id, sid=2, seq=self.seq + 1,
                     detail={"channel": channel, "start": kind})  # fmt: skip

    def end(self, reason: str = "close") -> None:
        self.control("run_end", run_id=self.run_id, sid=2, seq=self.seq, reason=reason,
                     exchange_us=self.latest_us)  # fmt: skip

    def gap(self, ms: float, missing: int) -> None:
        """`missing` frames are lost; a new run begins on the same connection."""
        self.end("gap")
        self.seq += missing
        self.start(ms, "gap")

    def snap(self, market: str, book: Book, ms: float | None = None) -> None:
        """A snapshot frame, with the verdict the gatherer would give."""
        self.seq += 1
        known = self.state.setdefault(market, _Market())
        h = book_hash(book)
        if not known.anchored:
            verdict = SnapshotVerdict.ANCHOR
        elif h == known.h:
            verdict = SnapshotVerdict.AGREES
        else:
            verdict = SnapshotVerdict.RESET if not book else SnapshotVerdict.DIFFERS
        if verdict == SnapshotVerdict.RESET:
            self._row(market, self.latest_us, 0, 0, 0, int(DeltaFlag.RESET))
        flags = 0 if known.anchored else int(DeltaFlag.FLOATING)
        self.snaps.append(
            SnapshotRow(
                self.latest_us, self._tick(ms), h, known.h, self.markets.index(market) + 1,
                self.run_id, self.seq, 0, int(verdict), flags, pack_levels(book.items(), []),
            )
        )  # fmt: skip
        known.h, known.anchored = h, True

    def delta(self, ms: float, market: str, price: int, size: int, flags: int = 0) -> None:
        """A delta frame of the yes side."""
        self.seq += 1
        known = self.state.setdefault(market, _Market())
        known.h = (known.h + level_constant(0, price) * size) & MASK
        self.latest_us = max(self.latest_us, us(ms))
        self._tick(ms)
        self._row(market, us(ms), price, size, known.h, flags)

    def _row(self, market: str, at_us: int, price: int, size: int, h: int, flags: int) -> None:
        known = self.state[market]
        row = np.zeros(1, DELTA_ROW)
        row["exchange_us"], row["received_ns"], row["delta"] = at_us, self._tick(), size
        row["book_hash"], row["market_id"] = h, self.markets.index(market) + 1
        row["run_id"], row["seq"], row["price"] = self.run_id, self.seq, price
        row["flags"] = flags | (0 if known.anchored else int(DeltaFlag.FLOATING))
        self.rows.append(row)

    def trade(self, ms: float, market: str, number: int) -> None:
        self.seq += 1
        self.trades.append(
            TradeRow(us(ms), self._tick(ms), number.to_bytes(16, "big"), 100,
                     self.markets.index(market) + 1, self.run_id, self.seq, 0,
                     500_000, 500_000, 0, 0)
        )  # fmt: skip

    def by_rest(self, market: str, *found: tuple[float, int]) -> None:
        """REST listed trades (ms, number) that no frame had brought."""
        self.requests += 1
        run_id = REQUEST_RUNS + self.requests
        for place, (ms, number) in enumerate(found):
            self.trades.append(
                TradeRow(us(ms) + 123, self._tick(), number.to_bytes(16, "big"), 100,
                         self.markets.index(market) + 1, run_id, place, 0,
                         500_000, 500_000, 0, int(TradeFlag.REST))
            )  # fmt: skip
        self.control("rest_trades", run_id=run_id, exchange_us=self.latest_us)

    def ticker(self, ms: float, market: str, key: int) -> None:
        self.tickers.append(
            TickerRow(us(ms), self._tick(ms), key, 1, 2, 3, 4, 5, 6, 7,
                      self.markets.index(market) + 1, 0, 8, 9, 10)
        )  # fmt: skip

    def stop(self) -> None:
        self.end()
        self.control("gatherer_end")

    def commit(self, ms: float | None = None) -> GathererBatch:
        """Everything since the last commit; the watermark moves to `ms`, if given."""
        self.batch_id += 1
        self._tick(ms)
        rows = np.concatenate(self.rows) if self.rows else np.empty(0, DELTA_ROW)
        rows["batch_id"] = self.batch_id
        for item in (*self.snaps, *self.trades, *self.tickers, *self.controls):
            item.batch_id = self.batch_id
        batch = GathererBatch(
            self.gatherer, self.batch_id, self.batch_id, self.now_ns, rows, self.snaps,
            columns(self.trades, BATCH_TRADE), columns(self.tickers, BATCH_TICKER), self.controls,
            {i + 1: t for i, t in enumerate(self.markets)} if self.batch_id == 1 else {},
        )  # fmt: skip
        self.rows, self.snaps, self.controls = [], [], []
        self.trades, self.tickers = [], []
        return batch


def drain(arbiter: Arbiter, *, final: bool = False) -> list[WindowOutput]:
    outputs = []
    while (output := arbiter.step(final=final)) is not None:
        outputs.append(output)
    return outputs


def merge(*hands: Hand, settings: ArbiterSettings = QUICK) -> list[WindowOutput]:
    """One batch of each gatherer, then the end."""
    arbiter = Arbiter(len(hands), settings)
    for hand in hands:
        arbiter.absorb(hand.commit())
    return drain(arbiter, final=True)
