"""What one gatherer delivered and no window has taken yet; which window each row belongs to.

Purpose: turn batches into windows of exchange time such that the outcome does not depend on how the
batches were read. A row belongs to the window of its own exchange time, but never further back than
`engine_skew_us` behind the latest time its run had shown: then "the run has shown a time that much
past the window" means that every row of the window is there.

Invariants: INV-W1 within one run and market the window never goes back. INV-W2 the window of a row
depends only on the rows before it in its run. INV-W3 rows of closed windows are not lost: they go
to the next one (the merge places them or says `late`). INV-W4 what is read again after a restart
is taken once all of it is here (absorb).

Does not do: merging, evidence, deciding when to close (arbitrate.py).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from dedup.columns import I64, by_run, copied, joined, picked, stable_order
from dedup.items import FLOATING, LOW, UNTIMED, Chunk, Cut, EndItem, Part, SnapItem, pair_key
from dedup.runs import Run
from dedup.waiting import Waiting
from marketdata.rows import (
    BATCH_TICKER,
    BATCH_TRADE,
    DELTA_ROW,
    ControlKind,
    ControlRow,
    DeltaRows,
    GathererBatch,
    SnapshotRow,
    SnapshotVerdict,
)

NOTHING: Final[Mapping[int, int]] = {}
_TABLE_MAX: Final = 1 << 22  # market ids below it are looked up in a table


class Inflow:
    """One gatherer's rows on their way to a window."""

    def __init__(self, gatherer: int, window_us: int, engine_skew_us: int) -> None:
        self.gatherer = gatherer
        self.window_us = window_us
        self.skew_us = engine_skew_us
        self.closed = -1  # last closed window
        self.reread = (-1, -1)  # (closed, seen batch) when it was seen: what windows have taken
        self.resume_from = 0  # first batch to read again
        self.behind = False  # not all of what had been seen before a restart is here again
        self.halfway = False  # but some of it
        self.past: set[int] = set()  # runs that are read again and were over before
        self.ids: dict[int, int] = {}  # the gatherer's market id -> index of the ticker
        self.runs: dict[int, Run] = {}
        self.chunks: list[Chunk] = []
        self.snapshots: list[SnapItem] = []
        self.held: list[SnapItem] = []  # of runs that have not shown an exchange time yet
        self.ends: list[EndItem] = []
        self.held_ends: list[EndItem] = []  # of markets of such runs
        self.held_rows: dict[int, list[DeltaRows]] = {}  # run -> its rows (resets have no time)
        self.trades, self.tickers = Waiting(BATCH_TRADE), Waiting(BATCH_TICKER)
        self.floors: dict[int, int] = {}  # pair -> window of its latest row
        self.floats: dict[int, tuple[int, int]] = {}  # pair -> (window, received_ns): no anchor yet
        self.anchors: dict[int, SnapshotRow] = {}  # pair -> first snapshot, while it waits
        self.first_seen: dict[int, int] = {}  # window -> received_ns of the first row past it
        self.max_window = -1
        self.max_received_ns = 0
        self.seen_batch = 0
        self.life = b""  # of the latest batch
        self.ended = False
        self.started = False

    # -- absorbing -------------------------------------------------------------------------------

    def resume(self, closed: int, taken_to: int, reread_from: int, seen_batch: int) -> None:
        """Go on after a restart: `closed` is the last closed window, `taken_to` the one that had
        closed when batch `seen_batch` was here last."""
        self.closed, self.seen_batch, self.started = closed, seen_batch, True
        self.reread, self.resume_from = (taken_to, seen_batch), reread_from
        self.behind = reread_from <= seen_batch

    def absorb(self, batch: GathererBatch) -> None:
        """Take a batch in; its markets must have been put into `ids` before.

        INV-W4: no window takes anything while only a part of what is read again is here: what was
        taken and what was not stays as it was before the restart until all of it is.
        """
        self._absorb(batch)
        if self.behind:
            self.halfway = batch.last_batch_id < self.reread[1]
            self.behind = self.halfway

    def all_here(self) -> None:
        """Nothing more of what is read again will come."""
        self.behind = self.halfway = False

    def _absorb(self, batch: GathererBatch) -> None:
        self.started = True
        if batch.first_batch_id <= self.reread[1]:
            batch = self._without_past(batch)
        closings = []
        for control in batch.controls:
            if control.kind in (ControlKind.RUN_END, ControlKind.MARKET_REMOVED):
                closings.append(control)
            else:
                self._control(control)
        before = {run_id: run.shown_us for run_id, run in self.runs.items()}
        trace = self._rows(batch.deltas)
        self._snapshots(batch.snapshots, before, trace)
        self._trades_and_tickers(batch)
        for control in closings:
            self._closing(control, before, trace)
        self.max_received_ns = max(self.max_received_ns, batch.max_received_ns)
        self.seen_batch = max(self.seen_batch, batch.last_batch_id)
        self.life = batch.life or self.life

    def _without_past(self, batch: GathererBatch) -> GathererBatch:
        """What is read again, without runs that had come and gone before the restart: a window has
        taken their ends, and so all of them."""
        seen = self.reread[1]
        for c in batch.controls:
            if c.kind == ControlKind.RUN_START and c.batch_id <= seen and c.run_id not in self.runs:
                self.past.add(c.run_id)
        if not self.past:
            return batch
        past = np.fromiter(self.past, np.int32, len(self.past))
        keep = np.flatnonzero(~np.isin(batch.deltas["run_id"], past))
        snapshots = [s for s in batch.snapshots if s.run_id not in self.past]
        return replace(batch, deltas=picked(batch.deltas, keep), snapshots=snapshots)

    def _is_reread(self, window: int, batch_id: int) -> bool:
        return window <= self.reread[0] and batch_id <= self.reread[1]

    def _control(self, control: ControlRow) -> None:
        if control.kind == ControlKind.RUN_START:
            if control.batch_id > self.reread[1] and control.run_id not in self.runs:
                self.runs[control.run_id] = Run(
                    gatherer=self.gatherer,
                    run_id=control.run_id,
                    connection=control.conn_id << 16 | control.sid & 0xFFFF,
                    channel=_channel(control.detail.get("channel")),
                    fresh=control.detail.get("start") != "gap",
                    first_seq=control.seq,
                    last_received_ns=control.received_ns,
                    started_ns=control.received_ns,
                )
        elif control.kind == ControlKind.GATHERER_END:
            self.ended = True
        elif control.kind == ControlKind.CONN_OPEN:
            self.ended = False

    def _run(self, run_id: int, received_ns: int) -> Run:
        """The run of a row; a row whose run_start was never seen gets a run that proves little."""
        run = self.runs.get(run_id)
        if run is None:
            run = self.runs[run_id] = Run(
                gatherer=self.gatherer, run_id=run_id, connection=-run_id, channel="orderbook",
                fresh=True, first_seq=0, last_received_ns=received_ns, started_ns=received_ns,
            )  # fmt: skip
        return run

    def _rows(self, rows: DeltaRows) -> dict[int, tuple[I64, I64]]:
        """Give every row its window; per run: (seq, latest exchange time shown) by arrival."""
        trace: dict[int, tuple[I64, I64]] = {}
        if rows.size == 0:
            return trace
        us, flags, received = rows["exchange_us"], rows["flags"], rows["received_ns"]
        effective = np.empty(rows.size, np.int64)
        timed_us = np.where((flags & UNTIMED) == 0, us, -1)
        held: npt.NDArray[np.bool_] | None = None
        for run_id, mine in by_run(rows["run_id"]):
            last_ns = int(received[mine][-1])
            run = self._run(run_id, last_ns)
            shown = np.maximum.accumulate(np.maximum(timed_us[mine], run.shown_us))
            run.last_received_ns = last_ns
            if shown[-1] < 0:
                waiting = np.zeros(rows.size, np.bool_)
                waiting[mine] = True
                self.held_rows.setdefault(run_id, []).append(picked(rows, np.flatnonzero(waiting)))
                held = waiting if held is None else held | waiting
                continue
            first_us = int(shown[np.argmax(shown >= 0)])
            self._release_rows(run, first_us - self.skew_us)
            self._release_held(run, first_us)
            # What came before the first time belongs to it, as the snapshots do.
            effective[mine] = np.maximum(us[mine], np.maximum(shown, first_us) - self.skew_us)
            # As int64 once: a search for a Python int would widen the whole column each time.
            trace[run_id] = (rows["seq"][mine].astype(np.int64), shown)
            run.shown_us = int(shown[-1])
        if held is not None:
            keep = np.flatnonzero(~held)
            rows, effective = picked(rows, keep), effective[keep]
        self._put(rows, effective // self.window_us)
        return trace

    def _put(self, rows: DeltaRows, window: I64, *, fresh: bool = True) -> None:
        """Let the rows wait for their windows. `fresh`: they came now, later times with them."""
        if not rows.size:
            return
        rows, key, window = self._by_window(rows, self._keys(rows), window, fresh=fresh)
        if rows.size:
            self._note_floating(rows, key, window)
            self.chunks.append(Chunk(rows, key, window))
            for run_id, mine in by_run(rows["run_id"]):
                run = self.runs[run_id]
                run.max_window = max(run.max_window, int(window[mine].max()))

    def _release_rows(self, run: Run, effective_us: int) -> None:
        """Rows of before the run's first time get the window of that time."""
        if self.held_rows and run.run_id in self.held_rows:
            rows = joined(self.held_rows.pop(run.run_id))
            window = max(0, effective_us) // self.window_us
            self._put(rows, np.full(rows.size, window, np.int64), fresh=False)

    def _release_timeless(self, run: Run) -> None:
        """The run never showed a time: when its rows came is all that is known."""
        if run.run_id in self.held_rows:
            self._release_rows(run, int(self.held_rows[run.run_id][0]["received_ns"][0]) // 1_000)

    def release_all(self) -> None:
        """Nothing more will come: let nothing wait for what was never shown."""
        for run_id in sorted(self.held_rows):
            self._release_timeless(self.runs[run_id])

    def _by_window(
        self, rows: DeltaRows, key: I64, window: I64, *, fresh: bool
    ) -> tuple[DeltaRows, I64, I64]:
        """What was not taken before a restart, by (window, market, run), then arrival."""
        order = stable_order(key)
        window = self._monotone(key[order], window[order])
        again = stable_order(window)
        order = again if isinstance(order, slice) else order[again]
        rows, key, window = picked(rows, order), key[order], window[again]
        if fresh:
            self._note_first_seen(rows["received_ns"], window)
        if window[0] <= self.reread[0]:
            new = (window > self.reread[0]) | (rows["batch_id"] > self.reread[1])
            keep = np.flatnonzero(new)
            rows, key, window = picked(rows, keep), key[keep], window[keep]
        if window.size and window[0] <= self.closed:  # their window is closed: they go to the next
            window = np.maximum(window, self.closed + 1)
            order = np.lexsort((key, window))
            rows, key, window = picked(rows, order), key[order], window[order]
        return rows, key, window

    def _keys(self, rows: DeltaRows) -> I64:
        return np.asarray((self._indexes(rows["market_id"]) << 32) | rows["run_id"], np.int64)

    def _indexes(self, market: npt.NDArray[np.int32]) -> I64:
        """The ticker's index for every market id."""
        top = int(market.max())
        if top < _TABLE_MAX and int(market.min()) >= 0:
            used = np.flatnonzero(np.bincount(market, minlength=top + 1))
            index = np.zeros(top + 1, np.int64)
            index[used] = [self.ids[i] for i in used.tolist()]
            return index[market]
        ids, inverse = np.unique(market, return_inverse=True)
        return np.array([self.ids[i] for i in ids.tolist()], np.int64)[inverse]

    def _monotone(self, key: I64, window: I64) -> I64:
        """INV-W1: the window of a row is not before that of the row before it in its pair."""
        starts = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
        keys = key[starts].tolist()
        floors = np.array([self.floors.get(k, 0) for k in keys], np.int64)
        window[starts] = np.maximum(window[starts], floors)
        if (window[1:] < window[:-1])[key[1:] == key[:-1]].any():
            group = np.cumsum(np.concatenate(([0], key[1:] != key[:-1]))).astype(np.int64) << 34
            window = np.maximum.accumulate(window + group) - group
        stops = np.concatenate((starts[1:], [key.size])) - 1
        self.floors.update(zip(keys, window[stops].tolist(), strict=True))
        return window

    def _note_first_seen(self, received: I64, window: I64) -> None:
        """`window` ascends."""
        latest = int(window[-1])
        if latest <= self.max_window:
            return
        earliest = np.minimum.accumulate(received[::-1])[::-1]  # of this window's rows and later
        for w in np.unique(window[window > self.max_window]).tolist():
            self.first_seen[w] = int(earliest[np.searchsorted(window, w)])
        self.max_window = latest

    def _note_floating(self, rows: DeltaRows, key: I64, window: I64) -> None:
        floating = (rows["flags"] & FLOATING) != 0
        if not floating.any():
            return
        keys, first = np.unique(key[floating], return_index=True)
        windows, received = window[floating][first], rows["received_ns"][floating][first]
        for k, w, r in zip(keys.tolist(), windows.tolist(), received.tolist(), strict=True):
            if k not in self.anchors:
                self.floats.setdefault(k, (w, r))

    def _release_held(self, run: Run, shown_us: int) -> None:
        """The run showed its first exchange time: its snapshots before it can have a window."""
        if run.shown_us >= 0 or shown_us < 0 or not (self.held or self.held_ends):
            return
        window = max((shown_us - self.skew_us) // self.window_us, 0)
        mine = [s for s in self.held if s.row.run_id == run.run_id]
        self.held = [s for s in self.held if s.row.run_id != run.run_id]
        for item in mine:
            item.window = max(window, self.closed + 1)
            run.max_window = max(run.max_window, item.window)
            if not self._is_reread(window, item.row.batch_id):
                self.snapshots.append(item)
        ends = [e for e in self.held_ends if e.run_id == run.run_id]
        self.held_ends = [e for e in self.held_ends if e.run_id != run.run_id]
        for end in ends:
            self._end_market(end, window)

    def _snapshots(
        self,
        snapshots: list[SnapshotRow],
        before: dict[int, int],
        trace: dict[int, tuple[I64, I64]],
    ) -> None:
        for row in snapshots:
            run = self._run(row.run_id, row.received_ns)
            run.last_received_ns = max(run.last_received_ns, row.received_ns)
            key = pair_key(self.ids[row.market_id], row.run_id)
            item = SnapItem(key, 0, row)
            if row.verdict == SnapshotVerdict.ANCHOR:
                self.floats.pop(key, None)
                self.anchors.setdefault(key, row)
            shown_us = before.get(row.run_id, -1)
            if row.run_id in trace:
                seqs, shown = trace[row.run_id]
                at = int(seqs.searchsorted(row.seq))
                # A snapshot before the run's first time gets its window from that time.
                shown_us = int(shown[at - 1]) if at else shown_us
                if shown_us < 0 and shown[-1] >= 0:
                    shown_us = int(shown[np.argmax(shown >= 0)])
            if shown_us < 0:
                self.held.append(item)
                continue
            shown_window = (shown_us - self.skew_us) // self.window_us
            window = max(shown_window, self._own_window(key, row.seq), 0)
            if self._is_reread(window, row.batch_id):
                self.anchors.pop(key, None)
                continue
            item.window = max(window, self.closed + 1)
            run.max_window = max(run.max_window, item.window)
            self.snapshots.append(item)

    def _own_window(self, key: int, seq: int) -> int:
        """Window of the pair's latest row up to `seq` (a reset's row has its snapshot's seq)."""
        for chunk in reversed(self.chunks):
            window = chunk.window_of(key, seq)
            if window >= 0:
                return window
        return 0

    def _closing(
        self, control: ControlRow, before: dict[int, int], trace: dict[int, tuple[I64, I64]]
    ) -> None:
        run = self.runs.get(control.run_id)
        if run is None:
            return  # read again after a restart: dealt with before it
        if control.kind == ControlKind.RUN_END:
            run.ended = True
            self._release_timeless(run)
            self.floats = {k: v for k, v in self.floats.items() if k & LOW != run.run_id}
            window = max(run.max_window, self.closed + 1)
            self.ends.append(_end_of(control, -1, window, -1))
            return
        key = pair_key(self.ids[control.market_id], control.run_id)
        # Up to its place in the sequence, not to the end of what was read with it (INV-R1).
        shown_us, first_us = before.get(control.run_id, -1), -1
        if control.run_id in trace:
            seqs, shown = trace[control.run_id]
            at = int(seqs.searchsorted(control.seq, side="right"))
            shown_us = int(shown[at - 1]) if at else shown_us
            first_us = int(shown[np.argmax(shown >= 0)])
        end = _end_of(control, key, 0, shown_us)
        window = self._own_window(key, control.seq)
        if shown_us >= 0 or window:
            self._end_market(end, max(window, (shown_us - self.skew_us) // self.window_us))
        elif first_us >= 0:  # as the snapshots before the run's first time
            self._end_market(end, max((first_us - self.skew_us) // self.window_us, 0))
        else:
            self.held_ends.append(end)

    def _end_market(self, end: EndItem, window: int) -> None:
        """The market's claim in its run ends in this window, unless that was dealt with before."""
        if not self._is_reread(window, end.batch_id):
            end.window = max(window, self.closed + 1)
            self.ends.append(end)

    def lapsed(self, taken: Container[int]) -> list[EndItem]:
        """Takes out the ends of runs that are over and have shown nothing: no window is theirs, and
        none must be made for them (INV-R1). `taken`: runs of which a window took something."""
        found = [
            e
            for e in self.ends
            if e.key < 0
            and e.run_id not in taken
            and self.runs[e.run_id].shown_us < 0
            and not self.runs[e.run_id].max_window
        ]
        gone = {id(e) for e in found}
        self.ends = [e for e in self.ends if id(e) not in gone]
        return found

    def subscribed_untimed(self, run_id: int) -> list[int]:
        """Markets (by index) of which a run that has shown no time yet had a snapshot, without
        those that left the subscription after it."""
        shown = {s.key: s.row.seq for s in self.held if s.row.run_id == run_id}
        left = {e.key: e.seq for e in self.held_ends if e.run_id == run_id}
        return [key >> 32 for key, seq in sorted(shown.items()) if left.get(key, -1) < seq]

    def _trades_and_tickers(self, batch: GathererBatch) -> None:
        trades, window = self._with_windows(batch.trades, _found_us(batch.controls))
        if trades.size:
            for run_id, mine in by_run(trades["run_id"]):
                run = self.runs.get(run_id)
                if run is not None:  # its end must not be taken before its trades
                    run.max_window = max(run.max_window, int(window[mine].max()))
        self.trades.add(trades, window)
        self.tickers.add(*self._with_windows(batch.tickers))

    def _with_windows(
        self, rows: npt.NDArray[np.void], found_us: Mapping[int, int] = NOTHING
    ) -> tuple[npt.NDArray[np.void], I64]:
        """The rows that were not taken before a restart, by market index; the window of each.

        `found_us`: of runs that REST told of, the exchange's time when it did. Their rows belong to
        that window: their own has closed, and which one is next depends on when it is asked.
        """
        window = rows["exchange_us"] // self.window_us
        for run_id, mine in by_run(rows["run_id"]) if found_us and rows.size else ():
            window[mine] = np.maximum(window[mine], found_us.get(run_id, 0) // self.window_us)
        if rows.size and window.min() <= self.reread[0]:
            new = (window > self.reread[0]) | (rows["batch_id"] > self.reread[1])
            keep = np.flatnonzero(new)
            rows, window = picked(rows, keep), window[keep]
        if rows.size:
            rows = copied(rows)  # the batch stays as it was read
            rows["market_id"] = self._indexes(rows["market_id"])
        return rows, np.maximum(window, self.closed + 1)

    # -- asking ----------------------------------------------------------------------------------

    def next_window(self) -> int | None:
        """The earliest window that anything waits for."""
        windows = [c.next_window for c in self.chunks]
        windows += [s.window for s in self.snapshots] + [e.window for e in self.ends]
        for waiting in (self.trades.next_window, self.tickers.next_window):
            if waiting is not None:
                windows.append(waiting)
        return min(windows, default=None)

    def reread_from(self) -> int:
        """First batch with something that no window has taken."""
        if self.behind:
            return self.resume_from
        batches = [c.oldest_batch for c in self.chunks]
        batches += [s.row.batch_id for s in self.snapshots] + [s.row.batch_id for s in self.held]
        batches += [e.batch_id for e in self.ends] + [e.batch_id for e in self.held_ends]
        batches += [int(rows[0]["batch_id"][0]) for rows in self.held_rows.values()]
        for waiting in (self.trades.oldest_batch, self.tickers.oldest_batch):
            if waiting is not None:
                batches.append(waiting)
        return min(batches, default=self.seen_batch + 1)

    # -- cutting ---------------------------------------------------------------------------------

    def cut(self, window: int) -> Cut:
        """Take everything up to and with `window`."""
        taken = [found for c in self.chunks if (found := c.take(window)) is not None]
        self.chunks = [c for c in self.chunks if not c.used_up]
        cut = Cut(*_merged(taken), self.trades.take(window), self.tickers.take(window))
        cut.snapshots = self._cut_snapshots(window)
        cut.ends = sorted(
            (e for e in self.ends if e.window <= window), key=lambda e: (e.run_id, e.seq, e.key)
        )
        self.ends = [e for e in self.ends if e.window > window]
        self.closed = window
        for w in [w for w in self.first_seen if w <= window]:
            del self.first_seen[w]
        for key in [k for k, (w, _) in self.floats.items() if w <= window]:
            self.floats[key] = (window + 1, self.floats[key][1])
        return cut

    def _cut_snapshots(self, window: int) -> dict[int, list[SnapItem]]:
        taken: dict[int, list[SnapItem]] = {}
        left = []
        for item in self.snapshots:
            if item.window <= window:
                taken.setdefault(item.key, []).append(item)
                self.anchors.pop(item.key, None)
            else:
                left.append(item)
        self.snapshots = left
        for items in taken.values():
            items.sort(key=lambda s: s.row.seq)
        return taken

    def forget(self, run: Run, markets: list[int]) -> None:
        """The run is over and taken: nothing of it comes any more."""
        self.runs.pop(run.run_id, None)
        for market in markets:
            key = pair_key(market, run.run_id)
            self.floors.pop(key, None)
            self.floats.pop(key, None)
            self.anchors.pop(key, None)
        self.held = [s for s in self.held if s.row.run_id != run.run_id]
        self.held_ends = [e for e in self.held_ends if e.run_id != run.run_id]


def _end_of(control: ControlRow, key: int, window: int, shown_us: int) -> EndItem:
    return EndItem(
        control.run_id, key, window, control.seq, control.batch_id, control.reason, shown_us
    )


def _found_us(controls: Iterable[ControlRow]) -> dict[int, int]:
    """run_id of trades that came by REST -> the exchange's time when they did."""
    return {c.run_id: c.exchange_us for c in controls if c.kind == ControlKind.REST_TRADES}


def _channel(name: object) -> str:
    return "orderbook" if name in (None, "orderbook", "orderbook_delta") else str(name)


def _merged(taken: list[Part]) -> Part:
    if not taken:
        return np.empty(0, DELTA_ROW), np.empty(0, np.int64), np.empty((0, 2), np.uint64)
    if len(taken) == 1:
        return taken[0]
    key = np.concatenate([part[1] for part in taken])
    order = np.argsort(key, kind="stable")
    rows, marks = joined([part[0] for part in taken]), np.concatenate([part[2] for part in taken])
    return picked(rows, order), key[order], marks[order]
