"""The tape against the exchange's own log: nothing missing, extra, misordered, wrongly claimed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from marketdata.book import unpack_levels
from tape import truth_view
from tape.proof import Interval as ProofInterval
from tape.proof import MergedMarket, Verdict, compare_market
from tests.sim.checkers import coverage
from tests.sim.checkers.view import AMBIGUOUS, DISPUTED, RESET, View, Violation

LATE = ("late",)


def merged_market(rows: np.ndarray) -> MergedMarket:
    """Rows of production in the proof's form."""
    reset = (rows["flags"] & RESET) != 0
    return MergedMarket(
        rows["exchange_us"].astype(np.int64),
        np.where(reset, -1, rows["side"].astype(np.int64)),
        np.where(reset, 0, rows["price"].astype(np.int64)),
        np.where(reset, 0, rows["delta"]),
        (rows["flags"] & (AMBIGUOUS | DISPUTED)) != 0,
    )


def check_tape(view: View) -> Iterator[Violation]:
    """As `tape prove`: what some gatherer received in an anchored run must be there, in order.

    Rows that came too late for their window may be in quarantine instead, and must be then.
    """
    verdict = Verdict()
    for ticker in view.truth.tickers:
        rows = view.rows.get(ticker)
        wrong = _compare(view, ticker, rows, verdict)
        if wrong and rows is not None:
            sure = (rows["flags"] & AMBIGUOUS) == 0  # the order within a microsecond may be open
            open_ones = max(0, wrong - _compare(view, ticker, rows[sure], Verdict()))
            timely = sure & ~_resets_at_gaps(rows)
            early = max(0, wrong - open_ones - _compare(view, ticker, rows[timely], Verdict()))
            happened = view.world.story.happened
            happened["flagged: order within a microsecond"] += open_ones
            happened["known: a reset out of its time, behind a gap"] += early
            verdict.misordered -= open_ones + early
    example = verdict.examples[0] if verdict.examples else ""
    twice = _resets_twice(view)
    if twice:
        view.world.story.happened["known: a reset twice, behind a gap"] += twice
        verdict.extra = max(0, verdict.extra - twice)
        verdict.misordered = max(0, verdict.misordered - twice)
    for name in ("extra", "misordered", "false_complete"):
        if getattr(verdict, name):
            yield Violation(f"{name} events", seen=f"{getattr(verdict, name)}: {example}")
    if verdict.missing > _set_aside(view):
        yield Violation("missing events", seen=f"{verdict.missing}: {example}")


def _compare(view: View, ticker: str, rows: np.ndarray | None, verdict: Verdict) -> int:
    """Judge one market; how many of its neighbours stand in the wrong order."""
    none = np.empty(0, np.int64)
    nothing = MergedMarket(none, none, none, none, np.empty(0, bool))
    index, before = view.market_events(ticker), verdict.misordered
    compare_market(
        ticker, view.truth.events[index], view.due[index],
        nothing if rows is None else merged_market(rows),
        [
            ProofInterval(i.from_us, i.to_us, i.status, i.reason)
            for i in coverage.by_ticker(view).get(ticker, [])
        ],
        verdict,
    )  # fmt: skip
    return verdict.misordered - before


def _resets_at_gaps(rows: np.ndarray) -> np.ndarray:
    """Resets with which an epoch begins or ends: the time that one gets may be seconds before its
    own, and before events that only another gatherer saw (docs/simulation.md)."""
    edge = np.ones(len(rows) + 1, bool)
    edge[1:-1] = np.diff(rows["epoch"]) != 0
    return ((rows["flags"] & RESET) != 0) & (edge[1:] | edge[:-1])


def _resets_twice(view: View) -> int:
    """Resets that stand twice in a market, with a gap between them (docs/simulation.md): each
    subscription gives a reset the latest time it has shown, and a quiet one shows old times."""
    marked = {
        view.tickers[row[2]]
        for row in view.content.tables["mark"].values()
        if row[3] in ("disputed", "gap")
    }
    return sum(
        int(((rows["flags"] & RESET) != 0)[view.places[ticker] < 0].sum())
        for ticker, rows in view.rows.items()
        if ticker in marked
    )


def _set_aside(view: View) -> int:
    """How many rows in quarantine may explain a missing event: those of gatherers that were late,
    or of whom nothing before a replaced disk was read."""
    if not view.overtaken and not view.replaced:
        return sum(view.cautious.values())
    rows = view.content.tables["quarantine"].values()
    aside = sum(row[8] for row in rows)
    if view.replaced:
        return aside + view.truth.events.size
    return aside


