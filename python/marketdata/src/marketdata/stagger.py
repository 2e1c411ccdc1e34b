"""When each gatherer does what all of them do: never all at the same time.

Purpose: a gatherer's slot follows from its name, so that nobody has to agree on anything: "g1",
"gatherer-2", "kalshi-gatherer-3" take the three slots in turn. A name that ends in no number takes
the slot of its hash, which another name may share.
Used for the first audit round after a connect and for the wait before a reconnect: after the same
outage one gatherer is back and has asked for its books while the next still waits, and their audits
stay apart.
Does not do: timers (session, feed); the dealing of markets to connections (plan).
"""

from __future__ import annotations

import re
import zlib
from typing import Final

SLOTS: Final = 3
"""As many as the gatherers that the product is made of."""
PERMILLE: Final = 1_000
_NUMBER: Final = re.compile(r"(\d+)\Z")


def slot_of(gatherer: str) -> int:
    """0 to SLOTS - 1."""
    found = _NUMBER.search(gatherer)
    number = int(found.group(1)) if found else zlib.crc32(gatherer.encode())
    return number % SLOTS


def audit_phase_permille(gatherer: str) -> int:
    """After which part of the audit interval the first round of a connection begins."""
    return (slot_of(gatherer) + 1) * PERMILLE // SLOTS


def in_slot(part_ns: int, span_ns: int, gatherer: str) -> int:
    """A wait drawn from 0 to `span_ns`, put into the gatherer's own third of that span."""
    return (slot_of(gatherer) * span_ns + part_ns) // SLOTS
