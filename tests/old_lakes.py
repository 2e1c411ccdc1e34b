"""Lakes of former releases as files: `python -m tests.old_lakes NAME` writes tests/lakes/NAME.

One is written when a release changes what lies in a lake, and never again: `lake/` as that release
wrote it (two hours and a third that was exported twice, then joined), `answers.json` as it read it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from kalshilake import Lake, compact, open_lake, write
from kalshilake.schema import TABLES
from kalshilake.store import LocalStore
from tests.lake_world import START, World, make_world, world_tables, write_world

LAKES = Path(__file__).resolve().parent / "lakes"
SEED = 12
MOMENTS = 40
VERSIONS = (3, 4, 5)  # every hour for itself, one exported again, all joined


def world() -> World:
    return make_world(SEED, markets=2, hours=3, events=40)


def answers(lake: Lake) -> dict[str, Any]:
    """What a reader is told: rows of each table, and books."""
    told: dict[str, Any] = {"version": lake.version, "rows": {}, "books": []}
    for name in TABLES:
        if not lake.records(name):
            continue  # a table that came later
        rows = lake.rows(name, None, -(2**62), 2**62, None)
        text = json.dumps(rows.to_pylist(), default=str, sort_keys=True)
        told["rows"][name] = [rows.num_rows, hashlib.sha256(text.encode()).hexdigest()]
    cover = lake.coverage_map()
    for market in cover.markets:
        for stretch in cover.intervals(market, "orderbook"):
            if stretch.status != "complete":
                continue
            step = max((stretch.to_us - stretch.from_us) // MOMENTS, 1)
            for at in range(stretch.from_us, stretch.to_us, step):
                book = lake.book(market, at)
                told["books"].append([market, at, book.market_seq, f"{book.book_hash:016x}"])
    return told


def make(root: Path) -> None:
    """A lake as this release writes it, and its answers."""
    made = world()
    write_world(root / "lake", made)
    store = LocalStore(root / "lake")
    late = world_tables(made)["trades"].slice(0, 0)
    again = write.write_hour(store, "trades", START, late, watermark_us=made.end_us)
    write.commit_version(store, [again], watermark_us=made.end_us + 30 * compact.US_PER_DAY)
    compact.compact(store, most_bytes=20_000)
    versions = {version: answers(open_lake(root / "lake", version)) for version in VERSIONS}
    (root / "answers.json").write_text(json.dumps(versions) + "\n")


if __name__ == "__main__":
    folder = LAKES / sys.argv[1]
    if folder.exists():
        sys.exit(f"{folder} is there already: what a release wrote is never written again")
    make(folder)