def check_keyframes(view: View) -> Iterator[Violation]:
    """I2: each keyframe is the exchange's book behind the event that it stands behind."""
    for (market, epoch, number, _, _), row in sorted(view.content.snapshots.items()):
        ticker = view.tickers[market]
        rows = view.rows.get(ticker)
        places = view.places.get(ticker)
        yes, no = unpack_levels(row[7])
        shown = {(0, p): q for p, q in yes} | {(1, p): q for p, q in no}
        mine = np.flatnonzero(rows["epoch"] == epoch) if rows is not None else np.array([], int)
        if places is None or not mine.size or number > mine.size:
            continue  # an epoch without events: its time is judged by coverage
        after = int(places[mine[number - 1]]) if number else -1
        following = int(places[mine[number]]) if number < mine.size else -1
        if (number and after < 0) or (not number and following < 0):
            continue  # told by `truth` already
        state = _book(view, ticker, after + 1 if number else following)
        if state != shown:
            yield Violation(
                f"{ticker}: the keyframe at {epoch}/{number} is not the exchange's book there",
                seen=_brief(shown, state), expected=_brief(state, shown),
            )  # fmt: skip


def _brief(a: dict[tuple[int, int], int], b: dict[tuple[int, int], int]) -> str:
    return str(dict(sorted((k, v) for k, v in a.items() if b.get(k) != v)[:3]))


def _book(view: View, ticker: str, before: int) -> dict[tuple[int, int], int]:
    """The exchange's book of a market before the event with this index."""
    number = view.truth.tickers.index(ticker)
    start = next(b for b in view.truth.books if b["market"] == number)
    levels: Counter[tuple[int, int]] = Counter()
    for side, name in ((0, "yes"), (1, "no")):
        levels.update({(side, int(p)): int(q) for p, q in start[name]})
    index = view.market_events(ticker)
    for event in view.truth.events[index[index < before]].tolist():
        _, kind, side, price, delta, _ = event
        if kind == truth_view.EVENT_RESET:
            levels.clear()
        else:
            levels[side, price] += delta
    return {key: size for key, size in levels.items() if size}


def check_others(view: View) -> Iterator[Violation]:
    """Each trade that a spool holds once, with true witnesses; no ticker state missing."""
    rows = view.content.rows("trade")
    on_tape = Counter(bytes(i).hex() for i in rows["trade_id"].tolist())
    received: dict[str, int] = {}
    states: dict[int, set[object]] = {}
    held: set[str] = set()
    for spool in view.spools:
        for trade in spool.got.trade_ids:
            received[trade] = received.get(trade, 0) | 1 << spool.gatherer
            if not spool.lost:
                held.add(trade)
        if not spool.lost:
            states.setdefault(spool.gatherer, set()).update(spool.got.ticker_states)
    twice = [i for i, n in on_tape.items() if n > 1]
    if twice:
        yield Violation("trades on the tape twice", seen=twice[0])
    if on_tape.keys() - received.keys():
        yield Violation(
            "trades that nobody received", seen=str(len(on_tape.keys() - received.keys()))
        )
    if not view.replaced and held - on_tape.keys():
        yield Violation("trades missing", seen=str(len(held - on_tape.keys())))
    for trade_id, sources in zip(rows["trade_id"].tolist(), rows["sources"].tolist(), strict=True):
        if sources & ~received.get(bytes(trade_id).hex(), 0):
            yield Violation("a trade has a witness that never saw it", seen=bin(sources))
            break
    yield from _tickers(view, set().union(*states.values()))


def _tickers(view: View, wanted: set[object]) -> Iterator[Violation]:
    rows = view.content.rows("ticker")
    seen = Counter(
        (view.tickers[m], us // 1000)
        for m, us in zip(rows["market_id"].tolist(), rows["exchange_us"].tolist(), strict=True)
    )
    missing = {(s[0], s[1]) for s in wanted} - seen.keys()  # type: ignore[index]
    aside = sum(r[8] for r in view.content.tables["quarantine"].values() if not len(r[9]))
    if len(missing) > aside and not view.replaced:
        yield Violation("ticker states missing", seen=str(min(missing)))


def check_sources(view: View) -> Iterator[Violation]:
    """Provenance: a named witness has the event in its spool; and where nothing was late, whoever
    has it in an anchored run is named."""
    anyhow = view.by_gatherer("anyhow", lost_too=True)
    in_runs = view.by_gatherer("in_runs", lost_too=False)
    for ticker, rows in view.rows.items():
        places = view.places[ticker]
        if places.size != len(rows) or (places < 0).any():
            continue  # told by `truth` already
        flagged = (rows["flags"] & (AMBIGUOUS | DISPUTED)) != 0
        for g in range(len(anyhow)):
            named = (rows["sources"] >> g & 1).astype(bool)
            lies = named & ~anyhow[g][places]
            if lies.any():
                at = int(np.flatnonzero(lies)[0])
                yield Violation(
                    f"{ticker}: gatherer {g} is named as witness of an event it never received",
                    seen=f"{rows['epoch'][at]}/{rows['market_seq'][at]} of {int(lies.sum())}",
                )
            # A reset has no time of its own: it may stand in another window for each gatherer, and
            # a row that is published gets no more witnesses.
            unnamed = ~named & in_runs[g][places] & ~flagged & ((rows["flags"] & RESET) == 0)
            if unnamed.any() and not (view.overtaken or g in view.cautious):
                at = int(np.flatnonzero(unnamed)[0])
                yield Violation(
                    f"{ticker}: gatherer {g} saw an event and is not named",
                    seen=f"{rows['epoch'][at]}/{rows['market_seq'][at]} of {int(unnamed.sum())}",
                )
