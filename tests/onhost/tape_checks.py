"""What the on-host tests ask of a finished tape, besides `tape demo`'s own proof.

`collected` brings truth, spools and lake into one folder. `witnesses` and `unproven` look at a
window of exchange time: by how many gatherers was each event recorded, and is every market's
coverage complete without a hole, for as long as the exchange's truth has something of it (`lives`):
the play lists markets and closes some, and neither is recorded before or for ever after.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exchange.truth import KIND_HOLE
from kalshilake import open_lake
from tape import prove
from tape.proof import Interval
from tape.truth_view import load_truth
from tests.onhost.machine import Machine
from tests.onhost.outside import Outside

GATHERER_BITS = 0b111
LISTED_US = 5_000_000
"""So long after a market's first change the first snapshot of it may come: it has to be told of."""


def collected(gatherers: Mapping[str, Machine], outside: Outside) -> Path:
    """The folder as `tape demo` leaves one: truth, spools, lake."""
    out = outside.folder
    for number, name in enumerate(sorted(gatherers), 1):
        shutil.copytree(
            gatherers[name].path("/var/lib/kalshi-gatherer/spool"), out / f"g{number}" / "spool"
        )
    assert outside.fetch_lake(out / "lake") > 0
    return out


def audits_failed(host: Machine) -> int:
    """Snapshots that differed from the book that the gatherer had followed."""
    said = host.run(
        *("sudo", "-u", "kalshi-timescaledb", "psql", "-X", "-At", "-p", "5432"),
        *("-h", "/run/kalshi-timescaledb", "-U", "postgres", "-d", "kalshi"),
        *("-c", "SELECT count(*) FROM orderbook_snapshot WHERE verdict = 2"),
    )
    return int(said.stdout)


def witnesses(lake: Path, from_us: int, to_us: int) -> dict[int, int]:
    """Order-book events of a window by the number of gatherers that recorded them."""
    found = open_lake(str(lake)).deltas(
        None, from_us, to_us, on_gap="ignore", columns=["kind", "sources"]
    )
    counts: Counter[int] = Counter()
    for kind, sources in zip(found["kind"].to_pylist(), found["sources"].to_pylist(), strict=True):
        if kind == "delta":  # a reset's time is inferred
            counts[(sources & GATHERER_BITS).bit_count()] += 1
    return dict(sorted(counts.items()))


def lives(truth: Path) -> dict[str, tuple[int, int]]:
    """Times of each market's first and last event in the exchange's truth, holes not counted."""
    told = load_truth(truth)
    names = told.tickers
    events = told.events[told.events["kind"] != KIND_HOLE]
    first = np.full(len(names), np.iinfo(np.int64).max)
    last = np.full(len(names), -1)
    np.minimum.at(first, events["market"], events["exchange_us"])
    np.maximum.at(last, events["market"], events["exchange_us"])
    return {n: (int(a), int(b)) for n, a, b in zip(names, first, last, strict=True) if b >= 0}


def is_of_no_life(interval: Interval, life: tuple[int, int]) -> bool:
    """Whether a market had not begun, or was over, in an interval that is not recorded."""
    first_us, last_us = life
    if interval.status != "dark":
        return False
    listed = first_us + LISTED_US  # and it is no hole that only ends there
    return (interval.from_us <= first_us and interval.to_us <= listed) or interval.from_us > last_us


def unproven(
    intervals: Mapping[str, list[Interval]],
    lived: Mapping[str, tuple[int, int]],
    from_us: int,
    to_us: int,
) -> tuple[list[str], int]:
    """(what keeps the window from being complete, markets that are complete all through it)."""
    faults: list[str] = []
    throughout = 0
    for market, found in sorted(intervals.items()):
        life = lived.get(market, (from_us, to_us))
        inside = sorted(
            (
                i
                for i in found
                if i.to_us > from_us and i.from_us < to_us and not is_of_no_life(i, life)
            ),
            key=lambda i: i.from_us,
        )
        end: int | None = None
        for interval in inside:
            if interval.status != "complete":
                faults.append(f"{market}: {interval}")
            if end is not None and interval.from_us > end:
                faults.append(f"{market}: nothing from {end} to {interval.from_us}")
            end = interval.to_us
        if inside and inside[0].from_us <= from_us and (end or 0) >= to_us:
            throughout += 1
    return faults, throughout


@dataclass(frozen=True, slots=True)
class Looked:
    """A window of the tape: order-book events by witnesses, faults of coverage, and the markets
    that are complete all through it."""

    seconds: int
    witnesses: dict[int, int]
    faults: list[str]
    throughout: int

    def told(self) -> dict[str, Any]:
        """For people."""
        return {
            "seconds": self.seconds,
            "events by witnesses": self.witnesses,
            "markets complete throughout": self.throughout,
            "faults of coverage": len(self.faults),
        }


def look(folder: Path, windows: Mapping[str, tuple[int, int]]) -> dict[str, Looked]:
    """`witnesses` and `unproven` of each window; `folder`: as `collected` leaves it."""
    lake = folder / "lake"
    intervals, _ = prove.read_coverage(open_lake(str(lake)))
    lived = lives(folder / "truth")
    looked = {}
    for name, (from_us, to_us) in windows.items():
        faults, throughout = unproven(intervals, lived, from_us, to_us)
        seconds = (to_us - from_us) // 1_000_000
        looked[name] = Looked(seconds, witnesses(lake, from_us, to_us), faults, throughout)
    return looked
