"""Closed windows in the form in which production takes them: one publication, one transaction.

Purpose: gather the outputs of one or several consecutive windows, give production's market ids,
and say which hours of the lake they touch.

What holds:
- Ids follow the order of first appearance, by ticker within a window: they do not depend on how
  many windows one publication holds.
- A later row of evidence with the same key replaces the earlier one here already.
- Pure: nothing is changed in the arguments; the caller takes over the new ids after the commit.

Does not do: SQL, deciding when.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from dedup.closings import Closing, closings_of
from dedup.columns import copied, distinct, joined, picked
from dedup.exchange_seen import change_counts
from dedup.output import MERGED_TICKER, MERGED_TRADE, QuarantineRow, WindowOutput
from dedup.suspects import named_counts
from dedup.tape_rows import TICKER_ROW, TRADE_ROW, Rows
from marketdata.coverage import OPEN_US, MarketClaim, RunProgress
from marketdata.rows import MERGED_ROW
from marketdata.share import Share

_Row = TypeVar("_Row")

HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
# A range of evidence touches at most this many hours; one beyond it is a fault, not a recording.
TOUCHED_HOURS_MAX: Final = 24 * 366


@dataclass(slots=True)
class Touched:
    """Hours of the lake (their first microsecond) whose rows or whose proof changed."""

    rows: set[int] = field(default_factory=set)
    proof: set[int] = field(default_factory=set)

    def rows_at(self, times_us: Iterable[int]) -> None:
        """Rows with these exchange times."""
        self.rows.update(us - us % HOUR_US for us in times_us)

    def proof_over(self, from_us: int, to_us: int) -> None:
        """Evidence about [from_us, to_us)."""
        if to_us <= from_us:
            return
        first = from_us - from_us % HOUR_US
        count = min(TOUCHED_HOURS_MAX, (to_us - 1 - first) // HOUR_US + 1)
        self.proof.update(first + n * HOUR_US for n in range(count))

    @property
    def hours(self) -> set[int]:
        """All of them."""
        return self.rows | self.proof


@dataclass(slots=True)
class Publication:
    """Everything one transaction writes. Rows hold production's market ids."""

    windows: int
    from_us: int
    closed_to_us: int
    received_ns_max: int
    new_markets: list[tuple[int, str, int]]  # id, ticker, first_us
    deltas: Rows  # MERGED_ROW
    snapshots: list[tuple[int, int, int, int, int, int, int, bytes]]  # tape_rows.SNAPSHOT_COPY
    trades: Rows  # tape_rows.TRADE_ROW
    late_trades: Rows  # the same; only those whose id production does not have are written
    tickers: Rows  # tape_rows.TICKER_ROW
    epochs: list[tuple[int, int, int, int, str]]
    gaps: list[tuple[int, int, int, int, int, int, str]]
    quarantine: list[tuple[int, int, int, int, int, str, int, int, int, bytes]]
    progress: dict[tuple[int, int], RunProgress]
    claims: dict[tuple[int, int, int, int], MarketClaim]
    marks: list[tuple[int, int, int, str, int, int, str]]
    audits: list[tuple[int, int, int, int, int, bool]]
    tails: dict[int, bytes]
    named_states: dict[str, bytes | None]
    positions: dict[int, tuple[int, int]]  # gatherer -> (reread_from_batch, seen_batch)
    counts: dict[str, int]
    touched: Touched
    closings: list[Closing]


def signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit value: PostgreSQL has no unsigned."""
    return value - (1 << 64) if value >= 1 << 63 else value


def publication_of(
    outputs: Sequence[WindowOutput],
    ids: Mapping[str, int],
    reach: Mapping[tuple[int, int], int],
    share: Share = Share(),  # noqa: B008 (frozen)
) -> Publication:
    """The publication of consecutive outputs.

    `ids`: production's ids of our markets so far. `reach`: (gatherer, run_id) -> `to_us` of the
    run's last published progress. `share`: every merger knows the progress of all runs, one says
    it; numbers within a window (`ord`) interleave, so that no two mergers use the same.
    """
    assert outputs, "a publication holds at least one window"
    made = _empty(outputs)
    known = dict(ids)
    reached = dict(reach)
    deltas: list[Rows] = []
    given: list[npt.NDArray[np.int32]] = []  # each output's market ids, by its own numbers
    for output in outputs:
        for ticker in sorted(_tickers_of(output)):
            if ticker not in known:
                known[ticker] = share.market_id(len(known))
                made.new_markets.append((known[ticker], ticker, output.from_us))
                made.touched.rows_at([output.from_us])
        here = [known[t] for t in output.tickers]
        deltas.append(_deltas(output, here))
        given.append(np.array(here, np.int32))
        _take_snapshots(made, output, here)
        _take_events(made, output, known, share)
        _take_evidence(made, output, known, reached, share)
        made.tails.update({known[t]: state for t, state in output.market_states.items()})
        made.named_states.update(output.named_states)
        made.positions.update(
            {p.gatherer: (p.reread_from_batch, p.seen_batch) for p in output.positions}
        )
        changed = change_counts(output.changes)
        for name, value in (
            *output.counts.items(),
            *named_counts(output).items(),
            *changed.items(),
        ):
            made.counts[name] = made.counts.get(name, 0) + value
    made.deltas = joined(deltas)
    made.trades = _columns([o.trades for o in outputs], MERGED_TRADE, given, TRADE_ROW)
    late = _columns([o.late_trades for o in outputs], MERGED_TRADE, given, TRADE_ROW)
    made.late_trades = _first_of_each(late)
    made.tickers = _columns([o.ticker_rows for o in outputs], MERGED_TICKER, given, TICKER_ROW)
    for rows in (made.deltas, made.trades, made.tickers):
        if len(rows):
            made.touched.rows_at(distinct(rows["exchange_us"] // HOUR_US * HOUR_US))
            made.received_ns_max = max(made.received_ns_max, int(rows["received_ns"].max()))
    for sources, seen in zip(*np.unique(made.deltas["sources"], return_counts=True), strict=True):
        name = f"witnesses_{int(sources).bit_count()}"
        made.counts[name] = made.counts.get(name, 0) + int(seen)
    return made


def _first_of_each(trades: Rows) -> Rows:
    """The first row of each trade id, in the order of the rows."""
    seen: dict[bytes, int] = {}
    for at, trade_id in enumerate(trades["trade_id"].tolist()):
        seen.setdefault(trade_id, at)
    return picked(trades, np.array(list(seen.values()), np.int64))


def _empty(outputs: Sequence[WindowOutput]) -> Publication:
    return Publication(
        windows=len(outputs),
        from_us=outputs[0].from_us,
        closed_to_us=outputs[-1].to_us,
        received_ns_max=0,
        new_markets=[],
        deltas=np.empty(0, MERGED_ROW),
        snapshots=[],
        trades=np.empty(0, TRADE_ROW),
        late_trades=np.empty(0, TRADE_ROW),
        tickers=np.empty(0, TICKER_ROW),
        epochs=[],
        gaps=[],
        quarantine=[],
        progress={},
        claims={},
        marks=[],
        audits=[],
        tails={},
        named_states={},
        positions={},
        counts={},
        touched=Touched(),
        closings=closings_of(outputs),
    )


def _tickers_of(output: WindowOutput) -> set[str]:
    """Every ticker that an output names anywhere."""
    named: set[str] = set(output.tickers) | set(output.market_states)
    for rows in (
        output.epochs,
        output.gaps,
        output.quarantine,
        output.claims,
        output.marks,
        output.audits,
    ):
        named.update(row.ticker for row in rows)
    return named


def _deltas(output: WindowOutput, here: list[int]) -> Rows:
    rows = copied(output.deltas)
    if len(rows):
        rows["market_id"] = np.array(here, "i4")[rows["market_id"]]
    return rows


def _columns(
    parts: Sequence[Any],
    merged: np.dtype[np.void],
    given: Sequence[npt.NDArray[np.int32]],
    layout: np.dtype[np.void],
) -> Rows:
    """Rows of consecutive outputs in production's layout. Rows made by hand may be plain tuples."""
    rows = [np.asarray(part, merged) for part in parts]
    whole = joined(rows)
    made = np.empty(whole.size, layout)
    for name in layout.names or ():
        if name != "market_id":
            made[name] = whole[name]
    ids = [here[some["market"]] for here, some in zip(given, rows, strict=True)]
    made["market_id"] = np.concatenate(ids)
    return made


