"""Markets on which all continuing runs brought the same rows: taken whole, in bulk.

Purpose: the normal case at the price of one comparison. A market is taken here only if every run
that is pinned to it stands at its end and brought rows, all equal in (time, content, H), and if
nothing else happened to it in this window but that runs ended; everything else goes through
markets.py, which gives the same result (a test compares both).

All comparisons are made over the rows of a whole window at once (`prepare`), on marks that were
made of a whole read (items.marks_of); what is left for each market are a few numbers.

Invariants: INV-F1 same rows, state and counts as MarketWindow.

Does not do: anything that needs a decision; the first rows of a market (beginnings.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from dedup.columns import I64, U64, joined
from dedup.items import BEFORE, FLOATING, LOW, PRINT, UNTIMED, Cut
from dedup.runs import Market, Standing
from dedup.window import WindowSink, empty_block
from marketdata.rows import DeltaFlag, DeltaRows

_PINNED = int(Standing.PINNED)  # an enum is slow to be asked for every pair
_SLOW = int(DeltaFlag.NEGATIVE) | FLOATING | UNTIMED | int(DeltaFlag.TS_BACKWARD)


@dataclass(slots=True)
class Bunch:
    """Rows of one run in one market: `start`..`stop` of its gatherer's cut.

    `h_before`: H before the first row. `even`: its rows have times of their own, their chain of
    hashes holds and their seq ascends. `like_first`: its rows are those of the market's first
    bunch, by time, content and H.
    """

    gatherer: int
    run_id: int
    start: int
    stop: int
    first_seq: int
    last_seq: int
    h_before: int
    h_after: int
    last_us: int
    even: bool
    like_first: bool = True


@dataclass(slots=True)
class Taken:
    """A market's bunches that go onto the tape behind its first `before` events of `epoch`."""

    index: int
    epoch: int
    before: int
    bunches: list[Bunch]


