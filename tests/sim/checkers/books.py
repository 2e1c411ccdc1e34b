"""A book can be rebuilt wherever coverage says complete.

It is known from a keyframe of the epoch. An epoch that follows a gap with the same book on both
sides may have none of its own: the export gives it one, the book with which the epoch before it
ends (dedup.keyframes.begin), so that one has to be rebuildable.

Not asked of time before a market's first epoch (0): coverage may prove there that nothing was
missed, and say with it that no book is known (dedup.coverage_rows.with_epochs).
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.checkers import coverage
from tests.sim.checkers.view import View, Violation


def known(
    keyframes: set[tuple[int, int]], epochs: dict[tuple[int, int], str]
) -> set[tuple[int, int]]:
    """The epochs whose books can be rebuilt; `epochs`: the reason of each (market, epoch)."""
    found: set[tuple[int, int]] = set()
    for market, epoch in sorted(epochs):
        same = epochs[market, epoch] == "book_equal"
        if (market, epoch) in keyframes or (same and (market, epoch - 1) in found):
            found.add((market, epoch))
    return found


def check_rebuildable(view: View) -> Iterator[Violation]:
    """Each complete interval's epoch has a keyframe, or begins with a book that is known."""
    content = view.content
    epochs = {(r[0], r[1]): str(r[4]) for r in content.tables["market_epoch"].values()}
    rebuildable = known({(key[0], key[1]) for key in content.snapshots}, epochs)
    ids = {ticker: market for market, ticker in view.tickers.items()}
    for ticker, intervals in coverage.by_ticker(view).items():
        for i in intervals:
            if i.status != "complete" or not i.epoch:
                continue
            if (ids[ticker], i.epoch) not in rebuildable:
                yield Violation(
                    f"{ticker}: complete, and nobody can say what the book was",
                    seen=f"epoch {i.epoch} in [{i.from_us}, {i.to_us}) has no keyframe",
                )
