"""The early path: proven events are in production before their window closes, beside the tape.

Purpose: give every batch to the lines (dedup.live) as soon as it was read, write what they give out
over a connection of our own, and remove what is on the tape.

What holds:
- The tape does not depend on any of this: live rows are derived, in a table of their own, and gone
  with every new beginning. What fails here is told in /health, silences the lines and is begun
  again; it never reaches the merge.
- `live_generation` fences: a transaction of live rows shares a lock on its generation, a new
  beginning raises it and removes what is there. Of two deduplicators one writes, one hears of it.
- What is on the tape is said in the tape's own transaction (`live_done`), so that a reader of
  `orderbook_now` sees every event once; live rows are removed afterwards, many in one statement.
- While a gatherer's batches are older than LAG_NS, and were so for LATE_ROWS_MAX rows, it is not
  listened to: a backlog has the processor for itself. A stall of some seconds is none: what was not
  listened to must be placed by the tape again, and no window closes while an hour is exported.

Does not do: proving (marketdata.live), SQL (live_rows), the window's transaction (publish).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Final

import asyncpg

from dedup.live import Keeper, Settled
from dedup.live_rows import FencedError, remove, take_over, write
from dedup.publication import Publication
from dedup.publish import Standing
from marketdata.errors import StorageError
from marketdata.rows import GathererBatch
from runtime import logs
from runtime.health import Health
from runtime.metrics import Metrics
from runtime.postgres import TRANSIENT, Connection, backoff_s, connect

LAG_NS: Final = 5_000_000_000
LATE_ROWS_MAX: Final = 50_000
"""Rows older than LAG_NS that are listened to, of one gatherer, since it was last in time."""
REMOVE_S: Final = 5
FENCED_WAIT_S: Final = 30
_BROKEN: Final = (*TRANSIENT, asyncpg.PostgresError, StorageError)

log = logs.get("live")


class LivePath:
    """See the module's text. `on` False: nothing is done at all. `shard` and `owns`: which merger
    we are, and which tickers are ours."""

    def __init__(
        self,
        dsn: str,
        gatherers: int,
        health: Health,
        metrics: Metrics,
        *,
        on: bool,
        shard: int = 1,
        owns: Callable[[str], bool] = lambda _: True,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.keeper: Keeper | None = None
        self._dsn = dsn
        self._gatherers = gatherers
        self._health = health
        self._metrics = metrics
        self._on = on
        self._shard = shard
        self._owns = owns
        self._now_ns = now_ns
        self._task: asyncio.Task[None] | None = None
        self._given = asyncio.Event()
        self._late = [0] * gatherers  # rows of each that came later than LAG_NS, in a row
        self._why = "" if on else "KT_LIVE is off"
        self._told: dict[tuple[str, str], int] = {}

    # -- called by the pipeline; nothing is raised here ------------------------------------------

    async def begin(self, standing: Standing) -> None:
        """The merge begins (again) from what production holds."""
        await self.close()
        if not self._on:
            return
        self.keeper = Keeper(self._gatherers, standing.ids, standing.tails, owns=self._owns)
        self.keeper.silence("not connected")
        self._told, self._late = {}, [0] * self._gatherers
        self._task = asyncio.create_task(self._run(self.keeper))

    def heard(self, batch: GathererBatch) -> None:
        """A reader has a batch."""
        keeper = self.keeper
        if keeper is None:
            return
        try:
            if self._in_backlog(batch):
                keeper.not_heard(batch)
            else:
                keeper.heard(batch)
        except Exception as error:  # noqa: BLE001 (boundary: the merge goes on without us)
            self._gave_up(error)
            return
        if keeper.given:
            self._given.set()

    def closed(self, made: Publication) -> Settled:
        """A publication is about to be committed: what was given out is held against it."""
        keeper = self.keeper
        if keeper is None:
            return Settled()
        try:
            settled = keeper.closed(made)
        except Exception as error:  # noqa: BLE001 (boundary: the merge goes on without us)
            self._gave_up(error)
            return Settled()
        if keeper.given:
            self._given.set()
        self._tell(keeper)
        return settled

    def committed(self) -> None:
        """That publication is in production."""
        if self.keeper is not None:
            self.keeper.committed()
            if self.keeper.given:
                self._given.set()

    async def close(self) -> None:
        """End; live rows that are there stay until somebody begins."""
        task, self._task = self._task, None
        self.keeper = None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def told(self) -> dict[str, Any]:
        """For /status."""
        keeper = self.keeper
        if keeper is None:
            return {"on": self._on, "silent": self._why}
        return {
            "on": True,
            "silent": keeper.silent,
            **{name: keeper.counts[name] for name in ("given", "confirmed", "contradicted")},
            "missed": dict(sorted(keeper.missed.items())),
        }

    # -- inside ----------------------------------------------------------------------------------

    def _in_backlog(self, batch: GathererBatch) -> bool:
        """Whether this batch is one of many that are late."""
        late = self._now_ns() - batch.max_received_ns > LAG_NS
        rows = self._late[batch.gatherer] + len(batch.deltas) if late else 0
        self._late[batch.gatherer] = rows
        return rows > LATE_ROWS_MAX

    def _gave_up(self, error: Exception) -> None:
        """Our own fault: silent until the merge begins again."""
        log.error("live rows are given up", error=f"{type(error).__name__}: {error}")
        self._health.set("live", "degraded", f"given up until the next start: {error!r}")
        self.keeper, self._why = None, "given up until the next start"
        if self._task is not None:
            self._task.cancel()

    def _tell(self, keeper: Keeper) -> None:
        """Counters; what the tape contradicted is an alert."""
        for name in ("given", "confirmed", "contradicted"):
            more = self._more(name, "", keeper.counts[name])
            if more:
                self._metrics.counter(f"live_{name}_total").inc(more)
                if name == "contradicted":
                    log.error("live rows are not on the tape", rows=more)
                    told = (
                        f"{keeper.counts[name]} rows were published early and are not on the tape"
                    )
                    self._health.set("live", "degraded", told)
        for reason, seen in keeper.missed.items():
            more = self._more("missed", reason, seen)
            if more:
                self._metrics.counter("live_missed_total", reason=reason).inc(more)

    def _more(self, name: str, reason: str, total: int) -> int:
        more = total - self._told.get((name, reason), 0)
        self._told[name, reason] = total
        return more

    async def _run(self, keeper: Keeper) -> None:
        """Connect, write, and begin again after every failure, until cancelled."""
        failures = 0
        while True:
            conn: Connection | None = None
            try:
                conn = await connect(self._dsn, tries_max=1)
                generation = await take_over(conn, self._shard)
                keeper.speak(generation << 32)
                failures = 0
                if not keeper.counts["contradicted"]:
                    self._health.set("live", "ok")
                await self._write(conn, keeper, generation)
            except _BROKEN as error:
                keeper.silence("not connected")
                self._health.set("live", "degraded", f"no live rows: {error}")
                log.warning("live rows are begun again", reason=str(error))
                failures += 1
                await asyncio.sleep(
                    FENCED_WAIT_S if isinstance(error, FencedError) else backoff_s(failures)
                )
            finally:
                if conn is not None:
                    conn.terminate()

    async def _write(self, conn: Connection, keeper: Keeper, generation: int) -> None:
        removed_s = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REMOVE_S):
                    await self._given.wait()
            self._given.clear()
            rows = keeper.taken()
            if len(rows):
                await write(conn, rows, self._shard, generation)
                late_ns = self._now_ns() - rows["received_ns"]
                self._metrics.histogram("live_receive_to_commit_seconds").observe(
                    int(late_ns.max()) / 1e9
                )
            if time.monotonic() - removed_s >= REMOVE_S:
                removed_s = time.monotonic()
                await remove(conn, self._shard)
