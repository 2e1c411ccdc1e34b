"""The simulation in its short form: some worlds, the same story twice, a handful of seeded bugs.

The long form is `make sim-many SEEDS=2000` and `make sim-mutants` (docs/simulation.md).
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.sim.mutants import MUTANTS, NOT_SEEN_YET
from tests.sim.mutate import CAUGHT, patched, sent, source_of
from tests.sim.plan import FaultPlan
from tests.sim.run import run_seed

SEEDS = 40
QUICK_MUTANTS = (
    "claim_starts_too_early", "epoch_without_gap_row", "duplicate_witness", "xid_window_to_xmax",
    "no_keyframe_at_the_start",
)  # fmt: skip


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_no_world_breaks_a_promise(first: int) -> None:
    broken = {seed: run_seed(seed).violations for seed in range(first, first + 10)}
    assert {seed: found for seed, found in broken.items() if found} == {}


@pytest.mark.parametrize("seed", [8, 17, 78, 140, 313, 1941])
def test_worlds_that_once_broke_a_promise_do_not(seed: int) -> None:
    """8, 17, 313: complete before the first epoch, with no book. 1941: an epoch without a book. 78,
    140: a gatherer that had ended and began again was not waited for."""
    assert run_seed(seed).violations == []


def test_a_seed_tells_the_same_story_in_every_process() -> None:
    """In this process after other worlds, and in a new one with other hashes of strings."""
    code = "from tests.sim.run import run_seed; print(run_seed(7).digest)"
    told = {run_seed(7).digest, run_seed(7).digest}
    for hashes in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hashes}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        told.add(done.stdout.strip())
    assert len(told) == 1


def test_worlds_differ() -> None:
    assert len({run_seed(seed).digest for seed in (3, 4, 5)}) == 3
    assert FaultPlan.draw(3) == FaultPlan.draw(3)


@pytest.mark.parametrize("name", QUICK_MUTANTS)
def test_a_seeded_bug_is_caught(name: str) -> None:
    """Without this a simulation that looks away would pass as well."""
    outcome = sent(next(m for m in MUTANTS if m.name == name), 20)
    assert outcome.code == CAUGHT, outcome.told


def test_every_seeded_bug_still_fits_its_module() -> None:
    assert len(MUTANTS) >= 25
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
    for mutant in (*MUTANTS, *NOT_SEEN_YET):
        assert patched(mutant, source_of(mutant.module)) != source_of(mutant.module)
