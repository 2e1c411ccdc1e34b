"""One client's connection as the venue sees it: subscriptions, sequence numbers, frames to send.

Purpose: give every subscription (sid) its own seq, put frames in this connection's own order, and
apply the faults of the slot that the connection holds. Pure: frames go to `out`, records of what
was sent to the ledger.

Invariants: EXCH-7 one sid per (connection, channel), numbered in order of first subscription;
EXCH-8 every sequenced frame, sent or dropped, uses up exactly one number of its sid and leaves one
send record; EXCH-9 within one market frames keep the engine's order; between markets they may
change places within REORDER_US.

Does not do: commands (commands), events (venue), WebSocket framing (server).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from exchange.faults import FrameKind, Slot
from exchange.frames import frame_head
from exchange.poison import HARMLESS, mangled
from exchange.truth import (
    FAULT_DROPPED,
    FAULT_DUPLICATE,
    FAULT_SENT,
    SEND_REPLY,
    Ledger,
    pack_send,
)

REORDER_US: Final = 20_000
REORDER_PLACES: Final = 6
HELD_BYTES_MAX: Final = 16 << 20  # a stall that holds more than this ends early
FRAME_TYPES: Final = {
    "orderbook_delta": "orderbook_delta",
    "trade": "trade",
    "ticker": "ticker",
    "market_lifecycle_v2": "market_lifecycle_v2",
}


class Outgoing(NamedTuple):
    """A frame's part that all connections share, waiting for its turn on one of them."""

    tail: bytes
    market: int
    event: int  # truth index, line number for trades and tickers, or -1
    kind: int  # truth.SEND_*
    at_us: int


Record = tuple[int, int, int, int, int, int, int]  # the fields of truth.TRUTH_SEND


class Held(NamedTuple):
    """A frame held back by a stall, with its send record; no frame: one that is never sent."""

    frame: bytes | None
    record: Record | None


class Deferred(NamedTuple):
    """One channel of a subscribe command that waits until the venue has the channel."""

    command_id: int
    params: dict[str, Any]
    channel: str
    tickers: list[str] | None


@dataclass(slots=True, eq=False)
class Connection:
    """One accepted WebSocket connection. `out` holds payloads of text frames, in order."""

    number: int
    ledger: Ledger
    rng: random.Random
    tell: Callable[..., None]  # (kind, connection, **details): a line of faults.jsonl
    opened_us: int
    out: list[bytes] = field(default_factory=list)
    commands: list[bytes] = field(default_factory=list)
    by_sid: dict[int, Subscription] = field(default_factory=dict)
    by_channel: dict[str, Subscription] = field(default_factory=dict)
    slot: Slot | None = None
    holds: list[Held] | None = None  # None: not stalled
    held_bytes: int = 0
    closing: str | None = None  # "reset", "close" or "drop": the server ends the connection so
    close_frame: tuple[int | None, str] = (1001, "exchange closes")  # code (None: none), text
    deferred: list[Deferred] = field(default_factory=list)  # channels to be answered later
    sids_given: int = 0
    live_us: int = 0  # engine time at which it first held a subscription
    frames_sent: int = 0
    interleaves: bool = True  # False: frames of all markets in the engine's order

    def put(self, frame: bytes, record: Record | None) -> None:
        """Sends a frame now, or after the stall."""
        if self.holds is not None:
            self.holds.append(Held(frame, record))
            self.held_bytes += len(frame)
            if self.held_bytes > HELD_BYTES_MAX:
                self.tell("stall_overfull", self, held_bytes=self.held_bytes)
                self.release()
            return
        self.out.append(frame)
        if record is not None:
            self.ledger.sends += pack_send(*record)

    def note(self, record: Record) -> None:
        """Records a number that was used up without a frame, in the order of sending."""
        if self.holds is not None:
            self.holds.append(Held(None, record))
        else:
            self.ledger.sends += pack_send(*record)

    def stall(self) -> None:
        """From now on frames are held back."""
        if self.holds is None:
            self.seal()
            self.holds = []
            self.held_bytes = 0

    def release(self) -> None:
        """The stall ends and what was held is sent."""
        held, self.holds = self.holds, None
        for frame, record in held or ():
            if frame is not None:
                self.put(frame, record)
            elif record is not None:
                self.note(record)

    def discard(self) -> None:
        """The stall ends in a reset: what was held was never sent."""
        held, self.holds = self.holds, None
        for _, record in held or ():
            if record is not None and record[-1] != FAULT_DUPLICATE:
                self.ledger.sends += pack_send(*record[:6], FAULT_DROPPED)

    def seal(self) -> None:
        """Gives every waiting frame its number and its place."""
        for subscription in self.by_sid.values():
            if subscription.pending:
                subscription.seal()

    def reply(self, row: dict[str, Any]) -> None:
        """A reply without seq."""
        self.put(orjson.dumps(row), None)


