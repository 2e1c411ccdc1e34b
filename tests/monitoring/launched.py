"""Runs a service in a process whose wall clock and kernel's word about it can be changed.

`python -m tests.monitoring.launched MODULE ...`: as tests.faults.stepped, and besides that the
gatherer asks the file KERNEL_CLOCK instead of the kernel whether the clock is synchronised ("yes"
or anything else): the kernel of the machine that runs the tests belongs to everybody on it.
START_NOW (exchange): a made-up exchange's time begins now, for ages are measured against our clock.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

from tests.faults.stepped import _replace_clock, _scale


def _replace_kernel(file: Path) -> None:
    from gatherer.clock_offset import ClockOffset
    from marketdata.clock_bounds import KernelClock

    def told() -> KernelClock:
        return KernelClock(file.read_text().strip() == "yes", offset_ns=0, error_ns=1_000)

    defaults = ClockOffset.__init__.__kwdefaults__
    assert defaults is not None
    assert "kernel" in defaults
    defaults["kernel"] = told


def _start_now() -> None:
    import time

    from exchange import synthetic

    synthetic.START_US = time.time_ns() // 1_000  # type: ignore[misc]


if __name__ == "__main__":
    if os.environ.pop("START_NOW", ""):
        _start_now()
    _replace_clock(Path(os.environ.pop("STEPPED_CLOCK")))
    _scale(json.loads(os.environ.pop("SCALED_TIMES", "{}")))
    kernel = os.environ.pop("KERNEL_CLOCK", "")
    if kernel:
        _replace_kernel(Path(kernel))
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
