"""INV-R3, INV-O2: arbiters that share the markets give together what one alone gives."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dedup.arbitrate import Arbiter
from dedup.items import Cut
from dedup.output import ArbiterSettings, WindowOutput
from dedup.owned import Owned
from dedup.window import RunTimes
from marketdata.rows import BATCH_TICKER, BATCH_TRADE, DELTA_ROW, GathererBatch
from marketdata.share import Share
from tests.gatherer_rows import make_stream, record

SETTINGS = ArbiterSettings(window_us=1_000_000, patience_ns=10**18)


def recordings(seed: int) -> list[list[GathererBatch]]:
    stream = make_stream(seed, markets=9, events=1_500, mean_gap_us=40_000)
    return [record(stream, g, seed=seed, gaps=4, disconnects=3) for g in range(3)]


def outputs_of(
    batches: list[list[GathererBatch]], share: Share, restart: int = -1
) -> list[WindowOutput]:
    """All outputs; the arbiter is loaded anew from what it gave after `restart` of them."""
    settings = replace(SETTINGS, share=share)
    arbiter = Arbiter(3, settings)
    made: list[WindowOutput] = []
    tails: dict[str, bytes] = {}
    named: dict[str, bytes] = {}

    def feed(from_batch: list[int]) -> bool:
        for turn in range(max(map(len, batches))):
            for g in range(3):
                if turn < len(batches[g]) and batches[g][turn].last_batch_id >= from_batch[g]:
                    arbiter.absorb(batches[g][turn])
            while (output := arbiter.step(final=False)) is not None:
                made.append(output)
                tails.update(output.market_states)
                for name, state in output.named_states.items():
                    if state is None:
                        named.pop(name, None)
                    else:
                        named[name] = state
                if len(made) == restart:
                    return False
        return True

    if not feed([0, 0, 0]):
        at = made[-1].positions
        arbiter = Arbiter.load(3, settings, tails, named, at)
        restart = -1
        feed([p.reread_from_batch for p in sorted(at, key=lambda p: p.gatherer)])
    while (output := arbiter.step(final=True)) is not None:
        made.append(output)
    return made


def by_market(outputs: list[WindowOutput]) -> dict[str, list[Any]]:
    """Everything of the outputs by ticker, window after window."""
    made: dict[str, list[Any]] = {}
    for o in outputs:
        for kind in ("deltas", "trades", "late_trades", "ticker_rows"):
            rows = getattr(o, kind)
            column = "market_id" if kind == "deltas" else "market"
            for index in np.unique(rows[column]).tolist():
                some = rows[rows[column] == index].copy()
                some[column] = 0
                found = made.setdefault(o.tickers[index], [])
                found.append((o.window, kind, some.tobytes()))
        for s in o.snapshots:
            made.setdefault(o.tickers[s.market], []).append((o.window, replace(s, market=0)))
        for kind in ("epochs", "gaps", "claims", "marks", "audits"):
            for row in getattr(o, kind):
                made.setdefault(row.ticker, []).append((o.window, row))
        for q in o.quarantine:
            told = (o.window, q.gatherer, q.run_id, q.reason, q.from_us, q.to_us, q.n_rows)
            made.setdefault(q.ticker, []).append(told)
        for ticker, state in o.market_states.items():
            made.setdefault(ticker, []).append((o.window, state))
    return made


def counts(outputs: list[WindowOutput]) -> Counter[str]:
    made: Counter[str] = Counter()
    for o in outputs:
        made.update(o.counts)
    return made


@pytest.mark.parametrize(("seed", "of"), [(1, 2), (2, 3)])
def test_several_give_together_what_one_gives(seed: int, of: int) -> None:
    batches = recordings(seed)
    whole = outputs_of(batches, Share())
    parts = [outputs_of(batches, Share(n, of)) for n in range(1, of + 1)]
    mine = [by_market(part) for part in parts]
    together = {ticker: found for part in mine for ticker, found in part.items()}
    assert sum(len(part) for part in mine) == len(together)
    assert min(len(part) for part in mine) > 0
    assert together == by_market(whole)
    added: Counter[str] = Counter()
    for part in parts:
        added.update(counts(part))
        assert [(o.window, o.progress) for o in part] == [(o.window, o.progress) for o in whole]
        assert [o.positions for o in part] == [o.positions for o in whole]
    assert added == counts(whole)
    assert counts(whole)["gaps"] + counts(whole)["duplicate_rows"] > 500


@pytest.mark.parametrize("restart", [25])
def test_one_that_starts_again_gives_the_same(restart: int) -> None:
    batches = recordings(4)
    for number in (1, 2):
        whole = outputs_of(batches, Share(number, 2))
        again = outputs_of(batches, Share(number, 2), restart)
        assert len(whole) > 30
        assert by_market(again) == by_market(whole)
        assert [o.progress for o in again] == [o.progress for o in whole]


def test_evidence_of_our_own_rows_alone_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: dropping the others' rows before the evidence gives other claims."""
    batches = recordings(1)
    whole = by_market(outputs_of(batches, Share()))
    advance = RunTimes.advance

    def blind(self: RunTimes, tickers: list[str]) -> Any:
        owned = Owned(Share(1, 2))
        for ticker in tickers:
            owned.add(ticker)
        self.cuts = [owned.part_of(cut) for cut in self.cuts]
        return advance(self, tickers)

    monkeypatch.setattr(RunTimes, "advance", blind)
    part = by_market(outputs_of(batches, Share(1, 2)))
    assert any(part[ticker] != whole[ticker] for ticker in part)


def test_a_merger_alone_copies_nothing() -> None:
    owned = Owned(Share())
    owned.add("A")
    rows = np.zeros(3, DELTA_ROW)
    none = np.empty(0, BATCH_TRADE), np.empty(0, BATCH_TICKER)
    cut = Cut(rows, np.zeros(3, np.int64), np.zeros((3, 2), np.uint64), *none)
    assert owned.part_of(cut) is cut
    assert owned.rows(rows, "market_id") is rows
    assert list(owned.others_in(cut)) == []
