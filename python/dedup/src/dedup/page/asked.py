"""What the page asks production for: few connections, short statements, answers that are kept.

Purpose: nothing that somebody looks at may slow the merge. So the page has connections of its own,
read-only, CONNECTIONS_MAX of them, each statement ended by the server after STATEMENT_MS; and every
answer stands for a while: at least as long as it is asked to, and so long that making it costs at
most SHARE of the time, up to STANDS_S_MAX.

What holds:
- One making of an answer is on its way at a time, however many ask for it.
- Where production does not answer, the last known answer is given, with its age and the reason.
- At most ANSWERS_MAX answers are kept; those that nobody asked for longest go.

Does not do: SQL (standing, calendar, depth), HTTP (serving).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from marketdata.errors import LakeError, StorageError
from runtime.postgres import TRANSIENT, Connection

CONNECTIONS_MAX: Final = 2
STATEMENT_MS: Final = 5_000
ACQUIRE_S: Final = 3.0
ANSWER_S: Final = 15.0
IDLE_S: Final = 60.0
ANSWERS_MAX: Final = 200
SHARE: Final = 1 / 100
STANDS_S_MAX: Final = 45.0
"""However dear it is: an answer must not grow so old that nobody can rely on it."""
FAILED_STANDS_S: Final = 2.0
"""After a failure production is left alone for so long."""

FAILURES: Final = (asyncpg.PostgresError, StorageError, LakeError, *TRANSIENT)

Answer = dict[str, Any]
Make = Callable[[Connection], Awaitable[Answer]]


class UnansweredError(Exception):
    """Nothing is known, not even from before."""


@dataclass(slots=True)
class _Kept:
    """An answer and until when it stands. `body` None: there was never one."""

    body: Answer | None = None
    made_ms: int = 0
    stands_until_s: float = 0.0
    trouble: str = ""
    making: asyncio.Task[None] | None = None


class Production:
    """Production for the page. `close` when done."""

    def __init__(
        self,
        dsn: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._dsn = dsn
        self._monotonic = monotonic
        self._wall_ms = wall_ms
        self._pool: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self.trouble = ""  # why the last question got no answer; "" when it did

    async def known(self, name: str, make: Make, *, stands_s: float) -> Answer:
        """The answer of this name, made by `make` where none stands: its items, and `known`:
        {"at_ms": when it was made, "age_ms": since then, "trouble": why there is no newer one}.

        Raises:
            UnansweredError: there is none, and making one failed.
        """
        kept = self._kept.setdefault(name, _Kept())
        self._kept.move_to_end(name)
        while len(self._kept) > ANSWERS_MAX:
            _, gone = self._kept.popitem(last=False)
            if gone.making is not None:
                gone.making.cancel()
        if self._monotonic() >= kept.stands_until_s:
            if kept.making is None:
                kept.making = asyncio.create_task(self._make(kept, make, stands_s))
            making = kept.making
            await asyncio.wait({making})  # whoever asks may give up, the making goes on
            if not making.cancelled() and (failed := making.exception()) is not None:
                raise failed
        if kept.body is None:
            raise UnansweredError(kept.trouble or "the answer was given up for others")
        age_ms = max(0, self._wall_ms() - kept.made_ms)
        return {
            **kept.body,
            "known": {"at_ms": kept.made_ms, "age_ms": age_ms, "trouble": kept.trouble},
        }

    async def _make(self, kept: _Kept, make: Make, stands_s: float) -> None:
        began_s = self._monotonic()
        try:
            async with asyncio.timeout(ANSWER_S), self._connection() as conn:
                held_s = self._monotonic()
                kept.body = await make(conn)
                cost_s = self._monotonic() - held_s
            kept.made_ms, kept.trouble, self.trouble = self._wall_ms(), "", ""
            stands_s = max(stands_s, min(cost_s / SHARE, STANDS_S_MAX))
            kept.stands_until_s = self._monotonic() + stands_s
        except FAILURES as error:
            kept.trouble = self.trouble = f"{type(error).__name__}: {error}"[:200]
            kept.stands_until_s = began_s + FAILED_STANDS_S
        finally:
            kept.making = None

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._dsn,
                    min_size=0,
                    max_size=CONNECTIONS_MAX,
                    max_inactive_connection_lifetime=IDLE_S,
                    timeout=ACQUIRE_S,
                    server_settings={
                        "application_name": "kalshi-tape-page",
                        "default_transaction_read_only": "on",
                        "statement_timeout": str(STATEMENT_MS),
                        "idle_in_transaction_session_timeout": str(STATEMENT_MS),
                    },
                )
        async with self._pool.acquire(timeout=ACQUIRE_S) as conn:
            yield conn

    async def close(self) -> None:
        """Give up every question and the connections."""
        making = [kept.making for kept in self._kept.values() if kept.making is not None]
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.terminate()
