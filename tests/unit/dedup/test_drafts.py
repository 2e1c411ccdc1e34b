"""Rules 1 and 2: where a run is cut, and how a snapshot gives H backwards."""

from __future__ import annotations

import numpy as np

from dedup.drafts import Draft, Drafter, end_book, end_hash
from dedup.inflow import Inflow
from dedup.runs import Keyframe, Pair, Run, Standing
from marketdata.book import Book
from tests.hand import QUICK, Hand, book_hash, us

BOOK = {100_000: 500}
HOLD = QUICK.float_hold_ns


def drafted(
    hand: Hand,
    *,
    standing: Standing = Standing.FLOATING,
    ahead: bool = True,
    end: int | None = None,
) -> list[Draft]:
    """Drafts of market A of a hand's one run; the last snapshot may lie in a later window."""
    batch = hand.commit()
    run = Run(0, 1, 1, "orderbook", fresh=False, first_seq=1, last_received_ns=0, started_ns=0)
    pair = Pair(0, 1, 1, int(standing), 0, seq_from=1)
    inflow = Inflow(0, QUICK.window_us, QUICK.engine_skew_us)
    inflow.ids.update({i: i - 1 for i in batch.markets})
    last = batch.snapshots[-1] if ahead and batch.snapshots else None
    given = batch.snapshots[:-1] if last is not None else batch.snapshots
    return Drafter(pair, run, batch.deltas, end).cut(given, last, HOLD)


def opened(kind: str = "gap") -> Hand:
    hand = Hand(0)
    hand.start(0, kind)
    return hand


def test_a_first_snapshot_gives_the_hash_to_the_rows_before_it() -> None:
    """A run begins at the gap, not at the snapshot: 9.9 per thousand events against 0.5."""
    hand = opened()
    hand.delta(100, "A", 10_000, 7)
    hand.snap("A", {**BOOK, 10_000: 7})
    hand.delta(200, "A", 20_000, 7)
    (draft,) = drafted(hand, ahead=False)
    assert draft.piece.anchored
    assert int(draft.piece.events.h_before[0]) == book_hash(BOOK)
    assert end_hash(draft) == book_hash({**BOOK, 10_000: 7, 20_000: 7})
    assert [(at, seq) for at, _, seq in draft.keyframes] == [(1, 2)]


def test_a_first_snapshot_that_lies_ahead_gives_it_too() -> None:
    hand = opened()
    hand.delta(100, "A", 10_000, 7)
    hand.snap("A", {**BOOK, 10_000: 7})
    (draft,) = drafted(hand)
    assert draft.piece.anchored
    assert int(draft.piece.events.h_before[0]) == book_hash(BOOK)


def test_a_snapshot_too_far_ahead_is_not_waited_for() -> None:
    hand = opened()
    hand.delta(100, "A", 10_000, 7)
    hand.snap("A", {**BOOK, 10_000: 7}, 100 + HOLD / 10**6 + 1_000)
    assert not drafted(hand)[0].piece.anchored


def test_an_empty_snapshot_never_gives_the_hash_backwards() -> None:
    """It may be the reset itself: what was before it is not known."""
    hand = opened()
    hand.delta(100, "A", 10_000, 7)
    hand.snap("A", {})
    hand.delta(200, "A", 20_000, 7)
    before, after = drafted(hand, ahead=False)
    assert (before.piece.anchored, after.piece.anchored) == (False, True)
    assert int(after.piece.events.h_before[0]) == 0
    assert after.begins_anew
    hand = opened()
    hand.delta(100, "A", 10_000, 7)
    hand.snap("A", {})
    assert not drafted(hand)[0].piece.anchored


def test_a_snapshot_that_differs_cuts_and_votes_against_what_was_before() -> None:
    hand = opened("subscribed")
    hand.snap("A", BOOK)
    hand.delta(100, "A", 10_000, 7)
    hand.snap("A", {50_000: 1})
    hand.delta(200, "A", 20_000, 7)
    before, after = drafted(hand, ahead=False)
    assert (before.piece.audit, after.piece.audit) == (-1, 0)
    assert (before.piece.open_end, after.piece.open_end) == (False, True)
    assert before.piece.seq_to == 2
    assert after.piece.seq_from == 4
    assert int(after.piece.events.h_before[0]) == book_hash({50_000: 1})


def test_a_snapshot_that_agrees_is_an_audit_and_no_cut() -> None:
    hand = opened("subscribed")
    hand.snap("A", BOOK)
    hand.delta(100, "A", 10_000, 7)
    hand.snap("A", {**BOOK, 10_000: 7})
    (draft,) = drafted(hand, ahead=False)
    assert draft.piece.audit == 1
    assert [at for at, _, _ in draft.keyframes] == [0, 1]


