"""What the two simulated databases share: servers, transactions, locks, and lines that break.

Purpose: stand behind the real `pull`, `HotDatabase` and `Publisher`, which talk to it in their own
SQL. A statement is recognised by its words; one that is not known is an error, never a silent
success. Each statement is one effect of its process: the process may die before or after it, or
the line may break before or after it, which is what "the result of the commit is not known" is.

Invariants: SIM-5 a transaction is there whole or not at all. SIM-6 transaction ids are given at the
first write and become visible at the commit; `xmin` is the oldest that is still under way.

Does not do: SQL in general, planning, constraints that no service relies on.
"""

from __future__ import annotations

import asyncio
import random
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import asyncpg

from runtime.pgcopy import HEADER, PG_EPOCH_US, TRAILER, CopyLayout
from tests.sim.virtual import Dead, Process, Story

LOCK_POLL_S = 0.02
Fates = dict[int, tuple[str, bool]]  # n-th effect -> (crash | cut, after it)


class Record:
    """One row of an answer, by place and by name."""

    __slots__ = ("_names", "_values")

    def __init__(self, names: Sequence[str], values: Sequence[Any]) -> None:
        assert len(names) == len(values), (names, values)
        self._names, self._values = names, values

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, key: int | str) -> Any:
        return self._values[key if isinstance(key, int) else self._names.index(key)]


class Tx:
    """One transaction: what it will change, and what it may see."""

    def __init__(self, *, repeatable: bool) -> None:
        self.xid = 0
        self.repeatable = repeatable
        self.snapshot: Any = None
        self.staged: list[Callable[[], None]] = []
        self.pending: dict[str, Any] = {}
        self.over = False


class Server:
    """One database server. Subclasses have the tables and `execute`, `fetch`."""

    def __init__(self, name: str, identifier: int, rng: random.Random, story: Story) -> None:
        self.name = name
        self.identifier = identifier
        self.rng = rng
        self.story = story
        self.next_xid = 700 + rng.randrange(300)
        self.active: dict[int, Tx] = {}
        self.locks: dict[Any, Tx] = {}
        self.connections: list[SimConnection] = []
        self.is_down = False
        self.slow_commit_s = 0.02
        self.answer_ms = (1, 4)
        self.commits = 0

    # -- transactions

    def write(self, tx: Tx) -> None:
        """The transaction is about to write: it gets its id."""
        if not tx.xid:
            tx.xid, self.next_xid = self.next_xid, self.next_xid + 1
            self.active[tx.xid] = tx

    def xmin(self) -> int:
        """Below it every transaction is decided."""
        return min(self.active, default=self.next_xid)

    async def lock(self, tx: Tx, key: Any) -> None:
        """Wait until nobody else holds `key`."""
        waited = False
        while self.locks.get(key) not in (None, tx):
            if not waited:
                self.story.fault("lock_wait", self.name, str(key))
                waited = True
            await asyncio.sleep(LOCK_POLL_S)
        if tx.over:
            raise ConnectionResetError(104, f"the line to {self.name} broke while it waited")
        self.locks[key] = tx

    def end(self, tx: Tx, *, commit: bool) -> None:
        """Commit or roll back; the second time nothing happens."""
        if tx.over:
            return
        tx.over = True
        self.active.pop(tx.xid, None)
        for key in [key for key, holder in self.locks.items() if holder is tx]:
            del self.locks[key]
        if commit:
            self.commits += 1
            for change in tx.staged:
                change()

    def snapshot(self) -> Any:
        """What a reader that begins now will see."""
        raise NotImplementedError

    async def run(self, conn: SimConnection, tx: Tx, kind: str, sql: str, args: Any) -> Any:
        """A statement; `kind`: execute, fetch, fetchrow, fetchval."""
        raise NotImplementedError

    # -- outages

    def go_down(self) -> None:
        """Every line breaks; what was under way is rolled back."""
        self.is_down = True
        self.cut_all()

    def cut_all(self) -> None:
        """Every line breaks."""
        for conn in list(self.connections):
            conn.broken, conn.committing = True, False
            conn.drop_transaction(0.0)
        self.connections.clear()


class _Transaction:
    """`async with conn.transaction(...)`."""

    def __init__(self, conn: SimConnection, *, repeatable: bool) -> None:
        self._conn = conn
        self._repeatable = repeatable

    async def __aenter__(self) -> None:
        conn = self._conn
        assert conn.tx is None, "savepoints are not simulated"
        await conn.step("BEGIN")
        conn.tx = Tx(repeatable=self._repeatable)

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        conn, tx = self._conn, self._conn.tx
        if tx is None:
            return
        if kind is not None:
            conn.tx = None
            conn.server.end(tx, commit=False)
            return
        try:
            await conn.commit(tx)
        finally:
            conn.tx = None