@dataclass(slots=True)
class FastPath:
    """Takes markets whole and writes them all at the end of the window."""

    cuts: list[Cut]
    sink: WindowSink
    kept_us: int  # see claims.Context
    bunches: dict[int, list[Bunch]] = field(default_factory=dict)  # market -> by gatherer and run
    taken: list[Taken] = field(default_factory=list)
    bases: list[int] = field(default_factory=list)  # where a cut's rows begin among those of all

    def prepare(self) -> None:
        """Find the bunches, and what all comparisons of this window say about them."""
        prints: list[U64] = []
        for g, cut in enumerate(self.cuts):
            self.bases.append(sum(p.size for p in prints))
            if cut.rows.size:
                prints.append(self._survey(g, cut))
        likeness = [
            (b, found[0]) for found in self.bunches.values() if len(found) > 1 for b in found[1:]
        ]
        for b, first in likeness:
            b.like_first = b.stop - b.start == first.stop - first.start
        likeness = [(b, first) for b, first in likeness if b.like_first]
        if not likeness:
            return
        whole = np.concatenate(prints)
        mine, sizes = self._places([b for b, _ in likeness])
        other, _ = self._places([first for _, first in likeness])
        differs = np.add.reduceat(whole[mine] != whole[other], np.cumsum(sizes) - sizes)
        for (b, _), n in zip(likeness, differs.tolist(), strict=True):
            b.like_first = n == 0

    def _survey(self, g: int, cut: Cut) -> U64:
        """The bunches of one gatherer; returns fingerprints of its rows."""
        rows, key, before = cut.rows, cut.key, cut.marks[:, BEFORE]
        seq, flags, us, h = rows["seq"], rows["flags"], rows["exchange_us"], rows["book_hash"]
        odd = (flags & _SLOW) != 0
        new = np.ones(rows.size, np.bool_)
        np.not_equal(key[1:], key[:-1], out=new[1:])
        odd[1:] |= ~new[1:] & ((before[1:] != h[:-1]) | (seq[1:] <= seq[:-1]))
        starts = np.flatnonzero(new)
        stops = np.append(starts[1:], rows.size)
        last = stops - 1
        found = zip(
            key[starts].tolist(), starts.tolist(), stops.tolist(), seq[starts].tolist(),
            seq[last].tolist(), before[starts].tolist(), h[last].tolist(), us[last].tolist(),
            np.add.reduceat(odd, starts, dtype=np.int64).tolist(), strict=True,
        )  # fmt: skip
        for k, start, stop, first_seq, last_seq, h_before, h_after, last_us, n_odd in found:
            self.bunches.setdefault(k >> 32, []).append(
                Bunch(
                    g, k & LOW, start, stop, first_seq, last_seq, h_before, h_after, last_us,
                    n_odd == 0,
                )
            )  # fmt: skip
        return cut.marks[:, PRINT]

    def _places(self, bunches: Iterable[Bunch]) -> tuple[I64 | slice, I64]:
        """(places of the bunches' rows among those of all cuts, end to end; size of each bunch).

        A slice where they follow one another: where a window's markets are all taken.
        """
        bases = self.bases
        found = [(bases[b.gatherer] + b.start, bases[b.gatherer] + b.stop) for b in bunches]
        starts, stops = np.array(found, np.int64).T
        sizes = stops - starts
        if (starts[1:] == stops[:-1]).all():
            return slice(found[0][0], found[-1][1]), sizes
        shift = starts - (np.cumsum(sizes) - sizes)
        return np.arange(int(sizes.sum())) + np.repeat(shift, sizes), sizes

    def take(self, market: Market, index: int) -> bool:
        """Take the market if it is the normal case; False: markets.py has to do it."""
        bunches = self.bunches[index]
        if market.tail is not None or len(market.pairs) != len(bunches):
            return False
        count, h_end = market.count, market.h_end
        # Both are in the order of (gatherer, run).
        for b, pair in zip(bunches, market.pairs, strict=True):
            if (
                pair.run_id != b.run_id
                or pair.gatherer != b.gatherer
                or pair.standing != _PINNED
                or pair.position != count
                or pair.claim_from_us < 0
                or pair.keyframe is not None
                or not b.even
                or not b.like_first
                or b.first_seq <= pair.last_seq
            ):
                return False
        if bunches[0].h_before != h_end or bunches[0].last_us >= self.kept_us:
            return False
        self.put(market, index)
        return True

    def put(self, market: Market, index: int) -> None:
        """All bunches of the market, which were found equal, go onto its end of the tape."""
        bunches = self.bunches[index]
        first = bunches[0]
        n = first.stop - first.start
        self.taken.append(Taken(index, market.epoch, market.count, bunches))
        market.count += n
        market.h_end, market.last_us = first.h_after, first.last_us
        market.live_to_us = -1
        mask, h, count, us = 0, market.h_end, market.count, market.last_us
        for b, pair in zip(bunches, market.pairs, strict=True):
            mask |= 1 << b.gatherer
            # Its run showed everything up to the market's end.
            pair.h, pair.position, pair.last_us, pair.last_seq = h, count, us, b.last_seq
            pair.behind_since = -1
        market.last_sources = mask

    def equal(self) -> dict[tuple[tuple[int, int], ...], int]:
        """Runs, as (gatherer, run), and how many events all of them brought alike."""
        made: dict[tuple[tuple[int, int], ...], int] = {}
        for taken in self.taken:
            bunches = taken.bunches
            runs = tuple([(b.gatherer, b.run_id) for b in bunches])
            made[runs] = made.get(runs, 0) + bunches[0].stop - bunches[0].start
        return made

    def finish(self) -> None:
        """Write all that was taken as one block."""
        if not self.taken:
            return
        firsts, sizes = self._places([t.bunches[0] for t in self.taken])
        block = empty_block(int(sizes.sum()))
        rows, at = self._rows(firsts)
        for name in ("exchange_us", "delta", "book_hash", "price", "side", "flags"):
            block[name] = rows[name][at]
        block["received_ns"] = self._received(firsts, sizes)
        block["market_id"] = np.repeat([t.index for t in self.taken], sizes)
        block["epoch"] = np.repeat([t.epoch for t in self.taken], sizes)
        masks = [sum({1 << b.gatherer for b in t.bunches}) for t in self.taken]
        block["sources"] = np.repeat(masks, sizes)
        before = np.array([t.before for t in self.taken]) - (np.cumsum(sizes) - sizes)
        block["market_seq"] = np.arange(1, block.size + 1) + np.repeat(before, sizes)
        self.sink.blocks.append(block)
        self._count(sizes)

    def _count(self, sizes: I64) -> None:
        """`sizes`: events of each market that was taken."""
        witnesses = np.array([len(t.bunches) for t in self.taken])
        rows, events = int((sizes * witnesses).sum()), int(sizes.sum())
        counts = self.sink.counts
        counts["rows_in"] += rows
        counts["merged_rows"] += events
        counts["duplicate_rows"] += rows - events
        counts["merged_events"] += events
        counts["mode_exact"] += int(witnesses[witnesses > 1].sum())

    def _rows(self, firsts: I64 | slice) -> tuple[DeltaRows, I64 | slice]:
        """The rows among which these are, and where; mostly those of one gatherer."""
        givers = {t.bunches[0].gatherer for t in self.taken}
        if len(givers) > 1:
            return joined([cut.rows for cut in self.cuts]), firsts
        g = givers.pop()
        base, rows = self.bases[g], self.cuts[g].rows
        if isinstance(firsts, slice):
            return rows, slice(firsts.start - base, firsts.stop - base)
        return rows, firsts - base

    def _received(self, firsts: I64 | slice, sizes: I64) -> I64:
        """The earliest receipt of each row that is taken."""
        whole = np.concatenate([cut.rows["received_ns"] for cut in self.cuts])
        earliest: I64 = whole[firsts].copy()
        ends = np.cumsum(sizes)
        for nth in range(1, max(len(t.bunches) for t in self.taken)):
            at = [i for i, t in enumerate(self.taken) if len(t.bunches) > nth]
            mine, some = self._places([self.taken[i].bunches[nth] for i in at])
            if len(at) == len(self.taken):
                np.minimum(earliest, whole[mine], out=earliest)
                continue
            shift = (ends - sizes)[at] - (np.cumsum(some) - some)
            there = np.arange(int(some.sum())) + np.repeat(shift, some)
            earliest[there] = np.minimum(earliest[there], whole[mine])
        return earliest
