"""A book can be rebuilt wherever coverage says complete.

It is known from a keyframe of the epoch, onwards from it and back from it as far as the last reset
before it: what a reset emptied, no later keyframe tells. An epoch that follows a gap with the same
book on both sides may have none at its start: the export gives it one, the book with which the
epoch before it ends (dedup.keyframes.begin), so that one has to be rebuildable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from marketdata.rows import DeltaFlag
from tests.sim.checkers import coverage
from tests.sim.checkers.view import View, Violation

NEVER_US: Final = 1 << 62


def known_from(
    keyframes: Mapping[tuple[int, int], int],
    resets: Mapping[tuple[int, int], list[tuple[int, int]]],
    epochs: Mapping[tuple[int, int], str],
) -> dict[tuple[int, int], int]:
    """(market, epoch) -> the time from which its book can be rebuilt; 0: all of it.

    `keyframes`: the number of changes before the epoch's first keyframe; `resets`: (number, time)
    of the changes that emptied the book; `epochs`: why each began.
    """
    found: dict[tuple[int, int], int] = {}
    for market, epoch in sorted(epochs):
        key = market, epoch
        if epochs[key] == "book_equal" and found.get((market, epoch - 1), NEVER_US) < NEVER_US:
            found[key] = 0
        elif key in keyframes:
            before = [us for number, us in resets.get(key, []) if number <= keyframes[key]]
            found[key] = max(before, default=0)
        else:
            found[key] = NEVER_US
    return found


def check_rebuildable(view: View) -> Iterator[Violation]:
    """Each complete interval lies in an epoch, in the part of it whose book is known."""
    content = view.content
    epochs = {(r[0], r[1]): str(r[4]) for r in content.tables["market_epoch"].values()}
    first: dict[tuple[int, int], int] = {}
    for market, epoch, number, *_ in content.snapshots:
        first[market, epoch] = min(number, first.get((market, epoch), number))
    ids = {ticker: market for market, ticker in view.tickers.items()}
    for ticker, intervals in coverage.by_ticker(view).items():
        market = ids[ticker]
        mine = {key: why for key, why in epochs.items() if key[0] == market}
        known = known_from(first, _resets(view, ticker, market), mine)
        for i in intervals:
            if i.status == "complete" and i.from_us < known.get((market, i.epoch), NEVER_US):
                yield Violation(
                    f"{ticker}: complete, and nobody can say what the book was",
                    seen=f"epoch {i.epoch} in [{i.from_us}, {i.to_us})",
                )


def _resets(view: View, ticker: str, market: int) -> dict[tuple[int, int], list[tuple[int, int]]]:
    rows = view.rows.get(ticker)
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    if rows is None:
        return found
    for row in rows[(rows["flags"] & int(DeltaFlag.RESET)) != 0]:
        place = int(row["market_seq"]), int(row["exchange_us"])
        found.setdefault((market, int(row["epoch"])), []).append(place)
    return found
