"""An interval of a gatherer's spool as an exchange that can be played: exactly what it received.

Purpose: a source (exchange.recording.RecordingSource) of a spool's frames and control records in
the order and at the times of their receipt, from any moment on. To begin in the middle the state of
the segment's first record is followed up to there, as the gatherer itself would after a restart.

Invariants:
    FAITHFUL-1 every frame and control record of [from, to) is given once, in the spool's order;
               `at_us` never goes back.
    FAITHFUL-2 what cannot be read of the spool is named where it stands (StateItem.damage,
               DamageItem); the records behind it go on from the state that the spool tells there.
    FAITHFUL-3 at most two reads of READ_BYTES and one segment's uncompressed bytes are in memory.

Times: receipt, on the gatherer's clock. A connection that died with its process is closed in the
spool by the next one: it is given at the last moment at which the first one lived.

Does not do: serving (exchange.player), following what is played (exchange.recording).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from exchange.recorded_venue import MARKET_ID
from exchange.recording import ControlItem, DamageItem, FrameItem, StateItem
from exchange.timeline import Item, MarketSpec
from gatherer.intake import Decoding, restore
from gatherer.spool_check import meta_of
from kalshilake.places import iso
from marketdata import segment
from marketdata.continuity import Continuity
from marketdata.errors import StorageError
from marketdata.hot import absorb_frames
from marketdata.segment import FramesRecord
from marketdata.segment_index import SegmentIndex, index_of, ticker_of
from marketdata.wire import Decoder
from runtime.spool import Position, SpoolReader, SpoolRecord
from runtime.spool_files import load, look
from runtime.spool_index import read_index

UUID_SPACE: Final = uuid.UUID("0b0f6c0e-4a53-4f0e-8a39-7f3d0a2c9e11")
NS_PER_US: Final = 1_000
LOOKS_MAX: Final = 3  # at a segment that is compressed while it is looked at
DIED: Final = "died"


@dataclass(slots=True)
class Overview:
    """What a spool holds, by segment. `faults`: what of it cannot be read, in words."""

    segments: dict[int, SegmentIndex] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def last_us(self) -> int:
        """When the newest frame was received; 0 without any."""
        return max((index.last_ns for index in self.segments.values()), default=0) // NS_PER_US


class _Batch(NamedTuple):
    """Records read together, and what was found damaged before them."""

    records: list[SpoolRecord]
    damage: list[str]


class SpoolSource:
    """[from_us, to_us) of a spool (see the module). None: its beginning, its end.

    `tickers` None: every market. Raises StorageError where there is no spool, nothing in the
    interval, or no such market.
    """

    def __init__(
        self, directory: Path, from_us: int | None, to_us: int | None, tickers: Sequence[str] | None
    ) -> None:
        self._directory, self._meta = directory, meta_of(directory)
        self._reader = ThreadPoolExecutor(1, "spool")
        self._chosen = set(tickers) if tickers else None
        self.overview = overview(directory)
        if not self.overview.last_us:
            raise StorageError(f"{directory} holds no frame", hint="tape spool ls")
        first_us, last_us = _first_us(directory), _last_us(directory, self.overview)
        self.start_us = first_us if from_us is None else max(from_us, first_us)
        self.end_us = last_us + 1 if to_us is None else min(to_us, last_us + 1)
        if self.start_us >= self.end_us:
            raise StorageError(
                f"the interval holds nothing of {directory}",
                hint=f"frames were received from {iso(first_us)} to {iso(last_us)}",
            )
        low, high = self.start_us * NS_PER_US, self.end_us * NS_PER_US
        inside = [i for i in self.overview.segments.values() if i.may_hold(None, low, high)]
        self.events_expected = sum(index.frames for index in inside)
        self._first: Iterator[Item] | None = self.items_from(self.start_us)
        state = next(self._first)
        assert isinstance(state, StateItem)
        self._first = chain([state], self._first)
        names = set().union(*(index.markets for index in inside), _followed(state.continuity))
        self._check_chosen(names)
        self.markets = [self._spec(name) for name in sorted(self._chosen or names)]

    def items(self) -> Iterator[Item]:
        """The whole interval; first the state at its beginning."""
        first, self._first = self._first, None
        return self.items_from(self.start_us) if first is None else first

    def items_from(self, at_us: int) -> Iterator[Item]:
        """From `at_us` on; first the gatherer's state of that time, read before this returns."""
        made = self._made(at_us)
        return chain([next(made)], made)

    def spec_of(self, ticker: str) -> MarketSpec | None:
        """See RecordingSource."""
        return self._spec(ticker) if self._chosen is None or ticker in self._chosen else None

    def _check_chosen(self, names: set[str]) -> None:
        unknown = sorted((self._chosen or set()) - names)
        if unknown:
            raise StorageError(
                f"{self._directory} has no market {', '.join(unknown)} in the interval",
                hint="tape spool cat --market",
            )

    def _spec(self, name: str) -> MarketSpec:
        return MarketSpec(
            ticker=name,
            market_id=str(uuid.uuid5(UUID_SPACE, name)),
            event_ticker=name.rsplit("-", 1)[0],
            series_ticker=name.split("-", 1)[0],
            title=name,
            open_us=self.start_us,
            close_us=self.end_us,
        )

    # -- reading -------------------------------------------------------------------------------

    def _made(self, at_us: int) -> Iterator[Item]:
        reader = SpoolReader(self._directory, Position(self._segment_before(at_us), 0))
        walk = _Walk(at_us, self.end_us, Continuity(self._meta.id_base))
        try:
            for batch in self._batches(reader):
                yield from walk.items(batch)
                if walk.is_over:
                    return
            yield from walk.rest(_torn(reader.position, self._directory))
        finally:
            reader.close()

    def _segment_before(self, at_us: int) -> int:
        """The segment in whose middle `at_us` lies, or that ends before it."""
        begun = [
            number
            for number, index in self.overview.segments.items()
            if index.first_ns and index.first_ns // NS_PER_US < at_us
        ]
        return max(begun, default=0)

    def _batches(self, reader: SpoolReader) -> Iterator[_Batch]:
        """The reader's records; the next are read while one batch is played."""
        told = 0

        def read() -> _Batch:
            nonlocal told
            records = reader.read()
            fresh = reader.damage[told:]
            told = len(reader.damage)
            return _Batch(records, fresh)

        ahead = self._reader.submit(read)
        try:
            while (batch := ahead.result()).records:
                ahead = self._reader.submit(read)
                yield batch
            if batch.damage:
                yield batch
        finally:
            if not ahead.cancel():
                ahead.exception()  # a seek has left it: the reader may be closed once it is done


