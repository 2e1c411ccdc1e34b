"""The naive merge: a unique key of (market, time, side, price, delta). A negative control only.

Purpose: show what the usual `INSERT ... ON CONFLICT DO NOTHING` costs: equal changes in one
microsecond are separate events of the exchange, and this merge loses them (0.29 % recorded).

Does not do: anything else differently; evidence and quarantine are those of the real merge.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dedup.items import Cut
from dedup.window import WindowSink, empty_block
from marketdata.rows import DELTA_ROW, DeltaFlag


def naive_blocks(
    sink: WindowSink, cuts: Sequence[Cut], tickers: Sequence[str], numbers: dict[str, int]
) -> None:
    """Replace the window's merged rows by those of the naive key. `numbers`: rows so far."""
    rows = np.concatenate([cut.rows for cut in cuts]) if cuts else np.empty(0, DELTA_ROW)
    index = np.concatenate([cut.key >> 32 for cut in cuts])
    source = np.concatenate([np.full(cut.key.size, g) for g, cut in enumerate(cuts)])
    order = np.lexsort((rows["seq"], source, rows["exchange_us"], index))
    rows, index, source = rows[order], index[order], source[order]
    reset = rows["flags"] & int(DeltaFlag.RESET)
    keys = np.stack(
        [index, rows["exchange_us"], rows["side"], rows["price"], rows["delta"], reset], axis=1
    )
    _, first = np.unique(keys, axis=0, return_index=True)
    first.sort()
    rows, index, source = rows[first], index[first], source[first]
    block = empty_block(rows.size)
    for name in ("exchange_us", "received_ns", "delta", "book_hash", "price", "side", "flags"):
        block[name] = rows[name]
    block["market_id"], block["epoch"], block["sources"] = index, 1, 1 << source
    for market in np.unique(index).tolist():
        mine = np.flatnonzero(index == market)
        before = numbers.get(tickers[market], 0)
        block["market_seq"][mine] = np.arange(before + 1, before + mine.size + 1)
        numbers[tickers[market]] = before + mine.size
    sink.blocks = [block] if rows.size else []
    sink.snapshots, sink.gaps = [], []
    sink.epochs = [e for e in sink.epochs if e.epoch == 1]
