"""Moments and steps as people give them, and the grid that they make.

Moments: int microseconds since 1970, aware datetimes, ISO text. Steps: microseconds, or 500ms, 5m.

Does not do: floats and datetimes without a zone, which mean something else on every machine.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

import numpy as np
import numpy.typing as npt

from kalshilake import paths
from marketdata.errors import LakeError

Moment = int | str | datetime
Every = int | str

GRID_MAX: Final = 10_000_000
"""Moments of one answer: a day of milliseconds is 86 million, which nobody means."""

_UNITS: Final = {
    "us": 1, "ms": 1_000, "s": 10**6, "m": 60 * 10**6, "h": 3_600 * 10**6, "d": 86_400 * 10**6,
}  # fmt: skip


def moment_us(moment: Moment) -> int:
    """A moment as int microseconds UTC. Raises LakeError for text or floats that are none."""
    if isinstance(moment, bool) or not isinstance(moment, (int, str, datetime)):
        raise LakeError(f"{moment!r} is no moment", hint="microseconds, a datetime or ISO text")
    if isinstance(moment, int):
        return moment
    if isinstance(moment, str):
        try:
            parsed = datetime.fromisoformat(moment.strip())
        except ValueError:
            raise LakeError(f"{moment!r} is no moment", hint="2026-05-11T13:00:00Z") from None
        return paths.to_us(parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC))
    if moment.tzinfo is None:
        raise LakeError(f"{moment!r} names no zone", hint="give a datetime with tzinfo")
    return paths.to_us(moment)


def step_us(every: Every) -> int:
    """A step as microseconds: an int, or text such as 500ms, 1s, 5m, 1h, 1d."""
    if isinstance(every, int) and not isinstance(every, bool) and every > 0:
        return every
    found = re.fullmatch(r"([1-9]\d*)(us|ms|s|m|h|d)", every) if isinstance(every, str) else None
    if found is None:
        raise LakeError(f"{every!r} is no step", hint="500ms, 1s, 5m, 1h, 1d or microseconds")
    return int(found[1]) * _UNITS[found[2]]


def grid(from_us: int, to_us: int, step: int) -> npt.NDArray[np.int64]:
    """The multiples of `step` (since 1970 UTC) in [from_us, to_us)."""
    first = -(-from_us // step)
    count = max(0, -(-to_us // step) - first)
    if count > GRID_MAX:
        raise LakeError(f"{count} moments are more than {GRID_MAX} in one answer")
    return (first + np.arange(count, dtype=np.int64)) * step
