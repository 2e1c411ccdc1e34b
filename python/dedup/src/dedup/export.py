"""Exports closed hours of the tape to the lake.

What holds:
- An hour is exported when the tape is closed LAG_US past its end; one that changes afterwards
  (late rows, silence proven later) is exported again at the next such moment. The moments are
  fixed by the tape, not by the clock: an undisturbed and a killed deduplicator leave equal lakes.
- Objects first, then the lake's version, then production's note of both in one transaction. A crash
  anywhere repeats what was not noted and changes no byte.
- What the lake lost is made again from production with the same bytes (dedup.repair_lake).
- Production that was restored from an older state finds its moments in the lake's versions: what
  it gives again is compared and not written; what differs becomes a new version, and is told.

Does not do: merging; the form of objects (kalshilake).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import pyarrow as pa

from dedup import hour_parts, hours, keyframes, other_tape, repair_lake, repair_store
from dedup.coverage_rows import coverage_records
from dedup.described import DescribedHour, described_at
from dedup.exchange_note import extra_of, seen_at, seen_now
from dedup.proof import load_evidence
from dedup.publication import DAY_US, HOUR_US, Publication
from dedup.repair_lake import Noted
from dedup.retain import dropped_days
from kalshilake.manifest import ObjectRecord
from kalshilake.store import Store
from kalshilake.tables import records_table
from kalshilake.write import Commit, commit_version, load_head, load_version, write_hour
from marketdata.errors import LakeError, StorageError
from runtime import logs
from runtime.memory import give_back, large_blocks_apart
from runtime.partitions import Partitions
from runtime.postgres import Connection

LAG_US: Final = 60_000_000

log = logs.get("export")

_ROW_TABLES: Final[Mapping[str, Callable[[Connection, int, Mapping[int, str]], Any]]] = {
    "orderbook_snapshots": hours.snapshot_table,
    "trades": hours.trade_table,
    "tickers": hours.ticker_table,
}


def export_hour_of(closed_to_us: int) -> int:
    """Number of the last hour that is over, LAG_US included, when the tape is closed so far."""
    return (closed_to_us - LAG_US) // HOUR_US


def _give_back() -> None:
    """What an hour needed is not needed for an hour."""
    pa.default_memory_pool().release_unused()
    give_back()


class Exporter:
    """Keeps the lake level with production, between publications and on their connection.

    `progress` is called, on the event loop, whenever a part of an hour is done.
    """

    def __init__(self, store: Store, meta_dsns: Sequence[str], backups: str = "") -> None:
        """`backups`: prefix of production's backups in the same store; "": there are none."""
        self.progress: Callable[[], None] = lambda: None
        self._store, self._backups = store, backups
        self._meta_dsns = list(meta_dsns)
        self._dirty: dict[int, tuple[bool, bool]] = {}
        self._lost: list[Noted] = []  # of the lake, to be made again
        self._unlisted = False  # the newest version is gone
        self._unseen = True  # the lake was not looked at yet
        self._repaired: list[int] = []  # hours with a new version that the lake does not have
        self._head = 0  # newest version of the lake when it was opened
        self._exported_to_us = 0
        self._seen = ""  # of the exchange, at this moment of export
        self._described: tuple[tuple[int, int], DescribedHour] | None = None  # asked for last
        self._partitions = Partitions()
        # Gone from production (dedup.retain), never exported again. One set for good: others add.
        self.dropped_days: set[int] = set()
        self.version = 0
        self.version_sha256 = ""
        self.written: Counter[str] = Counter()  # objects, by table, since the process began
        self.not_made_again: list[str] = []  # lost, and production gives other bytes now
        self.differing: list[str] = []  # the lake had other bytes of a moment that came again
        self.coverage_us: dict[str, int] = {}  # status -> microseconds of the exported hours
        self._coverage_by_hour: dict[int, dict[str, int]] = {}

    async def another_tape(self, conn: Connection) -> str:
        """As other_tape.found, of this lake."""
        return await other_tape.found(conn, self._store, self._backups)

    async def open(self, conn: Connection, *, patient: bool = False) -> None:
        """Load what is dirty and what the lake lost.

        `patient`: a lake that does not answer is looked at again by the next export; nothing else
        waits for it.

        Raises:
            StorageError, LakeError: the lake refused, and nobody said to be patient.
        """
        self._partitions.forget()
        self.dropped_days.clear()
        self.dropped_days |= await dropped_days(conn)
        await self.look_again(conn)
        noted = await conn.fetchrow("SELECT exported_to_us, version, sha256 FROM lake_version")
        if noted is not None:
            self._exported_to_us = noted["exported_to_us"]
            self.version, self.version_sha256 = noted["version"], noted["sha256"]
        self._unseen = True
        try:
            await self._see(conn)
        except (StorageError, LakeError) as error:
            if not patient:
                raise
            log.warning("the lake is looked at later", reason=str(error))

    async def _see(self, conn: Connection) -> None:
        """Look at the lake, once after each `open`."""
        if not self._unseen:
            return
        head = await asyncio.to_thread(load_head, self._store)
        self._head = 0 if head is None else head.version.version
        self._unlisted = self._head < self.version
        since_us = None if self._unlisted else repair_lake.CHECKED_US
        objects = await repair_lake.noted_objects(conn, since_newest_us=since_us)
        lost = await asyncio.to_thread(repair_lake.lost, self._store, objects)
        # Where production was restored, the lake went on: what it lists with later bytes is not
        # lost, and if it is, production makes it again once it has come to that moment again.
        later = head.version.objects if head and self._head > self.version else ()
        listed = {o.key: o.sha256 for o in later}
        self._lost = [item for item in lost if listed.get(item.key, item.sha256) == item.sha256]
        self._repaired = await repair_store.unexported(conn)
        self._unseen = False

    async def look_again(self, conn: Connection) -> None:
        """Load what is dirty once more: other mergers of the tape publish, too."""
        rows = await conn.fetch("SELECT hour_us, rows_dirty, proof_dirty FROM lake_hour")
        self._dirty = {
            r["hour_us"]: (r["rows_dirty"], r["proof_dirty"])
            for r in rows
            if r["rows_dirty"] or r["proof_dirty"]
        }

    def published(self, made: Publication) -> None:
        """Take note of the hours that a committed publication touched."""
        for hour in made.touched.hours:
            rows, proof = self._dirty.get(hour, (False, False))
            self._dirty[hour] = (
                rows or hour in made.touched.rows,
                proof or hour in made.touched.proof,
            )

    def due(self, closed_to_us: int) -> bool:
        """Whether the tape has passed the next moment of export, or the lake lost something."""
        waiting = self._unseen or self._unlisted or bool(self._lost) or bool(self._repaired)
        return waiting or self._moment(closed_to_us)

    def _moment(self, closed_to_us: int) -> bool:
        return export_hour_of(closed_to_us) > export_hour_of(self._exported_to_us)

    def hours_due(self, closed_to_us: int) -> int:
        """Hours that are over and differ from what the lake holds."""
        return sum(self._is_over(h, closed_to_us) for h in self._dirty if not self._is_dropped(h))

    @staticmethod
    def _is_over(hour_us: int, closed_to_us: int) -> bool:
        return hour_us + HOUR_US + LAG_US <= closed_to_us

    @property
    def objects_written(self) -> int:
        """Since the process began."""
        return sum(self.written.values())

    @property
    def hours_waiting(self) -> int:
        """Hours that differ from what the lake holds."""
        hours = {h for h in self._dirty if not self._is_dropped(h)}
        return len(hours | {item.hour_us for item in self._lost}) or int(
            self._unlisted or self._unseen
        )

    def _is_dropped(self, hour_us: int) -> bool:
        return hour_us // DAY_US * DAY_US in self.dropped_days

    def told(self) -> str:
        """What somebody has to look at; "" where nothing is."""
        parts = []
        if self.not_made_again:
            lost = ", ".join(self.not_made_again)
            parts.append(f"lost, and production gives other bytes now: {lost}")
        if self.differing:
            parts.append(f"the lake had another history from here on: {self.differing[0]}")
        late = sum(map(self._is_dropped, self._dirty))
        if late:
            parts.append(f"{late} hours have late rows, and their day has left production")
        return "; ".join(parts)

    async def export(
        self,
        conn: Connection,
        closed_to_us: int,
        received_ns_max: int,
        names: Mapping[int, str],
        *,
        final: bool,
    ) -> Commit | None:
        """Export what is due at this moment (`final`: everything); None when there was nothing.

        Raises:
            StorageError, LakeError: the lake or a database refused; nothing was noted.
        """
        await self._see(conn)
        await self._heal(conn, names)
        await self.new_versions(conn, names)
        if not final and not self._moment(closed_to_us):
            return None
        self._seen = await seen_now(conn)
        ready = sorted(
            hour
            for hour in self._dirty
            if (final or self._is_over(hour, closed_to_us)) and not self._is_dropped(hour)
        )
        asked = (conn, ready, closed_to_us, received_ns_max, names)
        commit = await asyncio.to_thread(self._twin, closed_to_us) if ready else None
        records = None if commit is None else await self._write(*asked, twin=commit)
        if records is None:
            commit, records = None, await self._write(*asked)
            assert records is not None, "only a comparison can fail"
            if records:
                commit = await asyncio.to_thread(
                    commit_version, self._store, records, watermark_us=closed_to_us
                )
        if commit is not None:
            self.version, self.version_sha256 = commit.version.version, commit.sha256
        await self._note(conn, ready, records, closed_to_us, closed_to_us)
        self._exported_to_us = closed_to_us
        for hour in ready:
            del self._dirty[hour]
        await asyncio.to_thread(_give_back)
        return commit

    async def new_versions(self, conn: Connection, names: Mapping[int, str]) -> int:
        """Export what a repair changed, whatever the moment; the number of hours."""
        hours_us = [hour for hour in self._repaired if hour in self._dirty]
        self._repaired, self._seen = [], ""
        head = await asyncio.to_thread(load_head, self._store) if hours_us else None
        if head is None:
            return 0  # nothing was exported yet: the next moment of export has it all
        watermark_us = head.version.watermark_us
        records = await self._write(conn, hours_us, watermark_us, 0, names)
        assert records is not None, "only a comparison can fail"
        commit = await asyncio.to_thread(
            commit_version, self._store, records, watermark_us=watermark_us
        )
        self.version, self.version_sha256 = commit.version.version, commit.sha256
        await self._note(conn, hours_us, records, watermark_us, self._exported_to_us)
        for hour in hours_us:
            del self._dirty[hour]
        return len(hours_us)

    def _twin(self, closed_to_us: int) -> Commit | None:
        """The version that the lake has of this moment already: a crash came before its note, or
        production was restored from an older state."""
        for number in range(self.version + 1, self._head + 1):
            found = load_version(self._store, number)
            if found.version.watermark_us == closed_to_us:
                return found
        return None

    async def _write(
        self,
        conn: Connection,
        ready: Sequence[int],
        closed_to_us: int,
        received_ns_max: int,
        names: Mapping[int, str],
        twin: Commit | None = None,
    ) -> list[ObjectRecord] | None:
        """Write the objects of these hours; with `twin` only compare them with what it lists: None
        at the first that differs."""
        with large_blocks_apart():
            return await self._write_apart(conn, ready, closed_to_us, received_ns_max, names, twin)

    async def _write_apart(
        self,
        conn: Connection,
        ready: Sequence[int],
        closed_to_us: int,
        received_ns_max: int,
        names: Mapping[int, str],
        twin: Commit | None,
    ) -> list[ObjectRecord] | None:
        listed = {} if twin is None else {o.key: o for o in twin.version.objects}
        records: list[ObjectRecord] = []
        for hour in ready:
            rows_dirty, _ = self._dirty[hour]
            rows_dirty |= await keyframes.begin(conn, self._partitions, hour) > 0
            if rows_dirty or hour % DAY_US == 0:
                rows_dirty |= await keyframes.place(conn, self._partitions, hour) > 0
            known_ns = await self._known_ns(conn, hour, received_ns_max)
            versions = await repair_store.versions_of(conn, hour)
            seen = self._seen or await seen_at(conn, hour)
            tables = ["orderbook_deltas", *_ROW_TABLES, "markets", "events"] if rows_dirty else []
            for table in (*tables, "coverage"):
                rows = await self._table(conn, table, hour, closed_to_us, known_ns, names)
                if not rows.num_rows:
                    continue
                if twin is None:
                    records.append(
                        await asyncio.to_thread(
                            write_hour, self._store, table, hour, rows,
                            watermark_us=closed_to_us, extra=extra_of(table, versions, seen),
                        )
                    )  # fmt: skip
                    self.written[table] += 1
                    continue
                record = await asyncio.to_thread(repair_lake.record_of, table, hour, rows)
                if listed.get(record.key) != record:
                    self._head = 0  # from here on the lake's later versions are another history
                    self.differing.append(record.key)
                    log.error("the lake has another hour than production", object=record.key)
                    return None
                records.append(record)
        return records

    async def _heal(self, conn: Connection, names: Mapping[int, str]) -> None:
        """Make again what the lake lost; hours that are exported again anyway are left to that."""
        for item in self._lost:
            rows_dirty, proof_dirty = self._dirty.get(item.hour_us, (False, False))
            if not rows_dirty and not (proof_dirty and item.table == "coverage"):
                await self._put_back(conn, item, names)
        self._lost = []
        if self._unlisted:
            await self._list_again(conn)
            self._unlisted = False

    async def _put_back(self, conn: Connection, item: Noted, names: Mapping[int, str]) -> None:
        closed_to_us = item.watermark_us or self._exported_to_us
        known_ns = await self._known_ns(conn, item.hour_us, 0)
        rows = await self._table(conn, item.table, item.hour_us, closed_to_us, known_ns, names)
        record = await asyncio.to_thread(repair_lake.record_of, item.table, item.hour_us, rows)
        if record.sha256 != item.sha256:
            self.not_made_again.append(item.key)
            log.error("lost, and production gives other bytes now", object=item.key)
            return
        versions = await repair_store.versions_of(conn, item.hour_us)
        seen = await seen_at(conn, item.hour_us)
        await asyncio.to_thread(
            write_hour, self._store, item.table, item.hour_us, rows,
            watermark_us=closed_to_us, extra=extra_of(item.table, versions, seen),
        )  # fmt: skip
        log.warning("lost and made again", object=item.key)

    async def _list_again(self, conn: Connection) -> None:
        """The newest version again; where that cannot be, everything is exported anew."""
        objects = await repair_lake.noted_objects(conn)
        records = await asyncio.to_thread(repair_lake.listed_again, self._store, objects)
        if records is None:
            hours_us = [r["hour_us"] for r in await conn.fetch("SELECT hour_us FROM lake_hour")]
            self._dirty = dict.fromkeys(hours_us, (True, True))
            self._exported_to_us = self.version = 0
            return
        made = await asyncio.to_thread(
            commit_version,
            self._store,
            records,
            watermark_us=max(item.watermark_us for item in objects) or self._exported_to_us,
        )
        if made.sha256 != self.version_sha256:
            log.warning("the lake's list begins anew", version=made.version.version)
            await conn.execute(
                "UPDATE lake_version SET version = $1, sha256 = $2",
                made.version.version,
                made.sha256,
            )
        self.version, self.version_sha256 = made.version.version, made.sha256

    async def _known_ns(self, conn: Connection, hour: int, received_ns_max: int) -> int:
        """Receipt up to which market metadata count for this hour: fixed by its first export."""
        held = await conn.fetchval("SELECT known_ns FROM lake_hour WHERE hour_us = $1", hour)
        return int(held or received_ns_max)

    async def _table(
        self,
        conn: Connection,
        table: str,
        hour: int,
        closed_to_us: int,
        known_ns: int,
        names: Mapping[int, str],
    ) -> pa.Table | hour_parts.HourParts:
        """The rows of one object."""
        self.progress()
        if table == "orderbook_deltas":
            soon = partial(asyncio.get_running_loop().call_soon_threadsafe, self.progress)
            return await hour_parts.delta_parts(conn, hour, names, soon)
        if table == "coverage":
            return records_table(table, await self._coverage(conn, hour, closed_to_us))
        if table in ("markets", "events"):
            asked = (hour, known_ns)
            if table == "markets" or self._described is None or self._described[0] != asked:
                found = await described_at(conn, self._meta_dsns, hour, known_ns)
                self._described = (asked, found)
            described = self._described[1]
            return described.markets if table == "markets" else described.events
        return await _ROW_TABLES[table](conn, hour, names)

    async def _coverage(
        self, conn: Connection, hour: int, closed_to_us: int
    ) -> list[dict[str, Any]]:
        to_us = min(hour + HOUR_US, closed_to_us)
        evidence = await load_evidence(conn, hour, to_us)
        records = await asyncio.to_thread(coverage_records, evidence, hour, to_us)
        shares: dict[str, int] = {}
        for r in records:
            if r["channel"] == "orderbook":
                shares[r["status"]] = shares.get(r["status"], 0) + r["to_ts"] - r["from_ts"]
        self._coverage_by_hour[hour] = shares
        totals: dict[str, int] = {}
        for held in self._coverage_by_hour.values():
            for status, us in held.items():
                totals[status] = totals.get(status, 0) + us
        self.coverage_us = totals
        return records

    async def _note(
        self,
        conn: Connection,
        ready: Sequence[int],
        records: Iterable[ObjectRecord],
        closed_to_us: int,
        exported_to_us: int,
    ) -> None:
        """Production's note of what the lake holds now."""
        async with conn.transaction():
            await conn.executemany(
                "INSERT INTO export_object VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (key)"
                " DO UPDATE SET n_rows = excluded.n_rows, n_bytes = excluded.n_bytes,"
                " sha256 = excluded.sha256, watermark_us = excluded.watermark_us",
                [
                    (r.key, r.table, r.hour_us, r.rows, r.bytes, r.sha256, closed_to_us)
                    for r in records
                ],
            )
            await conn.execute(
                "UPDATE lake_hour SET rows_dirty = false, proof_dirty = false,"
                " exchange = CASE $2::text WHEN '' THEN exchange ELSE $2 END,"
                " known_ns = CASE known_ns WHEN 0 THEN"
                " (SELECT max(received_ns_max) FROM merge_state) ELSE known_ns END"
                " WHERE hour_us = ANY($1::bigint[])",
                list(ready),
                self._seen,
            )
            await conn.execute(
                "UPDATE hour_version SET exported = true"
                " WHERE NOT exported AND hour_us = ANY($1::bigint[])",
                list(ready),
            )
            await conn.execute(
                "INSERT INTO lake_version (version, sha256, exported_to_us) VALUES ($1, $2, $3)"
                " ON CONFLICT (only_row) DO UPDATE SET version = excluded.version,"
                " sha256 = excluded.sha256, exported_to_us = excluded.exported_to_us",
                self.version,
                self.version_sha256,
                exported_to_us,
            )
