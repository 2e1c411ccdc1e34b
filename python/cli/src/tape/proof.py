"""The proof: the merged tape against what the exchange really did.

Purpose: compare the tape as a reader gets it (the lake) with the truth log, and say in numbers what
is missing, extra, out of order, falsely called complete or wrongly rebuilt. Every number is 0 when
the tape is right; the counting rules are in docs/acceptance.md.

Does not do: reading of spools and truth log (truth_view.py), any repair.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tape import truth_view
from tape.truth_view import BoolArray, IntArray, Truth

SOURCE_REST = 1 << 14  # docs/formats.md; written again on purpose
RESET_KEY = (-1, -1, 0)  # a reset has no side, price or size; its time is inferred


@dataclass(slots=True)
class MergedMarket:
    """One market of the tape in tape order, columns as int64.

    `us`: exchange time, microseconds; `side`: 0 yes, 1 no, -1 a reset; `price`: micro-dollars;
    `delta`: 1/100 contract.
    """

    us: IntArray
    side: IntArray
    price: IntArray
    delta: IntArray
    flagged: BoolArray  # ambiguous or disputed rows

    @property
    def size(self) -> int:
        return int(self.us.size)


@dataclass(slots=True)
class Interval:
    """A coverage interval of a market's order book, half open, microseconds."""

    from_us: int
    to_us: int
    status: str
    reason: str = ""


@dataclass(slots=True)
class Verdict:
    """Result of the comparison of all markets; `examples` holds the first findings in words."""

    events_truth: int = 0
    events_merged: int = 0
    missing: int = 0
    extra: int = 0
    misordered: int = 0
    ambiguous: int = 0
    false_complete: int = 0
    gap_intervals: int = 0
    books_checked: int = 0
    books_wrong: int = 0
    tickers_missing: int = 0
    trades_missing: int = 0
    trades_extra: int = 0  # not in the truth log, or a second time
    trades_by_rest: int = 0  # on the tape though no gatherer's frames had them
    examples: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if len(self.examples) < 20:  # enough to start looking; the counts are complete
            self.examples.append(text)


def _keys(
    us: IntArray, side: IntArray, price: IntArray, delta: IntArray, *, timed: bool
) -> npt.NDArray[np.void]:
    """One comparable value per event. Without a time: resets, and all of a market not `timed`."""
    rows = np.empty(us.size, dtype=[("us", "i8"), ("side", "i8"), ("price", "i8"), ("delta", "i8")])
    rows["us"] = np.where((side >= 0) & timed, us, -1)
    rows["side"], rows["price"], rows["delta"] = side, price, delta
    return rows


def _truth_keys(events: npt.NDArray[np.void], *, timed: bool) -> npt.NDArray[np.void]:
    reset = events["kind"] == truth_view.EVENT_RESET
    side = np.where(reset, -1, events["side"].astype(np.int64))
    price = np.where(reset, 0, events["price"].astype(np.int64))
    delta = np.where(reset, 0, events["delta"])
    return _keys(events["exchange_us"], side, price, delta, timed=timed)


def is_subsequence(small: list[Any], large: list[Any]) -> bool:
    """True if `small` can be had from `large` by leaving out elements."""
    it = iter(large)
    return all(any(x == y for y in it) for x in small)


def misordered_neighbours(merged: list[Any], truth: list[Any]) -> int:
    """Neighbours of the tape whose places in the truth are in the wrong order.

    Equal events are told apart by the smallest free place after the one before, so that only a real
    disorder counts. Events that are not in the truth are left out (they are counted as extra).
    """
    places: dict[Any, deque[int]] = {}
    for at, event in enumerate(truth):
        places.setdefault(event, deque()).append(at)
    wrong, before = 0, -1
    for event in merged:
        free = places.get(event)
        if not free:
            continue
        if free[-1] <= before:
            place = free.popleft()
            wrong += 1
        else:
            skipped = []
            while free[0] <= before:
                skipped.append(free.popleft())
            place = free.popleft()
            free.extendleft(reversed(skipped))
        before = place
    return wrong


def _in_status(us: int, intervals: list[Interval], statuses: tuple[str, ...]) -> bool:
    return any(i.from_us <= us < i.to_us and i.status in statuses for i in intervals)


def compare_market(
    name: str,
    events: npt.NDArray[np.void],
    received: BoolArray,
    merged: MergedMarket,
    intervals: list[Interval],
    verdict: Verdict,
) -> None:
    """Add one market's findings to `verdict`.

    `events` (TRUTH_EVENT) and `received` (one flag an event) are the market's, in truth order.
    """
    verdict.events_truth += int(received.sum())
    verdict.events_merged += merged.size
    verdict.ambiguous += int(merged.flagged.sum())
    timed = not bool(np.any(events["exchange_us"] < 0))
    truth_all = _truth_keys(events, timed=timed)
    tape = _keys(merged.us, merged.side, merged.price, merged.delta, timed=timed)
    if np.array_equal(tape, truth_all[received]):
        absent = ~received
    else:
        absent = _compare_slow(name, truth_all, received, tape, events, intervals, verdict)
    times = events["exchange_us"]
    for at in np.flatnonzero(absent):
        us = int(times[at])
        if us >= 0 and _in_status(us, intervals, ("complete",)):
            verdict.false_complete += 1
            verdict.note(
                f"{name}: an event at {us} us is not on the tape, which is called complete there"
            )


