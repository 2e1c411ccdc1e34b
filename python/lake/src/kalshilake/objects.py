"""Reading single objects: the pinned bytes or nothing.

Purpose: opens an object as a version lists it, checks its footer against the manifest, every page
against its checksum, and reads only the columns and row groups that can hold what is asked for.

Invariants:
    L-14 rows come from the very bytes that the pinned version lists: from the object, or from
         superseded/ after a later export replaced it; otherwise LakeError, never other rows.

Does not do: coverage, joining hours (read).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kalshilake import paths
from kalshilake.manifest import ObjectRecord
from kalshilake.schema import CERTIFICATE, SCHEMA_VERSION, TIME, TableSpec, spec_of
from kalshilake.store import Store
from marketdata.errors import LakeError

FOOTERS_KEPT: Final = 2_048
FOOTERS_AT_ONCE: Final = 16  # from S3 one takes two round trips
RECEIVED: Final = "received_at"
ROWS_KEPT_BYTES: Final = 160 * 1024 * 1024  # of all answers that are kept, decoded
KEPT_BYTES: Final = 16 * 1024 * 1024  # of one: more is no place where books begin
MAX_US: Final = 2**62

T = TypeVar("T")

Span = tuple[int, int]  # [from, to) in us
ALWAYS: Final[Span] = (-MAX_US, MAX_US)


class _Group(NamedTuple):
    """What a row group's statistics say; times in us, inclusive."""

    first: str
    last: str
    low: int
    high: int
    received_low: int  # -MAX_US and MAX_US where nothing is said of it
    received_high: int


_Groups = tuple[_Group, ...]


class _Question(NamedTuple):
    markets: Sequence[str] | None  # None: all
    time: Span
    received: Span


@dataclass(frozen=True, slots=True)
class _Footer:
    metadata: Any  # pyarrow.parquet.FileMetaData
    groups: _Groups

    def received(self) -> Span:
        """When the first and the last of its rows were received, inclusive."""
        return (
            min((g.received_low for g in self.groups), default=MAX_US),
            max((g.received_high for g in self.groups), default=-MAX_US),
        )


