"""Coverage is true (nobody claims what it did not record) and not empty (what all know is claimed).

The intervals are computed by the product from the evidence in production; they are held against the
raw spools and the exchange's log.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dedup.proof import Evidence
from marketdata import coverage
from marketdata.coverage import AuditPoint, EpochStart, Interval, Mark, MarketClaim, RunProgress
from tape import truth_view
from tests.sim.checkers.view import SKEW_US, View, Violation

OPEN_STATUSES = ("ambiguous", "disputed")


def evidence(view: View) -> Evidence:
    """All that production holds, as dedup.proof.load_evidence gives it."""
    tables, names = view.content.tables, view.tickers
    made = Evidence()
    made.progress = [RunProgress(*row) for row in sorted(tables["run_progress"].values())]
    made.claims = [
        MarketClaim(names[row[0]], *row[1:]) for row in sorted(tables["market_claim"].values())
    ]
    made.marks = [Mark(names[r[2]], r[3], r[4], r[5], r[6]) for r in tables["mark"].values()]
    made.epochs = [
        EpochStart(names[r[0]], r[1], r[2]) for r in sorted(tables["market_epoch"].values())
    ]
    made.audits = [
        AuditPoint(names[r[2]], r[3], r[4], r[5]) for r in tables["audit_point"].values()
    ]
    made.tickers = sorted(names.values())
    return made


def by_ticker(view: View) -> dict[str, list[Interval]]:
    """Order-book intervals of the whole play."""
    cached = view.__dict__.get("_intervals")
    if cached is None:
        source = view.world.exchange.source
        found: dict[str, list[Interval]] = {}
        for i in coverage.intervals(evidence(view), source.start_us, source.end_us + 60_000_000):
            if i.channel == "orderbook":
                found.setdefault(i.ticker, []).append(i)
        cached = view.__dict__["_intervals"] = found
    return cached


def check_true(view: View) -> Iterator[Violation]:
    """Each gatherer that an interval names has a frame of every event of the market in it."""
    has = view.by_gatherer("anyhow", lost_too=True)
    for ticker, intervals in by_ticker(view).items():
        index = view.market_events(ticker)
        events = view.truth.events[index]
        timed = events["kind"] != truth_view.EVENT_RESET
        times = events["exchange_us"]
        for i in intervals:
            if i.status != "complete":
                continue
            if not i.sources:
                yield Violation(f"{ticker}: complete without any source", seen=str(i))
            inside = index[timed & (times >= i.from_us) & (times < i.to_us)]
            for g in range(len(has)):
                if i.sources >> g & 1 and not has[g][inside].all():
                    lost = inside[~has[g][inside]]
                    at = int(view.truth.events["exchange_us"][lost[0]])
                    yield Violation(
                        f"{ticker}: gatherer {g} claims an interval of which it lacks {lost.size}"
                        " events",
                        seen=f"[{i.from_us}, {i.to_us}), lacks one at {at}",
                    )
                    break


def check_quarantine(view: View) -> Iterator[Violation]:
    """No event that somebody received and that is not on the tape lies in a complete interval."""
    for ticker, intervals in by_ticker(view).items():
        index = view.market_events(ticker)
        events = view.truth.events[index]
        if (view.places.get(ticker, index) < 0).any():
            continue  # rows out of order or too many: told by `truth`, or known (resets)
        on_tape = np.isin(index, view.places.get(ticker, np.empty(0, np.int64)))
        lost = view.due[index] & ~on_tape & (events["kind"] != truth_view.EVENT_RESET)
        for us in events["exchange_us"][lost].tolist():
            if any(i.status == "complete" and i.from_us <= us < i.to_us for i in intervals):
                yield Violation(f"{ticker}: an event kept aside is called complete", seen=str(us))
                break


def check_ended(view: View) -> Iterator[Violation]:
    """At the end every run that was told of is told to be over."""
    lost = {spool.gatherer for spool in view.spools if spool.lost}
    if not view.world.ended:
        return
    for row in view.content.tables["run_progress"].values():
        if not row[5] and row[0] not in lost:
            yield Violation("a run that is over is told as living", seen=str(row))
            return


def sure(view: View) -> dict[str, list[tuple[int, int, int]]]:
    """Ticker -> (from_us, to_us, gatherer): stretches that a gatherer surely recorded.

    From the first exchange time behind a market's first snapshot in a run to the last one that the
    run showed, with the engines' margin taken off twice at each end.
    """
    found: dict[str, list[tuple[int, int, int]]] = {}
    for spool in view.spools:
        if spool.lost:
            continue
        for (conn, sid), seqs in spool.got.seqs.items():
            sends = view.truth.sends
            mine = sends[(sends["conn"] == conn) & (sends["sid"] == sid)]
            if not mine.size or not np.isin(mine["kind"], (0, 1)).any():
                continue
            held = mine[np.isin(mine["seq"], np.array(seqs, np.int64))]
            held = held[np.unique(held["seq"], return_index=True)[1]]
            cuts = np.flatnonzero(np.diff(held["seq"]) != 1) + 1
            empty = spool.got.empty_snapshots.get((conn, sid), set())
            known: set[int] = set()  # markets that were subscribed before the run's gap (rule 2)
            plan = view.world.plan
            stays = not plan.drop_finished and not plan.gatherers[spool.gatherer].moves
            for run in np.split(held, cuts):
                shown = run[run["kind"] == truth_view.SEND_SNAPSHOT]
                bare = set(shown["market"][np.isin(shown["seq"], list(empty))].tolist())
                _sure_of_run(view, run, spool.gatherer, found, known - bare)
                if stays:
                    known |= set(shown["market"].tolist()) - bare
    return found


def _sure_of_run(
    view: View,
    run: np.ndarray,
    gatherer: int,
    found: dict[str, list[tuple[int, int, int]]],
    known: set[int],
) -> None:
    delta = (run["kind"] == truth_view.SEND_DELTA) & (run["event"] >= 0)
    if not delta.any():
        return
    times = np.where(delta, view.truth.events["exchange_us"][np.maximum(run["event"], 0)], -1)
    for market in np.unique(run["market"][run["kind"] == truth_view.SEND_SNAPSHOT]).tolist():
        shown = np.flatnonzero(
            (run["kind"] == truth_view.SEND_SNAPSHOT) & (run["market"] == market)
        )
        later = times if market in known else times[int(shown[0]) + 1 :]
        later = later[later >= 0]
        if later.size < 2:
            continue
        # Until the market's last frame here: behind it, it may have left the subscription.
        own = np.flatnonzero((run["market"] == market) & delta)
        own = own[own > shown[0]]
        if not own.size:
            continue
        until_us = int(times[own].max())
        from_us = int(later[0])
        margin = 2 * SKEW_US
        if from_us + margin < until_us:
            ticker = view.truth.tickers[market]
            found.setdefault(ticker, []).append((from_us + margin, until_us, gatherer))


def check_claimed(view: View) -> Iterator[Violation]:
    """Where nothing came late, every sure stretch is complete, or flagged as undecidable."""
    if view.overtaken or not view.world.ended:
        return
    intervals = by_ticker(view)
    marks: dict[str, list[tuple[int, int]]] = {}
    for row in view.content.tables["mark"].values():
        marks.setdefault(view.tickers[row[2]], []).append((row[4], row[5]))
    for row in view.content.tables["quarantine"].values():
        marks.setdefault(view.tickers[row[2]], []).append((row[6], row[7]))
    for ticker, stretches in sure(view).items():
        for from_us, to_us, gatherer in stretches:
            for i in intervals.get(ticker, []):
                low, high = max(i.from_us, from_us), min(i.to_us, to_us)
                if high <= low or i.status == "complete" or i.status in OPEN_STATUSES:
                    continue
                if any(
                    a <= high + SKEW_US and low <= b + SKEW_US for a, b in marks.get(ticker, [])
                ):
                    continue
                yield Violation(
                    f"{ticker}: gatherer {gatherer} recorded it without a gap, it is not claimed",
                    seen=f"[{low}, {high}) {i.status}: {i.reason}", expected="complete",
                )  # fmt: skip
                return
