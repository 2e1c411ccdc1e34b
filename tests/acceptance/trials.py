"""The trials of the merge: every recorded capture through simulated gatherers, under harsh faults.

One line a cell (variant, capture, seed), then totals; the exit code is non-zero if a number that
must be zero is not. What no data can decide is counted apart, by the evidence of tests.trial_judge.
`--out` names a file that keeps the cells; a finished one is skipped, so the long form can be broken
off and taken up again. A cell counts as finished only if it was made by the same merge.
`--short` is what tests run.

Order: all seeds of all variants on one capture, then the next capture.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dedup.output import ArbiterSettings
from dedup.suspects import suspects
from tests.recorded import captures
from tests.trial import EXTREME, HARSH, Plan, Recorder, Stream, play, recorded_stream
from tests.trial_judge import Verdict, judge

ROOT = Path(__file__).resolve().parents[2]
MARKETDATA = ("merge", "alignment", "pieces", "cuts", "coverage", "evidence", "keyframes")
DEDUP = (
    "arbitrate", "beginnings", "claims", "drafts", "fast", "gate", "inflow", "markets", "quiet",
    "runs", "state", "suspects", "tails", "union", "window",
)  # fmt: skip
MERGE = (
    *(f"python/marketdata/src/marketdata/{name}.py" for name in MARKETDATA),
    *(f"python/dedup/src/dedup/{name}.py" for name in DEDUP),
    "tests/trial.py",
    "tests/trial_judge.py",
    "tests/acceptance/trials.py",
)
EVENTS_MIN = 50  # a connection with fewer is no trial
CONTROL_MIN = 2_000  # the naive merge need not fail on fewer
ZEROS = ("missing", "extra", "misordered", "false_complete")
NUMBERS = ("truth", "merged", *ZEROS, "undecidable", "cuts", "complete_us", "whole_us")
WHOLE = Plan(loss=0, disconnect_us=10**12, late_start_us=1)


@dataclass(frozen=True)
class Variant:
    """One kind of trial. `apart_us`: times of different gatherers are this far from the truth's;
    `own_order`: each has its own order inside a microsecond; `silent`: the gatherer that misses an
    event without a gap, -1 none; `control`: something must be wrong, or the judge sees nothing."""

    name: str
    plan: Plan
    gatherers: int = 3
    apart_us: int = 0
    own_order: bool = False
    silent: int = -1
    control: bool = False

    def recorders(self, stream: Stream, seed: int) -> list[Recorder]:
        """What each gatherer recorded of the stream."""
        more: dict[str, Any] = {"shuffle": self.own_order}
        if self.apart_us:
            wide = self.apart_us
            more["time_shift"] = lambda rng: rng.randrange(-wide, wide + 1)
        made = []
        for g in range(self.gatherers):
            silent = [_missed(stream, seed)] if g == self.silent else []
            made.append(Recorder(stream, g, seed, self.plan, silent=silent, **more))
        return made


VARIANTS = (
    Variant("harsh", HARSH),
    Variant("two", HARSH, gatherers=2),
    Variant("extreme", EXTREME),
    Variant("apart5", HARSH, apart_us=5),
    Variant("apart500", HARSH, apart_us=500),
    Variant("own-order", HARSH, own_order=True),
    Variant("silent", WHOLE, silent=1),
    Variant("control", HARSH, control=True),
)


@dataclass
class Cell:
    """The outcome of one variant with one seed on all connections of one capture."""

    name: str
    numbers: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NUMBERS, 0))
    counts: Counter[str] = field(default_factory=Counter)
    unnamed: int = 0  # connections on which the silently wrong gatherer was not named
    named: int = 0
    accused: int = 0  # healthy gatherers that were named
    told: list[str] = field(default_factory=list)
    took_s: float = 0.0

    def add(self, verdict: Verdict) -> None:
        """One connection more."""
        for name in NUMBERS:
            self.numbers[name] += getattr(verdict, name)
        self.told += verdict.told

    @property
    def wrong(self) -> int:
        """What must be zero."""
        balanced = self.counts["rows_in"] == sum(
            self.counts[n]
            for n in ("merged_rows", "duplicate_rows", "quarantined_rows", "skipped_rows")
        )
        zeros = sum(self.numbers[n] for n in ZEROS)
        return zeros + self.unnamed + self.accused + (not balanced)

    def line(self, held: bool) -> str:
        """The outcome in one line."""
        n, c = self.numbers, self.counts
        modes = " ".join(f"{m} {c['mode_' + m]}" for m in ("exact", "window", "groups"))
        share = 1000 * n["complete_us"] // max(n["whole_us"], 1)
        named = f" named {self.named} unnamed {self.unnamed}" if self.named + self.unnamed else ""
        zeros = " ".join(f"{name} {n[name]}" for name in ZEROS)
        return (
            f"{'held' if held else 'FAILED':6} {self.name}: truth {n['truth']:,} {zeros} "
            f"undecidable {n['undecidable']} in {n['cuts']} cuts; quarantined "
            f"{c['quarantined_rows']} of {c['rows_in']:,} ambiguous {c['ambiguous_events']} "
            f"complete {share / 10} %; {modes}{named}; {self.took_s:.1f} s"
        )


def _missed(stream: Stream, seed: int) -> int:
    """Which event a silently wrong gatherer misses: any change but the very last ones."""
    changes = np.flatnonzero(stream.kind[: stream.us.size * 9 // 10] == 0)
    return int(changes[(seed * 7919) % changes.size])


def run_cell(variant: Variant, streams: list[Stream], name: str, seed: int) -> Cell:
    """Play every connection of a capture."""
    cell = Cell(f"{variant.name} {name} seed {seed}")
    began = time.monotonic()
    settings = ArbiterSettings(merge="content") if variant.control else ArbiterSettings()
    for stream in streams:
        recorders = variant.recorders(stream, seed)
        played = play(recorders, settings, size=700, seed=seed)
        verdict = judge(
            stream, recorders, played, own_order=variant.own_order, apart_us=variant.apart_us
        )
        cell.add(verdict)
        cell.counts.update(played.counts)
        if variant.silent >= 0:
            named: Counter[int] = Counter()
            for out in played.outputs:
                for (g, _), n in suspects(out).items():
                    named[g] += n
            cell.named += variant.silent in named
            cell.unnamed += variant.silent not in named
            cell.accused += len(named.keys() - {variant.silent})
    cell.took_s = time.monotonic() - began
    return cell


def held(variant: Variant, cell: Cell) -> bool:
    """Did the cell come out as it must?"""
    if variant.control:
        return cell.wrong > 0 or cell.numbers["truth"] < CONTROL_MIN
    return not cell.wrong


# -- the matrix ------------------------------------------------------------------------------------


def code() -> str:
    """A digest of what decides the outcome of a cell."""
    digest = hashlib.sha256()
    for path in MERGE:
        digest.update((ROOT / path).read_bytes())
    return digest.hexdigest()[:12]


def finished(out: Path | None, made_by: str) -> dict[str, dict[str, Any]]:
    """Cells of an earlier call by the same merge, by name."""
    if out is None or not out.exists():
        return {}
    lines = [json.loads(line) for line in out.read_text().splitlines() if line.strip()]
    return {line["cell"]: line for line in lines if line["code"] == made_by}


def cells(
    variants: list[Variant], paths: list[Path], seeds: list[int], done: dict[str, Any]
) -> Iterator[tuple[Variant, Callable[[], Cell], str]]:
    """Every cell that is not finished. A capture is read once: that is half of a cell's time."""
    for path in paths:
        short = path.name.split(".")[0]
        todo = [
            (seed, v)
            for seed in seeds
            for v in variants
            if f"{v.name} {short} seed {seed}" not in done
        ]
        if not todo:
            continue
        streams = [s for s in recorded_stream(path) if s.us.size >= EVENTS_MIN]
        for seed, variant in todo:
            yield (
                variant,
                lambda v=variant, s=streams, n=short, at=seed: run_cell(v, s, n, at),
                short,
            )


