"""Feed arbitration: several recordings in, one tape with proof out. Pure: no I/O, no clock.

How it is used (shapes are in dedup.output and marketdata.coverage):

    arbiter = Arbiter(n_gatherers, ArbiterSettings())  # or Arbiter.load(...) after a restart
    arbiter.absorb(batch)                              # in batch order per gatherer
    arbiter.nothing_new(gatherer)                      # asked; there was nothing, or no answer
    arbiter.had_nothing(gatherer, shown_ns)            # asked at arbiter.shown_ns; was nothing
    output = arbiter.step(final=False)                 # WindowOutput, or None = wait
    arbiter.waiting_for                                # list[str]: why it waits

    Arbiter.load(n_gatherers, settings, market_states, named_states, positions)
        market_states: dict[ticker, bytes], named_states: dict[name, bytes], positions as published

`step` is called until it gives None. `final=True`: every gatherer has said everything; nothing is
waited for, and once step gives None everything absorbed is published. `counts` of an output are
increments; their names are COUNTS. rows_in = merged_rows + duplicate_rows + quarantined_rows +
skipped_rows holds over each output, rows being order-book delta rows of gatherers.

Invariants: INV-R1 outputs do not depend on how batches were read. INV-R2 a restarted arbiter that
absorbs again from `reread_from_batch` on gives the same further outputs, byte for byte; it closes
nothing while only a part of that is here. INV-R3
several arbiters that share the markets (settings.share) close the same windows, and what they give
of a market is what one alone gives; what they say of runs they say alike.

What may differ between several and one: each proves the exchange's times and replies (evidence) by
its own markets, so a proof can come a little later.

Does not do: placing of runs (marketdata.merge), waiting rules (gate.py).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from dedup.beginnings import first_rows, first_snapshots
from dedup.columns import by_run, joined, picked, stable_order
from dedup.fast import Bunch, FastPath
from dedup.gate import Patience, closed_by, reasons_to_wait
from dedup.inflow import Inflow
from dedup.items import LOW, Cut, EndItem
from dedup.markets import Context, MarketWindow
from dedup.naive import naive_blocks
from dedup.output import ArbiterSettings, MergedSnapshot, WindowOutput
from dedup.runs import OPEN_US, Market, Run, Standing
from dedup.state import ArbiterState, RunKey
from dedup.tails import gatherer_pairs
from dedup.union import (
    Bits,
    Memory,
    encode_keys,
    gathered,
    trades_once,
    union_tickers,
    union_trades,
)
from dedup.window import PairRows, RunTimes, WindowSink
from marketdata.coverage import TRADE, RunProgress
from marketdata.errors import StorageError
from marketdata.evidence import Seen
from marketdata.rows import (
    MERGED_ROW,
    GathererBatch,
    SnapshotRow,
    TickerRows,
    TradeRows,
)

COUNTS: Final = (
    "rows_in",
    "merged_rows",  # rows that became the first witness of a merged event
    "duplicate_rows",  # proven further witnesses of a merged event
    "quarantined_rows",
    "skipped_rows",  # repeats of one (run, seq)
    "merged_events",
    "ambiguous_events",
    "disputed_events",
    "gaps",
    "book_equal_gaps",
    "audits",
    "audits_failed",
    "late_rows",  # of quarantined_rows
    "mode_exact",  # placements of a run by rule 10's first, second and third mode
    "mode_window",
    "mode_groups",
    "mode_changes",  # a pair of gatherers fell back to another mode, or came back: an alert
    "replies_withdrawn",  # a get_snapshot reply differed, and they had been proven: an alert
    "trades_in",
    "trades",
    "tickers_in",
    "tickers",
    "late_trades",  # too late to tell from a repeat here: the publisher looks their ids up
    "late_tickers",  # too late to tell from a repeat: kept aside
)


class BeginAgainError(StorageError):
    """What is read again after a restart counts whole or not at all (INV-W4): this arbiter is of no
    more use. The next one goes on from what was published, without the gatherer."""

    reason = "half_read_again"


class Arbiter(ArbiterState):
    """Merges what the gatherers delivered, window by window."""

    def __init__(self, n_gatherers: int, settings: ArbiterSettings) -> None:
        super().__init__(n_gatherers, settings)
        self.waiting_for: list[str] = []
        self.patience = Patience(n_gatherers, settings)

    # -- input -------------------------------------------------------------------------------------

    def absorb(self, batch: GathererBatch) -> None:
        """Take a gatherer's next batch in. Batches of one gatherer come in order."""
        inflow = self.inflows[batch.gatherer]
        for market_id, ticker in batch.markets.items():
            inflow.ids[market_id] = self._index(ticker)
            self._new_ids[batch.gatherer] = True
        inflow.absorb(batch)
        taken = {run_id for gatherer, run_id in self.carried if gatherer == batch.gatherer}
        for end in inflow.lapsed(taken):
            self._forget_run(inflow, end)
        self.patience.delivered(batch.gatherer)

    def nothing_new(self, gatherer: int) -> None:
        """The gatherer was asked, and had nothing or did not answer."""
        self.patience.nothing_new(gatherer, self.inflows)

    @property
    def shown_ns(self) -> int:
        """The latest receive time that any gatherer has shown."""
        return max(i.max_received_ns for i in self.inflows)

    def had_nothing(self, gatherer: int, shown_ns: int) -> None:
        """The gatherer answered that there is nothing; it was asked when this was `shown_ns`. Until
        then windows wait even for one that ended: it may have begun again."""
        self.patience.had_nothing(gatherer, shown_ns)

    def leave_out(self, gatherer: int) -> None:
        """The gatherer does not answer: windows close without it until it delivers."""
        self.patience.left_out.add(gatherer)

    @property
    def reading_again(self) -> list[int]:
        """Gatherers that had delivered more before a restart than is here: waited for."""
        out = self.patience.left_out
        return [i.gatherer for i in self.inflows if i.behind and i.gatherer not in out]

    # -- one window --------------------------------------------------------------------------------

    def step(self, *, final: bool = False) -> WindowOutput | None:
        """Close the next window if it may be closed.

        Raises:
            BeginAgainError: it must close without a gatherer that is only half read again.
        """
        for inflow in self.inflows if final else ():
            inflow.all_here()
            inflow.release_all()
        if self.reading_again:
            self.waiting_for = [
                f"gatherer {g + 1} is read again after a restart" for g in self.reading_again
            ]
            return None
        windows = [w for w in (i.next_window() for i in self.inflows) if w is not None]
        if not windows:
            self.waiting_for = ["nothing is waiting"]
            return None
        window = min(windows)
        if not final:
            self.waiting_for = reasons_to_wait(self.inflows, window, self.patience)
            if self.waiting_for:
                return None
        self.waiting_for = []
        halfway = [i.gatherer + 1 for i in self.inflows if i.halfway]
        if halfway:
            raise BeginAgainError(f"gatherers {halfway} went away while they were read again")
        reason = closed_by(self.inflows, window, self.patience, final=final)
        output = self._close(window)
        output.closed_by = reason
        return output

    def _close(self, window: int) -> WindowOutput:
        size = self.settings.window_us
        output = WindowOutput(window, window * size, (window + 1) * size)
        cuts = [inflow.cut(window) for inflow in self.inflows]
        sink = WindowSink()
        times = RunTimes(self.settings, self.inflows, cuts)
        moved = times.advance(self.tickers)
        moved |= self._advance_trades(cuts)
        runs = {(i.gatherer, run_id): run for i in self.inflows for run_id, run in i.runs.items()}
        self._find_heirs(runs)
        mine = [self._mine(g, cut) for g, cut in enumerate(cuts)]
        touched = self._merge_markets(window, mine, times, sink, runs)
        trades = self._union_trades(output, sink, cuts, window)
        states = self._union_tickers(output, sink, cuts, window)
        self._progress(output, times, moved, runs)
        self._forget_runs(cuts)
        self._fill(output, sink, cuts, trades, states)
        self._states(output, touched, window)
        return output

    def _mine(self, gatherer: int, cut: Cut) -> Cut:
        """What is left of a cut when everything that takes the others' markets was done with it."""
        for key in self.owned.others_in(cut):
            self.carried.setdefault((gatherer, key & LOW), {})[self.tickers[key >> 32]] = None
        return self.owned.part_of(cut)

    def _merge_markets(
        self,
        window: int,
        cuts: list[Cut],
        times: RunTimes,
        sink: WindowSink,
        runs: dict[RunKey, Run],
    ) -> set[str]:
        """Every market that anything happened to; returns them."""
        to_us = (window + 1) * self.settings.window_us
        exact = self.evidence.exact(gatherer_pairs(set(range(len(self.inflows)))), Seen())
        kept_us = OPEN_US if exact else to_us - 2 * self.settings.match_window_us
        fast = FastPath(cuts, sink, kept_us)
        fast.prepare()
        for index, found in fast.bunches.items():
            for b in found:
                self.carried.setdefault((b.gatherer, b.run_id), {})[self.tickers[index]] = None
        special = self._special_markets(cuts, times, runs)
        inherited = self._inheritances(runs.values())
        context = Context(
            settings=self.settings,
            window=window,
            to_us=to_us,
            times=times,
            sink=sink,
            runs=runs,
            n_markets={k: len(self.carried.get(k, {}).keys() | inherited[k]) for k in runs},
            inherits=lambda run, ticker: ticker in inherited[(run.gatherer, run.run_id)],
            unclaimed=self.unclaimed,
            evidence=self.evidence,
            seen=Seen(),
            kept_us=kept_us,
        )
        touched = {self.tickers[i] for i in fast.bunches.keys() | special.keys()}
        for ticker in sorted(touched):
            index = self.index[ticker]
            market = self.markets.get(ticker)
            if market is None:
                market = self.markets[ticker] = Market(ticker)
            reasons = special.get(index, set())
            if self._taken_in_bulk(market, index, reasons, fast, context, cuts):
                continue
            given, ahead = self._given(market, index, fast.bunches.get(index, []), cuts, runs)
            MarketWindow(market, index, context).run(given, ahead)
            self._note_unsettled(market)
        fast.finish()
        for equal, events in fast.equal().items():
            context.seen.equal([(g, runs[(g, run_id)].connection) for g, run_id in equal], events)
        sink.changes = self.evidence.close(window, context.seen)
        if self.settings.merge == "content":
            naive_blocks(sink, cuts, self.tickers, self.naive)
        return touched

    def _taken_in_bulk(
        self,
        market: Market,
        index: int,
        reasons: set[str],
        fast: FastPath,
        context: Context,
        cuts: list[Cut],
    ) -> bool:
        """Do what needs no decision; False: nothing was done."""
        if index not in fast.bunches:
            if reasons != {"snapshots"}:
                return False
            shown = [
                (context.runs[(g, run_id)], [s.row for s in cut.snapshots[index << 32 | run_id]])
                for g, cut in enumerate(cuts)
                for run_id in sorted(self._runs_with_snapshots(cut, index))
            ]
            return first_snapshots(market, index, shown, context)
        if reasons == {"claims"}:
            return first_rows(market, index, fast, context)
        if not reasons:
            return fast.take(market, index)
        if reasons == {"ends"} and fast.take(market, index):
            MarketWindow(market, index, context).run([], {})
            return True
        return False

    def _special_markets(
        self, cuts: list[Cut], times: RunTimes, runs: dict[RunKey, Run]
    ) -> dict[int, set[str]]:
        """Markets to which something happened besides rows, and what."""
        special: dict[int, set[str]] = {self.index[t]: {"unsettled"} for t in self.unsettled}

        def note(index: int, reason: str) -> None:
            special.setdefault(index, set()).add(reason)

        for inflow, cut in zip(self.inflows, cuts, strict=True):
            g = inflow.gatherer
            for key in cut.snapshots:
                note(key >> 32, "snapshots")
                self.carried.setdefault((g, key & LOW), {})[self.tickers[key >> 32]] = None
            for end in cut.ends:
                if end.key >= 0:
                    note(end.key >> 32, "ends")
                else:
                    for ticker in self.carried.get((g, end.run_id), {}):
                        if self.owned[self.index[ticker]]:
                            note(self.index[ticker], "ends")
        for run_key, waiting in self.unclaimed.items():
            for ticker, seq in waiting.items():
                index = self.index[ticker]
                if times.claim_start(runs[run_key], index, ticker, seq) >= 0:
                    note(index, "claims")
        return special

    def _given(
        self,
        market: Market,
        index: int,
        found: list[Bunch],
        cuts: list[Cut],
        runs: dict[RunKey, Run],
    ) -> tuple[list[PairRows], dict[RunKey, SnapshotRow]]:
        """Rows and snapshots of one market by run, and first snapshots that lie further ahead."""
        rows = {(b.gatherer, b.run_id): cuts[b.gatherer].rows[b.start : b.stop] for b in found}
        ahead: dict[RunKey, SnapshotRow] = {}
        keys = set(rows) | {(p.gatherer, p.run_id) for p in market.pairs if p.held}
        for g, cut in enumerate(cuts):
            keys |= {(g, run_id) for run_id in self._runs_with_snapshots(cut, index)}
        given = []
        for g, run_id in sorted(keys):
            key = index << 32 | run_id
            snaps = [s.row for s in cuts[g].snapshots.get(key, ())]
            part = rows.get((g, run_id), cuts[g].rows[:0])
            given.append(PairRows(runs[(g, run_id)], part, snaps))
            anchor = self.inflows[g].anchors.get(key)
            if anchor is not None:
                ahead[(g, run_id)] = anchor
        return given, ahead

    @staticmethod
    def _runs_with_snapshots(cut: Cut, index: int) -> list[int]:
        if cut.by_market is None:
            cut.by_market = {}
            for key in cut.snapshots:
                cut.by_market.setdefault(key >> 32, []).append(key & LOW)
        return cut.by_market.get(index, [])

    def _note_unsettled(self, market: Market) -> None:
        """Quiet runs without a place and runs that are behind are looked at in every window."""
        open_questions = any(
            (p.standing == Standing.PENDING and p.claim_from_us >= 0)
            or (p.standing == Standing.PINNED and p.position < market.count)
            or p.held
            for p in market.pairs
        )
        (self.unsettled.add if open_questions else self.unsettled.discard)(market.ticker)

    # -- evidence of runs --------------------------------------------------------------------------

    def _advance_trades(self, cuts: list[Cut]) -> set[RunKey]:
        moved: set[RunKey] = set()
        for inflow, cut in zip(self.inflows, cuts, strict=True):
            if not cut.trades.size:
                continue
            for run_id, mine in by_run(cut.trades["run_id"]):
                run = inflow.runs.get(run_id)
                if run is None:
                    continue
                us = cut.trades["exchange_us"][mine]
                if run.first_us < 0:
                    run.first_us = int(us[cut.trades["seq"][mine].argmin()])
                latest = int(us.max())
                if latest > run.z_us:
                    run.z_us = latest
                    moved.add((inflow.gatherer, run_id))
        return moved

    def _progress(
        self, output: WindowOutput, times: RunTimes, moved: set[RunKey], runs: dict[RunKey, Run]
    ) -> None:
        ended = {(g, run_id): end.reason for (g, run_id, m), end in times.ends.items() if m < 0}
        for key in sorted(moved | set(ended)):
            run = runs.get(key)
            if run is None or run.z_us < 0:
                continue
            alone = run.channel != TRADE and len(self.carried.get(key, ())) <= 1
            margin = 0 if alone else self.settings.engine_skew_us
            from_us = run.first_us + 1 + margin
            output.progress.append(
                RunProgress(
                    run.gatherer, run.run_id, run.channel, from_us,
                    max(run.z_us - margin, from_us), key in ended, ended.get(key, ""),
                )
            )  # fmt: skip

    def _forget_runs(self, cuts: list[Cut]) -> None:
        for inflow, cut in zip(self.inflows, cuts, strict=True):
            for end in cut.ends:
                if end.key >= 0:
                    carried = self.carried.get((inflow.gatherer, end.run_id), {})
                    carried.pop(self.tickers[end.key >> 32], None)
                    continue
                self._forget_run(inflow, end)

    def _forget_run(self, inflow: Inflow, end: EndItem) -> None:
        """The whole run is over, and everything of it was taken."""
        key = (inflow.gatherer, end.run_id)
        # No window took its snapshots where it showed no time: its markets were subscribed.
        for index in inflow.subscribed_untimed(end.run_id):
            self.carried.setdefault(key, {})[self.tickers[index]] = None
        markets = [self.index[t] for t in self.carried.get(key, {})]
        self.unclaimed.pop(key, None)
        run = inflow.runs[end.run_id]
        if end.reason == "gap":
            self._bequeath(run)
        else:
            self.heirless.pop((run.gatherer, run.connection), None)
        self.heritage.pop(key, None)
        self.carried.pop(key, None)
        inflow.forget(run, markets)

    # -- output ------------------------------------------------------------------------------------

    def _fill(
        self,
        output: WindowOutput,
        sink: WindowSink,
        cuts: list[Cut],
        trades: TradeRows,
        states: TickerRows,
    ) -> None:
        rows = joined(sink.blocks) if sink.blocks else np.empty(0, MERGED_ROW)
        late = output.late_trades
        named = np.concatenate(
            (rows["market_id"], trades["market"], states["market"], late["market"])
        )
        present = np.flatnonzero(np.bincount(named)).tolist()
        output.tickers = sorted(
            {s.ticker for s in sink.snapshots} | {self.tickers[i] for i in present}
        )
        place = {ticker: n for n, ticker in enumerate(output.tickers)}
        table = np.zeros(max(present, default=0) + 1, np.int32)
        table[present] = [place[self.tickers[i]] for i in present]
        rows["market_id"] = table[rows["market_id"]]
        output.deltas = picked(rows, stable_order(rows["market_id"]))
        output.snapshots = [
            MergedSnapshot(
                place[s.ticker], s.epoch, s.position, s.exchange_us, s.received_ns, s.book_hash,
                s.levels, s.sources,
            )
            for s in sorted(sink.snapshots, key=lambda s: (s.ticker, s.epoch, s.position))
        ]  # fmt: skip
        # The unions ascend by identity: what follows puts that behind market and time.
        for part in (trades, states, late):
            part["market"] = table[part["market"]]
        output.trades = picked(trades, np.lexsort((trades["exchange_us"], trades["market"])))
        output.ticker_rows = picked(states, stable_order(states["market"]))
        output.epochs = sorted(sink.epochs, key=lambda e: (e.ticker, e.epoch))
        output.gaps = sorted(sink.gaps, key=lambda e: (e.ticker, e.epoch))
        output.quarantine = sorted(
            sink.quarantine, key=lambda q: (q.ticker, q.from_us, q.gatherer, q.run_id, q.reason)
        )
        output.claims = [claim for _, claim in sorted(sink.claims.items())]
        output.marks = sorted(
            sink.marks, key=lambda m: (m.ticker, m.from_us, m.to_us, m.kind, m.reason)
        )
        output.audits = sorted(
            sink.audits, key=lambda a: (a.ticker, a.exchange_us, a.gatherer, a.agrees)
        )
        output.changes = sink.changes
        replies = sum(change.subject == "replies" for change in sink.changes)
        sink.counts["replies_withdrawn"] = replies
        sink.counts["mode_changes"] = len(sink.changes) - replies
        sink.counts["trades"], sink.counts["tickers"] = len(trades), len(states)
        owned = self.owned
        sink.counts["trades_in"] = sum(len(owned.rows(c.trades, "market_id")) for c in cuts)
        sink.counts["tickers_in"] = sum(len(owned.rows(c.tickers, "market_id")) for c in cuts)
        output.counts = {name: n for name, n in sorted(sink.counts.items()) if n}

    def _union_trades(
        self, output: WindowOutput, sink: WindowSink, cuts: list[Cut], window: int
    ) -> TradeRows:
        rows, bits = gathered([cut.trades for cut in cuts])
        late = rows["exchange_us"] < (self.trade_keys.floor + 1) * self.settings.window_us
        if late.any():
            sink.counts["late_trades"] += len(self.owned.rows(rows[late], "market_id"))
            self._prove_less(rows[late], bits[late])
            output.late_trades = self.owned.rows(trades_once(rows[late], bits[late]), "market")
            rows, bits = rows[~late], bits[~late]
        made, keys = union_trades(rows, bits, self.trade_keys)
        self._remember(output, "trades", self.trade_keys, window, set(keys))
        return self.owned.rows(made, "market")

    def _union_tickers(
        self, output: WindowOutput, sink: WindowSink, cuts: list[Cut], window: int
    ) -> TickerRows:
        rows, bits = gathered([cut.tickers for cut in cuts])
        late = rows["exchange_us"] < (self.ticker_keys.floor + 1) * self.settings.window_us
        if late.any():
            self._late(sink, rows[late], bits[late])
            rows, bits = rows[~late], bits[~late]
        made, keys = union_tickers(rows, bits, self.ticker_keys, self.tickers)
        self._remember(output, "tickers", self.ticker_keys, window, set(keys))
        return self.owned.rows(made, "market")

    def _late(self, sink: WindowSink, rows: TickerRows, bits: Bits) -> None:
        """Ticker states that are kept aside."""
        found = (rows["market_id"].tolist(), rows["exchange_us"].tolist(), bits.tolist())
        for market, us, bit in zip(*found, strict=True):
            if not self.owned[market]:
                continue
            sink.late(self.tickers[market], bit.bit_length() - 1, 0, us, "tickers")

    def _prove_less(self, rows: TradeRows, bits: Bits) -> None:
        """A run proves nothing of the time of its late trades."""
        found = (rows["run_id"].tolist(), rows["exchange_us"].tolist(), bits.tolist())
        for run_id, us, bit in zip(*found, strict=True):
            run = self.inflows[bit.bit_length() - 1].runs.get(run_id)
            if run is not None:
                run.first_us = max(run.first_us, us)

    def _remember(
        self, output: WindowOutput, name: str, memory: Memory, window: int, keys: set[bytes]
    ) -> None:
        for gone in memory.add(window, keys):
            output.named_states[f"{name}-{gone}"] = None
        if keys:
            output.named_states[f"{name}-{window}"] = encode_keys(keys)


__all__ = ["COUNTS", "Arbiter"]