def test_a_reset_stands_before_its_own_snapshot() -> None:
    hand = opened("subscribed")
    hand.snap("A", BOOK)
    hand.snap("A", {})
    (draft,) = drafted(hand, ahead=False)
    assert len(draft.piece.events) == 1
    assert [at for at, _, _ in draft.keyframes] == [0, 1]


def test_a_contradicted_run_is_taken_up_again_at_its_next_snapshot() -> None:
    hand = opened("subscribed")
    hand.snap("A", BOOK)
    hand.delta(100, "A", 10_000, 7)
    hand.snap("A", {**BOOK, 10_000: 7})
    hand.delta(200, "A", 20_000, 7)
    batch = hand.commit()
    run = Run(0, 1, 1, "orderbook", fresh=True, first_seq=1, last_received_ns=0, started_ns=0)
    pair = Pair(0, 1, 1, int(Standing.QUARANTINED), 5, seq_from=1)
    before, after = Drafter(pair, run, batch.deltas, None).cut(batch.snapshots[1:], None, HOLD)
    assert (before.refused, after.refused) == ("quarantined", "")
    assert (before.rows.size, after.rows.size) == (1, 1)


def test_a_first_snapshot_that_denies_the_hash_found_by_alignment_cuts() -> None:
    hand = opened()
    hand.delta(100, "A", 10_000, 7)
    hand.snap("A", {**BOOK, 10_000: 7})
    batch = hand.commit()
    run = Run(0, 1, 1, "orderbook", fresh=False, first_seq=1, last_received_ns=0, started_ns=0)
    for constant, drafts in ((book_hash(BOOK), 1), (book_hash(BOOK) + 2, 2)):
        pair = Pair(0, 1, 1, int(Standing.PINNED), constant, seq_from=1, constant=constant)
        found = Drafter(pair, run, batch.deltas, None).cut(batch.snapshots, None, HOLD)
        assert len(found) == drafts
        assert int(found[0].piece.events.h_before[0]) == constant


def test_a_break_in_the_chain_of_hashes_ends_the_piece_there() -> None:
    hand = opened("subscribed")
    hand.snap("A", BOOK)
    for ms in (100, 200, 300):
        hand.delta(ms, "A", 10_000, 7)
    hand.rows[1]["book_hash"] += np.uint64(1)
    (draft,) = drafted(hand, ahead=False)
    assert (draft.broken_at, len(draft.piece.events)) == (1, 1)


def test_a_run_that_ended_knows_up_to_where() -> None:
    hand = opened("subscribed")
    hand.snap("A", BOOK)
    hand.delta(100, "A", 10_000, 7)
    (draft,) = drafted(hand, ahead=False, end=99)
    assert (draft.piece.seq_to, draft.piece.open_end) == (99, False)


def test_the_keyframe_of_a_quiet_run_stands_before_its_first_event() -> None:
    hand = opened("subscribed")
    hand.snap("A", BOOK)
    hand.delta(100, "A", 10_000, 7)
    batch = hand.commit()
    run = Run(0, 1, 1, "orderbook", fresh=True, first_seq=1, last_received_ns=0, started_ns=0)
    frame = Keyframe(1, 2, book_hash(BOOK), b"")
    pair = Pair(0, 1, 1, int(Standing.PENDING), book_hash(BOOK), seq_from=1, keyframe=frame)
    (draft,) = Drafter(pair, run, batch.deltas, None).cut([], None, HOLD)
    assert draft.keyframes == [(0, frame, -1)]
    assert pair.keyframe is None


def test_the_book_at_the_end_is_known_from_the_drafts_last_snapshot() -> None:
    """An epoch that a run opens behind rows without a place begins with it."""
    hand = opened()
    hand.delta(100, "A", 10_000, 7)
    hand.snap("A", {**BOOK, 10_000: 7})
    hand.delta(200, "A", 20_000, 7)
    hand.delta(300, "A", 10_000, -7)
    (draft,) = drafted(hand, ahead=False)
    at_end = {**BOOK, 20_000: 7}
    frame = end_book(draft, end_hash(draft))
    assert frame is not None
    assert frame.book_hash == book_hash(at_end)
    assert dict(Book.from_bytes(frame.levels).levels(0)) == at_end
    assert frame.exchange_us == us(300)
    assert end_book(draft, end_hash(draft) ^ 1) is None, "a book that is not proven is none"
    (nobody,) = drafted(opened_and_moved(), ahead=False)
    assert end_book(nobody, end_hash(nobody)) is None


def opened_and_moved() -> Hand:
    """A run that brings a change and no snapshot."""
    hand = opened()
    hand.delta(100, "A", 10_000, 7)
    return hand
