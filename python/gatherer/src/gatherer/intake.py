"""From spool records to rows: one code for what arrives now and for what lies on disk.

Purpose: `Decoding` applies records to `marketdata.continuity`; `LiveIntake` appends what arrives to
the spool first and then does the same, and holds the rows for the sink until they are too many.
Invariants:
- A frame is in the spool's buffer before anybody looks inside it.
- Rows are a function of the records: live and from disk give the same rows (a test compares).
- Memory is bounded: past QUEUE_ROWS_MAX the held rows are let go, and the sink reads them again
  from the spool. Late, never lost.
Does not do: sockets (feed), database (sink), deciding on snapshots (session).

How rows are held: one struct packed per delta in the native layout when the frame arrives (0.8 us),
turned into COPY rows in bulk at the flush. Measured against COPY rows packed one by one (1.25 us)
and against lists for each column (1.0 us).
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from marketdata import events, segment, wire
from marketdata.chain import Rows
from marketdata.continuity import Continuity, Gap, Refused
from marketdata.errors import StorageError, WireError
from runtime.spool import Position, SpoolReader, SpoolRecord, SpoolWriter, start_of

QUEUE_ROWS_MAX: Final = 200_000
"""Rows held for the sink, about 60 bytes each. Past it the sink reads the spool."""
RECORD_BYTES_MAX: Final = 8 * 1024 * 1024
"""Frames of one wake-up are split into records of about this size."""
HEAD_BYTES: Final = 200
"""Of a frame that was not understood, shown in its PROBLEM row; the whole is in the spool."""
STATE_LEVEL: Final = 1

_NOTABLE: Final = (
    events.Snapshot,
    events.Subscribed,
    events.Ok,
    events.Unsubscribed,
    events.Error,
    events.MarketLifecycle,
    events.EventLifecycle,
)
Frames = Sequence[bytes | memoryview]


@dataclass(slots=True)
class RowBatch:
    """Rows of the records between two spool positions, for one transaction.

    `max_received_ns`: everything received up to then is in this batch or an earlier one.
    """

    rows: Rows
    start: Position
    end: Position
    min_received_ns: int
    max_received_ns: int


@dataclass(slots=True)
class Absorbed:
    """What the caller of a live batch of frames has to act on."""

    notable: list[tuple[events.Decoded, int]] = field(default_factory=list)  # event, received_ns
    gaps: list[Gap] = field(default_factory=list)


class Decoding:
    """Applies spool records, in order, to a continuity."""

    def __init__(self, continuity: Continuity, decoder: wire.Decoder | None = None) -> None:
        self.continuity = continuity
        self._decoder = decoder or wire.Decoder()
        self.frames = 0

    def apply(self, record: SpoolRecord) -> None:
        """One record read from a spool."""
        kind = record.kind
        if kind == segment.KIND_FRAMES:
            batch = segment.decode_frames(record.payload)
            stamps = batch.received_ns
            if stamps and stamps[0] == stamps[-1]:
                self.absorb(batch.conn, batch.ordinal, batch.frames, stamps[0])
                return
            for n, (frame, received_ns) in enumerate(zip(batch.frames, stamps, strict=True)):
                self.absorb(batch.conn, batch.ordinal + n, [frame], received_ns)
        elif kind == segment.KIND_CONTROL:
            self.continuity.control(orjson.loads(record.payload))
        elif kind == segment.KIND_MARKET:
            self._check_markets(orjson.loads(record.payload)["ids"])
        elif kind == segment.KIND_END:
            self.continuity.end()

    def absorb(
        self, conn_id: int, ordinal: int, frames: Frames, received_ns: int
    ) -> list[tuple[events.Decoded, int]]:
        """Decode and follow frames of one connection; returns those a session wants to see."""
        decode = self._decoder.decode
        batch: list[events.Decoded | Refused] = []
        notable: list[tuple[events.Decoded, int]] = []
        for frame in frames:
            try:
                event = decode(frame)
            except WireError as error:
                batch.append(_refused(ordinal + len(batch), frame, error))
                continue
            batch.append(event)
            if type(event) is not events.Delta and isinstance(event, _NOTABLE):
                notable.append((event, received_ns))
        self.frames += len(batch)
        self.continuity.absorb(conn_id, batch, received_ns)
        return notable

    def state(self) -> bytes:
        """Payload of a STATE record."""
        return zlib.compress(orjson.dumps(self.continuity.export()), STATE_LEVEL)

    def _check_markets(self, ids: Mapping[str, int]) -> None:
        """The ids in the spool must be those that its frames give: the pair of their writing."""
        for ticker, expected in ids.items():
            if self.continuity.market_id(ticker) != expected:
                raise StorageError(
                    f"the spool gave market {ticker} the id {expected}, its frames give another",
                    hint="this spool was written by another version; finish it with that version",
                )


def _refused(ordinal: int, frame: bytes | memoryview, error: WireError) -> Refused:
    """What continuity needs of a frame that was not understood."""
    head = bytes(frame[:HEAD_BYTES]).decode("utf-8", "replace").replace("\x00", "\ufffd")
    detail = {"ordinal": ordinal, "bytes": len(frame), "head": head}
    about = wire.envelope(frame)
    return Refused(error.reason, str(error), detail, about.sid, about.seq, about.market)


def restore(payload: bytes | memoryview) -> Continuity:
    """The continuity of a STATE record."""
    try:
        return Continuity.restore(orjson.loads(zlib.decompress(payload)))
    except (zlib.error, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"a STATE record of the spool cannot be read: {type(error).__name__}: {error}"
        ) from error


def replay(reader: SpoolReader, id_base: int, until: Position | None = None) -> Decoding:
    """The decoding as it was after the last record before `until`, all rows let go.

    `reader` stands at the start of a segment: its first record is a STATE, or it is the spool's
    first segment and the state is empty. It is left behind the last record applied.
    """
    decoding = Decoding(Continuity(id_base))
    first = True
    while until is None or reader.position < until:
        records = reader.read()
        if not records:
            break
        for record in records:
            if first and record.kind == segment.KIND_STATE:
                decoding = Decoding(restore(record.payload))
            first = False
            decoding.apply(record)
            if until is not None and record.end >= until:
                break
        decoding.continuity.take()
        decoding.continuity.take_effects()
        decoding.continuity.take_fresh_markets()
    return decoding


class LiveIntake:
    """The writing end: sockets call `absorb`, the sink calls `take`. All in one event loop."""

    def __init__(self, spool: SpoolWriter, decoding: Decoding) -> None:
        self._spool = spool
        self._decoding = decoding
        self._continuity = decoding.continuity
        self._start: Position | None = None  # where the held rows begin; None: nothing is held
        self._first_ns = 0
        self._claimed_ns = 0
        self._ordinals: dict[int, int] = {}
        self.spills = 0

    @property
    def counts(self) -> Counter[str]:
        """What continuity counted, by name."""
        return self._continuity.counts

    @property
    def frames(self) -> int:
        """Frames taken in since the start of this process."""
        return self._decoding.frames

    @property
    def n_markets(self) -> int:
        """Markets seen in this spool."""
        return self._continuity.n_markets

    @property
    def held_rows(self) -> int:
        """Rows waiting for the sink."""
        return self._continuity.rows.n_rows()

    @property
    def last_received_ns(self) -> int:
        """Receive stamp of the newest record."""
        return self._continuity.last_received_ns

    def latest_exchange_us(self) -> int:
        """The newest exchange time seen on any channel; 0 before the first."""
        return self._continuity.latest_us()

    def next_conn_id(self) -> int:
        """The id for the next connection."""
        return self._continuity.next_conn_id

    def stamp(self, wall_ns: int) -> int:
        """The receive stamp to use for `wall_ns`: never before one already told to a reader."""
        return max(wall_ns, self._continuity.last_received_ns, self._claimed_ns + 1)

    def absorb(self, conn_id: int, frames: list[bytes], wall_ns: int) -> Absorbed:
        """Frames of one wake-up of one connection: into the spool, then into rows."""
        received_ns = self.stamp(wall_ns)
        notable: list[tuple[events.Decoded, int]] = []
        for part in _split(frames):
            ordinal = self._ordinals.get(conn_id, 0)
            self._ordinals[conn_id] = ordinal + len(part)
            self._spool.append_frames(conn_id, ordinal, received_ns, [0] * len(part), part)
            notable += self._decoding.absorb(conn_id, ordinal, part, received_ns)
            self._settle(received_ns)
        return Absorbed(notable, self._continuity.take_effects())

    def control(self, body: dict[str, Any], wall_ns: int) -> None:
        """A CONTROL record of a connection: `k`, `conn` and what its kind adds."""
        received_ns = self.stamp(wall_ns)
        record = {**body, "received_ns": received_ns}
        self._spool.append_control(record)
        self._continuity.control(record)
        if body["k"] == "close":
            self._ordinals.pop(int(body.get("conn", 0)), None)
        self._settle(received_ns)

    def bury(self, wall_ns: int) -> int:
        """Close the connections of the process before this one; returns how many there were."""
        dead = self._continuity.open_connections()
        for conn_id in dead:
            self.control({"k": "close", "conn": conn_id, "reason": "died"}, wall_ns)
        return len(dead)

    def end(self) -> None:
        """A clean stop: to be called right before the spool writes its END record."""
        self._continuity.end()
        self._settle(self._continuity.last_received_ns)

    # --- the sink's side

    def hold(self) -> Position:
        """Begin to hold rows for the sink; returns the position from which they are held."""
        self._continuity.take()
        self._start = self._spool.end
        self._first_ns = 0
        return self._start

    def let_go(self) -> None:
        """Hold no rows: the sink reads the spool."""
        self._continuity.take()
        self._start = None

    @property
    def holds_from(self) -> Position | None:
        """Where the held rows begin; None while nothing is held."""
        return self._start

    def take(self, wall_ns: int) -> RowBatch | None:
        """The held rows as a batch; None if nothing is held (too many came: read the spool)."""
        if self._start is None:
            return None
        told_ns = self.stamp(wall_ns)
        self._claimed_ns = told_ns
        batch = RowBatch(
            self._continuity.take(),
            self._start,
            self._spool.end,
            self._first_ns or told_ns,
            told_ns,
        )
        self._start = self._spool.end
        self._first_ns = 0
        return batch

    def _settle(self, received_ns: int) -> None:
        """After each record: tell new market ids to the spool, keep memory bounded."""
        rows = self._continuity.rows
        fresh = self._continuity.take_fresh_markets()
        if fresh:
            self._spool.append_markets(fresh)
        if self._start is None:
            self._continuity.take()
            return
        if not self._first_ns:
            self._first_ns = received_ns
        if rows.n_rows() > QUEUE_ROWS_MAX:
            self.spills += 1
            self.let_go()


def _split(frames: list[bytes]) -> list[list[bytes]]:
    """Parts of at most about RECORD_BYTES_MAX; nearly always the list itself."""
    if sum(map(len, frames)) <= RECORD_BYTES_MAX:
        return [frames]
    parts: list[list[bytes]] = [[]]
    size = 0
    for frame in frames:
        if parts[-1] and size + len(frame) > RECORD_BYTES_MAX:
            parts.append([])
            size = 0
        parts[-1].append(frame)
        size += len(frame)
    return parts


def recover(spool: SpoolWriter) -> Decoding:
    """The decoding at the end of a spool that was just opened, from its last segment."""
    reader = SpoolReader(spool.directory, start_of(spool.end))
    try:
        return replay(reader, spool.meta.id_base)
    finally:
        reader.close()
