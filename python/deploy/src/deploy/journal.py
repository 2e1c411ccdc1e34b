"""What a deploy did so far, on disk before and after each step, so that another process can go on.

One JSON object a line, synced. A line that was cut by a crash is left out when read. Holds no
secrets: steps, store paths, names, times and reasons.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from deploy.errors import PlanError
from deploy.plan import Step, step_of

SUFFIX: Final = ".journal.jsonl"
Outcome = Literal["done", "refused", "rolled back", "in between"]


@dataclass(slots=True)
class Story:
    """A run as its journal tells it.

    `before`: store path by closure and host, as it was; `recording`: the gatherers that did then;
    `ended`: numbers of finished steps; `back`:
    why everything is brought back, "" while it goes forward; `moved`: hosts whose switch was begun.
    """

    run: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    before: dict[str, dict[str, str]] = field(default_factory=dict)
    gaps: int | None = None
    recording: list[str] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    moved: list[str] = field(default_factory=list)
    returned: list[str] = field(default_factory=list)
    back: str = ""
    outcome: Outcome | None = None

    def hear(self, told: Mapping[str, Any]) -> None:
        """One line of the journal."""
        event = told.get("event")
        if event == "run":
            self.run, self.facts = told["run"], dict(told["facts"])
            self.steps = [step_of(each) for each in told["steps"]]
        elif event == "before":
            self.before = {h: dict(p) for h, p in told["paths"].items()}
            self.gaps, self.recording = told["gaps"], list(told.get("recording", ()))
        elif event == "moving" and told["host"] not in self.moved:
            self.moved.append(told["host"])
        elif event == "end":
            self.ended.add(told["step"])
            host = told.get("host", "")
            if host:
                self.seconds[host] = round(self.seconds.get(host, 0.0) + told["seconds"], 3)
        elif event == "back":
            self.back = told["why"]
        elif event == "returned":
            self.returned.append(told["host"])
        elif event == "outcome":
            self.outcome = told["outcome"]


class Journal:
    """The journal of one run; every `note` is on disk when it returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.story = Story()
        if path.exists():
            for told in _lines(path):
                self.story.hear(told)

    def note(self, event: str, **facts: Any) -> None:
        """Add a line and hear it."""
        told = {"event": event, **facts}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            if file.tell() and not _ends_well(self.path):
                file.write(b"\n")
            file.write(json.dumps(told, sort_keys=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.story.hear(told)


def _ends_well(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().split(b"\n"):
        try:
            told = json.loads(line)
        except ValueError:
            continue  # cut by a crash; what it told of is looked at again
        if isinstance(told, dict):
            yield told


def unfinished(folder: Path) -> Journal:
    """The newest run below a folder that has no outcome. Raises PlanError without one."""
    for path in sorted(folder.glob(f"*{SUFFIX}"), reverse=True):
        journal = Journal(path)
        if journal.story.run and journal.story.outcome in (None, "in between"):
            return journal
    raise PlanError(f"no deploy below {folder} waits to be gone on with")