@dataclass(slots=True, eq=False)
class Subscription:
    """One sid. `markets` None means all. `pending` waits for `seal`."""

    connection: Connection
    channel: str
    sid: int
    sequenced: bool
    markets: set[int] | None
    skip_ack: bool = False
    yes_price: bool = False
    seq: int = 0
    pending: list[Outgoing] = field(default_factory=list)
    late: set[int] = field(default_factory=set)  # markets whose first snapshot is still to come
    dropping: int = 0
    poison: list[str] = field(default_factory=list)  # how the next frames are mangled
    head: bytes = field(init=False)

    def __post_init__(self) -> None:
        kind = FRAME_TYPES[self.channel]
        self.head = frame_head(kind, self.sid, sequenced=self.sequenced)

    def seal(self) -> None:
        """Numbers the waiting frames and hands them to the connection."""
        pending = self.pending
        if len(pending) > 1 and self.connection.interleaves:
            pending = self._interleaved(pending)
        self.pending = []
        connection = self.connection
        slot = connection.slot
        if not self.sequenced:
            for frame in pending:
                self._unsequenced(frame)
            return
        if self.poison:
            pending = self._poisoned(pending)
        quiet = slot is None or slot.frames + len(pending) < slot.next_fault_frame
        if not quiet or self.dropping or connection.holds is not None:
            for frame in pending:
                self.emit(self.head, frame.tail, frame.market, frame.event, frame.kind)
            return
        if slot is not None:
            slot.frames += len(pending)
        seq, head, number, sid = self.seq, self.head, connection.number, self.sid
        out, records = connection.out, []
        for tail, market, event, kind, _ in pending:
            seq += 1
            out.append(b"%b%d%b" % (head, seq, tail))
            records.append(pack_send(number, sid, seq, market, event, kind, FAULT_SENT))
        connection.ledger.sends += b"".join(records)
        self.seq = seq

    def _poisoned(self, pending: list[Outgoing]) -> list[Outgoing]:
        """Sends the first frames mangled, one for each name; returns the others."""
        names, self.poison = self.poison[: len(pending)], self.poison[len(pending) :]
        for name, frame in zip(names, pending, strict=False):
            self.seq += 1
            event, kind = (frame.event, frame.kind) if name in HARMLESS else (-1, SEND_REPLY)
            record = (self.connection.number, self.sid, self.seq, frame.market, event, kind)
            text = mangled(name, b"%b%d%b" % (self.head, self.seq, frame.tail))
            self.connection.put(text, (*record, FAULT_SENT))
        return pending[len(names) :]

    def _interleaved(self, pending: list[Outgoing]) -> list[Outgoing]:
        """The same frames with markets shifted against each other by some places (EXCH-9)."""
        first = pending[0].market
        if all(frame.market == first for frame in pending):
            return pending
        draw = self.connection.rng.random
        shifts = {market: draw() * REORDER_PLACES for market in {f.market for f in pending}}
        start_us, far = pending[0].at_us, len(pending) + REORDER_PLACES
        keys = [
            (frame.at_us - start_us) // REORDER_US * far + place + shifts[frame.market]
            for place, frame in enumerate(pending)
        ]
        return [pending[place] for place in sorted(range(len(pending)), key=keys.__getitem__)]

    def _unsequenced(self, frame: Outgoing) -> None:
        self._count()
        fault = FAULT_SENT
        if self.dropping:
            self.dropping -= 1
            fault = FAULT_DROPPED
        connection = self.connection
        record = (connection.number, self.sid, -1, frame.market, frame.event, frame.kind, fault)
        if fault == FAULT_DROPPED:
            connection.note(record)
        else:
            connection.put(self.head + frame.tail, record)

    def emit(self, head: bytes, tail: bytes, market: int, event: int, kind: int) -> None:
        """Sends one sequenced frame with the slot's faults applied. Call `seal` before it."""
        doubled = kind != SEND_REPLY and event >= 0 and self._count()
        self.seq += 1
        connection = self.connection
        record = (connection.number, self.sid, self.seq, market, event, kind)
        if self.dropping:
            self.dropping -= 1
            connection.note((*record, FAULT_DROPPED))
            return
        frame = b"%b%d%b" % (head, self.seq, tail)
        connection.put(frame, (*record, FAULT_SENT))
        if doubled:
            connection.put(frame, (*record, FAULT_DUPLICATE))

    def _count(self) -> bool:
        """Counts a frame of the play and starts the faults due at it; True: send it twice."""
        slot = self.connection.slot
        if slot is None:
            return False
        slot.frames += 1
        doubled = False
        while slot.frames >= slot.next_fault_frame:
            fault = slot.frame_faults.pop()
            slot.arm()
            self.connection.tell(fault.kind, self.connection, sid=self.sid, length=fault.length)
            if fault.kind == FrameKind.DROP:
                self.dropping += fault.length
            elif fault.kind == FrameKind.DUPLICATE:
                doubled = True
            elif fault.kind == FrameKind.UNKNOWN:
                unknown = {"type": "weather_notice", "sid": self.sid, "msg": {"sky": "grey"}}
                self.connection.reply(unknown)
            elif self.sequenced:
                self.skip(fault.length)
        return doubled

    def skip(self, count: int) -> None:
        """Uses up `count` numbers for nothing."""
        connection = self.connection
        for _ in range(count):
            self.seq += 1
            connection.note(
                (connection.number, self.sid, self.seq, -1, -1, SEND_REPLY, FAULT_DROPPED)
            )
