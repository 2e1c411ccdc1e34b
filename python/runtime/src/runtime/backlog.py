"""Data points that wait for CloudWatch, in memory and in a file: a kill -9 loses none.

Purpose: keep what was measured until it was taken. One line of JSON a data point; beside it the
number of lines that were taken.
What holds:
- A point is in the file, synced, before `add` returns; the file of a process that died is read by
  the next one. What was taken when the process died, and not yet noted, is sent once more.
- Both ends are bounded: at most `points_max` points (more push the oldest out, counted in `lost`),
  and a file of at most FILE_SHARE_MAX times their lines.
- A line that is torn or no point is left out and counted in `unread`.
Does not do: deciding which points are too old, sending (cloudwatch).
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

FILE: Final = "metrics.waiting"
TAKEN: Final = "metrics.taken"
FILE_SHARE_MAX: Final = 2
POINT_BYTES_MAX: Final = 400
"""Of one line: name, host, time, value, unit. It only bounds the file (docs/runbook.md)."""
MEMBERS: Final = frozenset({"MetricName", "Dimensions", "Timestamp", "Value", "Unit"})

Point = dict[str, Any]
"""A data point as PutMetricData takes it, but `Timestamp` in whole seconds since 1970."""


class Backlog:
    """See the module's text. One process at a time owns the folder."""

    def __init__(self, folder: Path, points_max: int) -> None:
        assert points_max > 0
        self._file, self._taken_file = folder / FILE, folder / TAKEN
        self._max = points_max
        self.lost = 0
        self.unread = 0
        lines = self._file.read_bytes().splitlines() if self._file.exists() else []
        self._taken = min(self._noted(), len(lines))
        self._lines = len(lines)
        self._behind = False  # the file lacks points that are in memory
        self._points: deque[Point] = deque()
        for line in lines[self._taken :]:
            point = _point(line)
            if point is None:
                self.unread += 1
            else:
                self._points.append(point)
        if self._taken or self.unread:
            self._rewrite()
        self._shorten()

    def __len__(self) -> int:
        return len(self._points)

    def add(self, points: Sequence[Point]) -> None:
        """Keep these too. OSError where the disk refuses; they are in memory all the same."""
        if not points:
            return
        self._points.extend(points)
        self._shorten()
        if self._behind:
            self._rewrite()
            return
        self._behind = True  # until it is there
        with self._file.open("ab") as out:
            out.write(b"".join(_line(point) for point in points))
            out.flush()
            os.fsync(out.fileno())
        self._behind = False
        self._lines += len(points)

    def first(self, n: int) -> list[Point]:
        """The oldest `n`, or as many as there are."""
        return [self._points[i] for i in range(min(n, len(self._points)))]

    def taken(self, n: int) -> None:
        """The oldest `n` need not be kept any more."""
        for _ in range(n):
            self._points.popleft()
        self._taken += n
        if self._behind or not self._points:
            self._rewrite()
        else:
            self._note()

    def _shorten(self) -> None:
        over = len(self._points) - self._max
        if over <= 0:
            return
        for _ in range(over):
            self._points.popleft()
        self.lost += over
        self._taken += over
        if self._behind:
            return
        if self._lines >= FILE_SHARE_MAX * self._max:
            self._rewrite()
        else:
            self._note()

    def _noted(self) -> int:
        try:
            return int(self._taken_file.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def _note(self) -> None:
        beside = self._taken_file.with_suffix(".new")
        beside.write_text(str(self._taken))
        beside.replace(self._taken_file)

    def _rewrite(self) -> None:
        """Only what waits. The note goes first: read with an old file it would hide points, so a
        crash between the two sends some twice rather than none."""
        self._taken_file.unlink(missing_ok=True)
        beside = self._file.with_suffix(".new")
        with beside.open("wb") as out:
            out.write(b"".join(_line(point) for point in self._points))
            out.flush()
            os.fsync(out.fileno())
        beside.replace(self._file)
        self._taken, self._lines, self._behind = 0, len(self._points), False


def _line(point: Point) -> bytes:
    return json.dumps(point, separators=(",", ":")).encode() + b"\n"


def _point(line: bytes) -> Point | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or set(found) != MEMBERS:
        return None
    return found if isinstance(found["Timestamp"], int) else None
