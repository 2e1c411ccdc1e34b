"""Markets on which all continuing runs brought the same rows: taken whole, in bulk.

Purpose: the normal case at the price of one comparison. A market is taken here only if every run
that is pinned to it stands at its end and brought rows, all equal in (time, content, H), and if
nothing else happened to it in this window; everything else goes through markets.py, which gives the
same result (a test compares both).

Invariants: INV-F1 same rows, state and counts as MarketWindow.

Does not do: anything that needs a decision.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dedup.inflow import FLOATING, UNTIMED, Cut
from dedup.runs import Market, Pair, Standing
from dedup.window import WindowSink, empty_block
from marketdata.alignment import content_keys
from marketdata.book import level_constant, level_constants
from marketdata.rows import DeltaFlag, DeltaRows

U64 = npt.NDArray[np.uint64]
_RESET = int(DeltaFlag.RESET)
_SLOW = int(DeltaFlag.NEGATIVE) | FLOATING | UNTIMED | int(DeltaFlag.TS_BACKWARD)
_M_US = np.uint64(0x9E3779B97F4A7C15)
_M_HASH = np.uint64(0xA0761D6478BD642F)
MASK = 0xFFFFFFFFFFFFFFFF


@dataclass(slots=True)
class Bunch:
    """Rows of one run in one market: `start`..`stop` of its gatherer's cut."""

    gatherer: int
    run_id: int
    start: int
    stop: int


@dataclass(slots=True)
class FastPath:
    """Takes markets whole and writes them all at the end of the window."""

    cuts: list[Cut]
    sink: WindowSink
    prints: list[U64] = field(default_factory=list)
    odd: list[npt.NDArray[np.int64]] = field(default_factory=list)
    taken: list[tuple[Market, int, DeltaRows, npt.NDArray[np.int64], int, int]] = field(
        default_factory=list
    )

    def prepare(self) -> None:
        """Fingerprints of all rows; and, summed up, where rows need a closer look."""
        for cut in self.cuts:
            rows = cut.rows
            price, side = rows["price"], rows["side"]
            delta, flags = np.ascontiguousarray(rows["delta"]), rows["flags"]
            us, h = rows["exchange_us"].astype(np.uint64), rows["book_hash"]
            self.prints.append(content_keys(price, side, delta, flags) + us * _M_US + h * _M_HASH)
            odd = (flags & _SLOW) != 0
            if rows.size > 1:
                terms = level_constants(side, price) * delta.view(np.uint64)
                inner = cut.key[1:] == cut.key[:-1]
                odd[1:] |= inner & (h[1:] != h[:-1] + terms[1:])
                odd[1:] |= inner & (rows["seq"][1:] <= rows["seq"][:-1])
            self.odd.append(np.concatenate(([0], np.cumsum(odd))))

    def take(self, market: Market, index: int, bunches: list[Bunch]) -> bool:
        """Take the market if it is the normal case; False: markets.py has to do it."""
        if market.tail is not None or len(market.pairs) != len(bunches):
            return False
        pairs = {(p.gatherer, p.run_id): p for p in market.pairs}
        count, first = market.count, bunches[0]
        print_first = self.prints[first.gatherer][first.start : first.stop]
        for b in bunches:
            pair = pairs.get((b.gatherer, b.run_id))
            if (
                pair is None
                or pair.standing != Standing.PINNED
                or pair.position != count
                or pair.claim_from_us < 0
                or pair.keyframe is not None
                or self.odd[b.gatherer][b.stop] != self.odd[b.gatherer][b.start]
                or int(self.cuts[b.gatherer].rows["seq"][b.start]) <= pair.last_seq
            ):
                return False
            if b is not first and not np.array_equal(
                print_first, self.prints[b.gatherer][b.start : b.stop]
            ):
                return False
        rows = self.cuts[first.gatherer].rows[first.start : first.stop]
        head = rows[0]
        term = level_constant(int(head["side"]), int(head["price"])) * int(head["delta"])
        if (market.h_end + term) & MASK != int(head["book_hash"]):
            return False
        self._take(market, index, bunches, rows, pairs)
        return True

    def _take(
        self,
        market: Market,
        index: int,
        bunches: list[Bunch],
        rows: DeltaRows,
        pairs: dict[tuple[int, int], Pair],
    ) -> None:
        n, last = rows.size, rows[-1]
        received = rows["received_ns"]
        mask = 0
        for b in bunches:
            mask |= 1 << b.gatherer
            if b is not bunches[0]:
                received = np.minimum(
                    received, self.cuts[b.gatherer].rows["received_ns"][b.start : b.stop]
                )
        self.taken.append((market, index, rows, received, mask, market.count))
        market.count += n
        market.h_end, market.last_us = int(last["book_hash"]), int(last["exchange_us"])
        market.live_to_us, market.last_sources = -1, mask
        for pair in market.pairs:
            pair.h, pair.position, pair.last_us = market.h_end, market.count, market.last_us
            pair.behind_since = -1
        for b in bunches:
            pair = pairs[(b.gatherer, b.run_id)]
            pair.last_seq = int(self.cuts[b.gatherer].rows["seq"][b.stop - 1])
        counts = self.sink.counts
        counts["rows_in"] += n * len(bunches)
        counts["merged_rows"] += n
        counts["duplicate_rows"] += n * (len(bunches) - 1)
        counts["merged_events"] += n
        if len(bunches) > 1:
            counts["mode_exact"] += len(bunches)

    def finish(self) -> None:
        """Write all that was taken as one block."""
        if not self.taken:
            return
        sizes = np.array([rows.size for _, _, rows, _, _, _ in self.taken])
        rows = np.concatenate([rows for _, _, rows, _, _, _ in self.taken])
        block = empty_block(rows.size)
        for name in ("exchange_us", "delta", "book_hash", "price", "side"):
            block[name] = rows[name]
        block["flags"] = rows["flags"] & ~np.int16(FLOATING)
        block["received_ns"] = np.concatenate([r for _, _, _, r, _, _ in self.taken])
        block["market_id"] = np.repeat([i for _, i, _, _, _, _ in self.taken], sizes)
        block["epoch"] = np.repeat([m.epoch for m, _, _, _, _, _ in self.taken], sizes)
        block["sources"] = np.repeat([s for _, _, _, _, s, _ in self.taken], sizes)
        starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
        before = np.repeat([c for _, _, _, _, _, c in self.taken], sizes)
        block["market_seq"] = np.arange(rows.size) - starts + before + 1
        self.sink.blocks.append(block)
