"""Runs a module in a process whose wall clock can be stepped: `python -m tests.faults.stepped M`.

Time namespaces shift no wall clock and the machine's own clock belongs to everybody on it. So the
one thing that is replaced is Python's wall clock in this process, before anything of the product is
imported: `time.time_ns` and `time.time` add the number of nanoseconds that stands in the file
STEPPED_CLOCK (8 bytes, mapped). The product has no hook for it and cannot tell it from a real step;
monotonic time goes on untouched, as it does when a clock is set.

SCALED_TIMES, a JSON object of "module.NAME": number, shortens waits that are constants of a module
(the short form of the matrix); a name that is not there is an error.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import runpy
import struct
import sys
import time
from pathlib import Path

OFFSET = struct.Struct("<q")


def step(file: Path, seconds: int) -> None:
    """From now on the wall clock of the process is off by so many seconds."""
    if not file.exists():
        file.write_bytes(OFFSET.pack(0))
    with file.open("r+b") as out:
        out.write(OFFSET.pack(seconds * 1_000_000_000))


def _replace_clock(file: Path) -> None:
    if not file.exists():
        step(file, 0)
    with file.open("r+b") as source:
        shown = mmap.mmap(source.fileno(), OFFSET.size)
    real = time.time_ns

    def time_ns() -> int:
        return int(real() + OFFSET.unpack_from(shown)[0])

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9


def _scale(times: dict[str, float]) -> None:
    for place, value in times.items():
        module, _, name = place.rpartition(".")
        held = importlib.import_module(module)
        assert type(getattr(held, name)) is type(value), place
        setattr(held, name, value)


if __name__ == "__main__":
    _replace_clock(Path(os.environ.pop("STEPPED_CLOCK")))
    _scale(json.loads(os.environ.pop("SCALED_TIMES", "{}")))
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
