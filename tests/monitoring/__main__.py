"""Every alert by a real fault, and none in a quiet hour: `make alerts`.

    python -m tests.monitoring [--short] [--only TEXT ...] [--json FILE]

Prints a table: alert, fault, seconds from the fault's beginning to the alert. Exit 1 if an alert
did not fire, if one fired in the quiet hour, or if a control of the judge failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from tests import promtool
from tests.monitoring.faults import FAULTS, SHORT, Fault, thaw
from tests.monitoring.judge import ALWAYS, Fired, judge
from tests.monitoring.rig import FACTOR, HOUR_S, JOBS, POLL_S, ROOT, Rig, running, with_controls

SHORT_CLEAN_S: Final = 20.0
SCRAPED_WITHIN_S: Final = 30.0
TARGETS: Final = sum(map(len, JOBS.values()))


async def _scraped(rig: Rig) -> None:
    """Until every target was asked, and what fired before that is over: Prometheus hands its
    targets on every five seconds, which no factor shortens."""
    deadline = time.monotonic() + SCRAPED_WITHIN_S
    while True:
        found = 0.0
        with contextlib.suppress(aiohttp.ClientError):
            found = await rig.value("count(up == 1)")
        if found == TARGETS and rig.seen.now == {ALWAYS}:
            return
        assert time.monotonic() < deadline, (found, rig.seen.now)
        await asyncio.sleep(POLL_S)


async def quiet(rig: Rig, seconds: float) -> set[str]:
    """What fires while nothing is wrong."""
    rig.seen.began.clear()
    rig.seen.now = set()
    await asyncio.sleep(seconds)
    return set(rig.seen.began)


async def provoke(rig: Rig, faults: list[Fault]) -> list[Fired]:
    """One fault after the other; a line for each alert that it is to raise. An alert that an
    earlier fault has raised and that still fires counts as that one's."""
    fired: list[Fired] = []
    began: list[tuple[str, float]] = []
    for fault in faults:
        began.append((fault.name, time.monotonic()))
        try:
            missing = await fault.inflict(rig)
        except (AssertionError, OSError) as error:
            print(f"{fault.name}: broke off: {str(error)[:1_000]}", flush=True)
            missing = []
            thaw(rig)
        for name in fault.raises:
            found = _first(rig, name, began) if name not in missing else None
            fired.append(found or Fired(name, fault.name, None))
            after_s = fired[-1].after_s
            told = "did not fire" if after_s is None else f"{after_s:6.1f} s"
            print(f"{name:22} {fired[-1].fault:44} {told}", flush=True)
    return fired


def _first(rig: Rig, name: str, began: list[tuple[str, float]]) -> Fired | None:
    """By the newest fault during which it began to fire."""
    for fault, at_s in reversed(began):
        later = [s - at_s for s in rig.seen.began.get(name, []) if s >= at_s]
        if later:
            return Fired(name, fault, round(min(later), 1))
    return None


async def run(faults: list[Fault], clean_s: float) -> dict[str, Any]:
    """The whole run; what the judge says of it."""
    rules = with_controls(yaml.safe_load((ROOT / "monitoring" / "alerts.yml").read_text()))
    async with running(rules) as rig:
        await _scraped(rig)
        print(f"quiet for {clean_s:.0f} s, {clean_s * FACTOR / 60:.0f} minutes of the rules")
        clean = await quiet(rig, clean_s)
        cried = sorted(clean - {ALWAYS})
        print(f"fired in it: {', '.join(cried) or 'nothing'}", flush=True)
        usable = [f for f in faults if rig.mounted or not f.needs_disk]
        fired = await provoke(rig, usable)
        names = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
        asked = {name for fault in faults for name in fault.raises}
        left = {n: "no disk may be mounted" for f in faults if f not in usable for n in f.raises}
        return judge(names, asked, clean, fired, left)


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="four faults, ten quiet minutes")
    parser.add_argument("--only", action="append", help="faults with this in their name")
    parser.add_argument("--clean-s", type=float, default=HOUR_S)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    if promtool.prometheus() is None:
        print("prometheus is not here and could not be unpacked: nothing was run")
        return 0
    faults = [
        fault for fault in FAULTS
        if any(text in fault.name for text in flags.only or [""])
        and (not flags.short or fault.name in SHORT)
    ]  # fmt: skip
    told = asyncio.run(run(faults, SHORT_CLEAN_S if flags.short else flags.clean_s))
    print(json.dumps({k: v for k, v in told.items() if k != "fired"}, indent=1))
    if flags.json:
        flags.json.write_text(json.dumps(told))
    return 0 if told["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
