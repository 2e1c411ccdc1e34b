"""A status page over a merged tape: recordings with holes, the real pipeline, a real server."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import aiohttp

from dedup.main import report
from dedup.page.serving import Page
from dedup.pipeline import Pipeline
from runtime.clock import Clock
from runtime.embedded import EmbeddedPostgres
from runtime.health import Health, HealthServer
from runtime.metrics import Metrics
from tests.databases import fresh_database
from tests.dedup_rig import Recordings, make_recordings, pipeline, settings
from tests.described_by import faults
from tests.gatherer_rows import Stream, make_stream

OPENAPI: dict[str, Any] = json.loads(
    resources.files("dedup.page").joinpath("assets", "openapi.json").read_text()
)


@dataclass(slots=True)
class Tape:
    """A finished tape: its production, its lake, what made it."""

    stream: Stream
    made: Recordings
    production: str
    lake: Path
    line: Pipeline
    health: Health

    def status(self) -> dict[str, Any]:
        """The body of /status."""
        return report(self.line, self.health, Clock())


async def merged_tape(server: EmbeddedPostgres, folder: Path, *, gatherers: int = 2) -> Tape:
    """Two gatherers that lose frames and connections, merged and exported."""
    stream = make_stream(21, events=1_500, mean_gap_us=40_000)
    made = await make_recordings(server, stream, gatherers=gatherers, gaps=6, disconnects=2)
    production = await fresh_database(server, "production")
    chosen = settings(made, production, folder / "lake")
    line = pipeline(chosen)
    await line.run()
    health = Health("deduplicator")
    health.set("merge", "ok")
    return Tape(stream, made, production, folder / "lake", line, health)


@dataclass(slots=True)
class Served:
    """A running page and how to ask it."""

    page: Page
    server: HealthServer
    http: aiohttp.ClientSession

    def url(self, path: str) -> str:
        """An address of it."""
        return f"http://127.0.0.1:{self.server.health_port}{path}"

    async def get(self, path: str, status: int = 200) -> Any:
        """The JSON answer, held against the OpenAPI file."""
        async with self.http.get(self.url(path)) as answer:
            body = await answer.json()
            assert answer.status == status, (path, answer.status, body)
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        described = OPENAPI["paths"][path.partition("?")[0]]["get"]["responses"][str(status)]
        schema = described["content"]["application/json"]["schema"]
        found = list(faults(body, schema, OPENAPI))
        assert not found, found[:10]
        return body


@contextlib.asynccontextmanager
async def serving(tape: Tape, dsn: str | None = None) -> AsyncIterator[Served]:
    """The page of the tape; `dsn`: another production than its own."""
    from kalshilake.store import open_store

    page = Page(
        tape.health,
        tape.status,
        dsn or tape.production,
        open_store(str(tape.lake)),
        lake_uri=str(tape.lake),
        revision="r-1",
    )
    server = HealthServer(tape.health, Metrics(), status=tape.status, routes=page.routes())
    async with server, aiohttp.ClientSession() as http:
        try:
            yield Served(page, server, http)
        finally:
            await page.close()
