"""Fewer, larger objects of days that are over: an option for who may delete (docs/compaction.md).

Purpose: `plan` tells which hours of which tables would be joined, `compact` does it: per part of a
day one object of each table takes the place of the objects of its hours. Versions list so many
objects fewer, and engines that read all objects of a day open fewer.

Invariants:
    L-40 no row and no pinned reader's answer changes: what is taken away lies under superseded/,
         read back, before the version that joins it is written.
    L-41 whatever it dies at, running it again ends in the lake that an undisturbed run leaves; and
         run again on that it changes nothing.

Between the joined object's appearance and the removal of its hours (a put of a version lies between
them) an engine that reads all objects of a day without asking the lists finds these rows twice.

Does not do: joining (joined), forgetting: superseded/ keeps every byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from kalshilake import paths
from kalshilake.joined import keep, stored_sha256, write_joined
from kalshilake.manifest import LakeVersion, ObjectRecord
from kalshilake.store import Store
from kalshilake.write import Commit, commit_version, load_head
from marketdata.errors import LakeError, StorageError

US_PER_DAY: Final = 24 * paths.US_PER_HOUR
REST_DAYS: Final = 3
"""Days behind the watermark that are left alone: the deduplicator still looks at their objects."""
OLD_DAYS: Final = 7  # what is asked for where nobody says otherwise
JOINED_BYTES: Final = 256 * 1024 * 1024  # of the hours that one object joins, as they are stored
_PROBE: Final = f"{paths.SUPERSEDED_PREFIX}nothing.parquet"


@dataclass(frozen=True, slots=True)
class Span:
    """Hours of one day whose objects are joined, each table's for itself."""

    hour_us: int
    hours: int
    parts: tuple[ObjectRecord, ...]

    @property
    def tables(self) -> list[str]:
        """Those with objects to join."""
        return sorted({part.table for part in self.parts})

    @property
    def bytes(self) -> int:
        """Of the objects to join."""
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class Compaction:
    """What a run did. `removed`: objects that were taken away."""

    commit: Commit
    joined: int
    removed: int


def latest_us(version: LakeVersion) -> int:
    """The end of the last day that may be joined: REST_DAYS lie between it and the watermark."""
    return version.watermark_us // US_PER_DAY * US_PER_DAY - REST_DAYS * US_PER_DAY


def plan(
    version: LakeVersion, before_us: int | None = None, most_bytes: int = JOINED_BYTES
) -> list[Span]:
    """What is to be joined of the days that end at or before `before_us`, ascending.

    None: OLD_DAYS before the watermark. A part of a day is as long as no table has more than
    `most_bytes` in it; a day of which even two hours have more is left as it is. Raises LakeError
    for a day that is too young.
    """
    latest = latest_us(version)
    if before_us is None:
        before_us = latest - (OLD_DAYS - REST_DAYS) * US_PER_DAY
    if before_us > latest:
        raise LakeError(
            f"the watermark is {paths.at(version.watermark_us):%Y-%m-%dT%H:%M}: only what is "
            f"before {paths.at(latest):%Y-%m-%d} can be joined",
            hint=f"the deduplicator still looks at the last {REST_DAYS} days",
        )
    days: dict[int, list[ObjectRecord]] = {}
    for record in version.objects:
        day_us = record.hour_us // US_PER_DAY * US_PER_DAY
        if day_us + US_PER_DAY <= before_us:
            days.setdefault(day_us, []).append(record)
    return [span for day_us in sorted(days) for span in _spans(day_us, days[day_us], most_bytes)]


def _spans(day_us: int, objects: list[ObjectRecord], most_bytes: int) -> list[Span]:
    """The parts of one day with something to join."""
    hours = max((o.hours for o in objects), default=1)  # a day keeps the parts it has
    if hours == 1:
        hours = next((n for n in paths.SPANS if _most(objects, n) <= most_bytes), 1)
    if hours == 1:
        return []
    length = hours * paths.US_PER_HOUR
    spans = []
    for start in range(day_us, day_us + US_PER_DAY, length):
        plain = [o for o in objects if o.hours == 1 and start <= o.hour_us < start + length]
        if plain:
            spans.append(Span(start, hours, tuple(plain)))
    return spans