class Kept(Generic[T]):
    """What was used last, up to a limit of weight. Threads may share it."""

    def __init__(self, at_most: int, weight: Callable[[T], int] = lambda _: 1) -> None:
        self._at_most, self._weight = at_most, weight
        self._held: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()
        self.weight = 0

    def get(self, key: Hashable) -> T | None:
        """The value, now the one that was used last; None: not kept."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: Hashable, value: T) -> None:
        """Remember it, and forget what was not used for longest."""
        with self._lock:
            if key in self._held:
                self.weight -= self._weight(self._held.pop(key))
            self._held[key] = value
            self.weight += self._weight(value)
            while self.weight > self._at_most:
                self.weight -= self._weight(self._held.popitem(last=False)[1])

    def __len__(self) -> int:
        return len(self._held)


class ObjectReader:
    """Reads objects of one store; keeps footers, and row groups that were read lately."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._footers = Kept[_Footer](FOOTERS_KEPT)
        self._received: dict[str, Span] = {}  # one pair for each object that was asked
        self._rows = Kept[pa.Table](ROWS_KEPT_BYTES, lambda rows: int(rows.nbytes))

    def read(
        self,
        record: ObjectRecord,
        *,
        columns: Sequence[str] | None = None,
        markets: Sequence[str] | None = None,
        from_us: int = -MAX_US,
        to_us: int = MAX_US,
        received: Span = ALWAYS,
    ) -> pa.Table:
        """Rows of `markets` (None: all) with from_us <= time < to_us, in the object's order. Of the
        table of events `markets` are events.

        `received`: and with received_at in that span; for tables that have it.
        """
        spec = spec_of(record.table)
        if record.schema > SCHEMA_VERSION:
            raise LakeError(
                f"{record.key}: has schema {record.schema}, this reader knows {SCHEMA_VERSION}",
                hint="a newer release reads it",
            )
        names = list(columns) if columns is not None else spec.schema.names
        by = [spec.time] if received == ALWAYS else [spec.time, RECEIVED]
        wanted = list(dict.fromkeys([*names, spec.subject, *by]))
        schema = pa.schema([spec.schema.field(n) for n in wanted])
        out = record.min_us >= to_us or record.max_us < from_us
        if (
            not record.rows
            or out
            or not _may_hold(record.first_market, record.last_market, markets)
            or not _meet(self._received.get(record.sha256, ALWAYS), received)
        ):
            return schema.empty_table().select(names)
        question = _Question(markets, (from_us, to_us), received)
        groups, rows = self._read(record, tuple(wanted), question)
        if rows.num_rows == 0:
            return schema.empty_table().select(names)
        return _matching(rows, spec, question, groups).select(names)

    def learn_receipts(self, records: Sequence[ObjectRecord]) -> None:
        """Read the footers that tell when rows of these objects were received, FOOTERS_AT_ONCE
        at a time: later reads with `received` leave out objects without opening them."""
        unknown = [o for o in records if o.rows and o.sha256 not in self._received]
        if not unknown:
            return
        with ThreadPoolExecutor(min(FOOTERS_AT_ONCE, len(unknown)), "footers") as pool:
            for _ in pool.map(self._learn, unknown):
                pass

    def receipts(self, records: Sequence[ObjectRecord]) -> list[Span]:
        """When the first and last row of each object with rows was received, inclusive."""
        self.learn_receipts(records)
        return [self._received[o.sha256] for o in records if o.rows]

    def _learn(self, record: ObjectRecord) -> None:
        self.open(record).close()

    def open(self, record: ObjectRecord) -> pa.NativeFile:
        """The very bytes of `record`, to be read at random. Raises LakeError if they are gone."""
        return self._open(record)[0]

    def _read(
        self, record: ObjectRecord, wanted: tuple[str, ...], question: _Question
    ) -> tuple[_Groups, pa.Table]:
        """(row groups that can hold the answer, their rows): from memory where they were read
        lately, because many books begin in the same ones."""
        footer = self._footers.get(record.sha256)
        source = None
        if footer is None:
            source, footer, _ = self._open(record)
        try:
            chosen = tuple(i for i, g in enumerate(footer.groups) if _can(g, question))
            groups = tuple(footer.groups[i] for i in chosen)
            kept = (record.sha256, chosen, wanted)
            rows = self._rows.get(kept)
            if rows is None:
                if source is None:
                    source, footer, _ = self._open(record)
                rows = self._decoded(record, source, footer, chosen, wanted)
                if rows.nbytes <= KEPT_BYTES:
                    self._rows.put(kept, rows)
        finally:
            if source is not None:
                source.close()
        return groups, rows

    @staticmethod
    def _decoded(
        record: ObjectRecord,
        source: pa.NativeFile,
        footer: _Footer,
        chosen: tuple[int, ...],
        wanted: tuple[str, ...],
    ) -> pa.Table:
        """Some columns of some row groups, every page checked."""
        schema = pa.schema([spec_of(record.table).schema.field(n) for n in wanted])
        if not chosen:
            return schema.empty_table()
        try:
            with pq.ParquetFile(
                source, metadata=footer.metadata, page_checksum_verification=True, pre_buffer=True
            ) as parquet:
                # One group: starting threads costs more than it saves.
                rows = parquet.read_row_groups(
                    chosen, columns=list(wanted), use_threads=len(chosen) > 1
                )
        except (OSError, pa.ArrowException) as e:
            raise LakeError(f"{record.key}: altered or damaged ({e})") from e
        return rows.select(wanted).cast(schema).replace_schema_metadata(None)

    def groups(self, record: ObjectRecord) -> Iterator[pa.Table]:
        """All rows of an object, a row group at a time; nothing of it is kept in memory."""
        names = tuple(spec_of(record.table).schema.names)
        source, footer, _ = self._open(record)
        try:
            for number in range(len(footer.groups)):
                yield self._decoded(record, source, footer, (number,), names)
        finally:
            source.close()

    def certificate(self, record: ObjectRecord) -> dict[str, Any]:
        """What the object says of itself in its footer. Raises LakeError."""
        source, footer, _ = self._open(record)
        source.close()
        try:
            told = json.loads((footer.metadata.metadata or {})[CERTIFICATE.encode()])
        except (KeyError, ValueError):
            told = None
        if not isinstance(told, dict):
            raise LakeError(f"{record.key}: carries no certificate")
        return told

    def pinned_key(self, record: ObjectRecord) -> str:
        """Where the bytes of `record` lie now. Raises LakeError if they lie nowhere."""
        source, _, key = self._open(record)
        source.close()
        return key

    def _open(self, record: ObjectRecord) -> tuple[pa.NativeFile, _Footer, str]:
        """(open object, its footer, where it lies), checked on the very handle that is read.

        An export may replace the object at any moment; the handle keeps what was opened.
        """
        for key in (record.key, paths.superseded_key(record.sha256)):
            if self._store.size(key) != record.bytes:
                continue
            source = self._store.open(key)
            try:
                source.seek(record.bytes - record.footer_bytes)
                tail = source.read(record.footer_bytes)
            except OSError as e:
                raise LakeError(f"{record.key}: changed while it was read ({e})") from e
            if hashlib.sha256(tail).hexdigest() == record.footer_sha256:
                return source, self._footer(record, tail), key
            source.close()
        raise LakeError(
            f"{record.key}: absent or altered since the version that lists it",
            hint=f"tape verify {self._store.location}",
        )

    def _footer(self, record: ObjectRecord, tail: bytes) -> _Footer:
        found = self._footers.get(record.sha256)
        if found is None:
            found = _parse_footer(record, tail)
            self._footers.put(record.sha256, found)
            self._received[record.sha256] = found.received()
        return found


