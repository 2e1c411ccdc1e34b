"""One market over one window: joints, numbers, keyframes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dedup.arbitrate import Arbiter
from dedup.output import WindowOutput
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


def test_a_snapshot_from_before_a_reset_is_no_keyframe_behind_it() -> None:
    """The run had shown no time: its snapshots wait for one, the row of the reset does not."""
    hand = Hand(0)
    hand.start(0)
    hand.snap("A", BOOK)
    hand.snap("B", BOOK)
    hand.snap("A", {})
    for ms in (5_000, 6_000):
        hand.delta(ms, "B", 10_000, 1)
    hand.stop()
    outputs = merge(hand)
    books = {(e.ticker, e.epoch, 0): e.start_hash for o in outputs for e in o.epochs}
    for o in outputs:
        for row in o.deltas:
            key = (o.tickers[int(row["market_id"])], int(row["epoch"]), int(row["market_seq"]))
            books[key] = int(row["book_hash"])
    found = [
        (o.tickers[s.market], s.epoch, s.market_seq, s.book_hash)
        for o in outputs
        for s in o.snapshots
    ]
    assert found
    assert [s for s in found if books[s[:3]] != s[3]] == []


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


def _across_the_end_of_a_window(*, restart: bool) -> list[WindowOutput]:
    """Gatherer 0's clock shows half a millisecond less than gatherer 1's. It misses a change right
    before the window ends by its clock, and sees the next one; by the other's clock both lie in the
    next window."""
    zero, one = Hand(0), Hand(1)
    for hand, apart in ((zero, 0.0), (one, 0.5)):
        hand.start(0)
        hand.snap("A", BOOK)
        for n in range(1, 20):
            hand.delta(100 * n + apart, "A", 10_000 * n, n)
    batches = [zero.commit(), one.commit()]
    zero.gap(1_999.6, 1)
    zero.delta(1_999.8, "A", 310_000, 1)
    zero.delta(2_100, "A", 320_000, 1)
    for ms, price in ((2_000.2, 300_000), (2_000.3, 310_000), (2_100.5, 320_000)):
        one.delta(ms, "A", price, 1)
    book = {**BOOK, **{10_000 * n: n for n in range(1, 20)}}
    book[100_000] = 510
    zero.snap("A", {**book, 300_000: 1, 310_000: 1, 320_000: 1})
    for hand in (zero, one):
        for ms in (2_200, 2_300, 3_400):
            hand.delta(ms, "A", 330_000, 1)
        hand.stop()
    batches += [zero.commit(), one.commit()]
    arbiter, outputs = Arbiter(2, QUICK), []
    for batch in batches:
        arbiter.absorb(batch)
    while (out := arbiter.step(final=True)) is not None:
        outputs.append(out)
        if restart and len(outputs) == 2:
            tails = {k: v for o in outputs for k, v in o.market_states.items()}
            named = {k: v for o in outputs for k, v in o.named_states.items() if v is not None}
            arbiter = Arbiter.load(2, QUICK, tails, named, out.positions)
            for batch in batches:
                if batch.last_batch_id >= out.positions[batch.gatherer].reread_from_batch:
                    arbiter.absorb(batch)
    return outputs


@pytest.mark.parametrize("restart", [False, True])
def test_a_run_that_begins_at_the_very_end_of_a_window_waits_for_the_others(restart: bool) -> None:
    """Taken at once it opened an epoch behind a gap, and what the other had of the gap was late."""
    outputs = _across_the_end_of_a_window(restart=restart)
    assert [g for o in outputs for g in o.gaps] == []
    prices = [int(p) for o in outputs for p in o.deltas["price"]]
    assert prices == [10_000 * n for n in range(1, 20)] + [
        300_000,
        310_000,
        320_000,
        *[330_000] * 3,
    ]
    counts: Counter[str] = Counter()
    for out in outputs:
        counts.update(out.counts)
    assert counts["quarantined_rows"] == 0 or counts["late_rows"] == counts["quarantined_rows"]
    named = ("merged_rows", "duplicate_rows", "quarantined_rows", "skipped_rows")
    assert counts["rows_in"] == sum(counts[n] for n in named)


def test_a_run_that_begins_at_the_windows_end_with_what_another_shows_is_its_witness() -> None:
    """Seed 247 of the simulation: it was taken with the next window, and was late there."""
    hands = [Hand(0), Hand(1)]
    for hand in hands:
        hand.start(0)
    book = {100_000: 500}
    hands[0].snap("A", book)
    for ms in range(100, 1_900, 300):
        hands[0].delta(ms, "A", 200_000, 100)
    for hand in hands:
        hand.delta(1_999.5, "A", 300_000, 100)
        hand.delta(2_300, "B", 300_000, 100)
    hands[1].snap("A", {**book, 200_000: 600, 300_000: 100})
    for hand in hands:
        for ms in range(2_400, 5_000, 200):
            hand.delta(ms, "A", 10_000 * (ms // 200), 100)
        hand.stop()
    outputs = merge(*hands)
    rows = np.concatenate([o.deltas[o.deltas["price"] == 300_000] for o in outputs])
    assert rows["sources"][rows["exchange_us"] == us(1_999.5)].tolist() == [0b11]
    assert [q.reason for o in outputs for q in o.quarantine if q.ticker == "A"] == []


def _two_and_a_third() -> tuple[list[Hand], dict[int, int]]:
    """Two gatherers that have recorded A for two seconds, a third that joins; the book by then."""
    hands = [Hand(0), Hand(1), Hand(2)]
    book = dict(BOOK)
    for hand in hands[:2]:
        hand.start(0)
        hand.snap("A", BOOK)
    for n in range(1, 15):
        for hand in hands[:2]:
            hand.delta(100 * n + 0.1 * hand.gatherer, "A", 10_000 * n, n)
        book[10_000 * n] = book.get(10_000 * n, 0) + n
    return hands, book


def _whole(outputs: list[WindowOutput], prices: list[int], *, witnesses: int) -> None:
    """Nothing twice, nothing missing, no gap, nobody contradicted; the last rows have all."""
    rows = np.concatenate([o.deltas for o in outputs])
    assert [int(p) for p in rows["price"]] == prices
    assert [g for o in outputs for g in o.gaps] == []
    assert [q.reason for o in outputs for q in o.quarantine] == []
    assert {int(m) for m in rows["sources"][-3:]} == {witnesses}


@pytest.mark.parametrize("unseen", [0, 1])
def test_a_run_whose_first_row_is_at_the_windows_end_waits_with_its_snapshot(unseen: int) -> None:
    """By its clock its first change is in this window, by the others' in the next (recorded data,
    times 500 us apart): it opened an epoch of its own, and the change stood twice. Its snapshot may
    have a change (`unseen`) that the others show in the next window only: two books at one time."""
    hands, book = _two_and_a_third()
    third = hands[2]
    third.start(1_700)
    if unseen:
        book[440_000] = 4
        for hand in hands[:2]:
            hand.delta(2_000.1 + 0.1 * hand.gatherer, "A", 440_000, 4)
    third.snap("A", book)
    third.delta(1_999.8, "A", 450_000, 5)
    for hand in hands:
        if hand is not third:
            hand.delta(2_000.2 + 0.1 * hand.gatherer, "A", 450_000, 5)
        for n in range(1, 4):
            hand.delta(2_100 + 100 * n + 0.1 * hand.gatherer, "A", 10_000 * n, 1)
        hand.delta(3_500, "A", 460_000, 1)
        hand.stop()
    more = [440_000] * unseen + [450_000, 10_000, 20_000, 30_000, 460_000]
    _whole(merge(*hands), [10_000 * n for n in range(1, 15)] + more, witnesses=0b111)


def test_what_one_alone_shows_in_a_window_is_held_against_the_others_times_too() -> None:
    """Gatherer 0 showed the first change of a burst before the window ended and then went; by the
    other's clock all of it lies in the next. Only one was busy there, and its times had to be
    equal to those on the tape: disputed, and what followed was lost."""
    zero, one = Hand(0), Hand(1)
    for hand in (zero, one):
        hand.start(0)
        hand.snap("A", BOOK)
        for n in range(1, 15):
            hand.delta(100 * n + 0.2 * hand.gatherer, "A", 10_000 * n, n)
    zero.delta(1_999.8, "A", 450_000, 5)
    zero.stop()
    for ms, price in ((2_000.6, 450_000), (2_000.6, 460_000), (2_000.6, 470_000), (2_400, 480_000)):
        one.delta(ms, "A", price, 5)
    one.delta(3_500, "A", 490_000, 1)
    one.stop()
    prices = [10_000 * n for n in range(1, 15)] + [450_000, 460_000, 470_000, 480_000, 490_000]
    _whole(merge(zero, one), prices, witnesses=0b10)


def test_a_floating_run_that_waited_is_compared_with_what_is_on_the_tape() -> None:
    """Its first rows were on the tape already when the next window took them, and the tape was not
    kept: they lay before everything that was left to compare with."""
    hands, _ = _two_and_a_third()
    third = hands[2]
    third.start(1_000)
    third.gap(1_100, 1)  # no snapshot comes: its book is not known
    for hand in hands:
        for ms, price in ((1_999.3, 450_000), (1_999.4, 460_000), (2_000.3, 470_000)):
            hand.delta(ms + (0.3 if hand is third else 0.1 * hand.gatherer), "A", price, 5)
        for n in range(1, 4):
            hand.delta(2_100 + 100 * n + 0.1 * hand.gatherer, "A", 10_000 * n, 1)
        hand.delta(3_500, "A", 480_000, 1)
        hand.stop()
    more = [450_000, 460_000, 470_000, 10_000, 20_000, 30_000, 480_000]
    _whole(merge(*hands), [10_000 * n for n in range(1, 15)] + more, witnesses=0b111)


@pytest.mark.parametrize("behind", [0, 1, 2])
def test_a_run_after_a_gap_at_the_windows_end_waits_with_the_snapshot_behind_its_rows(
    behind: int,
) -> None:
    """Recorded data, times 500 us apart: its first rows and, `behind` of them, the snapshot that
    tells what they mean all lie at the end of the window. Taken at once they stood behind a gap of
    their own; the row alone could wait before, its snapshot not."""
    hands, book = _two_and_a_third()
    third = hands[2]
    third.start(0)
    third.snap("A", BOOK)
    for n in range(1, 15):
        third.delta(100 * n + 0.2, "A", 10_000 * n, n)
    third.gap(1_999.0, 1)
    others = [(2_000.1, 440_000), (2_000.2, 450_000), (2_000.3, 460_000), (2_000.4, 470_000)]
    for ms, price in others:
        for hand in hands[:2]:
            hand.delta(ms + 0.1 * hand.gatherer, "A", price, 4)
        book[price] = 4
    mine = [(1_999.7, 450_000), (1_999.8, 460_000)]
    for at, (ms, price) in enumerate(mine):
        if at == behind:
            third.snap("A", {p: n for p, n in book.items() if p not in (460_000, 470_000)}
                       if at else {p: n for p, n in book.items() if p < 450_000})  # fmt: skip
        third.delta(ms, "A", price, 4)
    if behind == 2:
        third.snap("A", {p: n for p, n in book.items() if p != 470_000})
    third.delta(2_000.0, "A", 470_000, 4)
    for hand in hands:
        for n in range(1, 4):
            hand.delta(2_100 + 100 * n + 0.1 * hand.gatherer, "A", 10_000 * n, 1)
        hand.delta(3_500, "A", 480_000, 1)
        hand.stop()
    more = [440_000, 450_000, 460_000, 470_000, 10_000, 20_000, 30_000, 480_000]
    _whole(merge(*hands), [10_000 * n for n in range(1, 15)] + more, witnesses=0b111)


@pytest.mark.parametrize("alone", [False, True])
def test_what_a_run_begins_with_may_stand_at_the_end_of_the_window_before(alone: bool) -> None:
    """Gatherer 0 shows the last change of a window and goes; by gatherer 1's clock it lies in the
    next one, with which its run begins. The tape keeps its end, so that it does not stand twice."""
    zero, one = Hand(0), Hand(1)
    zero.start(0)
    zero.snap("A", BOOK)
    book = dict(BOOK)
    for n in range(1, 15):
        zero.delta(100 * n, "A", 10_000 * n, n)
        book[10_000 * n] = book.get(10_000 * n, 0) + n
    if not alone:
        one.start(0)
        one.snap("A", BOOK)
        for n in range(1, 15):
            one.delta(100 * n + 0.1, "A", 10_000 * n, n)
        one.gap(1_900, 1)
    else:
        one.start(1_900)
    one.snap("A", book)
    zero.delta(1_999.8, "A", 450_000, 5)
    zero.stop()
    for ms, price in ((2_000.3, 450_000), (2_400, 480_000), (3_500, 490_000)):
        one.delta(ms, "A", price, 5)
    one.stop()
    rows = np.concatenate([o.deltas for o in merge(zero, one)])
    assert [int(p) for p in rows["price"]] == [
        *(10_000 * n for n in range(1, 15)), 450_000, 480_000, 490_000
    ]  # fmt: skip
    assert rows["sources"][rows["price"] == 450_000].tolist() == [0b01], "published before"
