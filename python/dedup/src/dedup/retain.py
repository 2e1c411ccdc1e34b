"""Old days leave production, once the lake gave every hour of them back.

Purpose: now and then drop the partitions of days that are older than what is kept, oldest first.
What holds:
- A day goes only when all of it lies before `Archive.verified_to_us`: exported, read back, equal.
- That a day went is noted in the same transaction; its hours are never exported again (a late row
  would else replace an hour of the lake by itself), and a repair refuses them.
- In the tape's first week nothing goes; what would is told (KT_PRODUCTION_RETAIN=auto).
Does not do: comparing (archive), the gatherers' databases (gatherer.hot_retention).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import asyncpg

from dedup.archive import Archive
from dedup.hours import moment
from dedup.publication import DAY_US
from marketdata.errors import StorageError
from marketdata.units import format_ts_us
from runtime import logs
from runtime.partitions import TIMESCALE_HOME, partition_name
from runtime.postgres import TRANSIENT, Connection, connect

LOOK_S: Final = 600
WEEK_US: Final = 7 * DAY_US
DAYS_A_LOOK: Final = 10
LOCK_WAIT: Final = "2s"
TABLES: Final = ("orderbook_delta", "orderbook_snapshot", "trade", "ticker")

Mode = Literal["auto", "dry", "off"]

log = logs.get("retain")


@dataclass(slots=True)
class Removal:
    """What the last look dropped, or would have."""

    days: list[str] = field(default_factory=list)
    dry: bool = False
    reason: str = ""


class Retention:
    """See the module's text. `keep_days` 0: everything is kept."""

    def __init__(
        self,
        dsn: str,
        archive: Archive,
        keep_days: int,
        mode: Mode,
        on_dropped: Callable[[int], None],
    ) -> None:
        self._dsn = dsn
        self._archive = archive
        self._keep_us = keep_days * DAY_US
        self._mode = mode
        self._on_dropped = on_dropped
        self.last = Removal()

    def told(self) -> dict[str, Any]:
        """For /status."""
        return asdict(self.last)

    async def run(self) -> None:
        """Look now and then until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._keep_us or self._mode == "off":
                continue
            try:
                await self.once()
            except (StorageError, asyncpg.PostgresError, *TRANSIENT) as error:
                self.last = Removal(reason=f"{type(error).__name__}: {error}")
                log.warning("old days were not removed", error=str(error))

    async def once(self) -> Removal:
        """One look."""
        connection = await connect(self._dsn, tries_max=1, lock_timeout=LOCK_WAIT)
        try:
            self.last = await self._look(connection)
        finally:
            connection.terminate()
        if self.last.days:
            told = "days would be removed" if self.last.dry else "days removed"
            log.info(told, days=self.last.days)
        return self.last

    async def _look(self, connection: Connection) -> Removal:
        closed_to_us = await connection.fetchval("SELECT min(closed_to_us) FROM merge_state")
        first_us = await connection.fetchval("SELECT min(hour_us) FROM lake_hour")
        if closed_to_us is None or first_us is None:
            return Removal(reason="nothing was exported yet")
        dry = self._mode == "dry" or (self._mode == "auto" and closed_to_us - first_us < WEEK_US)
        gone = await dropped_days(connection)
        end_us = min(self._archive.verified_to_us, closed_to_us - self._keep_us)
        days = [d for d in range(first_us // DAY_US * DAY_US, end_us, DAY_US) if d not in gone]
        found = Removal(dry=dry)
        for day_us in days[:DAYS_A_LOOK]:
            if day_us + DAY_US > end_us:
                break
            if not dry:
                await _drop(connection, day_us)
                self._on_dropped(day_us)
            found.days.append(format_ts_us(day_us)[:10])
        return found


async def _drop(connection: Connection, day_us: int) -> None:
    """One day of every row table, and the note of it, or nothing."""
    async with connection.transaction():
        await connection.execute("INSERT INTO dropped_day (day_us) VALUES ($1)", day_us)
        for table in TABLES:
            kind = await connection.fetchval(
                "SELECT relkind::text FROM pg_class WHERE oid = $1::text::regclass", table
            )
            if kind == "p":
                name = partition_name(table, day_us, "day")
                await connection.execute(f"DROP TABLE IF EXISTS {name}")
                await connection.execute(
                    f"DELETE FROM {table}_default"  # noqa: S608 (a name of ours)
                    " WHERE exchange_ts >= $1 AND exchange_ts < $2",
                    moment(day_us),
                    moment(day_us + DAY_US),
                )
            else:
                home = await connection.fetchval(TIMESCALE_HOME)
                await connection.execute(
                    f"SELECT {home}.drop_chunks($1::text::regclass, older_than => $2::timestamptz)",
                    table,
                    moment(day_us + DAY_US),
                )


async def dropped_days(connection: Connection) -> set[int]:
    """First microseconds of the days that are gone."""
    return {r["day_us"] for r in await connection.fetch("SELECT day_us FROM dropped_day")}
