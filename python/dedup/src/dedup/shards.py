"""Several mergers of one tape: who waits for whom at a moment of export, and what only one does.

Purpose: mergers that share the markets close the same windows and need each other only where the
tape as a whole is looked at. The first one exports, and says how far gatherers may forget.

What holds:
- At a moment of export every merger stops behind the same window until the first has exported:
  the lake gets the bytes that one merger alone would have written.
- An export never begins before every merger has published all that lies before it, and none
  publishes while it runs (EXPORT_LOCK).
- A merger that does not move for `patience_s`, or a lake that refuses, holds nobody up for longer:
  the others are let on, and the export is made once all are there.
- A gatherer may forget what every merger has stored.

Does not do: exporting, locks and fences of one merger (publish), starting processes (processes).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from dedup.export import export_hour_of
from dedup.publish import EXPORT_LOCK
from marketdata.share import Share
from runtime.postgres import Connection

LOOK_S: Final = 0.1


class StopAsked(Exception):  # noqa: N818 (no error)
    """Somebody asked for the end while others were waited for."""


@dataclass(frozen=True, slots=True)
class Merger:
    """How far one merger of the tape is."""

    shard: int
    windows: int
    closed_to_us: int
    received_ns_max: int
    finished: bool


@dataclass(frozen=True, slots=True)
class Level:
    """All mergers are at a moment of export: what the tape as a whole is closed to."""

    closed_to_us: int
    received_ns_max: int


class Together:
    """One merger among those of its tape. `waits(why)` hears what is waited for, "" at the end.

    `done`: in final mode, nothing is left to wait for.
    """

    def __init__(
        self,
        share: Share,
        patience_s: float,
        stopping: asyncio.Event,
        waits: Callable[[str], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.share = share
        self.done = share.alone
        self.mergers: list[Merger] = []
        self._patience_s = patience_s
        self._stopping = stopping
        self._waits = waits
        self._monotonic = monotonic
        self._given_up: list[Merger] = []  # as they stood when they were not waited for any more

    async def begin(self, conn: Connection) -> None:
        """At a start: what was finished may go on."""
        if not self.share.alone:
            self.done = False
            await self._finished(conn, at_end=False)

    async def finish(self, conn: Connection) -> None:
        """In final mode: this merger has published everything."""
        if not self.share.alone:
            await self._finished(conn, at_end=True)
            self.done = not self.share.first

    async def _finished(self, conn: Connection, *, at_end: bool) -> None:
        await conn.execute(
            "UPDATE merge_state SET finished = $1 WHERE shard = $2", at_end, self.share.number
        )

    async def look(self, conn: Connection) -> list[Merger]:
        """All mergers that ever began, by number."""
        rows = await conn.fetch(
            "SELECT shard, windows, closed_to_us, received_ns_max, finished FROM merge_state"
            " ORDER BY shard"
        )
        self.mergers = [Merger(*row) for row in rows]
        return self.mergers

    # -- the others

    async def wait_for_export(self, conn: Connection, closed_to_us: int) -> None:
        """Until the first merger has exported the moment that this one has passed.

        Raises:
            StopAsked: before that.
        """
        moment = export_hour_of(closed_to_us)
        try:
            while moment > export_hour_of(await self._let_on_us(conn)):
                self._waits("the first merger has not exported yet")
                await self._pause()
        finally:
            self._waits("")

    async def _let_on_us(self, conn: Connection) -> int:
        return int(
            await conn.fetchval(
                "SELECT greatest((SELECT max(exported_to_us) FROM lake_version),"
                " (SELECT max(let_on_us) FROM merge_state WHERE shard = 1), 0)"
            )
        )

    async def _pause(self) -> None:
        if self._stopping.is_set():
            raise StopAsked
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._stopping.wait()

    # -- the first

    async def wait_for_all(
        self, conn: Connection, closed_to_us: int, *, final: bool
    ) -> Level | None:
        """What the tape is closed to once every merger is at this moment of export (`final`: has
        finished); None: one of them has not moved for too long, and the others were let on.

        Raises:
            StopAsked: before that.
        """
        since_s, before = self._monotonic(), self.mergers
        try:
            while True:
                found = await self.look(conn)
                behind = [m for m in found if not self._is_there(m, closed_to_us, final=final)]
                begun = {m.shard for m in found}
                numbers = range(1, self.share.of + 1)
                behind += [Merger(n, 0, 0, 0, finished=False) for n in numbers if n not in begun]
                if not behind:
                    self._given_up = []
                    self.done = final
                    return Level(
                        min(m.closed_to_us for m in found), max(m.received_ns_max for m in found)
                    )
                if found != before:
                    since_s, before = self._monotonic(), found
                patient = self._monotonic() - since_s < self._patience_s
                if not patient or (self._given_up and self._given_up == behind):
                    self._given_up = behind
                    await self.let_on(conn, closed_to_us)
                    return None
                names = ", ".join(str(m.shard) for m in behind)
                self._waits(f"merger {names} of {self.share.of} is not there yet")
                await self._pause()
        finally:
            self._waits("")

    def _is_there(self, merger: Merger, closed_to_us: int, *, final: bool) -> bool:
        if final and merger.shard != 1:
            return merger.finished and merger.closed_to_us >= closed_to_us
        return export_hour_of(merger.closed_to_us) >= export_hour_of(closed_to_us)

    async def let_on(self, conn: Connection, closed_to_us: int) -> None:
        """The others need not wait for the export of this moment."""
        if not self.share.alone:
            await conn.execute(
                "UPDATE merge_state SET let_on_us = greatest(let_on_us, $1) WHERE shard = 1",
                closed_to_us,
            )

    @contextlib.asynccontextmanager
    async def by_itself(self, conn: Connection) -> AsyncIterator[None]:
        """Nobody publishes meanwhile."""
        if self.share.alone:
            yield
            return
        await conn.execute("SELECT pg_advisory_lock($1)", EXPORT_LOCK)
        try:
            yield
        finally:
            if not conn.is_closed():  # with the line the lock goes
                await conn.execute("SELECT pg_advisory_unlock($1)", EXPORT_LOCK)

    async def stored(self, conn: Connection) -> dict[int, int]:
        """gatherer -> last batch that every merger has stored; only those of which all know."""
        rows = await conn.fetch(
            "SELECT gatherer, min(reread_from_batch) - 1 AS stored FROM gatherer_cursor"
            " GROUP BY gatherer HAVING count(*) = $1",
            self.share.of,
        )
        return {r["gatherer"]: r["stored"] for r in rows}

    def told(self) -> dict[str, Any]:
        """For /status: as last looked at."""
        return {
            "number": self.share.number,
            "of": self.share.of,
            "mergers": [asdict(m) for m in self.mergers],
        }


__all__ = ["Level", "Merger", "StopAsked", "Together"]
