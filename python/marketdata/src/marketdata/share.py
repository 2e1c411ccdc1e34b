"""Which of several processes of one host carries an event.

Purpose: rendezvous hashing: every process decides alone and all agree; another number of processes
moves only the events that the new ones take. All markets of an event stay together, so that a
burst and its order across markets lie in one spool.
Does not do: connections within a process (plan).
"""

from __future__ import annotations

import hashlib


def share_of(event: str, shares: int) -> int:
    """The share, 1 to `shares`, that an event belongs to."""
    if shares < 1:
        raise ValueError(f"{shares} shares: at least one is needed")
    if shares == 1:
        return 1
    return max(range(1, shares + 1), key=lambda share: (_weight(event, share), share))


def _weight(event: str, share: int) -> bytes:
    return hashlib.blake2b(f"{share}:{event}".encode(), digest_size=8).digest()
