"""Golden templates: what the specification as written synthesizes to, for people to read in a diff.

`make aws-golden` writes them; a test compares. A change of the lib, of the topology or of a stack
shows here as lines, not as a surprise in a change set.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import conform
from kalshi_infra import topology
from kalshi_infra.assembly import Template

GOLDEN = Path(__file__).with_name("golden")


def text(template: Template) -> str:
    """A template as it is kept."""
    return json.dumps(template, indent=1, ensure_ascii=False) + "\n"


def differing(templates: Mapping[str, Template]) -> list[str]:
    """Names of stacks whose golden file is missing, stale or not theirs any more."""
    kept = {path.stem: path.read_text(encoding="utf-8") for path in GOLDEN.glob("*.json")}
    made = {name: text(template) for name, template in templates.items()}
    return sorted(n for n in kept.keys() | made.keys() if kept.get(n) != made.get(n))


def main() -> int:
    """Writes the golden templates. Returns the exit code."""
    templates, _ = conform.synthesize(topology.load(), conform.example_site())
    GOLDEN.mkdir(exist_ok=True)
    for path in GOLDEN.glob("*.json"):
        path.unlink()
    for name, template in templates.items():
        (GOLDEN / f"{name}.json").write_text(text(template), encoding="utf-8")
    print(f"{len(templates)} templates in {GOLDEN}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
