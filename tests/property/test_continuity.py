"""Continuity as a function: of the events and their order, and of nothing else."""

from __future__ import annotations

import itertools
import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata import events
from marketdata.book import Book
from marketdata.continuity import Continuity
from marketdata.rows import DELTA_ROW, DeltaFlag, SnapshotVerdict
from tests.continuity_feed import BASE, delta, snapshot

MARKETS = ("A", "B", "C")


@st.composite
def streams(draw: st.DrawFn) -> list[events.Decoded]:
    """One sid over three markets: true snapshots and changes, some frames lost, some repeated."""
    books = {market: Book() for market in MARKETS}
    frames: list[events.Decoded] = []
    for seq in range(1, draw(st.integers(1, 60))):
        market = draw(st.sampled_from(MARKETS))
        book = books[market]
        kind = draw(st.sampled_from("ddddds"))
        if kind == "s":
            frames.append(snapshot(seq, market=market, yes=book.levels(0), no=book.levels(1)))
            continue
        side, price = draw(st.integers(0, 1)), draw(st.sampled_from((100, 200, 300)))
        size = draw(st.integers(1, 5))
        if book.size(side, price) >= size and draw(st.booleans()):
            size = -size
        book.apply(side, price, size)
        frames.append(delta(seq, market=market, side=side, price=price, size=size))
    fates = draw(st.lists(st.sampled_from([1, 1, 1, 1, 1, 1, 0, 2]), min_size=60, max_size=60))
    return [frame for frame, fate in zip(frames, fates, strict=False) for _ in range(fate)]


def _run(continuity: Continuity, batches: list[list[events.Decoded]]) -> None:
    for batch in batches:
        continuity.absorb(BASE, batch, 1)


@given(streams(), st.data())
@settings(deadline=None, max_examples=60)
def test_batches_and_a_restart_anywhere_change_no_row(
    frames: list[events.Decoded], data: st.DataObject
) -> None:
    """How frames were read from the socket, and where the process died, must not be on the tape."""
    one = Continuity(BASE)
    _run(one, [[frame] for frame in frames])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(frames)), max_size=6)))
    edges = [0, *cuts, len(frames)]
    parts = [frames[a:b] for a, b in itertools.pairwise(edges)]
    other = Continuity(BASE)
    _run(other, parts)
    assert other.rows == one.rows
    at = data.draw(st.integers(0, len(frames)))
    first = Continuity(BASE)
    _run(first, [frames[:at]])
    second = Continuity.restore(json.loads(json.dumps(first.export())))
    _run(second, [frames[at:]])
    assert first.rows.deltas + second.rows.deltas == one.rows.deltas
    assert first.rows.snapshots + second.rows.snapshots == one.rows.snapshots
    assert first.rows.controls + second.rows.controls == one.rows.controls


@given(streams())
@settings(deadline=None, max_examples=100)
def test_no_snapshot_of_a_true_book_ever_differs(frames: list[events.Decoded]) -> None:
    """Losses are seen by their numbers: an anchored chain is never wrong without a gap."""
    continuity = Continuity(BASE)
    _run(continuity, [frames])
    bad = {SnapshotVerdict.DIFFERS}
    assert not bad & {row.verdict for row in continuity.rows.snapshots}
    rows = np.frombuffer(bytes(continuity.rows.deltas), DELTA_ROW)
    assert not (rows["flags"] & DeltaFlag.NEGATIVE).any()
    for run in set(rows["run_id"].tolist()):
        seqs = rows["seq"][rows["run_id"] == run]
        assert (np.diff(seqs.astype(np.int64)) > 0).all()