def _compare_slow(
    name: str,
    truth_all: npt.NDArray[np.void],
    received: BoolArray,
    tape: npt.NDArray[np.void],
    events: npt.NDArray[np.void],
    intervals: list[Interval],
    verdict: Verdict,
) -> BoolArray:
    """Multiset and order of a market that is not simply equal; returns what is absent."""
    truth_list, tape_list = truth_all.tolist(), tape.tolist()
    have, all_events = Counter(tape_list), Counter(truth_list)
    extra = sum((have - all_events).values())
    if extra:
        verdict.note(f"{name}: {extra} events on the tape that the exchange never sent")
    verdict.extra += extra
    absent = np.zeros(len(truth_list), dtype=np.bool_)
    left = Counter(tape_list)
    # First the events that must be there, then the others, so that equal ones are not blamed twice.
    for pool in (np.flatnonzero(received), np.flatnonzero(~received)):
        for at in pool:
            if left[truth_list[at]] > 0:
                left[truth_list[at]] -= 1
            else:
                absent[at] = True
    for at in np.flatnonzero(absent & received):
        us = int(events["exchange_us"][at])
        if _in_status(us, intervals, ("ambiguous", "disputed")):
            verdict.ambiguous += 1
        else:
            verdict.missing += 1
            verdict.note(f"{name}: missing {truth_list[at]}")
    if not is_subsequence(tape_list, truth_list):
        wrong = misordered_neighbours(tape_list, truth_list)
        verdict.misordered += wrong
        if wrong:
            verdict.note(f"{name}: {wrong} neighbours in the wrong order")
    return absent & ~received


def check_trades(
    on_tape: list[tuple[str, int]], received: set[str], truth: Truth, verdict: Verdict
) -> None:
    """Add what the tape's trades, (id, sources), lack or have too much of.

    `received`: ids that any gatherer's spool holds, whichever way they came.
    """
    counts = Counter(trade_id for trade_id, _ in on_tape)
    happened = {str(t["trade_id"]).replace("-", "") for t in truth.trades}
    verdict.trades_missing += len(received - counts.keys())
    verdict.trades_extra += sum(n - (i in happened) for i, n in counts.items())
    verdict.trades_by_rest += sum(sources & SOURCE_REST != 0 for _, sources in on_tape)
    if verdict.trades_extra:
        verdict.note(f"{verdict.trades_extra} trades on the tape twice, or never made")


def check_holes(truth: Truth, coverage: dict[str, list[Interval]], verdict: Verdict) -> None:
    """Nobody was connected in a hole of the recording: coverage may not claim any of it."""
    for hole in truth.events[truth.events["kind"] == truth_view.EVENT_HOLE]:
        low, high = int(hole["exchange_us"]), int(hole["delta"])
        for name, intervals in coverage.items():
            for i in intervals:
                if i.status == "complete" and i.from_us < high and i.to_us > low + 1:
                    verdict.false_complete += 1
                    verdict.note(f"{name}: a hole ({low} to {high} us) is called complete")


def truth_book(
    truth: Truth, market: int, at_us: int
) -> tuple[dict[int, int], dict[int, int]] | None:
    """The exchange's book of a market after its events up to `at_us`; None before its first."""
    events = truth.events
    mine = np.flatnonzero(events["market"] == market)
    upto = mine[events["exchange_us"][mine] <= at_us]
    last = int(upto[-1]) + 1 if upto.size else 0
    holes = np.flatnonzero(events["kind"] == truth_view.EVENT_HOLE)
    passed = holes[events["delta"][holes] <= at_us]
    if passed.size:  # the book after a hole is a new one
        last = max(last, int(passed[-1]) + 1)
    start = None
    for book in truth.books:
        if book["market"] == market and book["at"] <= last:
            start = book
    if start is None:
        return None
    since = mine[(mine >= start["at"]) & (mine < last)]
    resets = np.flatnonzero(events["kind"][since] == truth_view.EVENT_RESET)
    levels: Counter[tuple[int, int]] = Counter()
    if resets.size:
        since = since[resets[-1] + 1 :]  # a reset empties both sides
    else:
        for side, name in ((0, "yes"), (1, "no")):
            levels.update({(side, int(p)): int(q) for p, q in start[name]})
    for event in events[since][["side", "price", "delta"]].tolist():
        levels[event[0], event[1]] += event[2]
    yes = {price: size for (side, price), size in levels.items() if side == 0 and size}
    no = {price: size for (side, price), size in levels.items() if side == 1 and size}
    return yes, no


def next_is_reset(truth: Truth, market: int, at_us: int) -> bool:
    """Is the market's next event after `at_us` a reset?

    A reset has no time on the wire: the tape places it at the latest time its subscription had
    shown, after the market's event before it and before the exchange's own moment. In between
    nothing of the market happened, so a book that is empty there already is early, not wrong.
    """
    events = truth.events
    later = (events["market"] == market) & (events["exchange_us"] > at_us)
    first = np.flatnonzero(later)[:1]
    return bool(first.size) and int(events["kind"][first[0]]) == truth_view.EVENT_RESET


def exit_ok(verdict: Verdict, *, audits_failed: int) -> bool:
    """True if every number that must be 0 is 0."""
    return not (
        verdict.missing
        or verdict.extra
        or verdict.misordered
        or verdict.false_complete
        or verdict.books_wrong
        or verdict.trades_missing
        or verdict.trades_extra
        or verdict.tickers_missing
        or audits_failed
    )


def spool_folders(out: Path) -> list[Path]:
    """The spools of a finished demo, in the order of the gatherers."""
    return sorted(out.glob("g*/spool"))
