"""The merge on recorded exchange data: nothing lost, false, misordered or falsely complete.

One recording is played to several simulated gatherers that each miss something else
(tests/trial.py), as no two simultaneous recordings exist. The long form is behind the mark `slow`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.recorded import captures, recorded
from tests.trial import (
    EXTREME,
    HARSH,
    STANDARD,
    Plan,
    Recorder,
    Score,
    made_stream,
    play,
    recorded_stream,
    score,
)

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
