"""What was exported is read back: only then may anybody forget how it came.

Purpose: after each export read the hour's objects out of the lake again and compare bytes and rows
with what production noted; tell how far all of the tape stands verified, and which batch of each
gatherer that covers.
What holds:
- An hour counts while it has the objects that were compared; a new version is compared again.
- `verified_to_us` never passes an hour that is to be exported, was not compared, or differs.
- A gatherer's batch is named only if everything of it was published before that time.
Does not do: exporting, removing anything.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections import deque
from typing import Final

import asyncpg
import pyarrow as pa
import pyarrow.parquet as pq

from dedup.publication import DAY_US
from dedup.repair_lake import Noted, noted_objects, stored_body
from kalshilake.store import Store
from marketdata.errors import LakeError, StorageError
from runtime import logs
from runtime.health import Health
from runtime.postgres import TRANSIENT, Connection, connect

LOOK_S: Final = 60
HOURS_A_LOOK: Final = 6
MARK_US: Final = 60_000_000
"""Between two marks of how far each gatherer was stored."""
MARKS_MAX: Final = 50_000

log = logs.get("archive")


class Archive:
    """See the module's text. `verified_to_us`: exchange time; 0: nothing yet."""

    def __init__(self, dsn: str, store: Store, health: Health) -> None:
        self._dsn = dsn
        self._store = store
        self._health = health
        self._marks: deque[tuple[int, int, int]] = deque(maxlen=MARKS_MAX)
        self._covered: dict[int, int] = {}
        self._marked_us: dict[int, int] = {}
        self._noted: dict[int, int] = {}
        self.verified_to_us = 0
        self.differing: dict[str, str] = {}  # key -> what was seen

    async def run(self) -> None:
        """Look now and then until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.once()
            except (StorageError, LakeError, asyncpg.PostgresError, *TRANSIENT) as error:
                self._health.set("archive", "degraded", f"{type(error).__name__}: {error}")

    async def once(self) -> int:
        """One look; how many hours were compared."""
        connection = await connect(self._dsn, tries_max=1)
        try:
            compared = await self._look(connection)
        finally:
            connection.terminate()
        reason = "; ".join(f"{key}: {seen}" for key, seen in sorted(self.differing.items()))
        self._health.set("archive", "failing" if reason else "ok", reason)
        return compared

    def note(self, gatherer: int, closed_to_us: int, batch_id: int) -> None:
        """Everything of the gatherer up to this batch is published, in windows before this time."""
        if batch_id < self._noted.get(gatherer, 0):  # production was set back: it counts anew
            self._marks = deque((m for m in self._marks if m[1] != gatherer), maxlen=MARKS_MAX)
            self._covered.pop(gatherer, None)
        self._noted[gatherer] = batch_id
        if closed_to_us - self._marked_us.get(gatherer, 0) >= MARK_US:
            self._marked_us[gatherer] = closed_to_us
            self._marks.append((closed_to_us, gatherer, batch_id))

    def batch_of(self, gatherer: int) -> int:
        """The last batch of the gatherer that stands in the lake, read back; 0: none yet."""
        while self._marks and self._marks[0][0] <= self.verified_to_us:
            _, of, batch_id = self._marks.popleft()
            self._covered[of] = max(self._covered.get(of, 0), batch_id)
        return self._covered.get(gatherer, 0)

    async def _look(self, connection: Connection) -> int:
        exported_to_us = await connection.fetchval("SELECT exported_to_us FROM lake_version")
        hours = await connection.fetch(
            "SELECT hour_us, rows_dirty OR proof_dirty AS dirty, digest FROM lake_hour"
            " LEFT JOIN verified_hour USING (hour_us) WHERE NOT EXISTS"
            " (SELECT FROM dropped_day WHERE hour_us >= day_us AND hour_us < day_us + $1)"
            " ORDER BY hour_us",
            DAY_US,
        )
        objects: dict[int, list[Noted]] = {}
        for noted in await noted_objects(connection):
            objects.setdefault(noted.hour_us, []).append(noted)
        compared = 0
        for row in hours:
            hour_us, mine = row["hour_us"], objects.get(row["hour_us"], [])
            known = row["digest"] == digest(mine)
            if row["dirty"] or (not known and compared == HOURS_A_LOOK):
                break
            if not known:
                compared += 1
                if not await self._compare(connection, hour_us, mine):
                    break
        else:
            hour_us = int(exported_to_us or 0)
        self.verified_to_us = min(hour_us, int(exported_to_us or 0)) if hours else 0
        return compared

    async def _compare(self, connection: Connection, hour_us: int, objects: list[Noted]) -> bool:
        """Read an hour back; True and noted where every object is what production noted."""
        well = True
        for each in objects:
            seen = await asyncio.to_thread(self._seen, each)
            if seen:
                self.differing[each.key] = seen
                log.error(
                    "the lake does not give back what was exported", object=each.key, seen=seen
                )
                well = False
            else:
                self.differing.pop(each.key, None)
        if well:
            await connection.execute(
                "INSERT INTO verified_hour (hour_us, digest) VALUES ($1, $2)"
                " ON CONFLICT (hour_us) DO UPDATE"
                " SET digest = excluded.digest, verified_at = now()",
                hour_us,
                digest(objects),
            )
        return well

    def _seen(self, noted: Noted) -> str:
        """What is wrong with an object; "" if nothing."""
        try:
            body = stored_body(self._store, noted)
        except LakeError as error:
            return str(error)
        if hashlib.sha256(body).hexdigest() != noted.sha256:
            return "other bytes than were exported"
        try:
            rows = pq.ParquetFile(io.BytesIO(body)).metadata.num_rows
        except pa.ArrowInvalid as error:
            return f"no Parquet: {error}"
        return "" if rows == noted.n_rows else f"{rows} rows, {noted.n_rows} were noted"


def digest(objects: list[Noted]) -> str:
    """One word for an hour's objects."""
    told = "\n".join(f"{o.key} {o.sha256} {o.n_rows}" for o in objects)
    return hashlib.sha256(told.encode()).hexdigest()
