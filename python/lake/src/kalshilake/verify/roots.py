"""Roots of days that somebody kept or cited: which version of the lake they are of.

Does not do: checking objects (the rest of this folder does that for the newest version, and for
what later versions replaced).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

from .report import Report

DAY: Final = re.compile(r"(\d{4})-(\d\d)-(\d\d)")


class Roots:
    """Cited days (YYYY-MM-DD -> SHA-256) against every version that goes by."""

    def __init__(self, cited: Mapping[str, str]) -> None:
        self._cited = {day: sha256.lower() for day, sha256 in cited.items()}
        self._in: dict[str, list[int]] = {day: [] for day in cited}
        self._newest = 0

    def see(self, version: Mapping[str, Any]) -> None:
        """The next version's body."""
        self._newest = int(version["version"])
        for day, wanted in self._cited.items():
            if _root(day, version) == wanted:
                self._in[day].append(self._newest)

    def tell(self, report: Report) -> None:
        """A finding for each root that no version has, a note for each that one has."""
        for day, versions in self._in.items():
            if not versions:
                report.found("manifest/", f"no version has the root {self._cited[day]} for {day}")
            elif versions[-1] == self._newest:
                report.notes.append(f"{day}: has the root that was cited")
            else:
                report.notes.append(
                    f"{day}: the root that was cited is of version {versions[-1]}; the day was "
                    f"exported again since (late rows or a repair), version {versions[-1]} can be "
                    "pinned"
                )


def _root(day: str, version: Mapping[str, Any]) -> str:
    found = DAY.fullmatch(day)
    folder = "/year={}/month={}/day={}/".format(*found.groups()) if found else "//"
    lines = sorted(f"{e['key']} {e['sha256']}\n" for e in version["objects"] if folder in e["key"])
    text = f"kalshi-tape-day 1\n{day}\n" + "".join(lines)
    return hashlib.sha256(text.encode()).hexdigest() if lines else ""