class _Walk:
    """Records of a spool, from a segment's start, as items from a moment on."""

    def __init__(self, from_us: int, to_us: int, continuity: Continuity) -> None:
        self._from_us, self._to_us = from_us, to_us
        self._decoding: Decoding | None = Decoding(continuity)  # None: the moment was reached
        self._decoder = Decoder()
        self._market_ids: dict[str, str] = {}
        self._is_fresh = True
        self._damage: list[str] = []
        self._at_us = from_us
        self.is_over = False

    def items(self, batch: _Batch) -> Iterator[Item]:
        """The items of the records, if the moment has come."""
        self._damage += batch.damage
        for record in batch.records:
            kind = record.kind
            if kind == segment.KIND_STATE:
                yield from self._state(record)
            elif kind == segment.KIND_FRAMES:
                yield from self._frames(segment.decode_frames(record.payload))
            elif kind == segment.KIND_CONTROL:
                yield from self._control(record)
            if self.is_over:
                return
        if self._decoding is not None:
            self._decoding.forget()

    def rest(self, torn: str) -> Iterator[Item]:
        """After the last record: the state if the moment has not come, and what is missing."""
        yield from self._reached()
        damage = [*self._damage, *([torn] if torn else [])]
        if damage:
            yield DamageItem(self._at_us, "; ".join(damage))

    def _reached(self) -> Iterator[Item]:
        """The state, once."""
        decoding, self._decoding = self._decoding, None
        if decoding is not None:
            decoding.forget()
            yield StateItem(self._from_us, decoding.continuity, self._market_ids, self._is_fresh)

    def _state(self, record: SpoolRecord) -> Iterator[Item]:
        """A segment begins. Its state is what was followed up to here, unless that is unknown."""
        if self._decoding is not None:
            if self._is_fresh or self._damage:
                self._decoding = Decoding(restore(record.payload))
                self._is_fresh = False
                self._damage.clear()
            return
        if self._damage:
            damage = "; ".join(self._damage)
            self._damage.clear()
            yield StateItem(self._at_us, restore(record.payload), {}, damage=damage)

    def _moment(self, received_ns: int) -> Iterator[Item]:
        """Before an item of this time: the state, if it is the first; ends the walk at its end."""
        at_us = received_ns // NS_PER_US
        if at_us >= self._to_us:
            self.is_over = True
        if self._decoding is not None:
            yield from self._reached()
        self._at_us = max(self._at_us, at_us)

    def _control(self, record: SpoolRecord) -> Iterator[Item]:
        body = orjson.loads(record.payload)
        received_ns = int(body.get("received_ns", 0))
        if self._decoding is not None and received_ns // NS_PER_US < self._from_us:
            self._decoding.continuity.control(body)
            self._is_fresh = False
            return
        if body.get("k") == "close" and body.get("reason") == DIED:
            received_ns = self._at_us * NS_PER_US
        yield from self._moment(received_ns)
        if not self.is_over:
            yield ControlItem(self._at_us, body)

    def _frames(self, batch: FramesRecord) -> Iterator[Item]:
        stamps, skipped = batch.received_ns, 0
        if self._decoding is not None:
            skipped = self._skip(batch)
            if skipped < len(stamps):
                yield from self._moment(stamps[skipped])
        # Once for each frame of the spool: no call but what gives it.
        conn, ordinal, frames = batch.conn, batch.ordinal, batch.frames
        for n in range(skipped, len(frames)):
            received_ns = stamps[n]
            at_us = received_ns // NS_PER_US
            if at_us >= self._to_us:
                self.is_over = True
                return
            if at_us > self._at_us:
                self._at_us = at_us
            yield FrameItem(self._at_us, conn, ordinal + n, received_ns, frames[n].tobytes())

    def _skip(self, batch: FramesRecord) -> int:
        """Follows the frames of before the moment; how many they are."""
        decoding = self._decoding
        assert decoding is not None, "the moment has not come"
        before = [ns for ns in batch.received_ns if ns // NS_PER_US < self._from_us]
        for n, received_ns in enumerate(before):
            frame = batch.frames[n].tobytes()
            absorb_frames(
                decoding.continuity, self._decoder, batch.conn, batch.ordinal + n, [frame],
                received_ns,
            )  # fmt: skip
            ticker = ticker_of(frame)
            if ticker is not None and ticker not in self._market_ids:
                found = MARKET_ID.search(frame)
                if found is not None:
                    self._market_ids[ticker] = found[1].decode("utf-8", "replace")
        self._is_fresh &= not before
        return len(before)


def overview(directory: Path) -> Overview:
    """What lies in a spool: from the segments' indexes, and from the segments that have none.

    Raises StorageError where a segment without an index cannot be read.
    """
    found = Overview()
    before: int | None = None
    for number in sorted(look(directory).segments):
        if before is not None and number != before + 1:
            found.faults.append(f"of the segments {before} to {number} those between are missing")
        before = number
        try:
            index = read_index(directory, number)
        except StorageError as fault:
            found.faults.append(str(fault).split("\n", maxsplit=1)[0])
            index = None
        found.segments[number] = _scanned(directory, number, found) if index is None else index
    return found


def _scanned(directory: Path, number: int, found: Overview) -> SegmentIndex:
    """The index of a segment that has none yet."""
    for _ in range(LOOKS_MAX):
        path = look(directory).segments[number]
        try:
            body = load(path) if path.suffix == ".zst" else path.read_bytes()
        except FileNotFoundError:
            continue  # compressed between the look and the read
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        reader = segment.scan(body, min(len(body), segment.HEADER_BYTES))
        for _ in reader:
            pass
        if reader.end_offset < len(body):
            found.faults.append(
                f"{path.name}: the {len(body) - reader.end_offset} bytes from offset "
                f"{reader.end_offset} on are no whole record"
            )
        return index_of(body)
    raise StorageError(f"segment {number} of {directory} is moved while it is read")


def _first_us(directory: Path) -> int:
    """When the first record that has a time was written; 0 without any."""
    reader = SpoolReader(directory, Position(0, 0))
    try:
        while records := reader.read():
            for record in records:
                if record.kind == segment.KIND_CONTROL:
                    return int(orjson.loads(record.payload)["received_ns"]) // NS_PER_US
                if record.kind == segment.KIND_FRAMES:
                    stamps = segment.decode_frames(record.payload).received_ns
                    if stamps:
                        return stamps[0] // NS_PER_US
    finally:
        reader.close()
    return 0


def _last_us(directory: Path, found: Overview) -> int:
    """When the last record that has a time was written: closes come after the last frame."""
    reader = SpoolReader(directory, Position(max(found.segments), 0))
    last_us = found.last_us
    try:
        while records := reader.read():
            for record in records:
                if record.kind == segment.KIND_CONTROL:
                    body = orjson.loads(record.payload)
                    last_us = max(last_us, int(body["received_ns"]) // NS_PER_US)
    finally:
        reader.close()
    return last_us


def _torn(end: Position, directory: Path) -> str:
    """What follows the last whole record of the last segment; "" if nothing does."""
    path = look(directory).segments.get(end.segment)
    if path is None or path.suffix == ".zst":
        return ""
    left = path.stat().st_size - end.offset
    return f"{path.name}: {left} bytes at its end are no whole record" if left > 0 else ""


def _followed(continuity: Continuity) -> set[str]:
    """The markets whose books a state holds, quiet ones too."""
    return {
        ticker
        for conn in continuity.open_connections()
        for scope in continuity.life(conn).scopes.values()
        for ticker in scope.chains
    }
