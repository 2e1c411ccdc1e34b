"""Exports closed hours of the tape to the lake.

What holds:
- An hour is exported when the tape is closed LAG_US past its end; one that changes afterwards
  (late rows, silence proven later) is exported again at the next such moment. The moments are
  fixed by the tape, not by the clock: an undisturbed and a killed deduplicator leave equal lakes.
- Objects first, then the lake's version, then production's note of both in one transaction. A crash
  anywhere repeats what was not noted and changes no byte.
- A lake that lost its versions is written again from production.

Does not do: merging; the form of objects (kalshilake).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import asyncpg
import pyarrow as pa

from dedup import hours, metadata
from dedup.coverage_rows import coverage_records
from dedup.proof import load_evidence
from dedup.publication import HOUR_US, Publication
from kalshilake.manifest import ObjectRecord
from kalshilake.store import Store
from kalshilake.tables import records_table
from kalshilake.write import Commit, commit_version, load_head, write_hour
from marketdata.errors import StorageError
from runtime.postgres import TRANSIENT, Connection, connect

LAG_US: Final = 60_000_000
META_TRIES_MAX: Final = 20

_ROW_TABLES: Final[Mapping[str, Callable[[Connection, int, Mapping[int, str]], Any]]] = {
    "orderbook_deltas": hours.delta_table,
    "orderbook_snapshots": hours.snapshot_table,
    "trades": hours.trade_table,
    "tickers": hours.ticker_table,
}


def export_hour_of(closed_to_us: int) -> int:
    """Number of the last hour that is over, LAG_US included, when the tape is closed so far."""
    return (closed_to_us - LAG_US) // HOUR_US


class Exporter:
    """Keeps the lake level with production, between publications and on their connection."""

    def __init__(self, store: Store, meta_dsns: Sequence[str]) -> None:
        self._store = store
        self._meta_dsns = list(meta_dsns)
        self._dirty: dict[int, tuple[bool, bool]] = {}
        self._exported_to_us = 0
        self.version = 0
        self.version_sha256 = ""
        self.objects_written = 0
        self.coverage_us: dict[str, int] = {}  # status -> microseconds of the exported hours
        self._coverage_by_hour: dict[int, dict[str, int]] = {}

    async def open(self, conn: Connection) -> None:
        """Load what is dirty; a lake without our version is written anew."""
        rows = await conn.fetch("SELECT hour_us, rows_dirty, proof_dirty FROM lake_hour")
        self._dirty = {
            r["hour_us"]: (r["rows_dirty"], r["proof_dirty"])
            for r in rows
            if r["rows_dirty"] or r["proof_dirty"]
        }
        noted = await conn.fetchrow("SELECT * FROM lake_version")
        if noted is None:
            return
        head = await asyncio.to_thread(load_head, self._store)
        if head is None or head.version.version < noted["version"]:
            self._dirty = {r["hour_us"]: (True, True) for r in rows}
            return
        self._exported_to_us = noted["exported_to_us"]
        self.version, self.version_sha256 = noted["version"], noted["sha256"]

    def published(self, made: Publication) -> None:
        """Take note of the hours that a committed publication touched."""
        for hour in made.touched.hours:
            rows, proof = self._dirty.get(hour, (False, False))
            self._dirty[hour] = (
                rows or hour in made.touched.rows,
                proof or hour in made.touched.proof,
            )

    def due(self, closed_to_us: int) -> bool:
        """Whether the tape has passed the next moment of export."""
        return export_hour_of(closed_to_us) > export_hour_of(self._exported_to_us)

    @property
    def hours_waiting(self) -> int:
        """Hours that differ from what the lake holds."""
        return len(self._dirty)

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
        ready = sorted(
            hour for hour in self._dirty if final or hour + HOUR_US + LAG_US <= closed_to_us
        )
        records: list[ObjectRecord] = []
        for hour in ready:
            rows_dirty, _ = self._dirty[hour]
            known_ns = await self._known_ns(conn, hour, received_ns_max)
            records += await self._export_hour(
                conn, hour, closed_to_us, known_ns, names, with_rows=rows_dirty
            )
        commit = None
        if records:
            commit = await asyncio.to_thread(
                commit_version, self._store, records, watermark_us=closed_to_us
            )
            self.version, self.version_sha256 = commit.version.version, commit.sha256
            self.objects_written += len(records)
        await self._note(conn, ready, records, closed_to_us)
        self._exported_to_us = closed_to_us
        for hour in ready:
            del self._dirty[hour]
        return commit

    async def _known_ns(self, conn: Connection, hour: int, received_ns_max: int) -> int:
        """Receipt up to which market metadata count for this hour: fixed by its first export."""
        held = await conn.fetchval("SELECT known_ns FROM lake_hour WHERE hour_us = $1", hour)
        return int(held or received_ns_max)

    async def _export_hour(
        self,
        conn: Connection,
        hour: int,
        closed_to_us: int,
        known_ns: int,
        names: Mapping[int, str],
        *,
        with_rows: bool,
    ) -> list[ObjectRecord]:
        made: dict[str, pa.Table] = {}
        if with_rows:
            for table, read in _ROW_TABLES.items():
                made[table] = await read(conn, hour, names)
            made["markets"] = await self._markets(conn, hour, known_ns)
        records = await self._coverage(conn, hour, closed_to_us)
        made["coverage"] = records_table("coverage", records)
        written = []
        for table, rows in made.items():
            if rows.num_rows:
                written.append(
                    await asyncio.to_thread(
                        write_hour, self._store, table, hour, rows, watermark_us=closed_to_us
                    )
                )
        return written

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

    async def _markets(self, conn: Connection, hour: int, known_ns: int) -> pa.Table:
        """The markets that first appeared in this hour."""
        found = await conn.fetch(
            "SELECT ticker, first_us FROM market WHERE first_us >= $1 AND first_us < $2"
            " ORDER BY ticker",
            hour,
            hour + HOUR_US,
        )
        tickers = [r["ticker"] for r in found]
        rows: list[metadata.Described] = []
        event_rows: list[metadata.Described] = []
        for dsn in self._meta_dsns if tickers else ():
            meta = await connect(dsn, tries_max=META_TRIES_MAX)
            try:
                mine = await metadata.read_markets(meta, tickers)
                rows += mine
                wanted = sorted({e for d in mine if (e := metadata.event_of(d)) is not None})
                event_rows += await metadata.read_events(meta, wanted)
            except (*TRANSIENT, asyncpg.PostgresError) as error:
                raise StorageError(f"market metadata cannot be read: {error}") from error
            finally:
                meta.terminate()
        described = metadata.choose(rows, known_ns)
        events = metadata.choose(event_rows, known_ns)
        return records_table(
            "markets",
            [
                metadata.market_record(
                    r["ticker"], r["first_us"], described.get(r["ticker"]), events
                )
                for r in found
            ],
        )

    async def _note(
        self,
        conn: Connection,
        ready: Sequence[int],
        records: Iterable[ObjectRecord],
        closed_to_us: int,
    ) -> None:
        """Production's note of what the lake holds now."""
        async with conn.transaction():
            await conn.executemany(
                "INSERT INTO export_object VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (key)"
                " DO UPDATE SET n_rows = excluded.n_rows, n_bytes = excluded.n_bytes,"
                " sha256 = excluded.sha256",
                [(r.key, r.table, r.hour_us, r.rows, r.bytes, r.sha256) for r in records],
            )
            await conn.execute(
                "UPDATE lake_hour SET rows_dirty = false, proof_dirty = false,"
                " known_ns = CASE known_ns WHEN 0 THEN"
                " (SELECT received_ns_max FROM merge_state) ELSE known_ns END"
                " WHERE hour_us = ANY($1::bigint[])",
                list(ready),
            )
            await conn.execute(
                "INSERT INTO lake_version (version, sha256, exported_to_us) VALUES ($1, $2, $3)"
                " ON CONFLICT (only_row) DO UPDATE SET version = excluded.version,"
                " sha256 = excluded.sha256, exported_to_us = excluded.exported_to_us",
                self.version,
                self.version_sha256,
                closed_to_us,
            )
