"""Hand-made outputs of closed windows, for tests of what comes after the merge."""

from __future__ import annotations

from typing import Any

import numpy as np

from dedup.output import (
    EpochRow,
    GapRow,
    GathererPosition,
    MergedSnapshot,
    MergedTicker,
    MergedTrade,
    QuarantineRow,
    WindowOutput,
)
from marketdata.book import Book, level_constant
from marketdata.coverage import OPEN_US, AuditPoint, Mark, MarketClaim, RunProgress
from marketdata.rows import DELTA_ROW, MERGED_ROW

WINDOW_US = 5_000_000
T0 = 1_771_945_200_000_000  # 2026-02-24T15:00:00Z
U64 = (1 << 64) - 1


def delta_rows(rows: list[tuple[int, ...]]) -> np.ndarray[Any, np.dtype[np.void]]:
    """(exchange_us, market, epoch, market_seq, price, delta, book_hash) -> MERGED_ROW."""
    return np.array(
        [(us, us * 1_000 + 5, d, h, seq, m, e, p, 0, 0, 3) for us, m, e, seq, p, d, h in rows],
        MERGED_ROW,
    )


def chain(
    market: int, epoch: int, first_seq: int, start_hash: int, times_us: list[int]
) -> tuple[list[tuple[int, ...]], int]:
    """Rows of one market that follow each other, and the hash after the last."""
    rows, book_hash = [], start_hash
    for n, us in enumerate(times_us):
        price, delta = 10_000 * (n % 40 + 1), 100 * (n + 1)
        book_hash = (book_hash + level_constant(0, price) * delta) & U64
        rows.append((us, market, epoch, first_seq + n, price, delta, book_hash))
    return rows, book_hash


def window_output(index: int, tickers: list[str], first_seq: int = 1) -> WindowOutput:
    """One window with something of everything; each ticker gets three rows."""
    from_us = T0 + index * WINDOW_US
    rows: list[tuple[int, ...]] = []
    start = 0
    for market in range(len(tickers)):
        mine, start = chain(market, 1, first_seq, start, [from_us + n for n in (0, 0, 7)])
        rows += mine
        start = 0
    book = Book()
    book.apply(0, 10_000, 500)
    output = WindowOutput(index, from_us, from_us + WINDOW_US, tickers, delta_rows(rows))
    output.snapshots = [
        MergedSnapshot(m, 1, 0, from_us, from_us * 1000, book.hash, book.to_bytes(), 1)
        for m in range(len(tickers))
    ]
    output.trades = [
        MergedTrade(
            0, from_us + 3, from_us * 1000 + 9, bytes([index, *range(15)]), 300, 420_000, 580_000,
            -1, 1, 5,
        )
    ]  # fmt: skip
    output.ticker_rows = [
        MergedTicker(
            0, from_us + 4, from_us * 1000 + 9, U64 - index, 1, 2, 3, 4, -1, 6, 7, 8, 9, 10, 2
        )
    ]
    if first_seq == 1:
        output.epochs = [EpochRow(t, 1, from_us, 0, "first") for t in tickers]
    output.progress = [RunProgress(0, 11, "orderbook", T0, output.to_us, ended=False, reason="")]
    output.claims = [MarketClaim(t, 0, 11, T0, OPEN_US, valid=True, reason="") for t in tickers]
    output.audits = [AuditPoint(tickers[0], 0, from_us + 1, agrees=True)]
    output.market_states = {t: f"{t}@{index}".encode() for t in tickers}
    output.named_states = {"global": str(index).encode(), f"gone{index}": b"x"}
    output.positions = [GathererPosition(0, index + 1, index + 2)]
    output.counts = {
        "rows_in": len(rows), "merged_rows": len(rows), "merged_events": len(rows), "audits": 1,
    }  # fmt: skip
    return output


def with_trouble(output: WindowOutput) -> WindowOutput:
    """The same window with a gap, a mark and a quarantined run; one named state goes away."""
    ticker = output.tickers[0]
    kept = np.zeros(2, DELTA_ROW)
    output.gaps = [GapRow(ticker, 2, output.from_us, output.from_us + 9, U64, 1 << 63, "gap")]
    output.epochs = [*output.epochs, EpochRow(ticker, 2, output.from_us + 9, 1 << 63, "gap")]
    output.marks = [Mark(ticker, "ambiguous", output.from_us, output.from_us + 5, "cut")]
    output.quarantine = [
        QuarantineRow(ticker, 1, 12, "unaligned", output.from_us, output.to_us, 2, kept)
    ]
    output.named_states["gone0"] = None
    return output
