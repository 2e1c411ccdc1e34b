"""One market over one window: joints, numbers, keyframes."""

from __future__ import annotations

import numpy as np

from marketdata.book import level_constants
from marketdata.rows import DeltaFlag
from tests.hand import QUICK, Hand, merge, us
from tests.trial import EXTREME, Recorder, made_stream, play

BOOK = {100_000: 500}


def test_numbers_have_no_hole_and_hashes_no_break_within_an_epoch() -> None:
    """INV-K2, on a play with many epochs."""
    stream = made_stream(11, 3_000, 4, burst=50, reset=True)
    played = play([Recorder(stream, g, 11, EXTREME) for g in range(2)])
    starts = {(e.ticker, e.epoch): e.start_hash for o in played.outputs for e in o.epochs}
    assert len(starts) > 10
    for ticker, rows in played.rows.items():
        for epoch in np.unique(rows["epoch"]).tolist():
            part = rows[rows["epoch"] == epoch]
            assert part["market_seq"].tolist() == list(range(1, part.size + 1))
            terms = level_constants(part["side"], part["price"]) * part["delta"].view(np.uint64)
            before = np.concatenate(([np.uint64(starts[(ticker, epoch)])], part["book_hash"][:-1]))
            reset = (part["flags"] & int(DeltaFlag.RESET)) != 0
            assert np.array_equal(part["book_hash"], np.where(reset, 0, before + terms))


def test_every_epoch_after_the_first_has_its_gap_row() -> None:
    """INV-K1 and I8."""
    stream = made_stream(12, 3_000, 4)
    played = play([Recorder(stream, g, 12, EXTREME) for g in range(2)])
    later = {(e.ticker, e.epoch) for o in played.outputs for e in o.epochs if e.epoch > 1}
    assert later == {(g.ticker, g.epoch) for o in played.outputs for g in o.gaps}
    assert later


def test_keyframes_of_an_epoch_stand_at_different_places() -> None:
    stream = made_stream(13, 3_000, 4)
    played = play([Recorder(stream, g, 13, EXTREME) for g in range(3)])
    places = [
        (o.tickers[s.market], s.epoch, s.market_seq) for o in played.outputs for s in o.snapshots
    ]
    assert len(places) == len(set(places)) > 10


def test_rows_before_the_snapshot_of_a_later_window_are_placed_in_their_own() -> None:
    hand = Hand(0)
    hand.start(0)
    hand.snap("A", BOOK)
    for ms in (100, 200):
        hand.delta(ms, "A", 10_000, 1)
    hand.gap(300, 1)
    for ms in (900, 1_500, 2_500):
        hand.delta(ms, "A", 20_000, 1)
    hand.snap("A", {**BOOK, 10_000: 2, 15_000: 4, 20_000: 3})
    hand.stop()
    outputs = merge(hand, settings=QUICK)
    rows = [(o.window - us(0) // 1_000_000, int(r["epoch"])) for o in outputs for r in o.deltas]
    assert rows == [(0, 1), (0, 1), (0, 2), (1, 2), (2, 2)]


def test_the_time_of_a_reset_is_not_before_the_event_before_it() -> None:
    """Its time is inferred, and a run that begins with it infers an older one."""
    early, late = Hand(0), Hand(1)
    for hand in (early, late):
        hand.start(0)
        hand.snap("A", BOOK)
    early.delta(500, "A", 10_000, 1)
    early.snap("A", {})
    early.delta(900, "B", 10_000, 1)
    late.delta(500, "A", 10_000, 1)
    late.snap("A", {})
    for hand in (early, late):
        hand.stop()
    times = [int(r["exchange_us"]) for o in merge(early, late) for r in o.deltas
             if o.tickers[r["market_id"]] == "A"]  # fmt: skip
    assert times == [us(500), us(500)]
