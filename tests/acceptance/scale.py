"""`make scale`: a whole exchange on one gatherer, while markets open and close all the time.

100,000 markets (the measured ranks: nearly all silent), 20 REST requests a second, 50 markets
opening and 50 closing in every second of ten minutes. Measured: the time to full coverage, the
gatherer's memory, and the proof of everything recorded against the exchange's own log.
Exit code 0: covered within three minutes, memory below its limit, all zeros.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
from rich.console import Console

from tape import demo
from tape.fleet import DemoPlan
from tests.bench.sustained import resident_mib

COVERED_WITHIN_S: Final = 180.0
RESIDENT_MIB_MAX: Final = 2048.0
LOOK_S: Final = 0.5
ZEROS: Final = demo.ZEROS


@dataclass(slots=True)
class Seen:
    """What was seen of the gatherer while it ran."""

    started_s: float = field(default_factory=time.monotonic)
    covered_s: float | None = None  # from the gatherer's start
    markets: int = 0
    resident_mib: float = 0.0
    incomplete_looks: int = 0  # after the first complete one
    looks: int = 0

    def note(self, detail: dict[str, Any], now_s: float) -> None:
        """One look at /health."""
        books = detail.get("channels", {}).get("orderbook_delta", {})
        self.markets = max(self.markets, books.get("covered", 0))
        if detail.get("complete"):
            self.covered_s = self.covered_s or now_s - self.started_s
        if self.covered_s is not None:
            self.looks += 1
            self.incomplete_looks += not detail.get("complete")


def pid_of(folder: Path) -> int | None:
    """The gatherer whose spool lies in this folder."""
    wanted = f"KT_SPOOL_DIR={folder / 'g1' / 'spool'}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    return int(entry.name)
    return None


def health_port(pid: int) -> int:
    """From the environment that it was given."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    found = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
    return int(found[b"KT_HEALTH_PORT"])


async def watch(folder: Path, seen: Seen) -> None:
    """Look until cancelled."""
    pid, port = None, 0
    async with aiohttp.ClientSession() as http:
        while True:
            await asyncio.sleep(LOOK_S)
            if pid is None:
                pid = await asyncio.to_thread(pid_of, folder)
                if pid is None:
                    continue
                seen.started_s, port = time.monotonic(), health_port(pid)
            with suppress(aiohttp.ClientError, OSError, ValueError):
                seen.resident_mib = max(seen.resident_mib, resident_mib(pid))
                async with http.get(f"http://127.0.0.1:{port}/health") as answer:
                    detail = json.loads(await answer.text())["detail"]
                seen.note(detail, time.monotonic())


async def run(plan: DemoPlan) -> tuple[dict[str, Any], Seen]:
    """The demo of this plan, watched."""
    seen = Seen()
    watching = asyncio.create_task(watch(plan.out, seen))
    try:
        result, verdict = await demo.demo_once(plan, 0, Console(stderr=True))
        for example in verdict.examples:
            print(example, file=sys.stderr)
    finally:
        watching.cancel()
        await asyncio.wait({watching})
    return result, seen


def judged(result: dict[str, Any], seen: Seen) -> list[str]:
    """What was missed; empty where everything was kept."""
    missed = [f"{key} is {result[key]}" for key in ZEROS if result[key]]
    if seen.covered_s is None or seen.covered_s > COVERED_WITHIN_S:
        missed.append(f"full coverage after {seen.covered_s} s, not {COVERED_WITHIN_S} s")
    if seen.resident_mib > RESIDENT_MIB_MAX:
        missed.append(f"{seen.resident_mib:.0f} MiB resident, limit {RESIDENT_MIB_MAX:.0f}")
    return missed


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markets", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=800.0)
    parser.add_argument("--turnover", type=int, default=50)
    parser.add_argument("--events-per-s", type=float, default=500.0)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kalshi-tape-scale-"))
    folder.chmod(0o711)
    plan = DemoPlan(
        out=folder, frames=None, synthetic=asked.markets, rate="1", seconds=asked.seconds,
        faults="none", seed=1, gatherers=1, merge="runs", transport="picows", window_ms=5000,
        markets_per_connection=2_000, events_per_s=asked.events_per_s,
        turnover_per_s=asked.turnover, start_timeout_s=600.0, rest_rate_per_s=20.0,
        audit_interval_s=300,
    )  # fmt: skip
    try:
        result, seen = asyncio.run(run(plan))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    per_market = seen.resident_mib * 1024 / max(1, seen.markets)
    print(json.dumps(result))
    print(
        f"covered after {seen.covered_s} s; {seen.markets:,} markets at most; "
        f"{seen.resident_mib:.0f} MiB resident at most, {per_market:.1f} KiB a market; "
        f"incomplete at {seen.incomplete_looks} of {seen.looks} looks after that"
    )
    missed = judged(result, seen)
    for line in missed:
        print(f"MISSED {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
