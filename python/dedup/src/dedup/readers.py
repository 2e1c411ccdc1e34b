"""One reader a gatherer: connects, reads, waits, tries again; the others never wait for it.

What holds:
- At most one read of a gatherer is on its way, at most one answer waits to be taken.
- No reader runs more than AHEAD_NS of received time ahead of another one that still has rows to
  give: the merge would have to hold what it cannot use, and would take a late answer for silence.
- A database that does not answer holds the others up for at most `patience_s`.
- After a restart only rows of runs count whose beginning is known (dedup.lost).
- A gatherer whose database was replaced by an empty one goes on in another life (dedup.lives):
  outside of here its batches, runs and connections have the numbers that `lives` gives.

Does not do: merging; deciding what silence means (the arbiter does).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

import asyncpg

from dedup.lives import Life, Lives
from dedup.lost import KnownRuns
from dedup.pull import MAX_ROWS_PER_PULL, Position, Pull, ended, pull, resume, tell, tell_archived
from marketdata.errors import StorageError
from marketdata.rows import GathererBatch
from runtime import logs
from runtime.postgres import TRANSIENT, Connection, backoff_s, connect

READ_TIMEOUT_S: Final = 60.0
CLOSE_TIMEOUT_S: Final = 1.0
AHEAD_NS: Final = 10_000_000_000
TELL_S: Final = 5.0  # between two words to a gatherer on how far we are

log = logs.get("readers")

State = Literal["starting", "reading", "idle", "ended", "down", "refused"]


class GathererReader:
    """Reads one gatherer. `resume_at`: (system identifier, batch to read again from); `runs`: those
    that the arbiter knew when it stopped; `life`: what it was given with the last batch."""

    def __init__(
        self,
        index: int,
        dsn: str,
        *,
        poll_s: float,
        resume_at: tuple[int, int] | None = None,
        runs: Iterable[int] = (),
        life: bytes = b"",
        max_rows: int = MAX_ROWS_PER_PULL,
        monotonic: Callable[[], float] = time.monotonic,
        heard: Callable[[GathererBatch], None] = lambda _: None,
    ) -> None:
        self.index = index
        self.position = Position()
        self.state: State = "starting"
        self.reason = ""
        self.gone: list[str] = []  # what the gatherer no longer had when it was read again
        self.rows = 0
        self.backlog = 0
        self.errors = 0
        self.max_received_ns = 0
        self.silent_since_s = monotonic()  # last answer of the database
        self._dsn = dsn
        self._poll_s = poll_s
        self._resume_at = resume_at
        known = Life.decode(life)
        if resume_at is not None and life:
            self._resume_at = known.system_identifier, max(1, known.local(resume_at[1]))
        from_batch = 1 if self._resume_at is None else self._resume_at[1]
        self._lives = Lives(known, runs, from_batch)
        self._replacements = 0  # of the database, as far as the lives know
        self._runs = None if resume_at is None else KnownRuns(self._lives.known_here())
        self._max_rows = max_rows
        self._monotonic = monotonic
        self._heard = heard  # has each batch before the merge
        self._conn: Connection | None = None
        self._failures = 0
        self._stored = 0  # batches up to this one are on the tape
        self._told = 0
        self._told_s = 0.0
        self._archived = self._told_archived = 0

    @property
    def answering(self) -> bool:
        """Whether the last try got an answer."""
        return self.state in ("reading", "idle", "ended")

    @property
    def exhausted(self) -> bool:
        """Whether the last answer was that there is nothing more."""
        return self.state in ("idle", "ended")

    def silent_s(self) -> float:
        """Seconds since the database last answered; 0 while it does."""
        return 0.0 if self.answering else self._monotonic() - self.silent_since_s

    def stored(self, batch_id: int) -> None:
        """Everything up to this batch is on the tape: the gatherer may forget how it came."""
        self._stored = batch_id

    def archived(self, batch_id: int) -> None:
        """Everything up to this batch was read back from the lake: the gatherer may remove it."""
        self._archived = batch_id

    @property
    def left_out(self) -> int:
        """Rows that were read and not used: the beginning of their run is gone."""
        return 0 if self._runs is None else self._runs.left_out

    async def read(self) -> GathererBatch | None:
        """The next batches; None when there is nothing or no answer (see `state`). Paced."""
        if self._failures:
            await asyncio.sleep(backoff_s(self._failures))
        elif self.exhausted:
            await asyncio.sleep(self._poll_s)
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                got = await self._pull()
        except StorageError as error:
            await self._failed("down" if self._conn is None else "refused", str(error))
            return None
        except (*TRANSIENT, asyncpg.PostgresError) as error:
            await self._failed("down", f"{type(error).__name__}: {error}")
            return None
        self._failures = 0
        self.reason = ""
        self.silent_since_s = self._monotonic()
        self.position = got.position
        self.backlog = got.backlog
        if got.batch is None:
            return None
        self.rows += got.rows
        self.max_received_ns = max(self.max_received_ns, got.batch.max_received_ns)
        self.state = "reading"
        if got.gone is not None:
            self.gone.append(got.gone.told())
            log.error("rows are gone", gatherer=self.index, reason=got.gone.told())
        if self.position.replaced > self._replacements:
            self._replaced(got.batch)
        batch = got.batch if self._runs is None else self._runs.usable(got.batch, got.gone)
        lifted = self._lives.lift(batch, got.position.system_identifier)
        self._heard(lifted)
        return lifted

    def _replaced(self, first: GathererBatch) -> None:
        """The gatherer begins again with an empty database, found by a read or by the first look
        after a restart."""
        self._replacements = self.position.replaced
        self._lives.begin(self.position.system_identifier, first)
        self._runs = KnownRuns(())
        told = "its database was replaced by an empty one: it goes on as a new life"
        self.gone.append(told)
        log.error("a gatherer was replaced", gatherer=self.index, reason=told)

    async def _pull(self) -> Pull:
        if self._conn is None or self._conn.is_closed():
            self._conn = None
            self._conn = await connect(self._dsn, tries_max=1)
        if self._resume_at is not None:
            received_ns = self._lives.life.received_ns
            self.position = await resume(self._conn, *self._resume_at, received_ns)
            self._resume_at = None
        got = await pull(self._conn, self.index, self.position, max_rows=self._max_rows)
        if got.batch is None:
            self.state = "ended" if await ended(self._conn, got.position) else "idle"
        if self._stored != self._told and self._monotonic() - self._told_s > TELL_S:
            self._told, self._told_s = self._stored, self._monotonic()
            life = self._lives.life
            if life.local(self._told) > 0:
                await tell(self._conn, life.local(self._told))
            if self._archived != self._told_archived:
                self._told_archived = self._archived
                if life.local(self._archived) > 0:
                    await tell_archived(self._conn, life.local(self._archived))
        return got

    async def _failed(self, state: State, reason: str) -> None:
        self.state, self.reason = state, reason
        self._failures += 1
        self.errors += 1
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.terminate()

    async def close(self) -> None:
        """Give up the connection."""
        conn, self._conn = self._conn, None
        if conn is not None:
            with contextlib.suppress(*TRANSIENT, asyncpg.PostgresError):
                await conn.close(timeout=CLOSE_TIMEOUT_S)


def may_read(
    reader: GathererReader, all_readers: Sequence[GathererReader], patience_s: float
) -> bool:
    """Whether `reader` may go on, or must let others catch up first."""
    for other in all_readers:
        if other is reader or other.exhausted or other.silent_s() >= patience_s:
            continue
        if reader.max_received_ns > other.max_received_ns + AHEAD_NS:
            return False
    return True
