"""I1, I4, I5, I8: what the tape says by itself, without any look at the exchange."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from marketdata.book import unpack_levels
from tests.sim.checkers.view import AMBIGUOUS, DISPUTED, MASK, RESET, View, Violation, constant


def check_numbers(view: View) -> Iterator[Violation]:
    """I4: 1, 2, 3, ... in each epoch, epochs 1, 2, 3, ...; I8: each later one has its gap row."""
    gaps = {(view.tickers[row[0]], row[1]) for row in view.content.tables["gap"].values()}
    for ticker, epochs in view.epochs.items():
        numbers = sorted(epochs)
        if numbers != list(range(1, len(numbers) + 1)):
            yield Violation(f"{ticker}: epochs", seen=str(numbers), expected="1, 2, 3, ...")
        for epoch in numbers[1:]:
            if (ticker, epoch) not in gaps:
                yield Violation(f"{ticker}: epoch {epoch} opens without a gap row")
    for ticker, rows in view.rows.items():
        before: tuple[int, int] = (0, 0)
        for epoch, number in zip(rows["epoch"].tolist(), rows["market_seq"].tolist(), strict=True):
            wanted = before[1] + 1 if epoch == before[0] else 1
            if number != wanted:
                yield Violation(
                    f"{ticker}: numbers of epoch {epoch}", seen=str(number), expected=str(wanted)
                )
                break
            before = epoch, number
        missing = set(rows["epoch"].tolist()) - view.epochs.get(ticker, {}).keys()
        if missing:
            yield Violation(f"{ticker}: rows of epochs that were never opened", seen=str(missing))


def check_chain(view: View) -> Iterator[Violation]:
    """I1: within an epoch the hash is the running sum from the epoch's start."""
    for ticker, rows in view.rows.items():
        state, epoch = 0, -1
        columns = (
            rows[n].tolist() for n in ("epoch", "side", "price", "delta", "book_hash", "flags")
        )
        for at, side, price, delta, book_hash, flags in zip(*columns, strict=True):
            if at != epoch:
                epoch, state = at, view.epochs.get(ticker, {}).get(at, (0, 0))[1]
            state = 0 if flags & RESET else state + constant(side, price) * delta & MASK
            if state != book_hash:
                yield Violation(f"{ticker}: the chain of epoch {epoch} breaks")
                break


def check_levels(view: View) -> Iterator[Violation]:
    """I5: from each epoch's first keyframe on no level goes below zero."""
    keyframes: dict[tuple[str, int], list[tuple[int, bytes]]] = {}
    for (market, epoch, number, _, _), row in view.content.snapshots.items():
        keyframes.setdefault((view.tickers[market], epoch), []).append((number, row[7]))
    for ticker, rows in view.rows.items():
        for epoch in sorted(set(rows["epoch"].tolist())):
            frames = sorted(keyframes.get((ticker, epoch), []))
            if not frames:
                continue
            yes, no = unpack_levels(frames[0][1])
            levels = {(0, p): q for p, q in yes} | {(1, p): q for p, q in no}
            mine = rows[(rows["epoch"] == epoch) & (rows["market_seq"] > frames[0][0])]
            columns = (mine[n].tolist() for n in ("side", "price", "delta", "flags", "market_seq"))
            for side, price, delta, flags, number in zip(*columns, strict=True):
                if flags & RESET:
                    levels.clear()
                    continue
                levels[side, price] = levels.get((side, price), 0) + delta
                if levels[side, price] < 0:
                    yield Violation(f"{ticker}: a level below zero at {epoch}/{number}")
                    break


def check_contiguous(view: View) -> Iterator[Violation]:
    """Within an epoch each event is the market's next one at the exchange: equal books on both
    sides of a hole prove nothing (rule 7)."""
    for ticker, rows in view.rows.items():
        places = view.places[ticker]
        index = view.market_events(ticker)
        order = np.searchsorted(index, places)
        same = np.diff(rows["epoch"]) == 0
        flagged = (rows["flags"] & (AMBIGUOUS | DISPUTED)) != 0
        known = (places[1:] >= 0) & (places[:-1] >= 0) & ~flagged[1:] & ~flagged[:-1]
        holes = same & known & (np.diff(order) != 1)
        if holes.any():
            at = int(np.flatnonzero(holes)[0])
            yield Violation(
                f"{ticker}: epoch {rows['epoch'][at]} has a hole behind {rows['market_seq'][at]}",
                seen=f"{int(np.diff(order)[at]) - 1} events of the exchange are not there",
            )
