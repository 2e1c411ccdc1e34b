"""Giving memory back to the machine.

Purpose: after work that needed much of it once (an hour's export), the C library keeps what was
freed, for the next time; a service that sleeps for an hour should not. And what is kept is cut
into pieces by what stays between it: each export then needs some more than the one before.

Does not do: Arrow's own pool (its owner releases that), limits.
"""

from __future__ import annotations

import ctypes
from typing import Final

# mallopt(3): the parameters, and the values of `large_blocks_apart`.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
LARGE_BYTES: Final = 1 << 17
TRIM_BYTES: Final = 16 << 20
ARENAS: Final = 2


def large_blocks_apart() -> bool:
    """Blocks of LARGE_BYTES and more are mappings of their own, gone when they are freed; threads
    share ARENAS heaps for the rest. False where the C library has no such call (musl, macOS).

    By itself the GNU C library raises that size to 32 MiB with what is freed, and from then on
    arrays of rows lie among small objects. To be called before threads are started.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    asked = (
        (_MMAP_THRESHOLD, LARGE_BYTES), (_TRIM_THRESHOLD, TRIM_BYTES), (_ARENA_MAX, ARENAS),
    )  # fmt: skip
    return mallopt is not None and all(mallopt(name, value) for name, value in asked)


def give_back() -> bool:
    """Return freed memory to the kernel; False where the C library has no such call (musl, macOS).

    It takes some milliseconds for each gigabyte that was freed. Source: malloc_trim(3).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))
