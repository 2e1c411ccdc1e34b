"""Fault plans: enough faults, the same ones for a seed, never all at one instant."""

from __future__ import annotations

import random

import pytest

from exchange.faults import (
    CUTS,
    RUN_ON_EVENTS,
    FaultLevel,
    FaultPlan,
    FrameKind,
    Slot,
    TimeKind,
)

START_US = 1_788_000_000_000_000
MINUTE_US = 60_000_000
THROWN_OUT = {*CUTS}


def plan(
    level: FaultLevel, *, seed: int = 1, minutes: float = 10, events: int = 60_000
) -> FaultPlan:
    return FaultPlan(level, seed, START_US, START_US + int(minutes * MINUTE_US), events)


def cuts(slot: Slot) -> int:
    return sum(fault.kind in THROWN_OUT for fault in slot.time_faults)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("level", [FaultLevel.STANDARD, FaultLevel.HARSH])
def test_even_a_play_of_seconds_has_two_disconnects_and_two_bursts_per_slot(
    level: FaultLevel, seed: int
) -> None:
    """The smallest capture lasts 30 s: by rates alone it would have no fault at all."""
    short = plan(level, seed=seed, minutes=0.5, events=2_000)
    for _ in range(3):
        slot = short.take_slot(books=True)
        assert cuts(slot) >= 2
        drops = [f for f in slot.frame_faults if f.kind == FrameKind.DROP]
        assert len(drops) >= 2
        assert all(1 <= fault.at_frame <= 2_000 for fault in slot.frame_faults)
        assert all(fault.length <= 100 for fault in drops)
    assert short.told()["scaled_up"] is True


def test_a_long_harsh_play_follows_the_rates() -> None:
    """About 1 % of the frames and a disconnect a minute."""
    harsh = plan(FaultLevel.HARSH, minutes=60, events=1_000_000)
    slot = harsh.take_slot(books=True)
    lost = sum(f.length for f in slot.frame_faults if f.kind == FrameKind.DROP)
    assert 7_000 < lost < 13_000
    assert 50 <= cuts(slot) <= 70
    assert harsh.told()["scaled_up"] is False


def test_none_means_none() -> None:
    """The plan of the comparison run has no fault of any kind."""
    quiet = plan(FaultLevel.NONE)
    slot = quiet.take_slot(books=True)
    assert (slot.time_faults, slot.frame_faults) == ([], [])
    assert all(quiet.rest_fault() is None for _ in range(100))


def test_a_seed_gives_the_same_plan_and_another_seed_another() -> None:
    """A failing play must be playable again."""
    slots = [plan(FaultLevel.HARSH, seed=seed).take_slot(books=True) for seed in (4, 4, 5)]
    assert slots[0].time_faults == slots[1].time_faults
    assert slots[0].frame_faults == slots[1].frame_faults
    assert slots[0].time_faults != slots[2].time_faults


@pytest.mark.parametrize("seed", range(10))
def test_no_two_slots_are_cut_at_one_instant(seed: int) -> None:
    """Three witnesses that always fall together would be one witness (EXCH-6)."""
    harsh = plan(FaultLevel.HARSH, seed=seed)
    slots = [harsh.take_slot(books=True) for _ in range(3)]
    instants = [{f.at_us for f in slot.time_faults} for slot in slots]
    assert not instants[0] & instants[1]
    assert not instants[1] & instants[2]


def test_slots_are_given_again_with_the_rest_of_their_plan() -> None:
    """Who comes back after a cut continues the plan; the first faults are not drawn again."""
    standard = plan(FaultLevel.STANDARD)
    first = standard.take_slot(books=True)
    first.time_faults.pop()
    left = list(first.time_faults)
    first.taken = False
    again = standard.take_slot(books=True)
    assert again is first
    assert again.time_faults == left
    assert standard.take_slot(books=False).name == "aux0"


def test_only_books_overflow() -> None:
    """Error 25 is planned where a resubscription costs a book."""
    standard = plan(FaultLevel.STANDARD)
    aux = standard.take_slot(books=False)
    assert not any(f.kind == TimeKind.OVERFLOW for f in aux.time_faults)
    assert any(f.kind == TimeKind.OVERFLOW for f in standard.take_slot(books=True).time_faults)


def test_rest_faults_come_but_never_four_in_a_row() -> None:
    """A client that retries gets through."""
    harsh = plan(FaultLevel.HARSH)
    answers = [harsh.rest_fault() for _ in range(5_000)]
    assert {429, 503} <= set(answers)
    for at in range(len(answers) - 3):
        assert None in answers[at : at + 4]


def test_run_on_is_bounded_by_the_length_of_the_play() -> None:
    """Full speed: the venue waits for a thrown-out client before a short play is over."""
    rng = random.Random(1)
    long, short = plan(FaultLevel.STANDARD), plan(FaultLevel.STANDARD, events=1_000)
    drawn = [long.run_on(rng) for _ in range(300)]
    assert min(drawn) == 0
    assert RUN_ON_EVENTS[0] < max(drawn) <= RUN_ON_EVENTS[1]
    assert all(short.run_on(rng) <= 100 for _ in range(100))
    assert all(0 < short.late_us(rng) <= MINUTE_US for _ in range(100))
