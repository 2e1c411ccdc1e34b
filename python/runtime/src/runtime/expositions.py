"""The metrics of several processes of one service, as one exposition. Pure.

What holds: every sample of every process is there, with the label `process` (1, 2, ...); comments
of a name stand once, before its samples.

Does not do: asking the processes, adding samples up (whoever reads them can).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_SAMPLE: Final = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (.*)$")


def joined(texts: Sequence[str]) -> str:
    """Expositions of processes 1, 2, ... as one; empty where none has a sample."""
    lines: list[str] = []
    told: set[str] = set()
    by_name: dict[str, list[str]] = {}
    heads: dict[str, list[str]] = {}
    for number, text in enumerate(texts, 1):
        name = ""
        for line in text.splitlines():
            if line.startswith("# "):
                name = line.split(" ", 3)[2]
                if line not in told:
                    told.add(line)
                    heads.setdefault(name, []).append(line)
                continue
            sample = _SAMPLE.match(line)
            if sample is not None:
                labels = ",".join(part for part in (f'process="{number}"', sample[2]) if part)
                by_name.setdefault(name, []).append(f"{sample[1]}{{{labels}}} {sample[3]}")
    for name in dict.fromkeys((*heads, *by_name)):
        lines += heads.get(name, []) + by_name.get(name, [])
    return "\n".join(lines) + "\n" if lines else ""