def _parse_footer(record: ObjectRecord, tail: bytes) -> _Footer:
    """The footer alone is a Parquet file without a body to pyarrow: offsets stay as they are."""
    metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + tail))
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    spec = spec_of(record.table)
    ticker, time = names.index(spec.subject), names.index(spec.time)
    receipt = names.index(RECEIVED) if RECEIVED in names else None
    groups = []
    for i in range(
        metadata.num_row_groups if record.rows else 0
    ):  # an empty group has no statistics
        group = metadata.row_group(i)
        market, moment = group.column(ticker).statistics, group.column(time).statistics
        low, high = (pa.scalar(m, TIME).value for m in (moment.min, moment.max))
        told = None if receipt is None else group.column(receipt).statistics
        first, last = -MAX_US, MAX_US  # without statistics a group may hold any receipt
        if told is not None and told.has_min_max:
            first, last = (pa.scalar(m, TIME).value for m in (told.min, told.max))
        groups.append(_Group(market.min, market.max, low, high, first, last))
    return _Footer(metadata, tuple(groups))


def _can(group: _Group, question: _Question) -> bool:
    """Whether a row group's statistics allow an answer in it."""
    return (
        _meet((group.low, group.high), question.time)
        and _meet((group.received_low, group.received_high), question.received)
        and _may_hold(group.first, group.last, question.markets)
    )


def _meet(held: Span, asked: Span) -> bool:
    """Whether an inclusive span and a half open one share a moment."""
    return held[0] < asked[1] and held[1] >= asked[0]


def _may_hold(first: str, last: str, markets: Sequence[str] | None) -> bool:
    return markets is None or any(first <= m <= last for m in markets)


def _matching(rows: pa.Table, spec: TableSpec, question: _Question, groups: _Groups) -> pa.Table:
    """Drop what the row groups hold beyond the question; nothing is copied if they hold nothing."""
    mask, markets = None, question.markets
    # Statistics that name one market prove that a group holds no other.
    if markets is not None and {m for g in groups for m in g[:2]} != set(markets[:1]):
        mask = pc.is_in(rows.column(spec.subject), value_set=pa.array(markets, pa.string()))
    held = (min(g.low for g in groups), max(g.high for g in groups))
    mask = _within(mask, rows, spec.time, question.time, held)
    if question.received != ALWAYS:
        held = (min(g.received_low for g in groups), max(g.received_high for g in groups))
        mask = _within(mask, rows, RECEIVED, question.received, held)
    return rows if mask is None else rows.filter(mask)


def _within(mask: Any, rows: pa.Table, column: str, asked: Span, held: Span) -> Any:
    if held[0] < asked[0]:
        mask = _both(mask, pc.greater_equal(rows.column(column), pa.scalar(asked[0], TIME)))
    if held[1] >= asked[1]:
        mask = _both(mask, pc.less(rows.column(column), pa.scalar(asked[1], TIME)))
    return mask


def _both(a: Any, b: Any) -> Any:
    return b if a is None else pc.and_(a, b)
