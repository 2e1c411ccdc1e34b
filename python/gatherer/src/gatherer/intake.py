"""From spool records to rows: one code for what arrives now and for what lies on disk.

Purpose: `Decoding` applies records to `marketdata.continuity`; `LiveIntake` appends what arrives to
the spool first and then does the same, and holds the rows for the sink until they are too many.
Invariants:
- A frame is in the spool's buffer before anybody looks inside it.
- Rows are a function of the records: live and from disk give the same rows (a test compares).
- Memory is bounded: past QUEUE_ROWS_MAX the held rows are let go, and the sink reads them again
  from the spool. Late, never lost.
Does not do: sockets (feed), database (sink), deciding on snapshots (session).

How rows are held: one struct packed per row in the native layout when the frame arrives (0.4 us),
turned into COPY rows in bulk at the flush. Measured against COPY rows packed one by one (1.25 us)
and against lists for each column (1.0 us).
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from marketdata import events, segment, wire
from marketdata.chain import Rows
from marketdata.continuity import Continuity
from marketdata.errors import StorageError
from marketdata.hot import Frames, absorb_frames
from marketdata.rest_books import Look
from marketdata.runs import Gap
from runtime.spool import Position, SpoolReader, SpoolRecord, SpoolWriter, start_of
from runtime.spool_read import READ_BYTES

QUEUE_ROWS_MAX: Final = 500_000
"""Rows held for the sink, 60 to 100 bytes each. Past it the sink reads the spool, which costs the
decoding again: a flood of a few seconds should not reach it."""
WAKE_ROWS: Final = 5_000
"""Rows at which the sink is woken before its interval is over."""
RECORD_BYTES_MAX: Final = 8 * 1024 * 1024
"""Frames of one wake-up are split into records of about this size."""
STATE_LEVEL: Final = 1


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

    notable: list[events.Decoded] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    n_bytes: int = 0  # of the frames


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
    ) -> list[events.Decoded]:
        """Decode and follow frames of one connection; returns those a session wants to see."""
        self.frames += len(frames)
        return absorb_frames(self.continuity, self._decoder, conn_id, ordinal, frames, received_ns)

    def forget(self) -> None:
        """Let go of rows, effects and fresh ids: they were stored or told before."""
        self.continuity.take()
        self.continuity.take_effects()
        self.continuity.take_fresh_markets()

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


def restore(payload: bytes | memoryview) -> Continuity:
    """The continuity of a STATE record."""
    try:
        return Continuity.restore(orjson.loads(zlib.decompress(payload)))
    except (zlib.error, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"a STATE record of the spool cannot be read: {type(error).__name__}: {error}"
        ) from error


class RecordStream:
    """The records of a reader one by one, so that nobody loses those read ahead."""

    __slots__ = ("_ahead", "_reader")

    def __init__(self, reader: SpoolReader) -> None:
        self._reader = reader
        self._ahead: deque[SpoolRecord] = deque()

    def fill(self, bytes_max: int = READ_BYTES) -> bool:
        """Have a record ready. False: there are no more for now."""
        if not self._ahead:
            self._ahead.extend(self._reader.read(bytes_max))
        return bool(self._ahead)

    def peek(self) -> SpoolRecord:
        """The next record, which stays."""
        return self._ahead[0]

    def pop(self) -> SpoolRecord:
        """The next record."""
        return self._ahead.popleft()

    @property
    def n_ready(self) -> int:
        """Records read and not popped."""
        return len(self._ahead)


def begin(stream: RecordStream, id_base: int) -> Decoding:
    """The decoding with which to apply the stream's records.

    The stream stands at the start of a segment: its first record is a STATE, or it is the spool's
    first segment and the state is empty.
    """
    if stream.fill() and stream.peek().kind == segment.KIND_STATE:
        return Decoding(restore(stream.pop().payload))
    return Decoding(Continuity(id_base))


def apply_ready(stream: RecordStream, decoding: Decoding, until: Position | None) -> bool:
    """Apply what the stream has read, letting the rows go. True: the record that ends at `until`
    (or beyond) was applied."""
    while stream.n_ready:
        if until is not None and stream.peek().at >= until:
            return True
        decoding.apply(stream.pop())
    decoding.forget()
    return False


class LiveIntake:
    """The writing end: sockets call `absorb`, the sink calls `take`. All in one event loop."""

    def __init__(
        self,
        spool: SpoolWriter,
        decoding: Decoding,
        *,
        queue_rows_max: int = QUEUE_ROWS_MAX,
        wake_rows: int = WAKE_ROWS,
    ) -> None:
        self._spool = spool
        self._decoding = decoding
        self._continuity = decoding.continuity
        self._start: Position | None = None  # where the held rows begin; None: nothing is held
        self._first_ns = 0
        self._claimed_ns = 0
        self._ordinals: dict[int, int] = {}
        self._woken = asyncio.Event()
        self.queue_rows_max = queue_rows_max
        self.wake_rows = wake_rows
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

    def tickers_of(self, market_ids: Collection[int]) -> list[str]:
        """The tickers of these ids; looks through all, for rare use."""
        return list(self.tickers_by_id(market_ids).values())

    def tickers_by_id(self, market_ids: Collection[int]) -> dict[int, str]:
        """As above, by id."""
        known = self._continuity.market_ids.items()
        return {given: ticker for ticker, given in known if given in market_ids}

    def latest_exchange_us(self) -> int:
        """The newest exchange time seen on any channel; 0 before the first."""
        return self._continuity.latest_us()

    def latest_us_of(self, conn_id: int) -> int:
        """The newest exchange time seen on one connection; 0 before the first."""
        return self._continuity.latest_us_of(conn_id)

    def looks(self, conn_id: int, tickers: Iterable[str]) -> list[Look | None]:
        """The books of a connection as they stand now; None where one is not proven."""
        return self._continuity.looks(conn_id, tickers)

    def next_conn_id(self) -> int:
        """The id for the next connection."""
        return self._continuity.next_conn_id

    def stamp(self, wall_ns: int) -> int:
        """The receive stamp to use for `wall_ns`: never before one already told to a reader."""
        return max(wall_ns, self._continuity.last_received_ns, self._claimed_ns + 1)

    def absorb(self, conn_id: int, frames: list[bytes], wall_ns: int) -> Absorbed:
        """Frames of one wake-up of one connection: into the spool, then into rows."""
        received_ns = self.stamp(wall_ns)
        notable: list[events.Decoded] = []
        n_bytes = sum(map(len, frames))
        for part in [frames] if n_bytes <= RECORD_BYTES_MAX else _split(frames):
            ordinal = self._ordinals.get(conn_id, 0)
            self._ordinals[conn_id] = ordinal + len(part)
            self._spool.append_frames(conn_id, ordinal, received_ns, None, part)
            notable += self._decoding.absorb(conn_id, ordinal, part, received_ns)
            self._settle(received_ns)
        return Absorbed(notable, self._continuity.take_effects(), n_bytes)

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
        """A clean stop: the END record. Nothing may come after it in this process."""
        self._spool.append(segment.KIND_END, b"")
        self._continuity.end()
        self._settle(self._continuity.last_received_ns)

    # --- the sink's side

    def claim(self, told_ns: int) -> None:
        """A reader was told earlier (by the process before this one) that everything up to
        `told_ns` is there: stamps begin after it."""
        self._claimed_ns = max(self._claimed_ns, told_ns)

    async def wait_rows(self, timeout_s: float) -> None:
        """Return when `wake_rows` rows are held, or none are held any more, or after a time."""
        if self._start is None or self.held_rows >= self.wake_rows:
            return
        self._woken.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()

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
        held = rows.n_rows()
        if held > self.queue_rows_max:
            self.spills += 1
            self.let_go()
        if held >= self.wake_rows:
            self._woken.set()


def _split(frames: list[bytes]) -> list[list[bytes]]:
    """Parts of at most about RECORD_BYTES_MAX."""
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
        stream = RecordStream(reader)
        decoding = begin(stream, spool.meta.id_base)
        apply_ready(stream, decoding, None)
        while stream.fill():
            apply_ready(stream, decoding, None)
    finally:
        reader.close()
    decoding.forget()
    return decoding
