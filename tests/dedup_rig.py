"""A deduplicator over built recordings: databases, settings, in this process or as a child."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dedup.export import Exporter
from dedup.pipeline import Pipeline
from kalshilake.store import open_store
from marketdata.rows import GathererBatch
from runtime.config import DedupSettings
from runtime.embedded import EmbeddedPostgres
from runtime.health import Health
from runtime.metrics import Metrics
from runtime.postgres import connect
from tests.databases import fresh_database
from tests.gatherer_rows import Stream, record, write_batches, write_markets_meta

# Everything in production that the result consists of. Left out: where reading goes on, how many
# windows it took and the arbiter's inner state, which may tell how far reading had got.
RESULT = (
    "market", "orderbook_delta", "orderbook_snapshot", "trade", "ticker", "market_epoch", "gap",
    "quarantine", "run_progress", "market_claim", "mark", "audit_point", "lake_hour",
    "export_object", "lake_version",
)  # fmt: skip


@dataclass(slots=True)
class Recordings:
    """Gatherer databases of one stream."""

    stream: Stream
    hot: list[str]
    meta: list[str]
    batches: list[list[GathererBatch]]


async def make_recordings(
    server: EmbeddedPostgres,
    stream: Stream,
    *,
    gatherers: int = 3,
    gaps: int = 3,
    disconnects: int = 2,
    seed: int = 3,
    written: bool = True,
    shuffle: random.Random | None = None,
) -> Recordings:
    """Record a stream with several gatherers; `written` commits everything at once."""
    made = Recordings(stream, [], [], [])
    for g in range(gatherers):
        batches = record(stream, g, seed=seed, gaps=gaps, disconnects=disconnects)
        hot = await fresh_database(server, "gatherer_hot")
        meta = await fresh_database(server, "gatherer_meta")
        if written:
            conn = await connect(hot)
            await write_batches(conn, batches, shuffle=shuffle)
            await conn.close()
        conn = await connect(meta)
        await conn.executemany(
            "INSERT INTO market_history VALUES ($1, $2, $3, $4, $5)", write_markets_meta(stream)
        )
        await conn.close()
        made.hot.append(hot)
        made.meta.append(meta)
        made.batches.append(batches)
    return made


def settings(made: Recordings, production: str, lake: Path, **more: Any) -> DedupSettings:
    """Settings of a deduplicator that ends when the gatherers have."""
    return DedupSettings.model_validate(
        {
            "gatherer_dsns": made.hot,
            "gatherer_meta_dsns": made.meta,
            "production_dsn": production,
            "lake_uri": str(lake),
            "window_ms": 1_000,
            "poll_ms": 10,
            "health_port": 0,
            "metrics_port": 0,
            "final": True,
            **more,
        }
    )


def pipeline(chosen: DedupSettings) -> Pipeline:
    """The pipeline of these settings, not yet running."""
    exporter = Exporter(
        open_store(chosen.lake_uri), chosen.gatherer_meta_dsns, chosen.backup_prefix
    )
    health = Health("deduplicator", "production", "merge")
    return Pipeline(chosen, exporter, health, Metrics(), lambda: None)


async def run_through(chosen: DedupSettings) -> Pipeline:
    """Run until the tape is finished."""
    made = pipeline(chosen)
    async with asyncio.timeout(120):
        await made.run()
    assert made.finished
    return made


def child(chosen: DedupSettings) -> subprocess.Popen[str]:
    """The same as a process of its own."""
    environment = {
        "KT_" + name.upper(): value if isinstance(value, str) else json.dumps(value)
        for name, value in chosen.model_dump(mode="json").items()
    }
    return subprocess.Popen(
        [sys.executable, "-m", "dedup.main"],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def lake_files(root: Path) -> dict[str, str]:
    """key -> SHA-256 of every file of a lake."""
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


async def compare_with_stream(production: str, stream: Stream) -> dict[str, int]:
    """What the tape lacks, has too much, or has in another order, against what happened."""
    conn = await connect(production)
    rows = await conn.fetch(
        "SELECT (extract(epoch FROM exchange_ts) * 1000000)::bigint AS us, ticker, side, price,"
        " delta FROM orderbook_delta JOIN market USING (market_id)"
        " ORDER BY ticker, epoch, market_seq"
    )
    trades = {r[0].int for r in await conn.fetch("SELECT trade_id FROM trade")}
    tickers = await conn.fetchval("SELECT count(*) FROM ticker")
    await conn.close()
    tape: dict[str, list[tuple[int, ...]]] = {t: [] for t in stream.tickers}
    for r in rows:
        tape[r["ticker"]].append((r["us"], r["side"], r["price"], r["delta"]))
    found = dict.fromkeys(("missing", "extra", "misordered"), 0)
    for market, ticker in enumerate(stream.tickers):
        true = [(h.us, h.side, h.price, h.delta) for h in stream.deltas if h.market == market]
        found["missing"] += sum((Counter(true) - Counter(tape[ticker])).values())
        found["extra"] += sum((Counter(tape[ticker]) - Counter(true)).values())
        if sorted(true) == sorted(tape[ticker]):
            found["misordered"] += sum(a != b for a, b in zip(true, tape[ticker], strict=True))
    happened = [h for h in stream.happenings if h.kind == "trade"]
    found["trades_missing"] = len({h.key + 1 for h in happened} - trades)
    found["trades_extra"] = len(trades - {h.key + 1 for h in happened})
    found["tickers_extra"] = tickers - sum(h.kind == "ticker" for h in stream.happenings)
    return found