def _take_snapshots(made: Publication, output: WindowOutput, here: list[int]) -> None:
    for s in output.snapshots:
        made.snapshots.append(
            (
                s.exchange_us,
                s.received_ns,
                signed(s.book_hash),
                here[s.market],
                s.epoch,
                s.market_seq,
                s.sources,
                s.levels,
            )
        )
        made.received_ns_max = max(made.received_ns_max, s.received_ns)
    made.touched.rows_at(s.exchange_us for s in output.snapshots)


def _take_events(
    made: Publication, output: WindowOutput, known: Mapping[str, int], share: Share
) -> None:
    """Epochs, gaps, quarantine."""
    for e in output.epochs:
        made.epochs.append((known[e.ticker], e.epoch, e.from_us, signed(e.start_hash), e.reason))
        made.touched.proof_over(e.from_us, e.from_us + 1)
    for g in output.gaps:
        made.gaps.append(
            (
                known[g.ticker],
                g.epoch,
                g.from_us,
                g.to_us,
                signed(g.hash_before),
                signed(g.hash_after),
                g.kind,
            )
        )
    for n, q in _numbered(output.quarantine, share):
        made.quarantine.append((output.window, n, known[q.ticker], *_kept(q)))


def _numbered(rows: Sequence[_Row], share: Share) -> Iterator[tuple[int, _Row]]:
    return ((n * share.of + share.number - 1, row) for n, row in enumerate(rows))


def _kept(q: QuarantineRow) -> tuple[int, int, str, int, int, int, bytes]:
    return q.gatherer, q.run_id, q.reason, q.from_us, q.to_us, q.n_rows, q.rows.tobytes()


def _take_evidence(
    made: Publication,
    output: WindowOutput,
    known: Mapping[str, int],
    reached: dict[tuple[int, int], int],
    share: Share,
) -> None:
    """Progress, claims, marks, audits, and the hours whose proof they change."""
    for p in output.progress if share.first else ():
        key = (p.gatherer, p.run_id)
        made.progress[key] = p
        made.touched.proof_over(reached.get(key, p.from_us), p.to_us)
        reached[key] = p.to_us
    for c in output.claims:
        made.claims[(known[c.ticker], c.gatherer, c.run_id, c.from_us)] = c
        to_us = min(c.to_us, output.to_us)
        if c.valid and c.to_us != OPEN_US and c.from_us < output.from_us:
            made.touched.proof_over(min(c.to_us, output.from_us), output.to_us)
        else:
            made.touched.proof_over(c.from_us, max(to_us, c.from_us + 1))
    for n, m in _numbered(output.marks, share):
        made.marks.append((output.window, n, known[m.ticker], m.kind, m.from_us, m.to_us, m.reason))
        made.touched.proof_over(m.from_us, min(m.to_us, max(output.to_us, m.from_us + 1)))
    for n, a in _numbered(output.audits, share):
        made.audits.append((output.window, n, known[a.ticker], a.gatherer, a.exchange_us, a.agrees))
        made.touched.proof_over(a.exchange_us, a.exchange_us + 1)
