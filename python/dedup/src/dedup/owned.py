"""Which markets are ours, where several mergers share them; what of a window's rows is theirs.

Purpose: every merger reads everything, because what a run proves of time needs its rows in all
markets: windows, times and runs are followed for all, and only then what is not ours is dropped.

Invariants: INV-O1 with one merger nothing is dropped and nothing is copied. INV-O2 the parts of
several mergers are disjoint and together the whole.

Does not do: choosing who owns what (marketdata.share), merging.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from dedup.columns import Rows, picked
from dedup.items import Cut
from marketdata.share import Share


class Owned:
    """Markets by the arbiter's index."""

    __slots__ = ("_flags", "_seen", "share")

    def __init__(self, share: Share) -> None:
        self.share = share
        self._seen: list[bool] = []
        self._flags = np.empty(0, np.bool_)

    def add(self, ticker: str) -> None:
        """The ticker with the next index."""
        self._seen.append(self.share.owns(ticker))

    def __getitem__(self, index: int) -> bool:
        return self._seen[index]

    def _of(self, indexes: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
        if self._flags.size != len(self._seen):
            self._flags = np.array(self._seen, np.bool_)
        ours: npt.NDArray[np.bool_] = self._flags[indexes]
        return ours

    def rows(self, rows: Rows, column: str) -> Rows:
        """Those rows whose market is ours; `column` has the index."""
        if self.share.alone or not len(rows):
            return rows
        return picked(rows, np.flatnonzero(self._of(rows[column])))

    def others_in(self, cut: Cut) -> Iterator[int]:
        """Pair keys of rows and snapshots in markets that are not ours."""
        if self.share.alone:
            return
        if cut.key.size:
            new = np.ones(cut.key.size, np.bool_)
            np.not_equal(cut.key[1:], cut.key[:-1], out=new[1:])
            keys = cut.key[new]
            yield from keys[~self._of(keys >> 32)].tolist()
        yield from (key for key in cut.snapshots if not self._seen[key >> 32])

    def part_of(self, cut: Cut) -> Cut:
        """The cut with the rows, snapshots and ends of our markets, and the ends of all runs."""
        if self.share.alone:
            return cut
        at = np.flatnonzero(self._of(cut.key >> 32))
        return Cut(
            picked(cut.rows, at),
            cut.key[at],
            cut.marks[at],
            cut.trades,
            cut.tickers,
            {key: items for key, items in cut.snapshots.items() if self._seen[key >> 32]},
            [end for end in cut.ends if end.key < 0 or self._seen[end.key >> 32]],
        )
