"""Tails survive the state, witnesses are exact, and first sequence numbers are not guessed."""

from __future__ import annotations

import numpy as np

from dedup.runs import Run
from dedup.tails import first_known, first_seq, gatherer_pairs, make_tail, tail_events, witnesses
from marketdata.merge import merge_pieces
from marketdata.rows import DELTA_ROW
from tests.hand import Hand
from tests.unit.marketdata.streams import piece, plain, prices


def test_a_tail_survives_the_state() -> None:
    events = plain(5)
    back, masks = tail_events(make_tail(events, [1, 2, 3, 4, 5]))
    assert prices(back) == prices(events)
    assert np.array_equal(back.h_after, events.h_after)
    assert np.array_equal(back.keys(), events.keys())
    assert masks == [1, 2, 3, 4, 5]


def test_every_witness_and_the_first_receipt_of_each_event() -> None:
    truth = plain(10)
    early = plain(10)
    early.received_ns = early.received_ns - 7
    merged = merge_pieces(None, [piece(truth, 0, 7, 0), piece(early, 4, 10, 2)], 0)
    masks, received = witnesses(merged.segments[0], 10)
    assert masks.tolist() == [1] * 4 + [5] * 3 + [4] * 3
    assert (received - truth.received_ns).tolist() == [0] * 4 + [-7] * 6


def test_witnesses_of_the_new_events_only() -> None:
    truth = plain(10)
    merged = merge_pieces(None, [piece(truth, 0, 10, 1)], 0)
    segment = merged.segments[0]
    segment.emitted = 6
    assert witnesses(segment, 4)[0].tolist() == [2] * 4
    segment.parts[0].length = 5
    assert witnesses(segment, 4)[0].tolist() == [0] * 4


def test_names_of_pairs_are_ascending() -> None:
    assert gatherer_pairs({2, 0, 1}) == ["0-1", "0-2", "1-2"]
    assert gatherer_pairs({3}) == []


def test_a_market_subscribed_before_the_gap_counts_from_the_runs_start() -> None:
    run = Run(0, 1, 1, "orderbook", fresh=False, first_seq=40, last_received_ns=0, started_ns=0)
    hand = Hand(0)
    hand.start(0)
    hand.seq = 49
    hand.snap("A", {10_000: 1})
    hand.delta(1, "A", 10_000, 1)
    batch = hand.commit()
    none = np.empty(0, DELTA_ROW)
    assert first_seq(run, batch.deltas, batch.snapshots, carried=True) == (40, 39)
    assert first_seq(run, batch.deltas, batch.snapshots, carried=False) == (50, 50)
    assert first_seq(run, none, batch.snapshots, carried=False) == (50, 50)
    assert first_seq(run, batch.deltas, [], carried=False) == (51, 50)


def test_the_earliest_known_start_of_a_segment() -> None:
    truth = plain(10)
    a, b, c = piece(truth, 0, 10, 0), piece(truth, 0, 5, 1), piece(truth, 3, 10, 2)
    segment = merge_pieces(None, [a, b, c], 0).segments[0]
    assert first_known(segment, {id(a): 70, id(b): 50, id(c): 1}) == 50
    assert first_known(segment, {id(a): -1, id(b): -1, id(c): 1}) == -1
