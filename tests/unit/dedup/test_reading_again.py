"""What was seen before a restart and is read again late: taken once, whatever closed meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from dedup.arbitrate import Arbiter, BeginAgainError
from dedup.output import GathererPosition, WindowOutput
from dedup.state import TAKEN_TO
from marketdata.rows import GathererBatch
from tests.hand import QUICK, Hand, drain

PARTS = ("merged_rows", "duplicate_rows", "quarantined_rows", "skipped_rows")


class Kept:
    """What production holds, and the gatherers' batches: restarts go on from there."""

    def __init__(self, batches: list[GathererBatch]) -> None:
        self.batches = batches
        self.markets: dict[str, bytes] = {}
        self.named: dict[str, bytes] = {}
        self.positions: list[GathererPosition] = []
        self.counts: dict[str, int] = {}
        self.arbiter = Arbiter(2, QUICK)

    def publish(self, outputs: list[WindowOutput]) -> int:
        """Keep the outputs; how many."""
        for out in outputs:
            self.markets.update(out.market_states)
            for name, packed in out.named_states.items():
                if packed is None:
                    self.named.pop(name)
                else:
                    self.named[name] = packed
            self.positions = out.positions
            for name, n in out.counts.items():
                self.counts[name] = self.counts.get(name, 0) + n
        return len(outputs)

    def restart(self) -> None:
        """A new process: it has nothing of the gatherers yet."""
        self.arbiter = Arbiter.load(2, QUICK, self.markets, self.named, self.positions)

    def read(self, gatherer: int, to: int) -> None:
        """Absorb a gatherer's batches from its position on."""
        first = {p.gatherer: p.reread_from_batch for p in self.positions}
        for batch in self.batches:
            if batch.gatherer == gatherer and first[gatherer] <= batch.last_batch_id <= to:
                self.arbiter.absorb(batch)


