"""Which of several processes carries an event, or merges a market.

Purpose: rendezvous hashing: every process decides alone and all agree; another number of processes
moves only what the new ones take. Gatherers share by event: all markets of an event stay together,
so that a burst and its order across markets lie in one spool. Deduplicators share by market
(`Share`): that a market belongs to one of them depends on its ticker alone.
Does not do: connections within a process (plan).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


def share_of(event: str, shares: int) -> int:
    """The share, 1 to `shares`, that an event belongs to."""
    if shares < 1:
        raise ValueError(f"{shares} shares: at least one is needed")
    if shares == 1:
        return 1
    return max(range(1, shares + 1), key=lambda share: (_weight(event, share), share))


def _weight(event: str, share: int) -> bytes:
    return hashlib.blake2b(f"{share}:{event}".encode(), digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class Share:
    """One of `of` processes that share the markets of a tape; `number` is 1 to `of`."""

    number: int = 1
    of: int = 1

    @property
    def alone(self) -> bool:
        """Whether there is only this one."""
        return self.of == 1

    @property
    def first(self) -> bool:
        """Whether it is the one that does what only one may do."""
        return self.number == 1

    def owns(self, ticker: str) -> bool:
        """Whether the market is this process's."""
        return self.of == 1 or share_of(ticker, self.of) == self.number

    def market_id(self, owned: int) -> int:
        """The id of its next market when it has `owned`: no two processes give the same."""
        return owned * self.of + self.number
