"""The arbiter on small scenes: epochs, claims, joints, ends, restarts, and what it waits for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dedup.arbitrate import COUNTS, Arbiter
from dedup.output import (
    ArbiterSettings,
    GathererPosition,
    MergedTicker,
    MergedTrade,
    WindowOutput,
)
from marketdata import coverage
from marketdata.rows import DeltaFlag
from tests.hand import QUICK, T0_US, Hand, drain, merge, us
from tests.trial import Played, gathered

BOOK = {100_000: 500, 200_000: 700}


def tape(outputs: list[WindowOutput], ticker: str = "A") -> list[tuple[int, int, int, int, int]]:
    """(ms, price, delta, epoch, market_seq) of one market."""
    return [
        ((int(r["exchange_us"]) - T0_US) // 1000, int(r["price"]), int(r["delta"]),
         int(r["epoch"]), int(r["market_seq"]))
        for o in outputs for r in o.deltas if o.tickers[int(r["market_id"])] == ticker
    ]  # fmt: skip


def added(outputs: list[WindowOutput]) -> Played:
    return gathered(outputs, Arbiter(1, QUICK))


def statuses(outputs: list[WindowOutput], ticker: str, to_ms: float) -> list[tuple[int, int, str]]:
    """(from ms, to ms, status) of the order book."""
    found = coverage.intervals(added(outputs), T0_US, us(to_ms))
    return [
        ((i.from_us - T0_US) // 1000, (i.to_us - T0_US) // 1000, i.status)
        for i in found
        if i.ticker == ticker and i.channel == "orderbook" and i.to_us - i.from_us > 1
    ]


def steady(gatherer: int, n: int = 30, *, stop: bool = True) -> Hand:
    """A gatherer that sees market A change each 100 ms."""
    hand = Hand(gatherer)
    hand.start(0)
    hand.snap("A", BOOK)
    for i in range(n):
        hand.delta(100 * (i + 1), "A", 10_000 * (i + 1), 100)
    if stop:
        hand.stop()
    return hand


def total(outputs: list[WindowOutput], name: str) -> int:
    return sum(o.counts.get(name, 0) for o in outputs)


def test_three_equal_recordings_give_one_tape_with_three_witnesses() -> None:
    outputs = merge(steady(0), steady(1), steady(2))
    assert tape(outputs) == [(100 * (i + 1), 10_000 * (i + 1), 100, 1, i + 1) for i in range(30)]
    assert {int(r["sources"]) for o in outputs for r in o.deltas} == {7}
    assert (total(outputs, "rows_in"), total(outputs, "duplicate_rows")) == (90, 60)
    assert {name for o in outputs for name in o.counts} <= set(COUNTS)


def test_the_first_snapshot_is_a_keyframe_at_the_start_of_the_epoch() -> None:
    outputs = merge(steady(0), steady(1))
    frames = [(s.epoch, s.market_seq, s.book_hash) for o in outputs for s in o.snapshots]
    assert frames == [(1, 0, outputs[0].epochs[0].start_hash)]


def test_a_single_market_is_covered_from_behind_its_first_event_to_its_last() -> None:
    """Nothing else on the connection shows time, so nothing else is proven."""
    outputs = merge(steady(0, 10))
    assert statuses(outputs, "A", 2_000) == [
        (0, 100, "dark"), (100, 1_000, "complete"), (1_000, 2_000, "dark"),
    ]  # fmt: skip


def gapped(gatherer: int, *, lose: bool) -> Hand:
    """Event 500 ms is lost with the frame before the gap; a snapshot comes at 850 ms."""
    hand = Hand(gatherer)
    hand.start(0)
    hand.snap("A", BOOK)
    book = dict(BOOK)
    for ms in range(100, 2_000, 100):
        if lose and ms == 500:
            hand.gap(ms, 1)
        else:
            hand.delta(ms, "A", 10_000 * (ms // 100), 100)
        book[10_000 * (ms // 100)] = 100 + book.get(10_000 * (ms // 100), 0)
        if lose and ms == 800:
            hand.snap("A", book)
    hand.stop()
    return hand


def test_one_gatherer_with_a_lost_frame_shows_a_gap_that_its_next_frame_ends() -> None:
    """The run begins at the gap, not at the snapshot: rule 2 gives H to the rows between."""
    outputs = merge(gapped(0, lose=True))
    assert [row[0] for row in tape(outputs)] == [m for m in range(100, 2_000, 100) if m != 500]
    assert [row[3:] for row in tape(outputs)][3:5] == [(1, 4), (2, 1)]
    assert [(g.kind, g.epoch) for o in outputs for g in o.gaps] == [("gap", 2)]
    assert statuses(outputs, "A", 1_900) == [
        (0, 100, "dark"), (100, 400, "complete"), (400, 600, "gap"),
        (600, 900, "unproven"), (900, 1_900, "complete"),
    ]  # fmt: skip


def test_replies_that_have_been_proven_need_no_second_gatherer() -> None:
    """Before the proof, the control above: its stretch up to the reply is said unproven."""
    arbiter = Arbiter(1, QUICK)
    arbiter.evidence.replies.proven = True
    arbiter.absorb(gapped(0, lose=True).commit())
    outputs = drain(arbiter, final=True)
    assert statuses(outputs, "A", 1_900)[3:] == [(600, 1_900, "complete")]
    assert not any(o.changes for o in outputs)
    assert arbiter.evidence.replies.unknown == 1


def test_a_second_gatherer_proves_what_the_first_knows_backwards_only() -> None:
    """Both lose one frame, each another one: the gap of each is complete by the other alone."""
    other = gapped(1, lose=False)
    outputs = merge(gapped(0, lose=True), other)
    kinds = [(m.kind, m.from_us < m.to_us) for o in outputs for m in o.marks]
    assert ("unproven", True) in kinds
    assert {s for _, _, s in statuses(outputs, "A", 1_900)} == {"dark", "complete"}


@pytest.mark.parametrize("agrees", [True, False])
def test_a_reply_that_differs_withdraws_the_proof_and_is_an_alert(agrees: bool) -> None:
    """And the same reply that agrees does neither."""
    hand, arbiter = Hand(0), Arbiter(1, QUICK)
    arbiter.evidence.replies.proven = True
    hand.start(0)
    hand.snap("A", BOOK)
    book = dict(BOOK)
    for ms in range(100, 2_000, 100):
        hand.delta(ms, "A", 10_000 * (ms // 100), 100)
        book[10_000 * (ms // 100)] = 100 + book.get(10_000 * (ms // 100), 0)
        if ms == 800:
            hand.snap("A", book if agrees else {**book, 990_000: 5})
    hand.stop()
    arbiter.absorb(hand.commit())
    outputs = drain(arbiter, final=True)
    replies = arbiter.evidence.replies
    assert (replies.agreed, replies.differed, replies.proven) == (agrees, not agrees, agrees)
    changes = [(c.subject, c.before, c.after) for o in outputs for c in o.changes]
    assert changes == ([] if agrees else [("replies", "proven", "unproven")])
    assert total(outputs, "replies_withdrawn") == (0 if agrees else 1)


def told(gatherers: int, *, apart_ms: float, batches: int) -> tuple[Arbiter, list[WindowOutput]]:
    """From 20 s on the last gatherer is given other times."""
    hands = [Hand(g) for g in range(gatherers)]
    arbiter, outputs = Arbiter(gatherers, QUICK), []
    for hand in hands:
        hand.start(0)
        hand.snap("A", BOOK)
    step = 30_000 // batches
    for begin in range(0, 30_000, step):
        for hand in hands:
            for ms in range(max(begin, 10), begin + step, 10):
                late = apart_ms if ms >= 20_000 and hand.gatherer == gatherers - 1 else 0
                hand.delta(ms + late, "A", 10_000 * (1 + ms // 10 % 90), 100)
            if begin + step >= 30_000:
                hand.stop()
            arbiter.absorb(hand.commit())
        outputs += drain(arbiter)
    return arbiter, outputs + drain(arbiter, final=True)


@pytest.mark.parametrize("gatherers", [2, 3])
def test_times_that_differ_after_they_were_proven_fall_back_at_once_and_alert(
    gatherers: int,
) -> None:
    """Nothing is lost or doubled over the change; the tape up to it stays as it was."""
    arbiter, outputs = told(gatherers, apart_ms=0.005, batches=1)
    last = gatherers - 1
    changes = [(c.subject, c.before, c.after) for o in outputs for c in o.changes]
    assert changes == [(f"{g}-{last}", "exact", "window") for g in range(last)]
    assert total(outputs, "mode_changes") == last
    assert len(tape(outputs)) == 2_999
    assert total(outputs, "quarantined_rows") == 0
    seen = arbiter.evidence.pairs[f"0-{last}"].likeness
    assert (seen.compared, seen.equal_us, seen.apart_us_max) == (2_999, 1_999, 5)
    assert seen.apart == [0, 1_000, 0, 0, 0]
    if gatherers == 3:
        assert arbiter.evidence.pairs["0-1"].mode == "exact"


def test_equal_times_change_nothing_and_batches_do_not_matter() -> None:
    """The control of the change, and INV-R1 for the evidence."""
    arbiter, outputs = told(3, apart_ms=0, batches=1)
    other, _ = told(3, apart_ms=0, batches=10)
    assert not any(o.changes for o in outputs)
    assert {p.mode for p in arbiter.evidence.pairs.values()} == {"exact"}
    assert arbiter.evidence == other.evidence


def test_a_second_gatherer_closes_the_gap_of_the_first() -> None:
    outputs = merge(gapped(0, lose=True), gapped(1, lose=False))
    assert [row[0] for row in tape(outputs)] == list(range(100, 2_000, 100))
    assert {row[3] for row in tape(outputs)} == {1}
    assert {s for _, _, s in statuses(outputs, "A", 1_900)} == {"dark", "complete"}


def test_after_a_gap_without_snapshot_nothing_is_claimed_and_the_rows_are_kept_aside() -> None:
    hand = Hand(0)
    hand.start(0)
    hand.snap("A", BOOK)
    hand.delta(100, "A", 10_000, 100)
    hand.gap(200, 1)
    hand.delta(300, "A", 20_000, 100)
    hand.stop()
    outputs = merge(hand)
    assert [row[0] for row in tape(outputs)] == [100]
    assert [(q.reason, q.n_rows) for o in outputs for q in o.quarantine] == [("unanchored", 1)]
    assert {s for _, _, s in statuses(outputs, "A", 400)} == {"dark"}


def test_quiet_markets_are_covered_by_the_other_markets_of_their_subscription() -> None:
    """Quiet is not dark: the run shows time, less the margin for the engines' clocks."""
    hand = Hand(0)
    hand.start(0)
    hand.snap("A", BOOK)
    hand.snap("B", BOOK)
    for ms in range(100, 3_000, 100):
        hand.delta(ms, "A", 10_000 * (ms // 100), 100)
    hand.stop()
    outputs = merge(hand)
    assert statuses(outputs, "B", 3_000) == [
        (0, 200, "dark"), (200, 2_800, "complete"), (2_800, 3_000, "dark"),
    ]  # fmt: skip
    frames = [
        (s.epoch, s.market_seq) for o in outputs for s in o.snapshots if o.tickers[s.market] == "B"
    ]
    assert frames == [(1, 0)]


def reconnecting(gatherer: int, off_ms: int, on_ms: int, to_ms: int = 6_000) -> Hand:
    """Market A is busy, market B never changes; the connection is down from off to on."""
    hand = Hand(gatherer)
    hand.start(0)
    book = dict(BOOK)
    hand.snap("A", book)
    hand.snap("B", BOOK)
    for ms in range(100, to_ms, 100):
        if ms == off_ms:
            hand.end()
        if ms == on_ms:
            hand.start(ms)
            hand.snap("A", book)
            hand.snap("B", BOOK)
        if not off_ms <= ms < on_ms:
            hand.delta(ms, "A", 10_000 * (ms // 100 % 50 + 1), 100)
        price = 10_000 * (ms // 100 % 50 + 1)
        book[price] = book.get(price, 0) + 100
    hand.stop()
    return hand


def test_rule_7_equal_books_without_shared_live_time_are_two_epochs_and_a_gap() -> None:
    """27 of 67 such abutments hid lost events: equal H proves nothing."""
    outputs = merge(reconnecting(0, 2_000, 4_000))
    assert [g.kind for o in outputs for g in o.gaps if g.ticker == "B"] == ["book_equal"]
    assert "gap" in {s for _, _, s in statuses(outputs, "B", 6_000)}
    assert total(outputs, "book_equal_gaps") == 1


def test_rule_7_shared_live_time_joins_runs_without_a_common_event() -> None:
    """Gatherer 1 goes on where gatherer 0 stops, and both were live for a while."""
    outputs = merge(reconnecting(0, 3_000, 5_000), reconnecting(1, 200, 2_000))
    assert [g for o in outputs for g in o.gaps] == []
    assert {e.epoch for o in outputs for e in o.epochs} == {1}
    middle = [s for a, b, s in statuses(outputs, "B", 5_500) if a >= 200]
    assert set(middle) == {"complete"}


def closing(gatherer: int, *, sees: bool) -> Hand:
    """A close of kind (b): the book is emptied by a snapshot alone, then again."""
    hand = Hand(gatherer)
    hand.start(0)
    hand.snap("A", BOOK)
    hand.snap("B", BOOK)
    for ms in range(100, 1_000, 100):
        hand.delta(ms, "A", 10_000 * (ms // 100), 100)
    if sees:
        hand.snap("A", {})
        hand.snap("A", {})
    for ms in range(1_000, 3_000, 100):
        hand.delta(ms, "B", 10_000 * (ms // 100), 100)
    hand.stop()
    return hand


@pytest.mark.parametrize("seen", [(True, True), (True, True, True)])
def test_a_close_by_snapshot_seen_by_all_is_one_reset(seen: tuple[bool, ...]) -> None:
    outputs = merge(*(closing(g, sees=s) for g, s in enumerate(seen)))
    resets = [r for o in outputs for r in o.deltas if r["flags"] & DeltaFlag.RESET]
    assert len(resets) == 1
    assert int(resets[0]["sources"]) == (1 << len(seen)) - 1
    assert total(outputs, "audits") == len(seen)


def test_a_close_seen_by_none_leaves_the_book_as_it_is() -> None:
    outputs = merge(closing(0, sees=False), closing(1, sees=False))
    assert [r for o in outputs for r in o.deltas if r["flags"] & DeltaFlag.RESET] == []
    assert {e.epoch for o in outputs for e in o.epochs} == {1}


def test_a_close_seen_by_one_of_two_live_runs_is_disputed_not_believed() -> None:
    """Both were in sequence and one saw no reset: one of them is wrong, nobody can say which."""
    outputs = merge(closing(0, sees=True), closing(1, sees=False))
    assert "disputed" in {s for _, _, s in statuses(outputs, "A", 2_500)}


def test_a_close_missed_by_one_of_three_costs_that_one_its_claim() -> None:
    outputs = merge(closing(0, sees=True), closing(1, sees=True), closing(2, sees=False))
    reasons = {c.reason for o in outputs for c in o.claims if c.gatherer == 2 and c.ticker == "A"}
    assert "missed an event" in reasons
    assert {s for _, _, s in statuses(outputs, "A", 2_500)} == {"dark", "complete"}


def test_a_close_while_one_gatherer_was_away_is_told_by_the_other() -> None:
    late = Hand(1)
    late.start(1_200)
    late.snap("A", {})
    late.snap("B", BOOK)
    for ms in range(1_200, 3_000, 100):
        late.delta(ms, "B", 10_000 * (ms // 100), 100)
    late.stop()
    outputs = merge(closing(0, sees=True), late)
    assert [g for o in outputs for g in o.gaps if g.ticker == "A"] == []
    assert sum(int(r["flags"]) & 1 for o in outputs for r in o.deltas) == 1


def test_an_empty_first_snapshot_after_a_gap_claims_only_what_follows() -> None:
    """It may itself be the reset: a claim from the gap on would hide it."""
    hand = Hand(0)
    hand.start(0)
    hand.snap("A", BOOK)
    hand.snap("B", BOOK)
    for ms in range(100, 1_000, 100):
        hand.delta(ms, "B", 10_000 * (ms // 100), 100)
    hand.gap(1_000, 1)
    for ms in range(1_000, 2_000, 100):
        hand.delta(ms, "B", 10_000 * (ms // 100), 100)
    hand.snap("A", {})
    for ms in range(2_000, 3_000, 100):
        hand.delta(ms, "B", 10_000 * (ms // 100), 100)
    hand.stop()
    found = statuses(merge(hand), "A", 2_700)
    assert found == [
        (0, 200, "dark"), (200, 800, "complete"), (800, 2_100, "gap"), (2_100, 2_700, "complete"),
    ]  # fmt: skip


def test_a_snapshot_that_differs_cuts_the_run_and_ends_its_claim_at_the_last_audit() -> None:
    hand = Hand(0)
    hand.start(0)
    hand.snap("A", BOOK)
    for ms in range(100, 1_000, 100):
        hand.delta(ms, "A", 10_000 * (ms // 100), 100)
    hand.snap("A", {10_000: 1})
    for ms in range(1_000, 2_000, 100):
        hand.delta(ms, "A", 10_000 * (ms // 100), 100)
    hand.stop()
    outputs = merge(hand)
    assert {e.epoch for o in outputs for e in o.epochs} == {1, 2}
    assert total(outputs, "audits_failed") == 1
    assert not any(a < 900 for a, _, s in statuses(outputs, "A", 2_000) if s == "complete")


def silently_wrong(gatherer: int, missing_ms: int) -> Hand:
    """It loses one event without a gap in seq: nothing at the gatherer shows it."""
    hand = Hand(gatherer)
    hand.start(0)
    hand.snap("A", BOOK)
    for i in range(30):
        if 100 * (i + 1) != missing_ms:
            hand.delta(100 * (i + 1), "A", 10_000 * (i + 1), 100)
    hand.stop()
    return hand


def test_rule_9_two_gatherers_outvote_a_silently_wrong_one() -> None:
    outputs = merge(silently_wrong(0, 700), steady(1), steady(2))
    assert [row[0] for row in tape(outputs)] == list(range(100, 3_100, 100))
    assert {q.gatherer for o in outputs for q in o.quarantine} == {0}
    assert {s for a, _, s in statuses(outputs, "A", 3_000) if a >= 100} == {"complete"}
    claims = [c for c in added(outputs).claims if c.gatherer == 0 and c.valid]
    assert not any(c.from_us <= us(700) < c.to_us for c in claims)


def test_rule_9_one_against_one_is_flagged_and_disputed() -> None:
    outputs = merge(silently_wrong(0, 700), steady(1))
    assert total(outputs, "disputed_events") > 0
    assert "disputed" in {s for _, _, s in statuses(outputs, "A", 3_000)}
    assert not any(a <= 700 < b for a, b, s in statuses(outputs, "A", 3_000) if s == "complete")


def test_rows_of_a_broken_chain_are_kept_aside_until_the_next_snapshot() -> None:
    hand = steady(0, 20, stop=False)
    hand.rows[10]["book_hash"] += np.uint64(1)
    hand.stop()
    outputs = merge(hand)
    assert {q.reason for o in outputs for q in o.quarantine} <= {"broken_chain", "quarantined"}
    assert [row[0] for row in tape(outputs)] == list(range(100, 1_100, 100))


def test_a_repeated_row_is_skipped_and_counted() -> None:
    hand = steady(0, 10, stop=False)
    hand.rows.append(hand.rows[-1].copy())
    hand.stop()
    outputs = merge(hand)
    assert total(outputs, "skipped_rows") == 1
    assert len(tape(outputs)) == 10


def test_trades_and_tickers_come_out_once_with_all_witnesses() -> None:
    hands = []
    for g in range(2):
        hand = Hand(g)
        hand.start(0, channel="trade")
        for i in range(5):
            hand.trade(100 * i, "A", i)
            hand.ticker(100 * i + 1, "B", i)
        hand.ticker(401, "A", 4)
        hand.stop()
        hands.append(hand)
    outputs = merge(*hands)
    trades = [MergedTrade(*t) for o in outputs for t in o.trades.tolist()]
    states = [MergedTicker(*t) for o in outputs for t in o.ticker_rows.tolist()]
    assert [int.from_bytes(t.trade_id, "big") for t in trades] == [0, 1, 2, 3, 4]
    assert {t.sources for t in trades} == {3}
    assert [t.payload_key for t in states] == [4, 0, 1, 2, 3, 4]
    found = coverage.intervals(added([*outputs]), T0_US, us(400))
    assert {i.channel for i in found if i.status == "complete"} <= {"trade"}


def test_a_trade_that_comes_in_a_later_window_does_not_reappear() -> None:
    hand, slow = Hand(0), Hand(1)
    arbiter = Arbiter(2, QUICK)
    for h in (hand, slow):
        h.start(0, channel="trade")
    hand.trade(100, "A", 1)
    hand.trade(5_000, "A", 2)
    arbiter.absorb(hand.commit(20_000))
    arbiter.absorb(slow.commit(20_000))
    outputs = drain(arbiter)
    slow.trade(100, "A", 1)
    slow.stop()
    hand.stop()
    arbiter.absorb(slow.commit(21_000))
    arbiter.absorb(hand.commit(21_000))
    outputs += drain(arbiter, final=True)
    assert len([t for o in outputs for t in o.trades]) == 2


def test_the_naive_key_loses_equal_changes_of_one_microsecond() -> None:
    """The negative control: it must fail where the real merge does not."""
    hand = Hand(0)
    hand.start(0)
    hand.snap("A", BOOK)
    for _ in range(3):
        hand.delta(100, "A", 10_000, -100)
    hand.delta(200, "A", 20_000, 100)
    hand.stop()
    other = steady(1, 0)
    assert len(tape(merge(hand, other))) == 4
    hand = Hand(0)
    hand.start(0)
    hand.snap("A", BOOK)
    for _ in range(3):
        hand.delta(100, "A", 10_000, -100)
    hand.delta(200, "A", 20_000, 100)
    hand.stop()
    naive = ArbiterSettings(window_us=1_000_000, merge="content")
    assert [r[0] for r in tape(merge(hand, settings=naive))] == [100, 200]


# -- waiting ---------------------------------------------------------------------------------------


def live(arbiter: Arbiter, hands: list[Hand], upto_ms: int, from_ms: int = 0) -> list[WindowOutput]:
    outputs = []
    for ms in range(from_ms + 500, upto_ms + 1, 500):
        for hand in hands:
            for k in range(5):
                at = ms - 400 + 100 * k
                hand.delta(at, "A", 10_000 * (at // 100 % 50 + 1), 100)
            arbiter.absorb(hand.commit())
            outputs += drain(arbiter)
    return outputs


def started(n: int) -> list[Hand]:
    hands = [Hand(g) for g in range(n)]
    for hand in hands:
        hand.start(0)
        hand.snap("A", BOOK)
    return hands


def test_a_window_waits_for_a_gatherer_that_has_delivered_nothing() -> None:
    hands = started(2)
    arbiter = Arbiter(2, QUICK)
    assert live(arbiter, hands[:1], 5_000) == []
    assert arbiter.waiting_for == ["gatherer 2 has delivered nothing yet"]


def test_a_window_waits_for_a_run_that_has_not_shown_a_later_time() -> None:
    hands = started(2)
    arbiter = Arbiter(2, QUICK)
    live(arbiter, hands, 1_000)
    assert live(arbiter, hands[:1], 3_000, 1_000) == []
    arbiter.absorb(hands[1].commit(3_000))
    assert drain(arbiter) == []
    assert "has not shown a later exchange time" in arbiter.waiting_for[0]


def test_an_idle_run_holds_nothing_up_for_longer_than_idle_hold() -> None:
    hands = started(2)
    arbiter = Arbiter(2, QUICK)
    live(arbiter, hands, 1_000)
    live(arbiter, hands[:1], 12_000, 1_000)
    arbiter.absorb(hands[1].commit(12_000))
    assert drain(arbiter) != []


def test_a_gatherer_whose_commits_stand_still_is_left_out_and_its_rows_come_late() -> None:
    hands = started(2)
    arbiter = Arbiter(2, QUICK)
    outputs = live(arbiter, hands, 1_000)
    arbiter.nothing_new(1)
    outputs += live(arbiter, hands[:1], 20_000, 1_000)
    assert drain(arbiter) == []
    arbiter.nothing_new(1)
    outputs += drain(arbiter)
    assert outputs[-1].window >= us(18_000) // 1_000_000
    for ms in range(1_100, 21_000, 100):
        hands[1].delta(ms, "A", 10_000 * (ms // 100 % 50 + 1), 100)
    for hand in hands:
        hand.stop()
        arbiter.absorb(hand.commit(22_000))
    outputs += drain(arbiter, final=True)
    times = [row[0] for row in tape(outputs)]
    assert times == sorted(set(times))
    assert total(outputs, "rows_in") == sum(
        total(outputs, n)
        for n in ("merged_rows", "duplicate_rows", "quarantined_rows", "skipped_rows")
    )


def test_floating_rows_wait_for_their_snapshot() -> None:
    """Deciding before it comes would throw good rows into quarantine."""
    hands = started(2)
    arbiter = Arbiter(2, QUICK)
    outputs = live(arbiter, hands, 1_000)
    hands[0].gap(1_000, 1)
    hands[1].gap(1_000, 2)
    outputs += live(arbiter, hands, 3_500, 1_000)
    assert any("waits for a snapshot" in reason for reason in arbiter.waiting_for)
    closed = outputs[-1].window if outputs else -1
    for hand in hands:
        hand.snap("A", {**BOOK, 10_000: 100})
        arbiter.absorb(hand.commit())
    assert drain(arbiter)[-1].window > closed


def test_with_nothing_to_do_the_arbiter_says_so() -> None:
    arbiter = Arbiter(1, QUICK)
    assert arbiter.step() is None
    assert arbiter.waiting_for == ["nothing is waiting"]


# -- restart ---------------------------------------------------------------------------------------


def test_a_restarted_arbiter_goes_on_byte_for_byte() -> None:
    """INV-R2; the property test does this at random places."""

    def outputs(crash_after: int | None) -> list[Any]:
        hands = started(2)
        arbiter, made = Arbiter(2, QUICK), []
        markets: dict[str, bytes] = {}
        named: dict[str, bytes] = {}
        batches: list[Any] = []
        positions: list[GathererPosition] = []

        def publish() -> None:
            nonlocal positions
            for out in drain(arbiter):
                made.append(out)
                markets.update(out.market_states)
                for name, packed in out.named_states.items():
                    named.pop(name, None) if packed is None else named.update({name: packed})
                positions = out.positions

        for ms in range(500, 6_001, 500):
            for hand in hands:
                for k in range(5):
                    at = ms - 400 + 100 * k
                    hand.delta(at, "A", 10_000 * (at // 100 % 50 + 1), 100)
                    hand.trade(at, "B", at)
                    hand.ticker(at, "B", at)
                batches.append(hand.commit())
                arbiter.absorb(batches[-1])
            publish()
            if ms == crash_after:
                arbiter = Arbiter.load(2, QUICK, markets, named, positions)
                first = {p.gatherer: p.reread_from_batch for p in positions}
                for batch in batches:
                    if batch.last_batch_id >= first[batch.gatherer]:
                        arbiter.absorb(batch)
        return [
            (o.window, o.deltas.tobytes(), o.claims, o.trades.tobytes(), o.ticker_rows.tobytes())
            for o in made
        ]

    whole = outputs(None)
    assert len(whole) > 3
    assert outputs(2_500) == whole
    assert outputs(4_000) == whole


def test_loading_nothing_gives_a_fresh_arbiter() -> None:
    arbiter = Arbiter.load(1, QUICK, {}, {}, [])
    arbiter.absorb(steady(0, 3).commit())
    assert len(drain(arbiter, final=True)) > 0


def test_a_market_removed_from_the_subscription_ends_its_claim_there() -> None:
    hand = Hand(0)
    hand.start(0)
    hand.snap("A", BOOK)
    hand.snap("B", BOOK)
    for ms in range(100, 2_000, 100):
        hand.delta(ms, "A", 10_000 * (ms // 100), 100)
        if ms == 1_000:
            hand.control("market_removed", run_id=hand.run_id, seq=hand.seq, market_id=2)
    hand.stop()
    found = statuses(merge(hand), "B", 1_900)
    assert found[-1][2] == "dark"
    assert found[-1][0] < 1_500


def test_rows_of_a_run_whose_start_was_never_seen_are_merged_all_the_same() -> None:
    hand = Hand(0)
    hand.run_id = 7
    hand.snap("A", BOOK)
    for i in range(5):
        hand.delta(100 * (i + 1), "A", 10_000, 100)
    hand.control("gatherer_end")
    assert len(tape(merge(hand))) == 5


def test_a_market_added_after_a_gap_is_claimed_only_from_its_own_first_frame() -> None:
    """It was not subscribed at the gap: claiming from there called 12 lost events complete."""
    hand = Hand(0)
    hand.start(0)
    hand.snap("A", BOOK)
    book = dict(BOOK)
    for ms in range(100, 6_000, 100):
        if ms == 1_000:
            hand.gap(ms, 2)
        hand.delta(ms, "A", 10_000 * (ms // 100), 100)
        book[10_000 * (ms // 100)] = 100 + book.get(10_000 * (ms // 100), 0)
        if ms == 1_500:
            hand.snap("A", book)
        if ms == 4_000:
            hand.snap("B", BOOK)
    hand.stop()
    outputs = merge(hand)
    assert [a for a, _, s in statuses(outputs, "B", 6_000) if s == "complete"] == [4_200]
    assert any(a == 1_000 for a, _, s in statuses(outputs, "A", 6_000) if s == "unproven")


@pytest.mark.parametrize("together", [True, False])
def test_a_second_gap_before_the_snapshot_keeps_the_markets_in_mind(together: bool) -> None:
    """The quiet market B was subscribed all along: its claim begins at the second gap."""
    hand = Hand(0)
    arbiter, outputs = Arbiter(1, QUICK), []
    hand.start(0)
    hand.snap("A", BOOK)
    hand.snap("B", BOOK)
    book = dict(BOOK)
    for ms in range(100, 9_000, 100):
        if ms in (1_000, 1_300):
            hand.gap(ms, 2)
        hand.delta(ms, "A", 10_000 * (ms // 100 % 50 + 1), 100)
        price = 10_000 * (ms // 100 % 50 + 1)
        book[price] = book.get(price, 0) + 100
        if not together:
            arbiter.absorb(hand.commit())
            outputs += drain(arbiter)
        if ms == 1_800:
            hand.snap("A", {10_000: 5})
            hand.snap("B", BOOK)
    hand.stop()
    arbiter.absorb(hand.commit())
    outputs += drain(arbiter, final=True)
    assert 1_400 in [a for a, _, s in statuses(outputs, "B", 8_000) if s == "unproven"]


def test_a_trade_later_than_the_memory_is_left_to_production_and_its_time_not_claimed() -> None:
    """It cannot be told from a repeat here: published twice it would stop the publisher."""
    hands = [Hand(0), Hand(1)]
    arbiter = Arbiter(2, QUICK)
    for hand in hands:
        hand.start(0, channel="trade")
    for n in range(30):
        hands[0].trade(1_000 * n, "A", n)
        hands[0].ticker(1_000 * n, "A", n)
    arbiter.absorb(hands[0].commit(60_000))
    arbiter.absorb(hands[1].commit(60_000))
    outputs = drain(arbiter, final=True)
    for n in (0, 28):
        hands[1].trade(1_000 * n, "A", n)
        hands[1].ticker(1_000 * n, "A", n)
    arbiter.absorb(hands[1].commit(61_000))
    outputs += drain(arbiter, final=True)
    assert len([t for o in outputs for t in o.trades]) == 30
    assert (total(outputs, "late_trades"), total(outputs, "late_tickers")) == (1, 1)
    assert [q.reason for o in outputs for q in o.quarantine] == ["late"], "the ticker state"
    assert [t[-1] for o in outputs for t in o.late_trades["trade_id"].tolist()] == [0]
    late = [p for o in outputs for p in o.progress if p.gatherer == 1]
    assert min(p.from_us for p in late) > us(0) + 1
