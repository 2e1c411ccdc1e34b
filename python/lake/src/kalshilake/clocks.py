"""The two clocks of a tape: when the exchange said that something happened, and when it was heard.

Purpose: the words that every read takes, and the one figure by which the clocks are told apart.

What the clocks are: `exchange` is exchange_ts. `received` is received_at, the earliest receipt of
any gatherer, by that gatherer's own clock. Nothing in a tape binds one to the other: a row that was
recovered later has the receipt of that later time. So a read by the received clock never guesses
where its rows may lie: it asks the statistics of every object of the table (objects), and no row is
missed however far its clocks lie apart.

What coverage can say of it: coverage is stated in exchange time, and an event that is lost was
never received. The claim for a moment r of the received clock is therefore this: everything that
the exchange stamped from CLOCKS_APART_US before r to CLOCKS_APART_US after it is proven. Then no
event that a live connection should have brought at r, with at most that delay, is missing.

Does not do: reading.
"""

from __future__ import annotations

from typing import Final, Literal

from marketdata.errors import LakeError

Clock = Literal["exchange", "received"]
OnGap = Literal["raise", "column", "ignore"]

CLOCKS_APART_US: Final = 10_000_000
"""How far receipt and exchange time of a live event may lie apart in a claim of coverage.

It limits no search. In the recorded captures (1,254,720 changes) a receipt lies from 0.26 s before
the exchange's time to 6.0 s behind it, in the middle 0.03 s before: the recorder's clock was slow.
"""

_COLUMNS: Final[dict[str, str]] = {"exchange": "exchange_ts", "received": "received_at"}


def column_of(clock: Clock) -> str:
    """The column that holds this clock's time. Raises LakeError for a clock that does not exist."""
    column = _COLUMNS.get(clock)
    if column is None:
        raise LakeError(f"clock {clock!r} is unknown", hint="exchange or received")
    return column


def check_on_gap(on_gap: OnGap) -> None:
    """Raises LakeError for a word that is none."""
    if on_gap not in ("raise", "column", "ignore"):
        raise LakeError(f"on_gap {on_gap!r} is unknown", hint="raise, column or ignore")
