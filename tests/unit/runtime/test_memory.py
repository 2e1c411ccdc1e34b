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


APART = """
import contextlib, os, sys, threading
from runtime.memory import large_blocks_apart, steady_heap

stack = contextlib.ExitStack()
answer = None
if sys.argv[1] == "apart":
    assert steady_heap()
    answer = stack.enter_context(large_blocks_apart())

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

before, kept = resident(), []

def work():
    for size in (1 << 21, 1 << 22, 1 << 23):
        bytes(bytearray(size))  # freed: from now on blocks of this size come from the heap
    for n in range(20):
        large = [b"x" * (3 << 20) for _ in range(6)]
        kept.append(b"y" * 2_000)  # small, and stays: behind the large ones
        del large[n % 3 :]

threads = [threading.Thread(target=work) for _ in range(4)]
for each in threads:
    each.start()
for each in threads:
    each.join()
print(resident() - before, answer)
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="only the GNU C library has mallopt"
)
def test_large_blocks_are_gone_when_they_are_freed() -> None:
    """Arrays of rows between small objects that stay."""

    def resident(how: str) -> tuple[int, str]:
        run = [sys.executable, "-c", APART, how]
        said = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
        return int(said[0]), said[1]

    size, answer = resident("apart")
    assert answer == "True"
    assert size < 8_000_000
    assert resident("as it comes")[0] > 16_000_000  # the control
