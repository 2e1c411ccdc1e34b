"""`make bench-live`, `make soak`: a whole gatherer under steady loads, and what came of it.

`python -m tests.bench.live [--short] [--json FILE]` runs the sustained load, then each rate of the
ladder, each on a rig of its own, and then goes up until the sink does not keep up any more.
`--soak MINUTES --rate R` keeps one load up and draws docs/soak.svg.
Exit code 1 where a frame was lost or a target was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.chart import Series, chart
from tests.bench.runs import ROOT
from tests.bench.sustained import Load, Outcome, described, rig, run

SUSTAINED: Final = Load(20_000, 300)
LADDER: Final = (2_000, 20_000, 50_000)
LADDER_S: Final = 30
CLIMB: Final = (60_000, 70_000, 80_000, 90_000, 100_000, 120_000)
LAG_P99_MS: Final = 1_000
"""Of receipt to commit, at the sustained rate; beyond it a rate is not kept up with."""
FAST_P99_MS: Final = 250
FAST_RATE: Final = 50_000
LOST: Final = "nothing lost"
GROWTH_MIB: Final = 16
"""Between the medians of the first and the last third of a soak's second half."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the end."""

    name: str
    told: str
    kept: bool


def judged(outcome: Outcome) -> list[Verdict]:
    """What a run has to keep: nothing lost; its lag or latency where a target is set."""
    load, found = outcome.load, []
    lost = outcome.faults
    name = f"{load.rate:,} frames/s for {load.seconds} s"
    found.append(Verdict(f"{name}: {LOST}", "; ".join(lost) or "every frame a row", not lost))
    p99 = outcome.receive_to_commit_ms["p99"]
    if load.rate <= SUSTAINED.rate:
        found.append(Verdict(f"{name}: sink lag p99", f"{p99:.0f} ms", p99 < LAG_P99_MS))
    p99 = outcome.latency_ms["p99"]
    if load.rate == FAST_RATE:
        found.append(Verdict(f"{name}: send to commit p99", f"{p99:.0f} ms", p99 < FAST_P99_MS))
    return found


def say(text: str) -> None:
    """Progress goes to standard error."""
    print(text, file=sys.stderr, flush=True)


async def one(load: Load) -> Outcome:
    """A load on a rig of its own."""
    with tempfile.TemporaryDirectory(prefix="kalshi-tape-live-") as folder:
        async with rig(Path(folder), load) as made:
            outcome = await run(made, load, say)
    say(json.dumps(described(outcome)))
    return outcome


async def loads(rates: tuple[int, ...], seconds: int, climb: tuple[int, ...]) -> list[Outcome]:
    """Every rate of the ladder; then up until the sink falls behind."""
    outcomes = [await one(Load(rate, seconds)) for rate in rates]
    for rate in climb:
        outcomes.append(await one(Load(rate, seconds)))
        last = outcomes[-1]
        if last.faults or last.receive_to_commit_ms["p99"] > LAG_P99_MS or last.rate < 0.97 * rate:
            break
    return outcomes


def highest(outcomes: list[Outcome]) -> int:
    """The highest rate that was sent, stored and kept up with."""
    kept = [
        round(o.rate)
        for o in outcomes
        if not o.faults and o.receive_to_commit_ms["p99"] <= LAG_P99_MS
    ]
    return max(kept, default=0)


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as text."""
    heads = ("asked/s", "sent/s", "s", "lost", "send to commit ms", "receipt to commit", "CPU us")
    form = "{:>8} {:>8} {:>4} {:>4}  {:<22} {:<18} {}"
    lines = [form.format(*heads), form.format("", "", "", "", "p50 / p99 / p99.9", "p99 ms", "")]
    for o in outcomes:
        late = " / ".join(f"{o.latency_ms[p]:.0f}" for p in ("p50", "p99", "p99.9"))
        cpu = f"gatherer {o.cpu_us['gatherer']:.1f}, PostgreSQL {o.cpu_us['postgresql']:.1f}"
        rates = f"{o.load.rate:,}", f"{o.rate:,.0f}", str(o.load.seconds)
        p99 = f"{o.receive_to_commit_ms['p99']:.0f}"
        lines.append(form.format(*rates, "0" if not o.faults else "YES", late, p99, cpu))
    return "\n".join(lines)


def growth(samples: list[dict[str, float]], name: str) -> float:
    """How much a quantity grew over the second half of a soak: medians of its outer thirds."""
    half = [each[name] for each in samples[len(samples) // 2 :]]
    third = max(1, len(half) // 3)
    first, last = sorted(half[:third]), sorted(half[-third:])
    return last[len(last) // 2] - first[len(first) // 2]


async def soak(rate: int, minutes: int, picture: Path) -> list[Verdict]:
    """One load for a long time; the picture of what might grow."""
    outcome = await one(Load(rate, 60 * minutes))
    samples = outcome.samples
    names = (
        ("resident_mib", "resident memory, MiB"),
        ("open_files", "open file descriptors"),
        ("tasks", "asyncio tasks"),
        ("threads", "threads"),
        ("lag_ms", "sink lag, ms"),
    )
    drawn = [Series(text, [(s["at_s"] / 60, s[name]) for s in samples]) for name, text in names]
    title = f"One gatherer, {outcome.rate:,.0f} frames/s over TLS, {minutes} minutes"
    await asyncio.to_thread(picture.write_text, chart(title, "minutes", drawn), encoding="utf-8")
    limits = {"resident_mib": GROWTH_MIB, "open_files": 2, "tasks": 2, "threads": 2}
    found = judged(outcome)
    for name, limit in limits.items():
        grown = growth(samples, name)
        found.append(Verdict(f"growth of {name}", f"{grown:+.1f}", grown <= limit))
    return found


def machine() -> dict[str, Any]:
    """Where this ran."""
    return {"cpus": os.cpu_count(), "machine": platform.machine(), "python": sys.version.split()[0],
            "load": os.getloadavg()}  # fmt: skip


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--soak", type=int, default=0, metavar="MINUTES")
    parser.add_argument("--rate", type=int, default=5_000)
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "soak.svg")
    asked = parser.parse_args()
    say(json.dumps(machine()))
    if asked.soak:
        verdicts = asyncio.run(soak(asked.rate, asked.soak, asked.picture))
    else:
        sustained = Load(2_000, 10) if asked.short else SUSTAINED
        seconds, climb = (5, ()) if asked.short else (LADDER_S, CLIMB)
        rates = LADDER[:2] if asked.short else LADDER
        outcomes = [asyncio.run(one(sustained)), *asyncio.run(loads(rates, seconds, climb))]
        print(table(outcomes))
        print(f"highest rate without loss and kept up with: {highest(outcomes):,} frames/s")
        verdicts = [v for o in outcomes if o.load.rate <= FAST_RATE for v in judged(o)]
        if asked.short:  # a busy machine is late; nothing may be lost on any
            verdicts = [v for v in verdicts if v.name.endswith(LOST)]
        if asked.json:
            asked.json.write_text(json.dumps([described(o) for o in outcomes], indent=1))
    for each in verdicts:
        print(f"{'kept  ' if each.kept else 'MISSED'} {each.name}: {each.told}")
    return 0 if all(each.kept for each in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
