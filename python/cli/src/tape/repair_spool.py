"""A gatherer's spool read for repair: stretches of order books, trades and ticker states of a time.

Purpose: decode every frame as the gatherer did and keep what concerns the time that is asked for:
for each market and run the events from a known book on (dedup.repair.Stretch), and how far the run
proves that there were no others.

What holds: bounds of proof are those of the deduplicator: from the first time that the run showed
after the snapshot to the last one it showed, less the margin for clocks of the exchange's engines.
Rows before a run's first snapshot (floating) are counted and left out. Of a long spool only the
segments around the time are read where their indexes tell which those are: each begins with the
books of all runs that are alive.

Does not do: changing the spool, comparing with the tape.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from dedup.output import ArbiterSettings
from dedup.repair import Stretch
from gatherer import spool_check
from gatherer.intake import Decoding, restore
from marketdata import segment
from marketdata.book import Book
from marketdata.chain import Life, Rows
from marketdata.continuity import Continuity
from marketdata.coverage import TRADE
from marketdata.errors import StorageError
from marketdata.pieces import UNTIMED
from marketdata.rows import (
    DELTA_ROW,
    TICKER_ROW,
    TRADE_ROW,
    ControlKind,
    ControlRow,
    DeltaFlag,
    DeltaRows,
    SnapshotRow,
    SnapshotVerdict,
    TickerRows,
    TradeRows,
)
from runtime.spool_files import SpoolMeta, load, look
from runtime.spool_index import read_index

SKEW_US: Final = ArbiterSettings().engine_skew_us
TAKE_RECORDS: Final = 200
NS_PER_US: Final = 1_000
BEFORE_US: Final = 60_000_000  # a frame is received this long before its exchange time at most
AFTER_US: Final = 3_600_000_000
"""So long after the time trades that REST told of are looked for; later ones come by `--rest`."""


@dataclass(slots=True)
class TradeProof:
    """A run of the trade channel: it has every trade in [from_us, to_us)."""

    run_id: int
    from_us: int
    to_us: int


@dataclass(slots=True)
class SpoolContent:
    """What a spool has of a time. Rows hold the spool's own market ids; `tickers` names them."""

    meta: SpoolMeta
    stretches: dict[str, list[Stretch]] = field(default_factory=dict)
    trades: TradeRows = field(default_factory=lambda: np.empty(0, TRADE_ROW))
    states: TickerRows = field(default_factory=lambda: np.empty(0, TICKER_ROW))
    trade_proofs: list[TradeProof] = field(default_factory=list)
    runs: set[int] = field(default_factory=set)
    tickers: dict[int, str] = field(default_factory=dict)
    floating: int = 0
    frames: int = 0


@dataclass(slots=True)
class _Open:
    """A stretch while its run goes on."""

    market_id: int
    book: Book
    start_us: int
    start_received_ns: int
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    from_us: int = -1
    last_us: int = -1
    past: bool = False  # its rows left the time that is asked for


@dataclass(slots=True)
class _Run:
    channel: str
    first_us: int = -1
    shown_us: int = -1
    markets: dict[int, _Open] = field(default_factory=dict)
    waiting: list[_Open] = field(default_factory=list)  # no time shown since their snapshot


def read_spool(directory: Path, gatherer: int, from_us: int, to_us: int) -> SpoolContent:
    """Everything that bears on exchange times [from_us, to_us).

    Raises:
        StorageError: there is no spool, or a segment cannot be read: what it held is not known.
    """
    meta = spool_check.meta_of(directory)
    segments = look(directory).segments
    if not segments:
        raise StorageError(f"{directory} has no segments: there is nothing to repair from")
    numbers = _around(directory, sorted(segments), from_us, to_us)
    decoding = Decoding(Continuity(meta.id_base))
    reader = _Reader(SpoolContent(meta), gatherer, from_us, to_us)
    for place, number in enumerate(numbers):
        summary, body = _loaded(segments[number])
        if place and number != numbers[place - 1] + 1:
            raise StorageError(f"{directory}: the segment before {summary.file} is missing")
        records = spool_check.records_of(summary, body, is_last=number == max(segments))
        for n, record in enumerate(records):
            if n == 0 and record.kind == segment.KIND_STATE:
                if place == 0:
                    decoding = Decoding(restore(record.payload))
                    reader.adopt(decoding.continuity)
                continue
            decoding.apply(record)
            if n % TAKE_RECORDS == 0:
                _take(reader, decoding)
        _take(reader, decoding)
        if summary.faults:
            raise StorageError(f"{directory}/{summary.file}: {summary.faults[0]}")
    reader.content.frames = decoding.frames
    reader.content.tickers = {n: t for t, n in decoding.continuity.market_ids.items()}
    return reader.finish()