class SimConnection:
    """One line to a server, as asyncpg.Connection."""

    def __init__(self, server: Server, process: Process, fates: Fates) -> None:
        self.server = server
        self.process = process
        self.fates = fates
        self.tx: Tx | None = None
        self.broken = False
        self.committing = False  # a COMMIT is on its way
        self.listeners: list[Callable[[Any], None]] = []
        server.connections.append(self)
        process.on_death.append(self._died)

    # -- effects

    async def step(self, what: str, act: Callable[[], Any] | None = None, wait_s: float = 0) -> Any:
        """One effect: `act` is done on the server, unless fate is against it."""
        self._check()
        process, server = self.process, self.server
        process.steps += 1
        fate = self.fates.pop(process.steps, None)
        await asyncio.sleep(server.rng.randint(*server.answer_ms) / 1000 + wait_s)
        self._check()
        if fate is not None and not fate[1]:
            self._meet(fate[0], what, "before")
        result = act() if act is not None else None
        if asyncio.iscoroutine(result):
            result = await result
            self._check()
        if fate is not None:
            self._meet(fate[0], what, "after")
        return result

    def _check(self) -> None:
        if self.process.dead:
            raise Dead
        if self.broken or self.server.is_down:
            self.broken = True
            raise ConnectionResetError(104, f"the line to {self.server.name} is down")

    def _meet(self, fate: str, what: str, when: str) -> None:
        words = f"{when} {what[:60]!r} on {self.server.name}"
        if fate == "crash":
            self.server.story.fault("crash_at_effect", self.process.name, words)
            self.process.kill(f"crash {words}")
            raise Dead
        self.server.story.fault(f"line_cut_{when}_effect", self.process.name, words)
        if what == "COMMIT" and when == "after":
            self.server.story.happened["commit_result_unknown"] += 1
        self.terminate()
        raise ConnectionResetError(104, "line cut")

    async def commit(self, tx: Tx) -> None:
        wait_s = 0.0
        if tx.xid:
            wait_s = self.server.rng.uniform(0, self.server.slow_commit_s)
            if wait_s > 1:
                self.server.story.fault("slow_commit", self.server.name, f"{wait_s:.1f} s")
        self.committing = True
        try:
            await self.step("COMMIT", lambda: self.server.end(tx, commit=True), wait_s)
        except ConnectionError:
            if not tx.over and not self.server.active.get(tx.xid):
                self.server.end(tx, commit=False)
            raise
        finally:
            self.committing = False

    def drop_transaction(self, after_s: float) -> None:
        """The server notices after a while that nobody goes on with it."""
        tx, self.tx = self.tx, None
        if tx is None or tx.over:
            return
        loop = asyncio.get_running_loop()
        if self.committing and tx.xid and self.server.rng.random() < 0.5:
            # The COMMIT was sent: the server carries it out when it comes to it.
            late_s = self.server.rng.choice((0.0, 0.3, 2.0, 6.0))
            self.server.story.fault("commit_after_the_end", self.server.name, f"{late_s} s")
            loop.call_later(late_s, lambda: self.server.end(tx, commit=True))
        elif after_s and tx.xid:
            self.server.story.fault("hanging_transaction", self.server.name, f"{after_s:.1f} s")
            loop.call_later(after_s, lambda: self.server.end(tx, commit=False))
        else:
            self.server.end(tx, commit=False)

    def _died(self) -> None:
        self.broken = True
        self.drop_transaction(self.server.rng.choice((0.0, 0.5, 3.0)))
        if self in self.server.connections:
            self.server.connections.remove(self)

    # -- asyncpg

    def transaction(self, isolation: str = "", readonly: bool = False) -> _Transaction:
        return _Transaction(self, repeatable=isolation == "repeatable_read")

    async def _ask(self, kind: str, sql: str, args: tuple[Any, ...]) -> Any:
        tx = self.tx
        own = tx is None
        tx = tx or Tx(repeatable=False)

        async def act() -> Any:
            if tx.snapshot is None or not tx.repeatable:
                tx.snapshot = self.server.snapshot()
            try:
                result = await self.server.run(self, tx, kind, sql, args)
            except BaseException:
                if own:
                    self.server.end(tx, commit=False)
                raise
            if own:
                self.server.end(tx, commit=True)
            return result

        return await self.step(sql, act)

    async def execute(self, sql: str, *args: Any) -> Any:
        if sql.startswith("BEGIN"):
            await self.step("BEGIN")
            self.tx = Tx(repeatable=False)
            return "BEGIN"
        if sql in ("COMMIT", "ROLLBACK") and self.tx is not None:
            tx = self.tx
            try:
                await self.step(sql, lambda: self.server.end(tx, commit=sql == "COMMIT"))
            except ConnectionError:
                self.server.end(tx, commit=False)
                self.tx = None
                raise
            self.tx = None  # who is cancelled here leaves it to the end of the line
            return sql
        return await self._ask("execute", sql, args)

    async def executemany(self, sql: str, rows: Any) -> None:
        for row in rows:
            await self._ask("execute", sql, tuple(row))

    async def fetch(self, sql: str, *args: Any) -> list[Record]:
        found: list[Record] = await self._ask("fetch", sql, args)
        return found

    async def fetchrow(self, sql: str, *args: Any) -> Record | None:
        row: Record | None = await self._ask("fetchrow", sql, args)
        return row

    async def fetchval(self, sql: str, *args: Any) -> Any:
        return await self._ask("fetchval", sql, args)

    async def copy_to_table(self, table: str, *, source: Any, columns: Any, format: str) -> str:  # noqa: A002
        body = bytearray()
        async for chunk in source:
            body += chunk
        assert body.startswith(HEADER), "a COPY without header"
        assert body.endswith(TRAILER), "a COPY without trailer"
        rows = bytes(body[len(HEADER) : -len(TRAILER)])
        return f"COPY {await self._ask('copy_in', f'COPY {table}', (table, rows, tuple(columns)))}"

    async def copy_from_query(self, sql: str, *args: Any, output: Any, format: str) -> None:  # noqa: A002
        body = await self._ask("copy_out", sql, args)
        await output(HEADER + body + TRAILER)

    async def copy_records_to_table(self, table: str, *, records: Any, columns: Any) -> None:
        rows = [tuple(row) for row in records]
        await self._ask("records", f"COPY {table}", (table, rows, tuple(columns)))

    def add_termination_listener(self, callback: Callable[[Any], None]) -> None:
        self.listeners.append(callback)

    def remove_termination_listener(self, callback: Callable[[Any], None]) -> None:
        if callback in self.listeners:
            self.listeners.remove(callback)

    def is_closed(self) -> bool:
        return self.broken

    async def close(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self.terminate()

    def terminate(self) -> None:
        self.broken = True
        listeners, self.listeners = self.listeners, []
        for each in listeners:
            each(self)
        self.drop_transaction(self.server.rng.choice((0.0, 0.0, 0.3, 2.0)))
        if self in self.server.connections:
            self.server.connections.remove(self)


_FORMS: dict[str, str] = {
    "smallint": ">h", "integer": ">i", "bigint": ">q", "timestamptz": ">q",
}  # fmt: skip


def copied_rows(layout: CopyLayout, body: bytes) -> list[tuple[Any, ...]]:
    """COPY rows as Python values, by code that the packers do not share."""
    rows, at = [], 0
    while at < len(body):
        (count,) = struct.unpack_from(">h", body, at)
        assert count == len(layout.columns), f"a row of {layout.table} has {count} fields"
        at += 2
        row: list[Any] = []
        for _, kind in layout.columns:
            (length,) = struct.unpack_from(">i", body, at)
            at += 4
            value = body[at : at + length]
            at += length
            if kind in _FORMS:
                number = struct.unpack(_FORMS[kind], value)[0]
                row.append(number + PG_EPOCH_US if kind == "timestamptz" else number)
            elif kind == "text":
                row.append(value.decode())
            elif kind == "jsonb":
                row.append(value[1:].decode())
            else:
                row.append(value)
        rows.append(tuple(row))
    return rows


def number_of(text: str, pattern: str) -> str:
    """The part of a statement that a pattern finds; a statement without it is not known here."""
    found = re.search(pattern, text)
    if found is None:
        raise NotImplementedError(f"the simulated database does not know {text!r}")
    return found[1]


def unique(table: str, key: Any) -> asyncpg.UniqueViolationError:
    """What a server says to a second row of one key."""
    return asyncpg.UniqueViolationError(f"duplicate key value of {table}: {key}")


__all__ = ["Fates", "Record", "Server", "SimConnection", "Tx", "copied_rows"]
__all__ += ["number_of", "unique"]
