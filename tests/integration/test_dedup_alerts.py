"""What is wrong is told by the running service: its metrics, its counts, production.

The whole path with real databases: gatherers' tables, the deduplicator, production. The
control is the same recordings without a fault, and no alert.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dedup.exchange_seen import read_changes, told
from dedup.pipeline import Pipeline
from dedup.suspects import SUSPECT, by_gatherer
from marketdata.book import level_constant
from marketdata.rows import GathererBatch
from runtime.embedded import EmbeddedPostgres
from runtime.postgres import connect
from tests.databases import fresh_database
from tests.dedup_rig import compare_with_stream, make_recordings, run_through, settings
from tests.gatherer_rows import Stream, make_stream, write_batches

WRONG = 1  # the gatherer with the fault
SUSPECTS = "kalshi_tape_suspect_runs_total{"
CHANGES = "kalshi_tape_exchange_changes_total{"


def forget_one(batches: list[GathererBatch], ticker: str) -> None:
    """One change of the market is missing and no number with it: the gatherer's book is wrong from
    there on, and it does not know."""
    market = next(i for b in batches for i, t in b.markets.items() if t == ticker)
    seen, missing = 0, None
    for batch in batches:
        mine = batch.deltas["market_id"] == market
        if missing is not None:
            batch.deltas["book_hash"][mine] -= missing
            continue
        seen += int(mine.sum())
        if seen < 100:
            continue
        at = np.flatnonzero(mine)[-1]
        row = batch.deltas[at]
        term = level_constant(int(row["side"]), int(row["price"])) * int(row["delta"])
        missing = np.uint64(term % (1 << 64))
        batch.deltas = np.delete(batch.deltas, at)
    assert missing is not None, "the market is too quiet for this test"


def shift(batches: list[GathererBatch], by_us: int, from_share: float) -> None:
    """From somewhere on this gatherer is given other times."""
    for batch in batches[int(len(batches) * from_share) :]:
        batch.deltas["exchange_us"] += by_us


async def played(
    server: EmbeddedPostgres, lake: Path, spoil: Any
) -> tuple[Pipeline, Stream, str, str]:
    """(pipeline, stream, metrics, production) after everything was merged."""
    stream = make_stream(41, markets=3, events=3_200, mean_gap_us=6_000)
    made = await make_recordings(server, stream, gaps=0, disconnects=0, written=False)
    spoil(made.batches[WRONG], stream)
    for dsn, batches in zip(made.hot, made.batches, strict=True):
        conn = await connect(dsn)
        await write_batches(conn, batches)
        await conn.close()
    production = await fresh_database(server, "production")
    done = await run_through(settings(made, production, lake))
    return done, stream, done._metrics.exposition().decode(), production


async def test_where_nothing_is_wrong_nothing_is_told(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """The control of both alerts."""
    done, stream, metrics, production = await played(postgres_server, tmp_path, lambda *_: None)
    assert SUSPECTS not in metrics
    assert CHANGES not in metrics
    pairs = told(done.exchange.evidence)["pairs"]
    assert {pair["mode"] for pair in pairs.values()} == {"exact"}
    assert {pair["equal_us"] for pair in pairs.values()} == {len(stream.deltas)}
    found = await compare_with_stream(production, stream)
    assert not any(found.values()), found


async def test_a_silently_wrong_gatherer_is_named_by_the_running_service(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    done, stream, metrics, production = await played(
        postgres_server, tmp_path, lambda batches, stream: forget_one(batches, stream.tickers[0])
    )
    named = [line for line in metrics.splitlines() if line.startswith(SUSPECTS)]
    assert len(named) == 1
    assert f'gatherer="{WRONG}"' in named[0]
    assert named[0].endswith(" 1.0")
    totals = done.publisher.standing.counts
    assert [sum(by_gatherer(totals, SUSPECT, g).values()) for g in range(3)] == [0, 1, 0]
    assert CHANGES not in metrics, "a wrong gatherer is no change of the exchange"
    found = await compare_with_stream(production, stream)
    assert not any(found.values()), found


async def test_times_that_differ_after_they_were_proven_raise_the_alert(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Fallen back at once: no change of the stream is lost or doubled, and nobody is accused."""
    done, stream, metrics, production = await played(
        postgres_server, tmp_path, lambda batches, _: shift(batches, 3, 0.6)
    )
    conn = await connect(production)
    assert await conn.fetchval("SELECT count(*) FROM orderbook_delta") == len(stream.deltas)
    await conn.close()
    changes = {(c.subject, c.before, c.after): n for c, n in read_changes(done.tally.totals)}
    assert changes == {("0-1", "exact", "window"): 1, ("1-2", "exact", "window"): 1}
    alerts = [line for line in metrics.splitlines() if line.startswith(CHANGES)]
    assert len(alerts) == 2
    assert all('before="exact"' in line and line.endswith(" 1.0") for line in alerts)
    assert 'kalshi_tape_exchange_exact{pair="0-2"} 1.0' in metrics
    assert 'kalshi_tape_exchange_exact{pair="0-1"} 0.0' in metrics
    assert told(done.exchange.evidence)["pairs"]["0-1"]["apart_us_max"] == 3
    assert SUSPECTS not in metrics, "nobody is accused of what the exchange does"