def _around(directory: Path, numbers: list[int], from_us: int, to_us: int) -> list[int]:
    """The segments to read: from the last that ends well before the time to the first that begins
    well after it, as far as there are indexes."""
    first, last = numbers[0], numbers[-1]
    for number in numbers:
        index = read_index(directory, number)
        if index is None:
            continue
        if index.last_ns < (from_us - BEFORE_US) * NS_PER_US:
            first = number
        if index.first_ns > (to_us + AFTER_US) * NS_PER_US:
            last = min(last, number)
    return [n for n in numbers if first <= n <= last]


def _loaded(path: Path) -> tuple[spool_check.SegmentSummary, bytes]:
    number = int(path.name.split(".")[0])
    summary = spool_check.SegmentSummary(number, path.name, path.stat().st_size)
    return summary, load(path) if path.suffix == ".zst" else path.read_bytes()


def _take(reader: _Reader, decoding: Decoding) -> None:
    reader.absorb(decoding.continuity.take())
    decoding.continuity.take_effects()
    decoding.continuity.take_fresh_markets()


class _Reader:
    """Follows the rows of one spool."""

    def __init__(self, content: SpoolContent, gatherer: int, from_us: int, to_us: int) -> None:
        self.content = content
        self._gatherer = gatherer
        self._span = from_us, to_us
        self._runs: dict[int, _Run] = {}
        self._done: dict[int, list[Stretch]] = {}  # by the spool's market id
        self._trades: list[TradeRows] = []
        self._states: list[TickerRows] = []

    def adopt(self, continuity: Continuity) -> None:
        """The runs that were alive where reading begins, with their books."""
        for _, form in continuity.export()["lives"]:
            for scope in Life.restore(form).scopes.values():
                if not scope.run_id:
                    continue
                run = self._runs[scope.run_id] = _Run(scope.channel, shown_us=scope.last_us)
                self.content.runs.add(scope.run_id)
                for chain in scope.chains.values():
                    if chain.anchored and chain.run_id == scope.run_id:
                        book = Book(chain.yes.items(), chain.no.items())
                        us = chain.last_us or scope.last_us
                        opened = _Open(chain.market_id, book, us, continuity.last_received_ns)
                        run.markets[chain.market_id] = opened
                        run.waiting.append(opened)

    def absorb(self, rows: Rows) -> None:
        """The next rows, whole records of them."""
        ends: list[ControlRow] = []
        for control in rows.controls:
            if control.kind == ControlKind.RUN_START:
                channel = str(control.detail.get("channel"))
                self._runs[control.run_id] = _Run(channel)
                self.content.runs.add(control.run_id)
            elif control.kind in (ControlKind.RUN_END, ControlKind.MARKET_REMOVED):
                ends.append(control)
        deltas = np.frombuffer(bytes(rows.deltas), DELTA_ROW)
        trades = np.frombuffer(bytes(rows.trades), TRADE_ROW)
        by_run: list[ControlRow | None] = [*sorted(ends, key=lambda c: (c.run_id, c.seq)), None]
        for end in by_run:  # what precedes it in its run; at last everything that is left
            deltas, rows.snapshots = self._books(deltas, rows.snapshots, end)
            trades = self._follow_trades(trades, end)
            if end is not None:
                self._end(end)
        states = np.frombuffer(bytes(rows.tickers), TICKER_ROW)
        self._states.append(states[self._within(states["exchange_us"])])

    def _within(self, us: Any) -> Any:
        return (us >= self._span[0]) & (us < self._span[1])

    def _books(
        self, deltas: DeltaRows, snapshots: list[SnapshotRow], end: ControlRow | None
    ) -> tuple[DeltaRows, list[SnapshotRow]]:
        """Follow the events of the ending run up to its end (all if None); returns the rest."""
        if end is None:
            mine, shown = np.ones(deltas.size, np.bool_), snapshots
            left: list[SnapshotRow] = []
        else:
            mine = (deltas["run_id"] == end.run_id) & (deltas["seq"] <= end.seq)
            shown = [s for s in snapshots if s.run_id == end.run_id and s.seq <= end.seq]
            left = [s for s in snapshots if not (s.run_id == end.run_id and s.seq <= end.seq)]
        events: list[tuple[int, int, int, Any]] = [
            (row[5], row[6], 1, row) for row in deltas[mine].tolist()
        ]
        events += [(s.run_id, s.seq, 0, s) for s in shown]
        for run_id, _, is_delta, event in sorted(events, key=lambda e: e[:3]):
            run = self._runs.get(run_id)
            if run is None:
                continue
            if is_delta:
                self._delta(run, event)
            else:
                self._snapshot(run_id, run, event)
        return deltas[~mine], left

    def _snapshot(self, run_id: int, run: _Run, row: SnapshotRow) -> None:
        if row.verdict not in (SnapshotVerdict.ANCHOR, SnapshotVerdict.DIFFERS):
            return
        self._close(run_id, run, row.market_id)
        book = Book.from_bytes(row.levels)
        opened = _Open(row.market_id, book, row.exchange_us, row.received_ns)
        run.markets[row.market_id] = opened
        run.waiting.append(opened)

    def _delta(self, run: _Run, row: tuple[Any, ...]) -> None:
        us, _, delta, _, market_id, _, _, _, price, side, flags = row
        is_timed = not flags & UNTIMED
        if is_timed:
            run.shown_us = max(run.shown_us, us)
            for opened in run.waiting:
                own = opened.market_id == market_id
                opened.from_us = us + 1 + (0 if own else SKEW_US)
            run.waiting = []
        mine = run.markets.get(market_id)
        if flags & DeltaFlag.FLOATING or mine is None:
            self.content.floating += self._span[0] <= us < self._span[1]
            return
        if is_timed:
            mine.last_us = max(mine.last_us, us)
        if mine.past:
            return
        if not mine.rows and us < self._span[0]:
            if flags & DeltaFlag.RESET:
                mine.book.clear()
            else:
                mine.book.apply(side, price, delta)
            mine.start_us, mine.start_received_ns = us, row[1]
        elif us >= self._span[1]:
            mine.past = True
        else:
            mine.rows.append(row)

    def _close(self, run_id: int, run: _Run, market_id: int) -> None:
        """The stretch of a market ends here."""
        opened = run.markets.pop(market_id, None)
        if opened is None:
            return
        if opened in run.waiting:
            run.waiting.remove(opened)
        to_us = max(opened.last_us, run.shown_us - SKEW_US)
        from_us = opened.from_us if opened.from_us >= 0 else to_us
        if not opened.rows and (to_us <= self._span[0] or from_us >= self._span[1]):
            return
        self._done.setdefault(market_id, []).append(
            Stretch(
                self._gatherer, run_id, from_us, to_us, opened.book.hash, opened.book.to_bytes(),
                opened.start_us, opened.start_received_ns, np.array(opened.rows, DELTA_ROW),
            )
        )  # fmt: skip

    def _follow_trades(self, trades: TradeRows, end: ControlRow | None) -> TradeRows:
        if end is None:
            mine = np.ones(trades.size, np.bool_)
        else:
            mine = (trades["run_id"] == end.run_id) & (trades["seq"] <= end.seq)
        taken = trades[mine]
        for run_id in np.unique(taken["run_id"]).tolist():
            run = self._runs.get(run_id)
            us = taken["exchange_us"][taken["run_id"] == run_id]
            if run is not None:
                run.first_us = int(us[0]) if run.first_us < 0 else run.first_us
                run.shown_us = max(run.shown_us, int(us.max()))
        self._trades.append(taken[self._within(taken["exchange_us"])])
        return trades[~mine]

    def _end(self, control: ControlRow) -> None:
        run = self._runs.get(control.run_id)
        if run is None:
            return
        if control.kind == ControlKind.MARKET_REMOVED:
            self._close(control.run_id, run, control.market_id)
            return
        self._over(control.run_id, self._runs.pop(control.run_id))

    def _over(self, run_id: int, run: _Run) -> None:
        for market_id in list(run.markets):
            self._close(run_id, run, market_id)
        if run.channel == TRADE and run.first_us >= 0:
            proof = TradeProof(run_id, run.first_us + 1 + SKEW_US, run.shown_us - SKEW_US)
            if proof.from_us < min(proof.to_us, self._span[1]) and proof.to_us > self._span[0]:
                self.content.trade_proofs.append(proof)

    def finish(self) -> SpoolContent:
        """No record follows."""
        for run_id in list(self._runs):
            self._over(run_id, self._runs.pop(run_id))
        content = self.content
        content.stretches = {content.tickers[m]: found for m, found in self._done.items()}
        content.trades = _joined(self._trades, TRADE_ROW)
        content.states = _joined(self._states, TICKER_ROW)
        return content


def _joined(parts: Iterable[Any], layout: np.dtype[np.void]) -> Any:
    return np.concatenate([np.empty(0, layout), *parts])
