"""Judges a trial of the merge: what is wrong, and what no data can decide, told apart by evidence.

Purpose: the four numbers that must be zero (missing, extra, misordered, false_complete), after the
differences that no merge could avoid were taken out and counted. A difference is taken out only if
all of this is shown from the truth and from where each gatherer's runs began and ended:

- it lies inside one microsecond of one market, and it is no reset;
- no run of any gatherer has the whole of that microsecond: every run that has some of it was cut
  inside (in group mode also where the cut fell exactly between two microseconds: there the run's
  first and last one are whole by chance, and nothing in the data says so);
- the cut hides the answer: the true book returns to a former state inside the microsecond (a closed
  cycle: several places fit), or only the order differs and no connection saw both sides, or every
  gatherer has its own order there (group mode: neither the order nor H tells where a part belongs);
- coverage calls no moment of it complete.

Everything else is an error, and so is every difference where the times are not the truth's.

Does not do: playing (tests.trial), running a matrix (tests.acceptance.trials).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from marketdata import coverage
from tests.trial import Played, Recorder, Stream

Event = tuple[int, int, int, int, bool]  # us, side, price, delta, is a reset
Group = tuple[int, int]  # (resets before it, us)
NO_ROWS = np.empty(0, [(n, "i8") for n in ("exchange_us", "side", "price", "delta", "flags")])


@dataclass
class Verdict:
    """What one trial got wrong (all zero is right), and what it could not know."""

    truth: int = 0  # events that some gatherer has in a run with a snapshot
    merged: int = 0
    missing: int = 0
    extra: int = 0
    misordered: int = 0
    false_complete: int = 0
    undecidable: int = 0  # events in `cuts`, missing or extra or in another order
    cuts: int = 0  # microseconds that no data can decide
    complete_us: int = 0
    whole_us: int = 0
    told: list[str] = field(default_factory=list)  # each error, for whoever looks for its cause

    def wrong(self) -> tuple[int, int, int, int]:
        """The four numbers that must be zero."""
        return self.missing, self.extra, self.misordered, self.false_complete


@dataclass
class _Market:
    """One market: the truth with its places in the stream, and the tape."""

    place: np.ndarray  # of each true event in the stream
    truth: list[Event]
    received: np.ndarray
    tape: list[Event]
    tape_us: list[int]
    complete: list[coverage.Interval]  # of one market and channel: disjoint, in order of time

    def claim_at(self, us: int) -> coverage.Interval | None:
        """The complete interval that holds a moment."""
        at = bisect_right(self.complete, us, key=lambda i: i.from_us) - 1
        return self.complete[at] if at >= 0 and us < self.complete[at].to_us else None


def judge(
    stream: Stream, recorders: list[Recorder], played: Played, *, own_order: bool = False,
    apart_us: int = 0,
) -> Verdict:  # fmt: skip
    """Compare the tape with the truth. `own_order`: each gatherer has its own order inside a
    microsecond, so order there counts only level by level. `apart_us`: how far a gatherer's times
    may be from the truth's; then an event that nobody has is falsely called complete if it would be
    by every one of these times: a claim is about its gatherer's times."""
    made = Verdict()
    received = np.zeros(stream.us.size, bool)
    for r in recorders:
        received |= r.received
    shifted = any(r.time_shift for r in recorders)
    complete = _complete(stream, played, made)
    for m, ticker in enumerate(stream.tickers):
        mine = _market(stream, m, received, played.rows.get(ticker, NO_ROWS), complete, shifted)
        made.truth += int(mine.received.sum())
        made.merged += len(mine.tape)
        if own_order:
            mine.truth, mine.place, mine.received = _canonical_truth(mine)
            mine.tape = [mine.tape[i] for i in _canonical(mine.tape)]
        if shifted:
            _judge_whole(made, mine, ticker, stream, apart_us)
        else:
            _judge_groups(made, mine, ticker, stream, recorders, own_order=own_order)
    return made


def _complete(stream: Stream, played: Played, made: Verdict) -> dict[str, list[coverage.Interval]]:
    found: dict[str, list[coverage.Interval]] = {}
    first, last = int(stream.us[0]) - 1, int(stream.us[-1]) + 1
    for i in coverage.intervals(played, first, last):
        if i.channel == "orderbook":
            made.whole_us += i.to_us - i.from_us
            if i.status == "complete":
                made.complete_us += i.to_us - i.from_us
                found.setdefault(i.ticker, []).append(i)
    for line in found.values():
        line.sort(key=lambda i: i.from_us)
        assert all(a.to_us <= b.from_us for a, b in pairwise(line)), "claims overlap"
    return found


def _market(
    stream: Stream, m: int, received: np.ndarray, rows: np.ndarray,
    complete: dict[str, list[coverage.Interval]], shifted: bool,
) -> _Market:  # fmt: skip
    place = np.flatnonzero(stream.market == m)

    def events(us: Any, side: Any, price: Any, delta: Any, reset: np.ndarray) -> list[Event]:
        shown = np.where(reset | shifted, 0, us)  # the time of a reset is inferred
        return list(
            zip(
                shown.tolist(), side.tolist(), price.tolist(), delta.tolist(), reset.tolist(),
                strict=True,
            )
        )  # fmt: skip

    return _Market(
        place,
        events(
            stream.us[place], stream.side[place], stream.price[place], stream.delta[place],
            stream.kind[place] == 1,
        ),
        received[place],
        events(
            rows["exchange_us"], rows["side"], rows["price"], rows["delta"],
            (rows["flags"] & 1) != 0,
        ),
        rows["exchange_us"].tolist(),
        complete.get(stream.tickers[m], []),
    )  # fmt: skip


