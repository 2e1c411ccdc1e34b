"""The first snapshots and the first rows of a market that nothing was known of.

Purpose: markets come by the hundred, with a subscription or with a new day, and all runs that carry
one tell the same of it. Where they do, what has to be done is known beforehand and is done here;
everything else goes through markets.py, which gives the same result (a test compares both).

Invariants: INV-F2 same rows, evidence, state and counts as MarketWindow.

Does not do: anything that needs a decision.
"""

from __future__ import annotations

from collections.abc import Sequence

from dedup.claims import Context, rests_on_reply
from dedup.drafts import MASK, kept
from dedup.fast import FastPath
from dedup.output import EpochRow
from dedup.runs import Market, Pair, Run, Standing
from dedup.window import PlacedSnapshot, open_claim
from marketdata.rows import SnapshotRow, SnapshotVerdict


def first_snapshots(
    market: Market, index: int, shown: Sequence[tuple[Run, list[SnapshotRow]]], context: Context
) -> bool:
    """Snapshots of runs that have not shown an exchange time after them: they wait for it.

    `shown`: all that this window has of the market, by gatherer and run. False: markets.py has to
    do it, and nothing was changed.
    """
    if market.pairs or market.epoch:
        return False
    for run, snapshots in shown:
        snap = snapshots[0]
        if (
            len(snapshots) > 1
            or not run.fresh
            or snap.verdict != SnapshotVerdict.ANCHOR
            or context.times.end_of(run, index) is not None
            or context.times.claim_start(run, index, market.ticker, snap.seq) >= 0
        ):
            return False
    for run, (snap,) in shown:
        h = (snap.book_hash - snap.running_hash) & MASK
        market.pairs.append(
            Pair(
                run.gatherer, run.run_id, run.connection, int(Standing.PENDING), h, snap.seq, h,
                last_seq=snap.seq, claim_seq=snap.seq, keyframe=kept(snap),
            )
        )  # fmt: skip
        waiting = context.unclaimed.setdefault((run.gatherer, run.run_id), {})
        waiting[market.ticker] = snap.seq
    return True


def first_rows(market: Market, index: int, fast: FastPath, context: Context) -> bool:
    """Equal first rows of runs that had shown a snapshot each and no time: the first epoch opens.

    False: markets.py has to do it, and nothing was changed.
    """
    bunches = fast.bunches[index]
    if market.epoch or len(market.pairs) != len(bunches):
        return False
    if bunches[0].last_us >= context.kept_us:
        return False
    starts = []
    for b, pair in zip(bunches, market.pairs, strict=True):
        if (
            (b.gatherer, b.run_id) != (pair.gatherer, pair.run_id)
            or not (b.even and b.like_first)
            or b.first_seq <= pair.last_seq
            or b.h_before != pair.h
            or pair.standing != Standing.PENDING
            or pair.claim_from_us >= 0
            or pair.claim_seq < 0
            or rests_on_reply(pair, pair.claim_seq)
            or pair.keyframe is None
        ):
            return False
        run = context.runs[(b.gatherer, b.run_id)]
        start = context.times.claim_start(run, index, market.ticker, pair.claim_seq)
        if start < 0 or context.times.end_of(run, index) is not None:
            return False
        starts.append((pair, run, start))
    for pair, run, start in starts:
        context.unclaimed.get((pair.gatherer, pair.run_id), {}).pop(market.ticker, None)
        pair.claim_from_us, pair.standing = start, int(Standing.PINNED)
        context.sink.claim(open_claim(market.ticker, run, start))
    first = bunches[0]
    first_us = int(fast.cuts[first.gatherer].rows["exchange_us"][first.start])
    _open(market, first.h_before, min(first_us, *(start for _, _, start in starts)), context)
    fast.put(market, index)
    return True


def _open(market: Market, h_start: int, from_us: int, context: Context) -> None:
    """The first epoch, with the first run's snapshot as its keyframe."""
    first = market.pairs[0]
    market.epoch, market.h_end, market.epoch_from_us = 1, h_start, from_us
    market.keyframe_at = 0
    frame = first.keyframe
    assert frame is not None
    context.sink.epochs.append(EpochRow(market.ticker, 1, from_us, h_start, "first"))
    context.sink.snapshots.append(
        PlacedSnapshot(
            market.ticker, 1, 0, from_us, frame.received_ns, frame.book_hash, frame.levels,
            1 << first.gatherer,
        )
    )  # fmt: skip
    for pair in market.pairs:
        pair.keyframe = None
