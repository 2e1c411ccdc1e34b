"""Freed memory goes back: measured in a process of its own, with and without the call."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys, threading
from runtime.memory import give_back

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

kept = []

def work():
    blocks = [b"x" * 40_000 for _ in range(4_000)]
    kept.append(blocks[-1])  # the last one pins the top of the heap
    del blocks

thread = threading.Thread(target=work)
thread.start()
thread.join()
before = resident()
answer = give_back() if sys.argv[1] == "give" else None
print(before - resident(), answer)
"""


def given_back(how: str) -> tuple[int, str]:
    """(bytes that are not resident any more, what the call said)."""
    run = [sys.executable, "-c", SCRIPT, how]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    return int(said[0]), said[1]


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only the GNU C library has malloc_trim"
)
def test_freed_memory_goes_back_to_the_machine() -> None:
    freed, answer = given_back("give")
    assert answer == "True"
    assert freed > 100_000_000
    assert given_back("keep")[0] < 10_000_000  # the control: by itself it stays
