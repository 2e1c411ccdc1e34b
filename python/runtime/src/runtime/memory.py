"""Giving memory back to the machine.

Purpose: after work that needed much of it once (an hour's export), the C library keeps what was
freed, for the next time; a service that sleeps for an hour should not.

Does not do: Arrow's own pool (its owner releases that), limits.
"""

from __future__ import annotations

import ctypes


def give_back() -> bool:
    """Return freed memory to the kernel; False where the C library has no such call (musl, macOS).

    It takes some milliseconds for each gigabyte that was freed. Source: malloc_trim(3).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))
