"""`make bench`: how fast and how small, as ratios to a limit and to a naive peer.

`python -m tests.bench [--short] [--json]`. Everything is measured in one run, in alternated rounds;
the medians of ratios taken inside a round are what counts. The absolute numbers belong to the
machine, which is described first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import uvloop

from runtime.embedded import EmbeddedPostgres
from tests.bench import merge, sizes
from tests.bench.ratios import Line, Target, line, of_rounds, ratios, table
from tests.bench.runs import Answering, Bench, Case, generators

WIRES = ("plain", "tls")
TARGETS = {
    "rows per s": Target("at least", 5),
    "cpu per row": Target("at most", 0.2),
    "decode": Target("at most", 0.4),
    "pipeline": Target("at most", 0.6),
    "merge": Target("at least", 0.5),
    "hot": Target("at most", 90),
    "production": Target("at most", 130),
    "parquet": Target("at most", 8.5),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    frames: int  # on each connection
    usual_frames: int
    rounds: int
    until_s: float  # no new round of the clients begins after so many seconds
    merge_rounds: int
    captures: int  # 0: sizes of the made-up frames


# Floods of seconds: a connection and its snapshots (one frame in 300 here, one in 20,000 of the
# recorded traffic) must not be what is measured.
FULL = Plan(frames=30_000, usual_frames=6_000, rounds=5, until_s=120, merge_rounds=3, captures=1)
SHORT = Plan(frames=1_000, usual_frames=300, rounds=1, until_s=1, merge_rounds=1, captures=0)


def cases(plan: Plan) -> list[Case]:
    """What every round measures, in this order."""
    few = plan.usual_frames
    found: list[Case] = []
    for wire in WIRES:
        found += [
            Case(f"bare websockets {wire}", wire, peer="bare-websockets", uvloop=True),
            Case(f"ours picows {wire}", wire, transport="picows"),
            Case(f"ours websockets {wire}", wire, transport="websockets"),
            Case(f"bare picows {wire}", wire, peer="bare-picows", uvloop=True),
            Case(f"receive and decode {wire}", wire, peer="receive-decode", uvloop=True),
            Case(f"usual {wire}", wire, peer="usual", frames=few),
        ]
    plain = Case("usual no index plain", "plain", peer="usual-no-index", frames=few)
    return [*found, plain]


def client_rounds(bench: Bench, plan: Plan, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rounds of all cases, until the plan's number or time is reached."""
    began = time.monotonic()
    rounds: list[dict[str, Any]] = []
    with Answering("tests.bench.recorder") as ours, Answering("tests.bench.clients") as peers:
        while len(rounds) < plan.rounds and (not rounds or time.monotonic() - began < plan.until_s):
            order = cases(plan) if len(rounds) % 2 == 0 else cases(plan)[::-1]
            measured = {case.name: bench.measure(case, plan.frames, ours, peers) for case in order}
            rounds.append(measured)
            say(f"round {len(rounds)} of the clients: {time.monotonic() - began:.0f} s")
    return rounds


def client_lines(rounds: Sequence[dict[str, Any]]) -> list[Line]:
    """What the rounds of the clients say."""
    lines: list[Line] = []
    for wire in WIRES:
        section = f"client, {wire}: socket, spool, decode, COPY"
        for case in ("ours picows", "ours websockets", "bare websockets", "bare picows", "usual"):
            name = f"{case} {wire}"
            for quantity, unit in (("frames_per_s", "frames/s"), ("us_per_frame", "us CPU/frame")):
                lines.append(line(section, case, of_rounds(rounds, name, quantity), unit))
        usual, bare = f"usual {wire}", f"bare websockets {wire}"
        seen = ratios(rounds, f"receive and decode {wire}", bare, "us_per_frame")
        target = TARGETS["decode"] if wire == "tls" else None
        name = "picows: receive + decode, CPU per frame / (a)"
        lines.append(line(section, name, seen, "x", target))
        for transport in ("picows", "websockets"):
            ours = f"ours {transport} {wire}"
            # The targets are for the transport that is meant for speed; the other is shown.
            wanted = TARGETS if transport == "picows" else {}
            for name, base, quantity, key in (
                (
                    f"{transport}: CPU per frame / (a) bare websockets",
                    bare,
                    "us_per_frame",
                    "pipeline",
                ),
                (f"{transport}: frames per s / (a) bare websockets", bare, "frames_per_s", ""),
                (
                    f"{transport}: committed rows per s / (b) usual",
                    usual,
                    "rows_per_s",
                    "rows per s",
                ),
                (
                    f"{transport}: CPU per committed row / (b) usual",
                    usual,
                    "us_per_row",
                    "cpu per row",
                ),
            ):
                seen = ratios(rounds, ours, base, quantity)
                lines.append(line(section, name, seen, "x", wanted.get(key)))
    section = "client, plain: against (b) without an index"
    for name, quantity in (("committed rows per s", "rows_per_s"), ("CPU per row", "us_per_row")):
        seen = ratios(rounds, "ours picows plain", "usual no index plain", quantity)
        lines.append(line(section, f"picows: {name} / (b) usual, no index", seen, "x"))
    section = "CPU of one committed row: client + PostgreSQL"
    for case in ("ours picows plain", "ours websockets plain", "usual plain"):
        client = [1e6 * r[case]["cpu_s"] / r[case]["rows"] for r in rounds]
        server = [1e6 * r[case]["server_cpu_s"] / r[case]["rows"] for r in rounds]
        lines.append(line(section, f"{case}: client", client, "us"))
        lines.append(line(section, f"{case}: PostgreSQL", server, "us"))
    return lines