def half_second(hand: Hand, n: int) -> None:
    """A change of market A and a trade of B each 100 ms."""
    for at in range(n * 500 + 100, n * 500 + 501, 100):
        hand.delta(at, "A", 10_000 * (at // 100 % 50 + 1), 100)
        hand.trade(at, "B", at)


def two_gatherers() -> tuple[Kept, int]:
    """Twenty batches of each, half a second in each; how many rows they are."""
    batches: list[GathererBatch] = []
    hands = [Hand(0), Hand(1)]
    for hand in hands:
        hand.start(0)
        hand.snap("A", {100_000: 500})
    for n in range(20):
        for hand in hands:
            half_second(hand, n)
            if n == 19:
                hand.stop()
            batches.append(hand.commit())
    return Kept(batches), sum(b.deltas.size for b in batches)


def half_read() -> tuple[Kept, int]:
    """Both were read to batch 9; of its last two no window has taken all. Then a restart."""
    kept, rows = two_gatherers()
    for batch in kept.batches:
        if batch.last_batch_id <= 9:
            kept.arbiter.absorb(batch)
    assert kept.publish(drain(kept.arbiter)) > 1
    assert all(p.reread_from_batch == 8 < p.seen_batch == 9 for p in kept.positions)
    kept.restart()
    return kept, rows


def test_nothing_closes_before_all_is_here_again() -> None:
    kept, _ = half_read()
    kept.read(0, 20)
    kept.read(1, 8)
    assert drain(kept.arbiter) == []
    assert kept.arbiter.waiting_for == ["gatherer 2 is read again after a restart"]
    kept.read(1, 9)
    assert kept.arbiter.reading_again == []


def accounted(kept: Kept) -> tuple[int, int]:
    """(rows that were read, rows that went somewhere)."""
    return kept.counts["rows_in"], sum(kept.counts.get(name, 0) for name in PARTS)


def left_out_for_a_while(*, restarts: int) -> Kept:
    """Windows close without gatherer 2 after a restart; it comes back after further restarts."""
    kept, _ = half_read()
    for n in range(restarts):
        kept.read(0, 13 + 3 * n)
        kept.arbiter.leave_out(1)
        assert kept.publish(drain(kept.arbiter)) > 0
        assert f"{TAKEN_TO}-1" in kept.named
        kept.restart()
    kept.read(0, 20)
    kept.read(1, 20)
    kept.publish(drain(kept.arbiter, final=True))
    return kept


def test_rows_seen_before_a_restart_are_read_once_though_windows_closed_without_them() -> None:
    """Seeds 10, 419, 593, 629 and 647 of the simulation: they were taken for published."""
    rows = half_read()[1]
    for restarts in (0, 1, 2):
        kept = left_out_for_a_while(restarts=restarts)
        assert accounted(kept) == (rows, rows), restarts
        assert kept.counts["merged_rows"] == rows // 2
        assert (kept.counts["trades_in"], kept.counts["trades"]) == (200, 100)
        assert f"{TAKEN_TO}-1" not in kept.named, "all of it was read again"


def test_the_account_sees_rows_that_were_taken_for_published() -> None:
    """Negative control: without the window that had closed at the time, rows are missing."""
    rows = half_read()[1]
    kept, _ = half_read()
    kept.read(0, 13)
    kept.arbiter.leave_out(1)
    kept.publish(drain(kept.arbiter))
    kept.named.pop(f"{TAKEN_TO}-1")
    kept.restart()
    kept.read(0, 20)
    kept.read(1, 20)
    outputs: list[Any] = drain(kept.arbiter, final=True)
    for out in outputs:
        out.named_states.pop(f"{TAKEN_TO}-1", None)
    kept.publish(outputs)
    assert accounted(kept)[0] < rows


def test_what_is_half_read_again_counts_not_at_all() -> None:
    """The gatherer begins to answer and goes away again: the next arbiter goes on without it."""
    kept, rows = half_read()
    kept.read(0, 13)
    kept.read(1, 8)
    kept.arbiter.leave_out(1)
    with pytest.raises(BeginAgainError, match=r"\[2\] went away"):
        drain(kept.arbiter)
    kept.restart()
    kept.read(0, 13)
    kept.arbiter.leave_out(1)
    assert kept.publish(drain(kept.arbiter)) > 0
    for batch in kept.batches:
        if batch.last_batch_id > (13, 7)[batch.gatherer]:
            kept.arbiter.absorb(batch)
    kept.publish(drain(kept.arbiter, final=True))
    assert accounted(kept) == (rows, rows)


def test_a_replaced_database_may_hold_less_than_was_seen() -> None:
    kept, _ = half_read()
    kept.read(0, 13)
    kept.read(1, 8)
    kept.arbiter.inflows[1].all_here()
    assert kept.arbiter.reading_again == []
    kept.arbiter.leave_out(1)
    assert kept.publish(drain(kept.arbiter)) > 0
    assert kept.positions[1].seen_batch == 9


def test_at_the_end_nothing_is_waited_for() -> None:
    kept, rows = half_read()
    kept.read(0, 20)
    kept.read(1, 8)
    kept.publish(drain(kept.arbiter, final=True))
    missing = sum(b.deltas.size for b in kept.batches if b.gatherer == 1 and b.last_batch_id > 8)
    assert accounted(kept) == (rows - missing, rows - missing)


def test_runs_that_were_over_before_the_restart_come_to_nothing_again() -> None:
    """Seed 1257 of the simulation: a run that never showed a time kept reading at its beginning,
    and what had come and gone since then ended a second time, in a window of its own."""
    hand = Hand(0)
    hand.start(0)
    hand.snap("A", {100_000: 500})
    hand.start(100)  # another connection; the first one shows no time, and no end
    hand.snap("B", {100_000: 500})
    for at in range(200, 3_000, 100):
        hand.delta(at, "B", 10_000, 1)
    hand.stop()
    kept = Kept([hand.commit()])
    kept.arbiter.absorb(kept.batches[0])
    kept.arbiter.leave_out(1)
    assert kept.publish(drain(kept.arbiter, final=True)) == 3
    assert kept.positions[0].reread_from_batch == 1
    before = dict(kept.counts)
    kept.restart()
    kept.read(0, 1)
    assert kept.publish(drain(kept.arbiter, final=True)) == 0
    assert kept.counts == before


def test_a_word_of_an_end_does_not_outlive_a_restart() -> None:
    """Both had ended and began again while nobody read: windows must not close on what the first
    one delivers. Seen on booted hosts: what the others had was kept aside as late."""
    hands = [Hand(0), Hand(1)]
    batches = []
    for at in (0, 5):
        for hand in hands:
            hand.start(at * 1000)
            hand.snap("A", {100_000: 500})
            for n in range(at * 2, at * 2 + 6):
                half_second(hand, n)
            hand.stop()
            batches.append(hand.commit())
    kept = Kept(batches)
    for batch in batches[:2]:
        kept.arbiter.absorb(batch)
    for gatherer in (0, 1):
        kept.arbiter.had_nothing(gatherer, kept.arbiter.shown_ns)
    assert kept.publish(drain(kept.arbiter)) > 1
    kept.restart()
    kept.read(0, 2)
    kept.arbiter.had_nothing(0, kept.arbiter.shown_ns)
    assert kept.publish(drain(kept.arbiter)) == 0
    told = "gatherer 2 said it ended: it is asked whether it began again"
    assert kept.arbiter.waiting_for == [told]
    kept.read(1, 2)
    assert kept.publish(drain(kept.arbiter)) == 0, "it said its end once more"
    kept.arbiter.had_nothing(1, kept.arbiter.shown_ns)
    assert kept.publish(drain(kept.arbiter)) > 1
    rows = sum(b.deltas.size for b in batches)
    assert accounted(kept) == (rows, rows)
    assert kept.counts["merged_rows"] == kept.counts["duplicate_rows"] == rows // 2
    assert "late_rows" not in kept.counts
