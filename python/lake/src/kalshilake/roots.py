"""One hash for a day of the tape, to cite a data set by and to check it against later.

Purpose: the root of a UTC day in a version of the lake (docs/formats.md section 4): SHA-256 over
the names and hashes of all its objects. Whoever holds it can tell that no byte of that day has
changed, whatever was added to the lake since.

Does not do: reading objects, and finding the version that a root is of (kalshilake.verify, which
computes roots by code of its own).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from kalshilake import paths
from kalshilake.manifest import LakeVersion, ObjectRecord
from kalshilake.read import Lake

HEADER: Final = "kalshi-tape-day 1"
US_PER_DAY: Final = 24 * paths.US_PER_HOUR


@dataclass(frozen=True, slots=True)
class DayRoot:
    """A day as a version lists it. `day`: YYYY-MM-DD, UTC. `closed`: the version's watermark has
    passed its end, so that only late rows or a repair give it another root."""

    day: str
    sha256: str
    objects: int
    rows: int
    bytes: int
    closed: bool


def root_of(day: str, objects: Iterable[ObjectRecord]) -> str:
    """The root of these objects of one day, in any order."""
    lines = sorted(f"{o.key} {o.sha256}\n" for o in objects)
    return hashlib.sha256(f"{HEADER}\n{day}\n{''.join(lines)}".encode()).hexdigest()


def day_roots(version: Lake | LakeVersion) -> list[DayRoot]:
    """Every day that the version has objects of, ascending."""
    days: dict[int, list[ObjectRecord]] = {}
    for o in version.objects:
        days.setdefault(o.hour_us // US_PER_DAY, []).append(o)
    made = []
    for number, objects in sorted(days.items()):
        day = f"{paths.at(number * US_PER_DAY):%Y-%m-%d}"
        made.append(
            DayRoot(
                day,
                root_of(day, objects),
                len(objects),
                sum(o.rows for o in objects),
                sum(o.bytes for o in objects),
                closed=version.watermark_us >= (number + 1) * US_PER_DAY,
            )
        )
    return made