def merge_lines(bench: Bench, plan: Plan, folder: Path, hot: list[str], source: str) -> list[Line]:
    """Merge against its limit, in alternated rounds, over three databases of one content."""
    span = asyncio.run(merge.time_span(hot[0]))
    merged: list[merge.Merged] = []
    limits: list[float] = []
    exports: list[merge.Exported] = []
    for number in range(plan.merge_rounds):
        production = bench.database()
        merged.append(uvloop.run(merge.merge(hot, bench.server.dsn(production))))
        tape = asyncio.run(merge.tape_bytes(bench.server.dsn(production)))
        empty = bench.database()
        limits.append(uvloop.run(merge.limit(hot, bench.server.dsn(empty), tape, span)))
        lake = folder / f"lake-{len(bench.kept)}-{source[:4]}-{number}"
        exports.append(asyncio.run(merge.export(bench.server.dsn(production), lake)))
        bench.sql(f"DROP DATABASE {production}", f"DROP DATABASE {empty}")
    counts = merged[0].counts
    if counts.get("quarantined_rows", 0) or counts["merged_rows"] * 3 != counts["rows_in"]:
        raise RuntimeError(f"the merge of three whole recordings is not whole: {counts}")
    section = f"merge: read, arbitrate, publish ({source})"
    rates = [m.rows_in / m.seconds for m in merged]
    limit_rates = [m.rows_in / s for m, s in zip(merged, limits, strict=True)]
    shares = [a / b for a, b in zip(rates, limit_rates, strict=True)]
    phases = [
        line(section, f"share of time: {phase}", [m.phases[phase] / m.seconds for m in merged], "")
        for phase in ("read", "decide", "publish")
    ]
    return [
        line(section, "merge", rates, "rows/s"),
        line(section, "limit: COPY out x3 + COPY in", limit_rates, "rows/s"),
        line(section, "merge / limit", shares, "x", TARGETS["merge"]),
        *phases,
        line(section, "export: kalshilake.write", [e.rows / e.seconds for e in exports], "rows/s"),
    ]


def size_lines(bench: Bench, plan: Plan, folder: Path) -> list[Line]:
    """Bytes of one delta in three places."""
    captures = sizes.largest_captures(plan.captures)
    production = bench.server.dsn(bench.database())
    if captures:
        hot = [bench.server.dsn(bench.database()) for _ in range(3)]
        asyncio.run(sizes.write_gatherers(captures, hot))
        source = f"{len(captures)} recorded captures"
    else:
        hot, source = [bench.server.dsn(name) for name in bench.kept], "made-up frames"
    merged = merge_lines(bench, plan, folder, hot, "recorded capture") if captures else []
    asyncio.run(merge.merge(hot, production))
    exported = asyncio.run(merge.export(production, folder / "lake-sizes"))
    seen = {
        "hot": asyncio.run(merge.delta_bytes(hot[0])),
        "production": asyncio.run(merge.delta_bytes(production)),
        "parquet": (exported.rows, exported.bytes),
    }
    names = {"hot": "hot table", "production": "production, key included", "parquet": "Parquet"}
    section = f"bytes of a delta ({source}, {exported.rows:,} deltas merged)"
    return merged + [
        Line(section, names[key], size / rows, "bytes", TARGETS[key])
        for key, (rows, size) in seen.items()
    ]


def machine(server: EmbeddedPostgres) -> dict[str, str]:
    """What the numbers were taken on."""

    async def version() -> str:
        connection = await asyncpg.connect(server.dsn())
        try:
            return str(await connection.fetchval("SHOW server_version"))
        finally:
            await connection.close()

    model = "unknown"
    with Path("/proc/cpuinfo").open() as text:
        for row in text:
            if row.startswith("model name"):
                model = row.split(":", 1)[1].strip()
                break
    return {
        "cores": str(os.cpu_count()),
        "cpu": model,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "postgresql": asyncio.run(version()),
        "loadavg": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


def main() -> int:
    """Measure, print, exit 0 whatever the numbers are."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--short", action="store_true", help="one small round, under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    asked = parser.parse_args()
    plan = SHORT if asked.short else FULL
    began = time.monotonic()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="kalshi-tape-bench-") as name:
        folder = Path(name)
        server = EmbeddedPostgres()
        try:
            server.start_blocking()
            facts = machine(server)
            with generators(folder, plan.frames) as urls:
                bench = Bench(server, urls, folder)
                rounds = client_rounds(bench, plan, say)
            lines = client_lines(rounds)
            say(f"merge: {time.monotonic() - began:.0f} s")
            kept = [bench.server.dsn(name) for name in bench.kept]
            lines += merge_lines(bench, plan, folder, kept, "800 markets, few rows each")
            say(f"sizes: {time.monotonic() - began:.0f} s")
            lines += size_lines(bench, plan, folder)
        finally:
            server.close_blocking()
    facts["loadavg at the end"] = " ".join(f"{load:.1f}" for load in os.getloadavg())
    facts |= {"rounds": str(len(rounds)), "frames a case": f"{plan.frames * 8:,}",
              "seconds": f"{time.monotonic() - began:.0f}"}  # fmt: skip
    if asked.short:
        facts["short"] = "few frames and few rows: a check that it runs, no measurement"
    if asked.json:
        print(json.dumps({"machine": facts, "lines": [each.record() for each in lines]}))
    else:
        print(", ".join(f"{key}: {value}" for key, value in facts.items()))
        print("median of the rounds [smallest .. largest]")
        print(table(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