def _most(objects: Iterable[ObjectRecord], hours: int) -> int:
    """Bytes of the table and part of the day that have most, in parts of `hours` hours."""
    sums: dict[tuple[str, int], int] = {}
    for record in objects:
        at = (record.table, record.hour_us // (hours * paths.US_PER_HOUR))
        sums[at] = sums.get(at, 0) + record.bytes
    return max(sums.values(), default=0)


def compact(
    store: Store,
    before_us: int | None = None,
    *,
    most_bytes: int = JOINED_BYTES,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Compaction:
    """Join what `plan` tells, a version for each span, and take away what was replaced.

    What an earlier run left undone is done. `progress`: told of each span that is done, and of how
    many there are. Raises LakeError, and StorageError before anything is
    changed where deleting is not granted.
    """
    head = load_head(store)
    if head is None:
        raise LakeError(f"{store.location} holds no lake", hint="it has no manifest/v*.json")
    spans = plan(head.version, before_us, most_bytes)
    try:
        store.delete([_PROBE])
    except StorageError as error:
        raise StorageError(
            f"{error}: joined hours could not be taken away, nothing was changed",
            hint="compaction needs s3:DeleteObject on the bucket, which the services do not have",
        ) from error
    removed = sweep(store, head.version)
    joined = 0
    for n, span in enumerate(spans, 1):
        records = _join(store, span, head.version.watermark_us)
        head = commit_version(
            store, records, watermark_us=head.version.watermark_us, joins=span.parts
        )
        joined += len(records)
        removed += sweep(store, head.version, span)
        progress(n, len(spans))
    return Compaction(head, joined, removed)


def _join(store: Store, span: Span, watermark_us: int) -> list[ObjectRecord]:
    """The objects of a span, written."""
    for part in span.parts:
        keep(store, part.key, part.sha256)
    return [
        write_joined(
            store, table, span.hour_us, span.hours,
            [part for part in span.parts if part.table == table], watermark_us=watermark_us,
        )
        for table in span.tables
    ]  # fmt: skip


def sweep(store: Store, version: LakeVersion, span: Span | None = None) -> int:
    """Take away objects that the version does not list and whose hours it has in joined objects, in
    all of the lake or in a span; their number. Their bytes are kept under superseded/ first.

    They are there because a version joined them, or because a writer that had not seen that version
    wrote one of them once more. Objects of several hours that no version lists go, too: only this
    module writes such.
    """
    listed = {record.key for record in version.objects}
    joined = [o for o in version.objects if o.hours > 1 and (span is None or _within(o, span))]
    stray = []
    for folder in sorted({o.key.rpartition("/")[0] for o in joined}):
        stray += [
            found.key
            for found in store.list(f"{folder}/")
            if found.key not in listed and _is_replaced(found.key, joined)
        ]
    beside = []
    for key in stray:
        sha256 = stored_sha256(store, key)
        if sha256 is not None:
            keep(store, key, sha256)
        table, hour_us, hours = paths.parse_object_key(key)
        if hours > 1:
            beside.append(paths.hour_manifest_key(table, hour_us, hours))
    if stray:
        store.delete([*stray, *beside])
    return len(stray)


def _within(record: ObjectRecord, span: Span) -> bool:
    return span.hour_us <= record.hour_us < span.hour_us + span.hours * paths.US_PER_HOUR


def _is_replaced(key: str, joined: Iterable[ObjectRecord]) -> bool:
    """Whether the hours of an object are among those of a joined one."""
    try:
        table, hour_us, hours = paths.parse_object_key(key)
    except LakeError:
        return False  # a commit record, or nothing of ours
    end_us = hour_us + hours * paths.US_PER_HOUR
    return any(o.table == table and o.hour_us < end_us and hour_us < o.end_us for o in joined)
