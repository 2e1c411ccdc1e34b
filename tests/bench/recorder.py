"""Our own client in a process of its own: feed, spool, intake and sink as the gatherer wires them.

What is left out of a gatherer: discovery and metadata (the load generator has no REST), health and
metrics endpoints. Settings are the service's defaults.
Reads one JSON object a line: transport, url, streams, frames (on each connection), dsn (a database
without tables), spool (a directory that is not there). Answers each with one line: frames, rows
(changes, trades and tickers committed), all_rows, spills, batches, seconds, cpu_s (user and system
of this process and its threads), server_cpu_s (of the PostgreSQL server server_pid), from
before the first connection to after the last commit.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from cryptography.hazmat.primitives.asymmetric import rsa

from gatherer.auth import Signer
from gatherer.feed import FeedConnection, FeedSettings
from gatherer.intake import Decoding, LiveIntake, recover
from gatherer.packing import PackedBatch
from gatherer.sink import Sink, SinkSettings
from marketdata.session import SessionSettings
from runtime import logs
from runtime.clock import Clock
from runtime.spool import SpoolWriter
from tests.bench.clients import Stopwatch, tls_context
from tests.bench.generator import SIDS, markets_of

DATA_TABLES = ("orderbook_delta", "trade", "ticker")
WRONG = ("gap", "duplicate", "negative", "problem", "error", "snapshot_d", "snapshot_r")
POLL_S = 0.005
DONE_WITHIN_S = 120


@dataclass(frozen=True, slots=True)
class Recording:
    """One line of the input."""

    transport: str
    url: str
    streams: int
    frames: int
    dsn: str
    spool: str
    server_pid: int


class Recorder:
    """The parts of one recording."""

    def __init__(self, asked: Recording, signer: Signer) -> None:
        self.asked = asked
        self.signer = signer
        self.clock = Clock()
        # One for all connections, as the peers have it: making one reads the whole trust store.
        self.tls = tls_context() if asked.url.startswith("wss") else None
        self.rows = dict.fromkeys(DATA_TABLES, 0)
        self.decoding: Decoding
        self.spool = SpoolWriter.open(
            Path(asked.spool),
            state=lambda: self.decoding.state(),  # noqa: PLW0108 - it is made below
            created_ns=self.clock.wall_ns(),
            id_base=1,
        )
        self.decoding = recover(self.spool)
        self.intake = LiveIntake(self.spool, self.decoding)
        self.sink = Sink(
            SinkSettings(asked.dsn), self.spool, self.intake, self.clock, on_commit=self._committed
        )

    def _committed(self, packed: PackedBatch, _seconds: float) -> None:
        for table in DATA_TABLES:
            self.rows[table] += packed.counts.get(table, 0)

    def _feed(self, stream: int) -> FeedConnection:
        settings = FeedSettings(self.asked.url, self.asked.transport, ssl_context=self.tls)
        feed = FeedConnection(
            f"books-{stream}", settings, SessionSettings(channels=("trade", "ticker")), self.signer,
            self.spool, self.intake, self.clock,
        )  # fmt: skip
        feed.want(markets_of(stream))
        return feed

    async def run(self) -> dict[str, Any]:
        """Record every frame, commit every row."""
        asked, watch = self.asked, Stopwatch(self.asked.server_pid)
        sink = asyncio.create_task(self.sink.run())
        commits = asyncio.create_task(self.spool.run())
        while self.sink.status.state != "live":  # noqa: ASYNC110 - the sink tells no event
            await asyncio.sleep(POLL_S)
        gc.freeze()  # as the service does once it has started
        watch.begin()
        feeds = [self._feed(stream) for stream in range(asked.streams)]
        running = [asyncio.create_task(feed.run()) for feed in feeds]
        expected = asked.streams * (asked.frames + len(SIDS))
        async with asyncio.timeout(DONE_WITHIN_S):
            while self.intake.frames < expected:  # noqa: ASYNC110 - the hot path tells none
                await asyncio.sleep(POLL_S)
            for feed in feeds:
                await feed.stop()
            await asyncio.gather(*running)
            self.intake.end()
            self.sink.drain()
            await sink
        measured = watch.read()
        commits.cancel()
        await asyncio.wait({commits})
        await self.spool.close(clean=False)
        counts = self.intake.counts
        wrong = {name: count for name, count in counts.items() if name.startswith(WRONG)}
        return {**measured, "frames": self.intake.frames - asked.streams * len(SIDS),
                "rows": sum(self.rows.values()), "all_rows": self.sink.status.rows,
                "batches": self.sink.status.batches, "spills": self.intake.spills,
                "connects": sum(f.status.connects for f in feeds), "counts": wrong}  # fmt: skip


def main() -> None:
    """Answer recordings until the input ends."""
    logs.setup("bench", "error")
    signer = Signer("bench", rsa.generate_private_key(public_exponent=65537, key_size=2048))

    async def record(asked: Recording) -> dict[str, Any]:
        return await Recorder(asked, signer).run()

    for line in sys.stdin:
        print(json.dumps(uvloop.run(record(Recording(**json.loads(line))))), flush=True)


if __name__ == "__main__":
    main()
