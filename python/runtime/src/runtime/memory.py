"""Giving memory back to the machine.

Purpose: after work that needed much of it once (an hour's export), the C library keeps what was
freed, for the next time; a service that sleeps for an hour should not. And what is kept is cut
into pieces by what stays between it: each export then needs some more than the one before.

Does not do: Arrow's own pool (its owner releases that), limits.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Final

# mallopt(3): the parameters, and the values that are asked for.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
LARGE_BYTES: Final = 1 << 17
WORK_BYTES: Final = 4 << 20
TRIM_BYTES: Final = 64 << 20
ARENAS: Final = 2


def _mallopt(*asked: tuple[int, int]) -> bool:
    """False where the C library has no such call (musl, macOS) or refuses."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(name, value) for name, value in asked)


def steady_heap() -> bool:
    """For work that goes on and on in blocks of one size: up to WORK_BYTES they come from the heap
    and return to it, and TRIM_BYTES of it are kept. A mapping of its own for each array of a batch
    is a tenth of the merge's time, in page faults. Threads share ARENAS heaps. False where the C
    library has no such call. To be called once, before threads are started.
    """
    return _mallopt(
        (_MMAP_THRESHOLD, WORK_BYTES), (_TRIM_THRESHOLD, TRIM_BYTES), (_ARENA_MAX, ARENAS)
    )


@contextlib.contextmanager
def large_blocks_apart() -> Iterator[bool]:
    """For work that needs much once: meanwhile blocks of LARGE_BYTES and more are mappings of their
    own, gone when they are freed. By itself the GNU C library raises that size to 32 MiB with what
    is freed, and from then on arrays of rows lie among small objects that stay.

    Holds for all threads. Gives False where the C library has no such call.
    """
    held = _mallopt((_MMAP_THRESHOLD, LARGE_BYTES))
    try:
        yield held
    finally:
        _mallopt((_MMAP_THRESHOLD, WORK_BYTES))


def give_back() -> bool:
    """Return freed memory to the kernel; False where the C library has no such call (musl, macOS).

    It takes some milliseconds for each gigabyte that was freed. Source: malloc_trim(3).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))
