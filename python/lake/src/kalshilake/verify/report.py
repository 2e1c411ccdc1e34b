"""What a check found: facts, findings, and their two forms for people and machines.

Does not do: any check.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any


class NoLakeError(Exception):
    """There is no lake where one was named."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not fit, and the object it was found in."""

    key: str
    problem: str


@dataclass(slots=True)
class Stretch:
    """Coverage of one market and channel, hours joined: [from_us, to_us) says one thing."""

    market: str
    channel: str
    from_us: int
    to_us: int
    status: str
    reason: str
    sources: int
    epoch: int | None

    def goes_on(self, other: Stretch) -> bool:
        """Whether `other` begins where this ends and says the same."""
        mine, theirs = (
            (s.market, s.channel, s.status, s.reason, s.sources, s.epoch) for s in (self, other)
        )
        return mine == theirs and self.to_us == other.from_us


@dataclass(slots=True)
class Report:
    """What was checked and what was found. `notes` are facts that are no fault; `coverage` is what
    the lake claims, by market, channel and time, if it was asked for."""

    location: str
    version: int = 0
    sha256: str = ""
    watermark_us: int = 0
    versions: int = 0
    objects: int = 0
    rows: int = 0
    bytes: int = 0
    events: int = 0
    keyframes: int = 0
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    coverage: list[Stretch] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def found(self, key: str, problem: str) -> None:
        """Remember a fault once."""
        made = Finding(key, problem)
        if made not in self.findings:
            self.findings.append(made)


def describe(report: Report) -> Iterator[str]:
    """The report as lines."""
    yield f"lake       {report.location}"
    yield f"version    {report.version} of {report.versions}, SHA-256 {report.sha256}"
    yield (
        f"checked    {report.objects} objects, {report.rows} rows, {report.bytes} bytes, "
        f"{report.events} events, {report.keyframes} keyframes"
    )
    for s in report.coverage:
        yield (
            f"coverage   {s.market} {s.channel} {_iso(s.from_us)} {_iso(s.to_us)} {s.status}"
            + (f" ({s.reason})" if s.reason else "")
        )
    for note in report.notes:
        yield f"note       {note}"
    for found in report.findings:
        yield f"FOUND      {found.key}: {found.problem}"
    yield "verdict    " + ("nothing found" if report.ok else f"{len(report.findings)} found")


def as_json(report: Report) -> str:
    """The report as one JSON object."""
    names = [n for n in Report.__slots__ if n not in ("findings", "notes", "coverage")]
    body: dict[str, Any] = {n: getattr(report, n) for n in names}
    if report.coverage:
        body["coverage"] = [asdict(s) for s in report.coverage]
    body["ok"] = report.ok
    body["findings"] = [{"object": f.key, "problem": f.problem} for f in report.findings]
    return json.dumps(body | {"notes": report.notes})


def _iso(us: int) -> str:
    moment = datetime.fromtimestamp(us // 1_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{us % 1_000_000:06d}Z"
