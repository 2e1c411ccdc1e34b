"""The acceptance matrix: `tape demo` over every recorded capture and many made-up exchanges.

One plain line a run; the exit code is the number of runs that did not hold (at most 100).
`--short` is what CI runs: two small captures, one with kills, one made-up exchange, and both
negative controls.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ZEROS = (
    "missing", "extra", "misordered", "false_complete", "audits_failed", "books_wrong",
    "tickers_missing", "trades_missing",
)  # fmt: skip
RUN_TIMEOUT_S = 1500


@dataclass(frozen=True)
class Run:
    """One `tape demo`. `must_fail` marks a negative control: `missing` has to be above 0."""

    name: str
    arguments: tuple[str, ...]
    must_fail: bool = False


def run_once(run: Run) -> tuple[bool, str]:
    """Carry out one run. Returns (held, line to print)."""
    begun = time.monotonic()
    kept = Path(tempfile.mkdtemp(prefix="kalshi-tape-run-"))
    kept.chmod(0o711)
    done = subprocess.run(
        [sys.executable, "-m", "tape.main", "demo", "--json", "--out", str(kept), *run.arguments],
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    took = time.monotonic() - begun
    lines = done.stdout.strip().splitlines()
    try:
        result = json.loads(lines[-1])
    except (IndexError, ValueError):
        tail = " | ".join(done.stderr.strip().splitlines()[-3:])
        return False, f"FAILED {run.name}: exit {done.returncode}, no result; {tail}; see {kept}"
    wrong = {key: result[key] for key in ZEROS if result[key]}
    held = result["missing"] > 0 if run.must_fail else not wrong and done.returncode == 0
    numbers = (
        f"truth {result['events_truth']:,} merged {result['events_merged']:,} "
        f"quarantined {result['quarantined']} ambiguous {result['ambiguous']} "
        f"gaps {result['gap_intervals']} audits {result['audits']} books {result['books_checked']}"
    )
    word = (
        ("control failed as it must" if held else "CONTROL DID NOT FAIL")
        if run.must_fail
        else ("held" if held else f"FAILED {wrong}")
    )
    if held:
        shutil.rmtree(kept, ignore_errors=True)
    else:
        (kept / "said.log").write_text(done.stderr)
        word += f" (kept in {kept})"
    return held, f"{word:8} {run.name}: {numbers}; {took:.0f} s"


def captures(data: Path) -> list[Path]:
    """Every recorded capture, smallest first."""
    found = [*data.glob("ws_btc15m/*.jsonl.gz"), *data.glob("ws_multi/*.json")]
    return sorted(found, key=lambda p: p.stat().st_size)


def replay(path: Path, seed: int, *more: str) -> Run:
    return Run(
        f"{path.name} seed {seed} {' '.join(more)}".strip(),
        (
            "--frames",
            str(path),
            "--faults",
            "standard",
            "--rate",
            "max",
            "--seed",
            str(seed),
            *more,
        ),
    )


def made_up(seed: int, *more: str) -> Run:
    return Run(
        f"synthetic seed {seed} {' '.join(more)}".strip(),
        ("--synthetic", "2000", "--seconds", "60", "--faults", "harsh", "--seed", str(seed), *more),
    )  # fmt: skip


def short_plan(data: Path) -> list[Run]:
    runs = []
    found = captures(data)
    if found:
        by_name = {p.name: p for p in found}
        small = [p for p in found if p.name.startswith("kxbtc15m")]
        runs += [replay(small[0], 1), replay(small[-12], 2), replay(small[-12], 3, "--kill", "10")]
        runs += [replay(by_name[n], 1) for n in by_name if n.startswith("sports")]
        control = replay(small[-12], 1, "--merge", "content")
        runs.append(Run(control.name, control.arguments, must_fail=True))
    else:
        sys.stdout.write(f"no recorded captures at {data}: only made-up exchanges are run\n")
    runs.append(
        Run("synthetic 300 markets 15 s harsh", ("--synthetic", "300", "--seconds", "15",
            "--faults", "harsh", "--seed", "1", "--kill", "3"))
    )  # fmt: skip
    return runs


def main() -> int:
    """Run the plan. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", default="1 2 3")
    parser.add_argument("--synthetic-seeds", default=" ".join(str(n) for n in range(1, 21)))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", default="", help="only runs whose name holds this text")
    asked = parser.parse_args()
    if asked.short:
        runs = short_plan(asked.data)
    else:
        runs = [replay(p, int(s)) for p in captures(asked.data) for s in asked.seeds.split()]
        runs += [made_up(int(s)) for s in asked.synthetic_seeds.split()]
        runs += [replay(p, 1, "--kill", str(asked.kills)) for p in captures(asked.data)[-3:]]
    failed = 0
    runs = [r for r in runs if asked.only in r.name]
    for number, run in enumerate(runs, 1):
        held, line = run_once(run)
        failed += not held
        sys.stdout.write(f"[{number}/{len(runs)}] {line}\n")
        sys.stdout.flush()
    sys.stdout.write(f"acceptance: {len(runs) - failed} passed, {failed} failed\n")
    return min(failed, 100)


if __name__ == "__main__":
    sys.exit(main())