def _entry(cell: Cell, variant: Variant, made_by: str, *, good: bool) -> dict[str, Any]:
    return {
        "cell": cell.name, "variant": variant.name, "code": made_by, "held": good,
        "numbers": cell.numbers, "counts": dict(cell.counts), "named": cell.named,
        "unnamed": cell.unnamed, "accused": cell.accused, "told": cell.told[:20],
    }  # fmt: skip


def totals(entries: list[dict[str, Any]]) -> list[str]:
    """One line a variant."""
    lines = []
    for name in dict.fromkeys(e["variant"] for e in entries):
        mine = [e for e in entries if e["variant"] == name]
        n = {key: sum(e["numbers"][key] for e in mine) for key in NUMBERS}
        rows = sum(e["counts"].get("rows_in", 0) for e in mine)
        aside = sum(e["counts"].get("quarantined_rows", 0) for e in mine)
        lines.append(
            f"total {name}: {len(mine)} cells, {sum(not e['held'] for e in mine)} failed, "
            f"truth {n['truth']:,} " + " ".join(f"{z} {n[z]}" for z in ZEROS)
            + f" undecidable {n['undecidable']} in {n['cuts']} cuts, quarantined {aside:,} of"
            f" {rows:,} rows, named {sum(e['named'] for e in mine)}"
            f" unnamed {sum(e['unnamed'] for e in mine)} accused {sum(e['accused'] for e in mine)}"
        )  # fmt: skip
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Run the matrix; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--variants", default=" ".join(v.name for v in VARIANTS))
    parser.add_argument("--only", default="", help="only captures whose name holds this text")
    parser.add_argument("--out", type=Path, help="file that keeps the cells")
    parser.add_argument("--short", action="store_true", help="five small captures, one seed")
    parser.add_argument("--tell", action="store_true", help="print every error of a failed cell")
    asked = parser.parse_args(arguments)
    paths = [p for p in captures() if asked.only in p.name]
    seeds = list(range(asked.first_seed, asked.first_seed + asked.seeds))
    if asked.short:
        paths, seeds = paths[1:6], [asked.first_seed]
    if not paths:
        sys.stdout.write("recorded data are not on this machine: no trial was made\n")
        return 2
    chosen = [v for v in VARIANTS if v.name in asked.variants.split()]
    made_by = code()
    done = finished(asked.out, made_by)
    entries = list(done.values())
    for variant, run, _ in cells(chosen, paths, seeds, done):
        cell = run()
        good = held(variant, cell)
        entries.append(_entry(cell, variant, made_by, good=good))
        if asked.out is not None:
            with asked.out.open("a") as kept:
                kept.write(json.dumps(entries[-1], sort_keys=True) + "\n")
        sys.stdout.write(cell.line(good) + "\n")
        if asked.tell and not good:
            sys.stdout.write("".join(f"    {line[:400]}\n" for line in cell.told))
        sys.stdout.flush()
    failed = sum(not e["held"] for e in entries)
    sys.stdout.write("\n".join(totals(entries)) + "\n")
    sys.stdout.write(f"trials: {len(entries) - failed} held, {failed} failed\n")
    return min(failed, 100)


if __name__ == "__main__":
    sys.exit(main())
