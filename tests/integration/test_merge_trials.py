"""The merge on recorded exchange data: nothing lost, false, misordered or falsely complete.

One recording is played to several simulated gatherers that each miss something else
(tests/trial.py), as no two simultaneous recordings exist. The long form is behind the mark `slow`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dedup.lives import REPLACED, Life, Lives
from marketdata import coverage
from marketdata.rows import GathererBatch
from tests.acceptance import trials
from tests.recorded import captures, recorded
from tests.trial import (
    EXTREME,
    HARSH,
    STANDARD,
    Plan,
    Played,
    Recorder,
    Score,
    made_stream,
    play,
    recorded_stream,
    score,
)
from tests.trial_judge import judge

SHORT = Plan(loss=0.005, disconnect_us=20_000_000, down_us=(500_000, 5_000_000))


def total(paths: list[Path], plan: Plan, gatherers: int, seed: int) -> tuple[Score, Counter[str]]:
    """Scores of every connection of every capture, added up."""
    whole, counts = Score(), Counter[str]()
    for path in paths:
        for stream in recorded_stream(path):
            if stream.us.size < 50:
                continue
            recorders = [Recorder(stream, g, seed, plan) for g in range(gatherers)]
            played = play(recorders, size=700, seed=seed)
            found = score(stream, recorders, played)
            counts.update(played.counts)
            for name in ("truth", "merged", "lost", "false", "misordered", "false_complete"):
                setattr(whole, name, getattr(whole, name) + getattr(found, name))
    return whole, counts


@pytest.mark.parametrize("gatherers", [1, 2, 3])
def test_small_recordings_come_out_exactly(gatherers: int) -> None:
    recorded("ws_btc15m")
    found, counts = total(captures(3), SHORT, gatherers, seed=gatherers)
    assert found.truth > 500
    assert found.wrong() == (0, 0, 0, 0)
    accounted = ("merged_rows", "duplicate_rows", "quarantined_rows", "skipped_rows")
    assert counts["rows_in"] == sum(counts[name] for name in accounted)


def test_the_control_fails_where_the_merge_does_not() -> None:
    """With the naive key the same recording loses events: the score can see a loss."""
    from dedup.output import ArbiterSettings

    recorded("ws_btc15m")
    stream = max(recorded_stream(captures()[6]), key=lambda s: s.us.size)
    recorders = [Recorder(stream, g, 1, SHORT) for g in range(3)]
    naive = play(recorders, ArbiterSettings(merge="content"), size=700)
    found = score(stream, recorders, naive)
    assert found.lost > 0
    assert score(stream, recorders, play(recorders, size=700)).lost == 0


@pytest.mark.parametrize("shift_us", [5, 500])
def test_times_apart_are_merged_by_content_and_hash(shift_us: int) -> None:
    """Rule 10, second mode: without times equal, content and H still tell the events apart."""
    stream = made_stream(3, 1_500, 1)
    recorders = [
        Recorder(
            stream, g, 3, Plan(loss=0.002, disconnect_us=10_000_000),
            time_shift=lambda rng: rng.randrange(-shift_us, shift_us + 1),
        )
        for g in range(3)
    ]  # fmt: skip
    played = play(recorders, size=300)
    found = score(stream, recorders, played)
    assert played.counts["mode_window"] > 0
    assert found.false <= 8  # a flicker inside the window may be taken for another one
    assert found.lost <= 8


def test_a_silently_wrong_gatherer_is_outvoted_on_recorded_data() -> None:
    """One event missing without a gap: 44 of 44 culprits were right with the vote."""
    recorded("ws_btc15m")
    stream = max(recorded_stream(captures()[2]), key=lambda s: s.us.size)
    whole = Plan(loss=0, disconnect_us=10**12, late_start_us=1)
    middle = stream.us.size // 2
    recorders = [Recorder(stream, g, 5, whole, silent=[middle] * (g == 1)) for g in range(3)]
    played = play(recorders, size=300)
    found = score(stream, recorders, played)
    assert found.wrong() == (0, 0, 0, 0)
    kept_aside = {q.gatherer for o in played.outputs for q in o.quarantine}
    assert kept_aside == {1}


def test_the_matrix_of_trials_holds_in_short(tmp_path: Path) -> None:
    """Every variant on the smallest captures, and the control; cells are kept, not run again."""
    recorded("ws_btc15m")
    out = tmp_path / "cells"
    asked = ["--short", "--out", str(out)]
    assert trials.main(asked) == 0
    cells = out.read_text().splitlines()
    assert len(cells) == 5 * len(trials.VARIANTS)
    assert trials.main(asked) == 0
    assert out.read_text().splitlines() == cells


def test_a_silently_wrong_gatherer_that_nobody_names_fails_the_matrix() -> None:
    """The control of the matrix itself: a wrong number makes the cell fail, an excuse must be
    shown."""
    variant = next(v for v in trials.VARIANTS if v.name == "silent")
    cell = trials.run_cell(variant, [made_stream(3, 600)], "made", 1)
    assert trials.held(variant, cell)
    for name in trials.ZEROS:
        wrong = replace(cell, numbers={**cell.numbers, name: 1})
        assert not trials.held(variant, wrong)
    assert not trials.held(variant, replace(cell, unnamed=1))
    assert not trials.held(variant, replace(cell, accused=1))


class Wiped:
    """A gatherer that lost its disk: its first life up to a batch, then one that begins empty."""

    def __init__(self, first: Recorder, second: Recorder, share: float) -> None:
        self.first, self.second, self.share = first, second, share
        self.received = second.received.copy()
        self.time_shift = None

    def batches(self, size: int) -> list[GathererBatch]:
        lives = Lives(Life())
        early = self.first.batches(size)
        early = early[: max(1, int(len(early) * self.share))]
        late = self.second.batches(size)
        made = [lives.lift(batch, 1) for batch in early]
        lives.begin(2, late[0])
        return made + [lives.lift(batch, 2) for batch in late]


def same_tape(one: Played, other: Played) -> bool:
    """Equal but for who saw it, and when."""
    names = ["exchange_us", "delta", "book_hash", "epoch", "market_seq", "price", "side", "flags"]
    return one.rows.keys() == other.rows.keys() and all(
        np.array_equal(one.rows[t][names], other.rows[t][names]) for t in one.rows
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_third_gatherer_wiped_and_restarted_empty_changes_nothing(seed: int) -> None:
    """Its batch, run and connection numbers begin again; the two others have everything."""
    recorded("ws_btc15m")
    stream = max(recorded_stream(captures()[3]), key=lambda s: s.us.size)
    whole = Plan(loss=0, disconnect_us=10**12, late_start_us=1)
    healthy = [Recorder(stream, g, seed, whole) for g in range(2)]
    third = Recorder(stream, 2, seed, SHORT)
    again = Recorder(stream, 2, seed + 9, SHORT, start_us=int(stream.us[stream.us.size // 2]))
    assert again.rows[0]["run_id"][0] == third.rows[0]["run_id"][0] == 1
    with_it = play([*healthy, Wiped(third, again, 0.4)], size=100, seed=seed)  # type: ignore[list-item]
    without = play([*healthy, third], size=100, seed=seed)
    assert same_tape(with_it, without)
    assert judge(stream, healthy, with_it).wrong() == (0, 0, 0, 0)
    over = [p for p in with_it.progress if p.reason == REPLACED]
    assert over
    assert all(p.ended for p in over)


def test_a_wiped_gatherer_whose_numbers_are_not_moved_does_harm() -> None:
    """The control: taken as one life, its second one is a repeat of numbers already seen."""
    recorded("ws_btc15m")
    stream = max(recorded_stream(captures()[3]), key=lambda s: s.us.size)
    whole = Plan(loss=0, disconnect_us=10**12, late_start_us=1)
    first = Recorder(stream, 0, 1, whole)
    again = Recorder(stream, 0, 2, whole, start_us=int(stream.us[stream.us.size // 2]))

    class Unmoved(Wiped):
        def batches(self, size: int) -> list[GathererBatch]:
            early = self.first.batches(size)
            return early[: int(len(early) * self.share)] + self.second.batches(size)

    moved = play([Wiped(first, again, 0.3)], size=100)  # type: ignore[list-item]
    unmoved = play([Unmoved(first, again, 0.3)], size=100)  # type: ignore[list-item]
    assert sum(r.size for r in moved.rows.values()) > sum(r.size for r in unmoved.rows.values())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_two_gatherers_down_for_a_quarter_change_coverage_truthfully_and_nothing_else(
    seed: int,
) -> None:
    """While they are down the third alone is the tape: what it misses is not there, and is not
    called complete; what it has is."""
    recorded("ws_btc15m")
    stream = max(recorded_stream(captures()[3]), key=lambda s: s.us.size)
    size = stream.us.size
    down_us = int(stream.us[size // 4]), int(stream.us[size // 2])
    third = Recorder(stream, 2, seed, replace(SHORT, loss=0.05, disconnect_us=10_000_000))
    two = []
    for g in range(2):
        before = Recorder(stream, g, seed, replace(SHORT, disconnect_us=10**12), stop_us=down_us[0])
        after = Recorder(
            stream, g, seed + 50, replace(SHORT, disconnect_us=10**12), start_us=down_us[1],
            ids_after=before,
        )  # fmt: skip
        two.append(Joined(before, after))
    recorders = [*two, third]
    played = play(recorders, size=100, seed=seed)  # type: ignore[arg-type]
    verdict = judge(stream, recorders, played)  # type: ignore[arg-type]
    assert verdict.wrong() == (0, 0, 0, 0)
    inside = (stream.us > down_us[0]) & (stream.us < down_us[1])
    assert (inside & ~third.received).any()
    assert (inside & third.received).any()
    alone = [
        i for i in coverage.intervals(played, *down_us)
        if i.channel == "orderbook" and i.status == "complete"
    ]  # fmt: skip
    assert alone, "what the third proved is complete"
    covered = sum(i.to_us - i.from_us for i in alone)
    assert covered < down_us[1] - down_us[0], "what it missed is not"


class Joined:
    """One gatherer that was away: its recordings before and after, in one database."""

    def __init__(self, before: Recorder, after: Recorder) -> None:
        self.before, self.after = before, after
        self.gatherer = before.gatherer
        self.received = before.received | after.received
        self.stretches = before.stretches + after.stretches
        self.time_shift = None

    def batches(self, size: int) -> list[GathererBatch]:
        made = self.before.batches(size)
        return made + self.after.batches(size, len(made))


@pytest.mark.slow
@pytest.mark.parametrize("gatherers", [2, 3])
@pytest.mark.parametrize(("name", "plan"), [("standard", STANDARD), ("harsh", HARSH)])
def test_every_recording_comes_out_exactly(name: str, plan: Plan, gatherers: int) -> None:
    recorded("ws_btc15m")
    found, _ = total(captures(), plan, gatherers, seed=11)
    assert found.truth > 1_000_000
    assert found.wrong() == (0, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_made_up_streams_with_extreme_faults(seed: int) -> None:
    stream = made_stream(seed, 8_000, [1, 10, 40][seed % 3], burst=785, reset=seed % 2 == 0)
    recorders = [Recorder(stream, g, seed, EXTREME) for g in range(3)]
    played = play(recorders, size=700, seed=seed)
    found = score(stream, recorders, played)
    assert (found.false, found.misordered, found.false_complete) == (0, 0, 0)
    assert found.lost == 0 or played.counts["ambiguous_events"]
