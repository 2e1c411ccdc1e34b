"""`make sim-mutants`: is every seeded bug caught by some seed below SEEDS_MAX?

Purpose: a simulation that catches nothing proves nothing. Each bug of `mutants.MUTANTS` is put into
its module by an import hook in a process of its own (no file is changed), and seeds are played
until a checker speaks.

Invariants: SIM-10 a patch whose old text does not stand exactly once in its module is an error: a
list that drifts away from the code would prove nothing either.

Does not do: inventing bugs (mutants).
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tests.sim.mutants import MUTANTS, NOT_SEEN_YET, Mutant

SEEDS_MAX = 200
CAUGHT, MISSED, DRIFTED = 0, 3, 4
PROCESSES = 2


class PatchedLoader(importlib.machinery.SourceFileLoader):
    """Loads a module's source with one text replaced; no compiled file is read or written."""

    mutant: Mutant

    def get_code(self, fullname: str) -> Any:
        source = self.get_source(fullname) or ""
        return compile(patched(self.mutant, source), self.path, "exec", dont_inherit=True)


class Hook:
    """Finds the mutant's module and has it loaded by a PatchedLoader."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> Any:
        if fullname != self.mutant.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None, f"no module {fullname}"
        assert spec.origin is not None, f"{fullname} has no source"
        spec.loader = PatchedLoader(fullname, spec.origin)
        spec.loader.mutant = self.mutant
        return spec


def patched(mutant: Mutant, source: str) -> str:
    """The source with the bug in it."""
    count = source.count(mutant.old)
    if count != 1:
        raise LookupError(f"{mutant.name}: its old text stands {count} times in {mutant.module}")
    return source.replace(mutant.old, mutant.new)


def source_of(module: str) -> str:
    """The text of a module, without importing it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"no module {module}"
    assert spec.loader is not None, f"{module} has no loader"
    return str(spec.loader.get_source(module))  # type: ignore[attr-defined]


@dataclass
class Outcome:
    """What became of one mutant."""

    mutant: Mutant
    code: int
    told: str
    seconds: float


def hunt(name: str, seeds_max: int) -> int:
    """In a process of its own: play seeds until the bug is caught."""
    mutant = next(m for m in (*MUTANTS, *NOT_SEEN_YET) if m.name == name)
    assert mutant.module not in sys.modules, f"{mutant.module} is imported already"
    sys.meta_path.insert(0, Hook(mutant))
    from tests.sim.run import run_seed  # the hook has to be there before the product

    for seed in range(seeds_max):
        result = run_seed(seed)
        if result.violations:
            print(f"{seed}\t{result.violations[0]}")
            return CAUGHT
    return MISSED


def sent(mutant: Mutant, seeds_max: int) -> Outcome:
    """Hunt one mutant in a child process."""
    began_s = time.monotonic()
    try:
        patched(mutant, source_of(mutant.module))
    except LookupError as error:
        return Outcome(mutant, DRIFTED, str(error), 0.0)
    args = [sys.executable, "-m", "tests.sim.mutate", "--hunt", mutant.name, "--seeds"]
    done = subprocess.run([*args, str(seeds_max)], capture_output=True, text=True, check=False)
    told = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    if done.returncode not in (CAUGHT, MISSED):
        told = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no word"
    return Outcome(mutant, done.returncode, told, time.monotonic() - began_s)


def table(names: list[str], seeds_max: int, processes: int) -> int:
    """All of them; prints bug, seed, checker."""
    chosen = [m for m in (*MUTANTS, *NOT_SEEN_YET) if m.name in names] or list(MUTANTS)
    missed = 0
    print(f"{'bug':<34}{'seed':>5}  caught by")
    with ThreadPoolExecutor(processes) as pool:
        for outcome in pool.map(lambda m: sent(m, seeds_max), chosen):
            mutant = outcome.mutant
            if outcome.code == CAUGHT:
                seed, _, told = outcome.told.partition("\t")
                checker, _, what = told.partition(": ")
                print(f"{mutant.name:<34}{seed:>5}  {checker}: {what[:90]}", flush=True)
            else:
                missed += 1
                why = outcome.told if outcome.code != MISSED else f"not by {seeds_max} seeds"
                print(f"{mutant.name:<34}    -  NOT CAUGHT: {why}", flush=True)
    print(f"\n{len(chosen)} seeded bugs, {len(chosen) - missed} caught")
    return 1 if missed else 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--hunt")
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    args = parser.parse_args()
    if args.hunt:
        return hunt(args.hunt, args.seeds)
    return table(args.names, args.seeds, args.processes)


if __name__ == "__main__":
    sys.exit(main())
