"""The state the arbiter keeps: of each run, and of each market; and its bytes.

Purpose: everything a restarted arbiter needs, in structures that encode to the same bytes whenever
their content is the same. A market's state is self-contained, so that a quiet market costs nothing.

Does not do: any decision.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec

from marketdata.rows import SnapshotRow

OPEN_US: Final = 2**62


class Standing(IntEnum):
    """How one run stands in one market."""

    FLOATING = 0  # no snapshot yet: H lacks a constant
    PENDING = 1  # H known, place in the merged sequence not known yet
    PINNED = 2  # its next event is the merged sequence's event at `position`
    QUARANTINED = 3  # contradicted; waits for its next snapshot


class Run(msgspec.Struct):
    """One stretch of one subscription, over all its markets.

    `shown_us`: latest exchange time among rows read; `z_us`: among rows of closed windows (the only
    one that results may depend on).
    """

    gatherer: int
    run_id: int
    connection: int  # conn_id and sid in one number
    channel: str
    fresh: bool  # begins with a subscription, not after a gap
    first_seq: int
    last_received_ns: int
    started_ns: int
    z_us: int = -1
    first_us: int = -1  # first exchange time shown after the run's start, and whose it was
    first_market: str = ""
    told_us: int = -1  # progress already published
    shown_us: int = -1
    max_window: int = 0
    ended: bool = False


class RunMarkets(msgspec.Struct):
    """Which markets a run carries, and whose claims still wait for a first exchange time."""

    tickers: list[str] = []
    unclaimed: list[tuple[str, int]] = []  # (ticker, seq after which a time counts)
    inherited: list[str] = []  # subscribed before the gap at which the run began


class Keyframe(msgspec.Struct):
    """A snapshot that waits until its place in the merged sequence is known."""

    exchange_us: int
    received_ns: int
    book_hash: int
    levels: bytes


class Pair(msgspec.Struct):
    """One run in one market."""

    gatherer: int
    run_id: int
    connection: int
    standing: int
    h: int  # book hash after its last event (lacks a constant while floating)
    seq_from: int  # first seq of the stretch that counts for rule 6
    constant: int = 0  # what the H of its floating rows lacks
    anchored_rows: bool = False  # `constant` is known
    position: int = 0  # events of the epoch before its next one, if pinned
    last_seq: int = -1
    last_us: int = -1  # exchange time of its last timed event
    first_float_ns: int = 0
    claim_seq: int = -1  # a time after this seq starts the claim
    claim_from_us: int = -1  # start of the open claim; -1: none
    audited_us: int = -1  # time of the last snapshot that agreed
    behind_since: int = -1  # window since which the others have events it did not show
    doubt_since: int = -1  # window since which its quiet book differs from the others'
    keyframe: Keyframe | None = None
    closed_to_us: int = -1  # end of the claim that was closed last
    rests_seq: int = -1  # of the reply that gave H backwards to what came before it; -1: none
    rests_us: int = -1  # latest exchange time that its run had shown there
    held: bytes = b""  # its first rows, which the next window takes (markets.py),
    held_snapshots: list[SnapshotRow] = []  # and the snapshots of their window


class Tail(msgspec.Struct):
    """Events on the tape that a continuing run has not shown yet, as columns."""

    us: list[int] = []
    received_ns: list[int] = []
    delta: list[int] = []
    price: list[int] = []
    side: list[int] = []
    flags: list[int] = []
    h_before: list[int] = []
    h_after: list[int] = []
    witnesses: list[int] = []


class Market(msgspec.Struct):
    """One market's end of the tape."""

    ticker: str
    epoch: int = 0
    count: int = 0  # events of the epoch so far
    h_end: int = 0
    last_us: int = -1
    epoch_from_us: int = -1
    live_to_us: int = -1  # how far runs that ended at this end of the tape prove silence
    keyframe_at: int = -1  # position of the latest keyframe of the epoch
    last_sources: int = 0  # witnesses of the last event
    pairs: list[Pair] = []
    former: list[tuple[int, int, int, int]] = []  # (gatherer, connection, position, seq_to)
    tail: Tail | None = None
