"""A market's books at many places of one epoch at once. Pure.

Purpose: `ladders` gives the best levels after each of many numbers of events, in whole columns:
rebuilding each book on its own costs a thousand times as much for a day in seconds.

How: the levels that ever had a size are columns of a matrix, the places are rows. Changes are added
where they fall and summed down the rows; a reset begins a new sum. Rows are done in chunks of
CELLS_MAX cells, the last row of one is the start of the next: memory does not grow with the time.

Invariants:
    L-18 each row equals `bookview.rebuild` at the same place.

Does not do: finding keyframes and events (series), judging coverage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kalshilake.bookview import EpochEvents
from marketdata.book import Book
from marketdata.errors import LakeError

CELLS_MAX: Final = 2_000_000

Ints = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Ladder:
    """One side of many books, best level first: `counts` levels of each row, end to end."""

    counts: Ints  # int32
    prices: Ints  # int64, micro-dollars
    sizes: Ints  # int64, 1/100 contract

    def best(self) -> tuple[Ints, Ints]:
        """(price, size) of each row's best level; -1 and 0 where the side is empty."""
        starts = np.cumsum(self.counts) - self.counts
        has = self.counts > 0
        price = np.full(len(self.counts), -1, np.int64)
        size = np.zeros(len(self.counts), np.int64)
        price[has], size[has] = self.prices[starts[has]], self.sizes[starts[has]]
        return price, size


def ladders(book: Book, events: EpochEvents, ends: Ints, depth: int) -> tuple[Ladder, Ladder]:
    """(YES, NO) bids after the first `ends[i]` of `events`, for each i; at most `depth` levels.

    `book`: before the first event. `ends` ascends. Raises LakeError for a level below zero.
    """
    keys, level, begun = _universe(book, events)
    sides = keys >> 32
    columns = [np.flatnonzero(sides == side)[::-1] for side in (0, 1)]  # best bid first
    prices = keys & 0xFFFF_FFFF
    resets = np.flatnonzero(events.reset)
    parts: list[list[Ladder]] = [[], []]
    rows_max = max(1, CELLS_MAX // max(1, len(keys)))
    taken = 0
    for at in range(0, len(ends), rows_max):
        rows = ends[at : at + rows_max]
        sizes = _sizes(begun, level, events.delta, rows, taken, resets)
        if (sizes < 0).any():
            raise LakeError("a book has a level below zero", hint="tape verify tells where")
        for side, column in enumerate(columns):
            parts[side].append(_best(sizes[:, column], prices[column], depth))
        begun, taken = sizes[-1], int(rows[-1])
    return _joined(parts[0]), _joined(parts[1])


def _universe(book: Book, events: EpochEvents) -> tuple[Ints, Ints, Ints]:
    """(every level's key, the level of each event, the sizes in the beginning)."""
    held = [(side << 32 | price, size) for side in (0, 1) for price, size in book.levels(side)]
    first = np.array([key for key, _ in held], np.int64)
    of_event = (events.side.astype(np.int64) << 32) | np.where(events.reset, 0, events.price)
    of_event = np.where(events.reset, first[0] if held else 0, of_event)
    keys, place = np.unique(np.concatenate((first, of_event)), return_inverse=True)
    begun = np.zeros(len(keys), np.int64)
    begun[place[: len(held)]] = [size for _, size in held]
    return keys, place[len(held) :], begun


def _sizes(
    begun: Ints, level: Ints, delta: Ints, ends: Ints, taken: int, resets: Ints
) -> npt.NDArray[np.int64]:
    """The size of every level after `ends` events each; `begun`: after `taken`."""
    out = np.zeros((len(ends), len(begun)), np.int64)
    last = int(ends[-1])
    cuts = resets[(resets >= taken) & (resets < last)].tolist()
    first_row = 0
    start, low = begun, taken
    for cut in [*cuts, last]:
        # Rows that hold events low..cut, but not the reset at `cut`.
        stop_row = int(np.searchsorted(ends, cut, side="right")) if cut < last else len(ends)
        if stop_row > first_row:
            high = int(ends[stop_row - 1])
            block = out[first_row:stop_row]
            row = np.searchsorted(ends[first_row:stop_row], np.arange(low, high) + 1)
            flat = row * len(begun) + level[low:high]
            np.add.at(block.reshape(-1), flat, delta[low:high])
            block[0] += start
            np.cumsum(block, axis=0, out=block)
            first_row = stop_row
        start, low = np.zeros_like(begun), cut + 1
    return out


def _best(sizes: Ints, prices: Ints, depth: int) -> Ladder:
    """The first `depth` levels with a size of each row; columns are in the order of the ladder."""
    chosen = sizes > 0
    if sizes.shape[1] > depth:
        chosen &= np.cumsum(chosen, axis=1, dtype=np.int32) <= depth
    row, column = np.nonzero(chosen)
    counts = np.bincount(row, minlength=len(sizes)).astype(np.int32)
    return Ladder(counts, prices[column], sizes[row, column])


def _joined(parts: list[Ladder]) -> Ladder:
    if not parts:
        return Ladder(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    return Ladder(*(np.concatenate([getattr(p, name) for p in parts]) for name in Ladder.__slots__))
