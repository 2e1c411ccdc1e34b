"""What waits for a window, and what a window takes.

Purpose: the parts that an Inflow is made of: rows of one read in the order in which windows take
them, snapshots, ends of runs and of markets in runs.

Does not do: deciding which window anything belongs to (inflow.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from dedup.columns import I64, U64, picked
from marketdata.alignment import content_keys
from marketdata.book import level_constants
from marketdata.rows import DeltaFlag, DeltaRows, SnapshotRow, TickerRows, TradeRows

_M_US: Final = np.uint64(0x9E3779B97F4A7C15)
_M_HASH: Final = np.uint64(0xA0761D6478BD642F)
BEFORE: Final = 0  # column of `marks_of`: H before the row
PRINT: Final = 1  # and a fingerprint of its time, content and H

UNTIMED: Final = int(DeltaFlag.RESET | DeltaFlag.TS_INFERRED)
FLOATING: Final = int(DeltaFlag.FLOATING)
Part = tuple[DeltaRows, I64, U64]
LOW: Final = 0xFFFFFFFF  # the run in a pair key


def pair_key(market: int, run_id: int) -> int:
    """One number for (market index, run)."""
    return market << 32 | run_id


def marks_of(rows: DeltaRows) -> U64:
    """What windows compare of each row, for a whole read at once: uint64[n, 2]."""
    price, side, delta = rows["price"], rows["side"], np.ascontiguousarray(rows["delta"])
    h = np.ascontiguousarray(rows["book_hash"])
    marks = np.empty((rows.size, 2), np.uint64)
    np.subtract(h, level_constants(side, price) * delta.view(np.uint64), out=marks[:, BEFORE])
    prints = content_keys(price, side, delta, rows["flags"])
    prints += rows["exchange_us"].astype(np.uint64) * _M_US
    prints += h * _M_HASH
    marks[:, PRINT] = prints
    return marks


class Chunk:
    """Delta rows of one read by window, (market, run), arrival; windows take them in turn.

    Nothing is copied when a window takes its rows: a read of a whole backlog spans hundreds.
    """

    __slots__ = ("_by_key", "_oldest", "_taken", "key", "marks", "rows", "window")

    def __init__(self, rows: DeltaRows, key: I64, window: I64) -> None:
        self.rows, self.key, self.window, self.marks = rows, key, window, marks_of(rows)
        self._by_key: tuple[I64, I64, I64] | None = None
        self._oldest = np.minimum.accumulate(rows["batch_id"][::-1])[::-1]
        self._taken = 0

    @property
    def used_up(self) -> bool:
        """Whether windows have taken everything."""
        return self._taken == self.window.size

    @property
    def next_window(self) -> int:
        """The earliest window that still has rows here."""
        return int(self.window[self._taken])

    @property
    def oldest_batch(self) -> int:
        """The first batch with a row that no window has taken."""
        return int(self._oldest[self._taken])

    def take(self, window: int) -> Part | None:
        """The rows (and their keys and marks) up to and with `window` that were not taken yet."""
        start, stop = self._taken, int(np.searchsorted(self.window, window, side="right"))
        if stop == start:
            return None
        self._taken = stop
        rows, key, marks = self.rows[start:stop], self.key[start:stop], self.marks[start:stop]
        if self.window[start] != self.window[stop - 1]:
            order = np.argsort(key, kind="stable")
            rows, key, marks = picked(rows, order), key[order], marks[order]
        return rows, key, marks

    def window_of(self, key: int, seq: int) -> int:
        """Window of the pair's latest row up to `seq`, taken or not; -1 where there is none."""
        if self._by_key is None:
            order = np.argsort(self.key, kind="stable")
            shown = self.rows["seq"][order].astype(np.int64)
            self._by_key = self.key[order], shown, self.window[order]
        keys, seqs, windows = self._by_key
        low = int(keys.searchsorted(key))
        if low == keys.size or keys[low] != key:
            return -1
        high = int(keys.searchsorted(key + 1))
        at = low + int(seqs[low:high].searchsorted(seq + 1))
        return int(windows[at - 1]) if at > low else -1


@dataclass(slots=True)
class SnapItem:
    """A snapshot waiting for its window."""

    key: int
    window: int
    row: SnapshotRow


@dataclass(slots=True)
class EndItem:
    """The end of a run, or of one market in it (`key` is -1 for a whole run).

    `shown_us`: the latest exchange time that the run had shown up to `seq`; -1: none, or the whole
    run.
    """

    run_id: int
    key: int
    window: int
    seq: int
    batch_id: int
    reason: str
    shown_us: int = -1


@dataclass(slots=True)
class Cut:
    """What one window takes from one gatherer; rows, their keys and their marks (`marks_of`) sorted
    by (market, run), then arrival.

    `trades` and `tickers` in the order of arrival, with the market's index as `market_id`.
    """

    rows: DeltaRows
    key: I64
    marks: U64
    trades: TradeRows
    tickers: TickerRows
    snapshots: dict[int, list[SnapItem]] = field(default_factory=dict)  # by pair key, by seq
    ends: list[EndItem] = field(default_factory=list)
    by_market: dict[int, list[int]] | None = None  # market -> runs with snapshots, filled on use
