"""The boundaries of a deduplicator's work, counted, and a death or a cut at one of them.

An effect is a statement on production's connection or a write into the lake; a boundary is the
instant after one. `python -m tests.dedup_crashes` runs deduplicators on demand, each in a forked
process of its own (JSON lines in, JSON lines out), so that a kill -9 costs no new interpreter.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import asyncpg

import dedup.publish
from kalshilake.store import Body, LocalStore
from runtime.config import DedupSettings
from tests.dedup_rig import pipeline

LABEL_CHARS = 60


class Boundaries:
    """Counts effects; after the `at`-th (from 1) `then` is done, with its label."""

    def __init__(self, at: int | None = None, then: Callable[[str], None] | None = None) -> None:
        self.at = at
        self.labels: list[str] = []
        self._then = then

    def passed(self, what: str) -> bool:
        """An effect is there. True: this is the place."""
        self.labels.append(" ".join(what.split())[:LABEL_CHARS])
        if len(self.labels) != self.at:
            return False
        if self._then is not None:
            self._then(self.labels[-1])
        return True


class WatchedConnection(asyncpg.Connection):
    """A connection that tells of every statement once the server has carried it out.

    At the chosen boundary the line is cut: the answer is lost, the effect is there.
    """

    boundaries: ClassVar[Boundaries] = Boundaries()
    around: ClassVar[Callable[[str, Callable[[], Awaitable[Any]]], Awaitable[Any]] | None] = None

    async def _told(self, what: str, call: Callable[[], Awaitable[Any]]) -> Any:
        around = type(self).around
        answer = await (call() if around is None else around(what, call))
        if self.boundaries.passed(what):
            self.terminate()
            raise ConnectionResetError(f"cut after: {what}")
        return answer

    async def execute(self, query: str, *args: Any, **more: Any) -> Any:
        return await self._told(
            query, lambda: asyncpg.Connection.execute(self, query, *args, **more)
        )

    async def executemany(self, command: str, args: Any, **more: Any) -> Any:
        return await self._told(
            command, lambda: asyncpg.Connection.executemany(self, command, args, **more)
        )

    async def fetch(self, query: str, *args: Any, **more: Any) -> Any:
        return await self._told(query, lambda: asyncpg.Connection.fetch(self, query, *args, **more))

    async def fetchval(self, query: str, *args: Any, **more: Any) -> Any:
        return await self._told(
            query, lambda: asyncpg.Connection.fetchval(self, query, *args, **more)
        )

    async def fetchrow(self, query: str, *args: Any, **more: Any) -> Any:
        return await self._told(
            query, lambda: asyncpg.Connection.fetchrow(self, query, *args, **more)
        )

    async def copy_to_table(self, table_name: str, **more: Any) -> Any:
        return await self._told(
            f"COPY {table_name} FROM",
            lambda: asyncpg.Connection.copy_to_table(self, table_name, **more),
        )

    async def copy_records_to_table(self, table_name: str, **more: Any) -> Any:
        return await self._told(
            f"COPY {table_name} FROM",
            lambda: asyncpg.Connection.copy_records_to_table(self, table_name, **more),
        )

    async def copy_from_query(self, query: str, *args: Any, **more: Any) -> Any:
        return await self._told(
            query, lambda: asyncpg.Connection.copy_from_query(self, query, *args, **more)
        )


async def connect_watched(dsn: str, **_: Any) -> Any:
    """In place of runtime.postgres.connect, for production only."""
    while True:
        try:
            return await asyncpg.connect(dsn, connection_class=WatchedConnection)
        except (OSError, asyncpg.PostgresError):
            await asyncio.sleep(0.02)  # a server that was killed comes back


class WatchedStore(LocalStore):
    """A directory as a store that tells of every write once it is there."""

    def __init__(self, root: Path, boundaries: Boundaries) -> None:
        super().__init__(root)
        self._boundaries = boundaries

    def put(self, key: str, body: Body) -> None:
        super().put(key, body)
        self._cut(f"put {key}")

    def put_if_absent(self, key: str, body: bytes) -> bool:
        made = super().put_if_absent(key, body)
        self._cut(f"put if absent {key}")
        return made

    def _cut(self, what: str) -> None:
        if self._boundaries.passed(what):
            raise OSError(104, f"cut after: {what}")


@asynccontextmanager
async def watched(boundaries: Boundaries) -> AsyncIterator[None]:
    """Deduplicators in this process tell `boundaries`, and restart without waiting."""
    patched = {
        (dedup.publish, "connect"): connect_watched,
        (sys.modules["dedup.pipeline"], "RESTART_WAIT_S"): 0.0,
        (sys.modules["dedup.pipeline"], "EXPORT_RETRY_S"): 0.0,
        (sys.modules["runtime.postgres"], "RETRY_BASE_S"): 0.0,
        (WatchedConnection, "boundaries"): boundaries,
    }
    before = {place: getattr(*place) for place in patched}
    for (owner, name), value in patched.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name), value in before.items():
            setattr(owner, name, value)


async def run_watched(chosen: DedupSettings, boundaries: Boundaries) -> None:
    """Run a deduplicator until the tape is finished; it lives through a cut."""
    async with watched(boundaries):
        made = pipeline(chosen)
        made.exporter._store = WatchedStore(Path(chosen.lake_uri), boundaries)
        async with asyncio.timeout(120):
            await made.run()
    assert made.finished


class Crasher:
    """The process that forks deduplicators."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.dedup_crashes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.communicate(timeout=60)

    def run(
        self, chosen: DedupSettings, at: int | None = None, *, cut: bool = False
    ) -> dict[str, Any]:
        """One deduplicator, killed with -9 after its `at`-th effect, or `cut` from its production
        there: {"signal", "code", "labels"}; `labels` are those of all effects where it ended by
        itself, else of the last one."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"settings": chosen.model_dump(mode="json"), "at": at, "cut": cut}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


async def killed(crasher: Crasher, at: int, given: DedupSettings) -> str | None:
    """kill -9 after the `at`-th effect, then a new process to the end."""
    first = await asyncio.to_thread(crasher.run, given, at)
    if first["signal"] != signal.SIGKILL:
        assert first["code"] == 0  # this run took fewer effects than the one that was counted
        return None
    second = await asyncio.to_thread(crasher.run, given)
    assert second["code"] == 0
    return str(first["labels"][0])


async def cut_off(crasher: Crasher, at: int, given: DedupSettings) -> str | None:
    """The line is cut after the `at`-th effect, its answer lost; the process lives on."""
    ended = await asyncio.to_thread(crasher.run, given, at, cut=True)
    assert ended["code"] == 0
    return str(ended["labels"][at - 1]) if len(ended["labels"]) >= at else None


def _forked(job: dict[str, Any], out: int) -> None:
    """The child: never returns."""

    def tell(labels: list[str]) -> None:
        os.write(out, json.dumps(labels).encode())

    def die(label: str) -> None:
        tell([label])
        os.kill(os.getpid(), signal.SIGKILL)

    os.dup2(2, 1)  # standard output is the parent's answers: what a cut makes it log goes elsewhere
    boundaries = Boundaries(job["at"], None if job["cut"] else die)
    try:
        asyncio.run(run_watched(DedupSettings.model_validate(job["settings"]), boundaries))
        tell(boundaries.labels)
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - told to the parent as a code
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    os._exit(1)


def serve() -> None:
    """Jobs from standard input, one after the other."""
    for line in sys.stdin:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _forked(json.loads(line), write)
        os.close(write)
        with os.fdopen(read, "rb") as told:
            labels = told.read()
        _, status = os.waitpid(pid, 0)
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = None if killed else os.WEXITSTATUS(status)
        answer = {"signal": killed, "code": code, "labels": json.loads(labels or b"[]")}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