def _groups(events: list[Event]) -> dict[Group, list[int]]:
    """Places of the events by microsecond; a reset is a group of its own, at time 0."""
    found: dict[Group, list[int]] = {}
    resets = 0
    for n, event in enumerate(events):
        resets += event[4]
        found.setdefault((resets, event[0]), []).append(n)
    return found


def _canonical(events: list[Event]) -> list[int]:
    """Places in the order (microsecond, level, as they came); nothing moves over a reset."""
    order: list[int] = []
    for places in _groups(events).values():
        order += sorted(places, key=lambda n: (not events[n][4], events[n][1:3]))
    return order


def _canonical_truth(mine: _Market) -> tuple[list[Event], np.ndarray, np.ndarray]:
    order = _canonical(mine.truth)
    return [mine.truth[n] for n in order], mine.place[order], mine.received[order]


def _is_complete(mine: _Market, us: int) -> bool:
    return mine.claim_at(us) is not None


def _judge_whole(
    made: Verdict, mine: _Market, ticker: str, stream: Stream, apart_us: int
) -> None:  # fmt: skip
    """Times apart: content alone is compared, and nothing is excused."""
    wanted = [t for t, got in zip(mine.truth, mine.received, strict=True) if got]
    for us in stream.us[mine.place[_absent(mine, stream, apart_us)]].tolist():
        claim = mine.claim_at(us - apart_us)
        if claim is not None and us + apart_us < claim.to_us:
            made.false_complete += 1
            made.told.append(f"{ticker}: event at {us} called complete")
    if mine.tape == wanted:
        return
    missing = Counter(wanted) - Counter(mine.tape)
    extra = Counter(mine.tape) - Counter(mine.truth)
    made.missing += missing.total()
    made.extra += extra.total()
    rest = iter(mine.truth)
    in_order = all(any(x == y for y in rest) for x in mine.tape)
    made.misordered += not in_order and not extra
    made.told.append(f"{ticker}: missing {dict(missing)} extra {dict(extra)} order {in_order}")


def _absent(mine: _Market, stream: Stream, apart_us: int) -> list[int]:
    """True events that are not on the tape, found by going along both: content and time must fit.
    A gatherer's times never go back, so one may be twice as far off."""
    absent, at = [], 0
    times = stream.us[mine.place].tolist()
    for n, event in enumerate(mine.truth):
        near = at < len(mine.tape) and abs(mine.tape_us[at] - times[n]) <= 2 * apart_us
        if at < len(mine.tape) and mine.tape[at] == event and (near or event[4]):
            at += 1
        else:
            absent.append(n)
    return absent


def _judge_groups(
    made: Verdict, mine: _Market, ticker: str, stream: Stream, recorders: list[Recorder],
    *, own_order: bool,
) -> None:  # fmt: skip
    """Equal times: microsecond by microsecond."""
    truth, tape = _groups(mine.truth), _groups(mine.tape)
    order = [g for g in truth if g in tape]
    if order != [g for g in tape if g in truth]:
        made.misordered += 1
        made.told.append(f"{ticker}: microseconds are in another order")
    for group in [*truth, *(g for g in tape if g not in truth)]:
        true = truth.get(group, [])
        have = [mine.tape[n] for n in tape.get(group, [])]
        wanted = [mine.truth[n] for n in true if mine.received[n]]
        everything = [mine.truth[n] for n in true]
        if have != everything and _false_complete(made, mine, group, everything, have):
            made.told.append(f"{ticker} {group}: called complete")
        if have == wanted:
            continue
        missing = (Counter(wanted) - Counter(have)).total()
        extra = (Counter(have) - Counter(everything)).total()
        rest = iter(everything)
        moved = not extra and not all(any(x == y for y in rest) for x in have)
        if not (missing or extra or moved):
            continue  # more than was anchored, and right: a floating run found its place
        ours = [mine.place[n] for n in true]
        only_order = not missing and not extra
        flagged = group[1] and not _is_complete(mine, group[1])
        if flagged and true and _undecidable(stream, recorders, ours, only_order, own_order):
            made.cuts += 1
            made.undecidable += max(missing, extra, int(moved))
            continue
        made.missing += missing
        made.extra += extra
        made.misordered += moved
        made.told.append(f"{ticker} {group}: wanted {wanted} have {have} places {ours}")


def _false_complete(
    made: Verdict, mine: _Market, group: Group, everything: list[Event], have: list[Event]
) -> bool:
    """Events that are not on the tape at a moment that coverage calls complete."""
    absent = (Counter(everything) - Counter(have)).total()
    if not absent or not group[1] or not _is_complete(mine, group[1]):
        return False
    made.false_complete += absent
    return True


def _undecidable(
    stream: Stream, recorders: list[Recorder], places: list[int], only_order: bool, own_order: bool
) -> bool:
    """The evidence that this microsecond of one market cannot be put together from any data."""
    first, last = min(places), max(places) + 1
    reach = [
        (r.gatherer, conn, max(a, first), min(b, last))
        for r in recorders
        for conn, a, b in r.stretches
        if a < last and b > first
    ]
    whole = [
        (a, b)
        for r in recorders
        for _, a, b in r.stretches
        if (a < first and b > last if own_order else a <= first and b >= last)
    ]
    if whole:
        return False  # one run has it whole, and in its own order knows it: it saw what is around
    if own_order:
        return True
    states = [int(stream.h_before[p]) for p in sorted(places)]
    states.append(int(stream.h_after[max(places)]))
    if len(set(states)) < len(states):
        return True
    return only_order and not any(
        (g, conn) == (h, other) and b <= c for g, conn, _, b in reach for h, other, c, _ in reach
    )
