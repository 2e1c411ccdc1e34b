"""`make aarch64`: every check in order, what each has shown, and what none of them can show."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import FrameType

from tests.aarch64.checks import CHECKS, NOT_SHOWN
from tests.aarch64.emulator import EmulationError
from tests.aarch64.place import CannotRunError
from tests.aarch64.trial import FailedError, Trial

CANNOT_RUN, FAILED, INTERRUPTED = 2, 1, 130


def run(trial: Trial) -> int:
    """Run every check; the number of those that did not hold."""
    failed = 0
    for name, check in CHECKS.items():
        begun = time.monotonic()
        try:
            said, mark = check(trial), "shown"
        except (FailedError, EmulationError, subprocess.TimeoutExpired) as error:
            said, mark = str(error), "FAILED"
            failed += 1
        print(f"{mark}  {name} ({time.monotonic() - begun:.1f} s)\n       {said}", flush=True)
    return failed


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends a run as Ctrl-C does: everything is put away first."""
    raise KeyboardInterrupt


def main() -> int:
    """Run the checks and print the report. Returns the exit code."""
    signal.signal(signal.SIGTERM, interrupt)
    begun = time.monotonic()
    try:
        with Trial() as trial:
            failed = run(trial)
    except CannotRunError as error:
        print(f"cannot run: {error}", file=sys.stderr)
        return CANNOT_RUN
    except KeyboardInterrupt:
        print("interrupted; nothing is left running", file=sys.stderr)
        return INTERRUPTED
    print("\nnot shown, because emulation cannot:")
    for line in NOT_SHOWN:
        print(f"  - {line}")
    held = len(CHECKS) - failed
    print(f"\n{held} of {len(CHECKS)} checks held, {time.monotonic() - begun:.0f} s")
    return FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
