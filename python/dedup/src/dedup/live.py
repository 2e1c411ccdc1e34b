"""The lines of all markets: what is given out before its window closes, and how that was borne out.

Purpose: hear every batch that a reader brings, give out each proven event once (marketdata.live),
and hold each one against the tape when its window closes. Pure: no I/O, no clock.

How it is used:

    keeper = Keeper(gatherers, ids, tails)   # where the tape stands, from production
    keeper.heard(batch)                      # in batch order of a gatherer, before the merge has it
    keeper.taken()                           # LIVE_ROW: what is to be written now
    settled = keeper.closed(made)            # a publication, before it is committed
    keeper.committed()                       # and after

What holds: an id is given to each event, ascending; of a market, everything up to its id in
`settled` is on the tape with this publication, or is taken back. Where the tape brings events that
were not given out before, those behind them are not to be written before it is committed: a reader
would see a hole.

Does not do: SQL, deciding when to be silent (live_path).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from dedup.publication import Publication
from dedup.runs import Standing
from dedup.tape_rows import Rows
from marketdata.book import level_constants
from marketdata.live import Event, Follower, Line, Place, Row, RunKey, last_id
from marketdata.rows import ControlKind, GathererBatch, SnapshotVerdict
from runtime.pgcopy import CopyLayout

LIVE_COPY: Final = CopyLayout(
    "live_delta",
    [
        ("live_id", "bigint"),
        ("exchange_ts", "timestamptz"),
        ("received_ns", "bigint"),
        ("delta", "bigint"),
        ("book_hash", "bigint"),
        ("seq", "bigint"),
        ("market_id", "integer"),
        ("epoch", "integer"),
        ("market_seq", "integer"),
        ("price", "integer"),
        ("run_id", "integer"),
        ("gatherer", "smallint"),
        ("side", "smallint"),
        ("flags", "smallint"),
        ("shard", "smallint"),
    ],
)
LIVE_ROW: Final = np.dtype(
    [
        ("live_id", "i8"),
        ("exchange_us", "i8"),
        ("received_ns", "i8"),
        ("delta", "i8"),
        ("book_hash", "u8"),
        ("seq", "i8"),
        ("market_id", "i4"),
        ("epoch", "i4"),
        ("market_seq", "i4"),
        ("price", "i4"),
        ("run_id", "i4"),
        ("gatherer", "i2"),
        ("side", "i2"),
        ("flags", "i2"),
    ]
)
OVERDUE_US: Final = 60_000_000
"""Given out, and the tape is so far past it without having it: it will not come."""
HELD_NS: Final = 300_000_000_000
"""Rows that no window took are kept for so long."""
SWEEP_NS: Final = 60_000_000_000
_CUTS: Final = (SnapshotVerdict.ANCHOR, SnapshotVerdict.DIFFERS, SnapshotVerdict.RESET)
_PINNED: Final = int(Standing.PINNED)


class _Pair(msgspec.Struct):
    """What a line needs of dedup.runs.Pair."""

    gatherer: int
    run_id: int
    standing: int
    h: int
    position: int = 0
    last_seq: int = -1
    held: bytes = b""


class _End(msgspec.Struct):
    """What a line needs of dedup.runs.Market."""

    epoch: int = 0
    count: int = 0
    h_end: int = 0
    pairs: list[_Pair] = []

    def places(self) -> list[Place]:
        """How the runs stand."""
        return [
            Place(
                p.gatherer, p.run_id, p.position if p.standing == _PINNED and not p.held else -1,
                p.h, p.last_seq,
            )
            for p in self.pairs
        ]  # fmt: skip


_decode_end = msgspec.msgpack.Decoder(_End).decode


@dataclass(slots=True)
class Settled:
    """market id -> up to this live id everything is on the tape with this publication, or gone."""

    upto: dict[int, int] = field(default_factory=dict)


class Keeper:
    """The lines of one deduplicator's markets.

    `ids`: ticker -> production's market id; `tails`: ticker -> state of the market's end of the
    tape, as the arbiter encodes it; `owns`: whether a ticker is ours; `first_id`: of the events.
    """

    def __init__(
        self,
        gatherers: int,
        ids: Mapping[str, int],
        tails: Mapping[str, bytes],
        first_id: int = 1,
        owns: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self.next_id = first_id
        self.silent = ""  # why nothing is given out at all; "": it is
        self.counts: Counter[str] = Counter()  # given, confirmed, contradicted
        self.missed: Counter[str] = Counter()  # events of the tape not given out before, by reason
        self._owns = owns
        self._ids = dict(ids)
        self._tickers = {market: ticker for ticker, market in self._ids.items()}
        self._cold = dict(tails)  # ends of markets that nothing was heard of yet
        self._lines: dict[str, Line] = {}
        self._names: list[dict[int, str]] = [{} for _ in range(gatherers)]
        self._pairs: list[dict[int, tuple[str, Line, Follower, RunKey]]] = [
            {} for _ in range(gatherers)
        ]
        self._waiting: set[str] = set()  # tickers with something given out and not yet on the tape
        self._made: list[tuple[int, int, Event]] = []  # market id, epoch, event
        self._behind: set[int] = set()  # markets that are not written before the next commit
        self._held: list[tuple[int, int, Event]] = []  # what was given out in them
        self._swept_ns = 0

    # -- batches ---------------------------------------------------------------------------------

    def heard(self, batch: GathererBatch) -> None:
        """Rows of a gatherer; what they prove is given out."""
        names = self._learn(batch)
        g = batch.gatherer
        for snapshot in batch.snapshots:
            if snapshot.verdict in _CUTS and (ticker := names.get(snapshot.market_id)):
                self._line(ticker).cut((g, snapshot.run_id), snapshot.seq)
        for control in batch.controls:
            if control.kind == ControlKind.MARKET_REMOVED and (
                ticker := names.get(control.market_id)
            ):
                self._line(ticker).cut((g, control.run_id), control.seq + 1)
        pairs = self._pairs[g]
        for key, row in _rows(batch.deltas):
            pair = pairs.get(key)
            if pair is None:
                ticker = names.get(key >> 32)
                if ticker is None:
                    continue
                run, line = (g, key & 0xFFFF_FFFF), self._line(ticker)
                pair = pairs[key] = ticker, line, line.follower(run), run
            ticker, line, follower, run = pair
            event = line.took(follower, run, row, self.next_id)
            if event is not None:
                self._give(ticker, line, (event,))
        self._sweep(batch.max_received_ns)

    def not_heard(self, batch: GathererBatch) -> None:
        """Rows that are left to the tape: their runs must be placed behind them again."""
        names = self._learn(batch)
        deltas = batch.deltas
        if not len(deltas):
            return
        key = deltas["market_id"].astype(np.int64) << 32 | deltas["run_id"]
        keys, last = np.unique(key[::-1], return_index=True)
        seqs = deltas["seq"][::-1][last]
        for k, seq in zip(keys.tolist(), seqs.tolist(), strict=True):
            ticker = names.get(k >> 32)
            if ticker is not None:
                self._line(ticker).unheard((batch.gatherer, k & 0xFFFF_FFFF), seq)

    def _learn(self, batch: GathererBatch) -> dict[int, str]:
        names = self._names[batch.gatherer]
        names.update((m, ticker) for m, ticker in batch.markets.items() if self._owns(ticker))
        return names

    def _line(self, ticker: str) -> Line:
        line = self._lines.get(ticker)
        if line is None:
            line = self._lines[ticker] = Line()
            if self.silent:
                line.end(self.silent)
            state = self._cold.pop(ticker, None)
            if state is not None and ticker in self._ids:
                self._close(ticker, line, _decode_end(state))
        return line

    def _give(self, ticker: str, line: Line, events: Iterable[Event]) -> None:
        market = self._ids[ticker]
        before = self.next_id
        made = self._held if market in self._behind else self._made
        for event in events:
            made.append((market, line.epoch, event))
            self.next_id = event.live_id + 1
        if self.next_id != before:
            self._waiting.add(ticker)
            self.counts["given"] += self.next_id - before

    @property
    def given(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._made)

    def taken(self) -> Rows:
        """What was given out since the last call, in the order of the ids."""
        made, self._made = self._made, []
        rows = np.empty(len(made), LIVE_ROW)
        for n, (market, epoch, event) in enumerate(made):
            live_id, number, row, (gatherer, run_id) = event
            rows[n] = (
                live_id, row.exchange_us, row.received_ns, row.delta, row.h_after, row.seq, market,
                epoch, number, row.price, run_id, gatherer, row.side, row.flags,
            )  # fmt: skip
        return rows

    # -- closed windows --------------------------------------------------------------------------

    def closed(self, made: Publication) -> Settled:
        """Hold what was given out against a publication, and go on from where it ends."""
        for market, ticker, _ in made.new_markets:
            self._ids[ticker], self._tickers[market] = market, ticker
        settled = Settled()
        for pairs in self._pairs:  # runs may go
            pairs.clear()
        if len(made.deltas):
            self._compare(made.deltas, settled)
        for market, state in made.tails.items():
            ticker = self._tickers[market]
            self._cold.pop(ticker, None)
            line = self._lines.get(ticker)
            if line is None:
                line = self._lines[ticker] = Line()
            gone = self._close(ticker, line, _decode_end(state))
            self._take_back(market, gone, settled)
        for ticker in sorted(self._waiting):
            line = self._lines[ticker]
            overdue = made.closed_to_us - OVERDUE_US
            if line.pending and line.pending[0].row.exchange_us < overdue:
                self._take_back(self._ids[ticker], line.withdraw(), settled)
            if not line.pending:
                self._waiting.discard(ticker)
        return settled

    def committed(self) -> None:
        """The publication is in production."""
        self._made += self._held
        self._held = []
        self._behind.clear()

    def _close(self, ticker: str, line: Line, end: _End) -> list[Event]:
        given, gone = line.closed(
            end.epoch, end.count, end.h_end, end.places(), self.next_id, self.silent
        )
        self._give(ticker, line, given)
        return gone

    def _compare(self, rows: Rows, settled: Settled) -> None:
        """The tape's new events against what was given out for them."""
        columns = (rows[n].tolist() for n in _COMPARED)
        for market, epoch, number, side, price, delta, h in zip(*columns, strict=True):
            line = self._lines.get(self._tickers[market])
            if line is None:
                self.missed["no window of the market has closed"] += 1
                self._behind.add(market)
                continue
            first = line.pending[0].live_id if line.pending else 0
            why = line.why
            verdict = line.found(epoch, number, side, price, delta, h)
            if verdict == "same":
                settled.upto[market] = first
                self.counts["confirmed"] += 1
            else:
                self.missed[why or "the tape was first"] += 1
                self._behind.add(market)
                if verdict == "differs":
                    self._take_back(market, line.withdraw(), settled)

    def _take_back(self, market: int, gone: list[Event], settled: Settled) -> None:
        if gone:
            settled.upto[market] = last_id(gone)
            self.counts["contradicted"] += len(gone)

    def unplaced(self, ticker: str) -> int:
        """Rows of a market that are held for the next closed window."""
        line = self._lines.get(ticker)
        return 0 if line is None else sum(len(f.rows) for f in line.followers.values())

    # -- silence ---------------------------------------------------------------------------------

    def silence(self, why: str) -> None:
        """Give nothing out, and forget what was given: it is no longer in production."""
        self.silent = why
        self._made, self._held = [], []
        self._waiting.clear()
        for line in self._lines.values():
            line.forget(why)

    def speak(self, first_id: int) -> None:
        """Give out again, everything that is proven beyond the tape."""
        self.silent, self.next_id = "", first_id
        for ticker, line in self._lines.items():
            if ticker in self._ids:
                self._give(ticker, line, line.resume(self.next_id))

    def _sweep(self, now_ns: int) -> None:
        if now_ns - self._swept_ns < SWEEP_NS:
            return
        self._swept_ns = now_ns
        for line in self._lines.values():
            line.forget_before(now_ns - HELD_NS)


_COMPARED: Final = ("market_id", "epoch", "market_seq", "side", "price", "delta", "book_hash")


def _rows(deltas: Rows) -> Iterable[tuple[int, Row]]:
    """(the gatherer's market id and run in one number, row) in the order of the batch."""
    if not len(deltas):
        return ()
    delta = np.ascontiguousarray(deltas["delta"])
    step = level_constants(deltas["side"], deltas["price"]) * delta.view(np.uint64)
    columns: dict[str, npt.NDArray[Any]] = {
        name: deltas[name] for name in Row._fields if name in (deltas.dtype.names or ())
    }
    columns["h_after"] = deltas["book_hash"]
    columns["h_before"] = deltas["book_hash"] - step
    key = deltas["market_id"].astype(np.int64) << 32 | deltas["run_id"]
    rows = map(Row._make, zip(*(columns[name].tolist() for name in Row._fields), strict=True))
    return zip(key.tolist(), rows, strict=True)


__all__ = ["LIVE_COPY", "LIVE_ROW", "Keeper", "RunKey", "Settled"]
