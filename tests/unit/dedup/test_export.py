"""Closed hours go to the lake once, with the same bytes when repeated, healed when lost."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from dedup.export import LAG_US, Exporter, export_hour_of
from dedup.publication import HOUR_US, publication_of
from dedup.publish import Publisher
from kalshilake.store import LocalStore, open_store
from kalshilake.write import load_head
from marketdata.coverage import RunProgress
from marketdata.errors import LakeError, StorageError
from runtime.embedded import EmbeddedPostgres, free_port
from tests.databases import fresh_database
from tests.window_outputs import T0, WINDOW_US, window_output

SETTINGS = {"window_us": WINDOW_US}


def lake_bytes(root: Path) -> dict[str, str]:
    """key -> SHA-256 of every file of a lake."""
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


class Line:
    """A publisher and an exporter over one production database and one lake."""

    def __init__(self, dsn: str, lake: Path, metas: list[str] | None = None) -> None:
        self.publisher = Publisher(dsn, SETTINGS)
        self.exporter = Exporter(open_store(lake), metas or [])

    async def open(self) -> Line:
        await self.publisher.open()
        await self.exporter.open(await self.publisher.connection())
        return self

    async def publish(self, *outputs: Any) -> None:
        standing = self.publisher.standing
        made = publication_of(outputs, standing.ids, standing.reach)
        await self.publisher.commit(made, {0: 1})
        self.exporter.published(made)

    async def export(self, *, final: bool = True) -> Any:
        standing = self.publisher.standing
        names = {m: t for t, m in standing.ids.items()}
        conn = await self.publisher.connection()
        return await self.exporter.export(
            conn, standing.closed_to_us, standing.received_ns_max, names, final=final
        )

    async def close(self) -> None:
        await self.publisher.close()


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    return tmp_path / "lake"


async def test_a_closed_hour_has_every_table(production: str, lake: Path) -> None:
    """What production has of the hour is in the lake, and a version lists it."""
    line = await Line(production, lake).open()
    await line.publish(window_output(0, ["A", "B"]), window_output(1, ["A", "C"], 4))
    told: list[str] = []
    line.exporter.progress = lambda: told.append(threading.current_thread().name)
    commit = await line.export()
    assert commit.version.version == 1
    assert len(told) >= 7, "each table feeds the watchdog, the changes with each slice and part"
    assert set(told) == {threading.current_thread().name}, "on the event loop, nowhere else"
    assert commit.version.watermark_us == T0 + 2 * WINDOW_US
    rows = {o.table: o.rows for o in commit.version.objects}
    coverage = rows.pop("coverage")
    assert coverage >= 3 * 3
    assert rows == {
        "orderbook_deltas": 12, "orderbook_snapshots": 4, "trades": 2, "tickers": 2, "markets": 3,
    }  # fmt: skip
    assert line.exporter.hours_waiting == 0
    assert line.exporter.coverage_us["complete"] > 0
    await line.close()


async def test_nothing_new_makes_no_version(production: str, lake: Path) -> None:
    """An export that finds nothing changed leaves the lake alone."""
    line = await Line(production, lake).open()
    await line.publish(window_output(0, ["A"]))
    await line.export()
    before = lake_bytes(lake)
    assert await line.export() is None
    await line.close()
    again = await Line(production, lake).open()
    assert await again.export() is None
    assert again.exporter.version == 1
    assert lake_bytes(lake) == before
    await again.close()


@pytest.mark.parametrize("dies_at", ["objects", "version", "note"])
async def test_a_crash_anywhere_is_repeated_without_a_trace(
    production: str, lake: Path, dies_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects, version, note: whatever was done already is done again with the same bytes."""
    line = await Line(production, lake).open()
    await line.publish(window_output(0, ["A", "B"]))

    def crash(*_: Any, **__: Any) -> None:
        raise StorageError("power cut")

    async def crash_later(*_: Any, **__: Any) -> None:
        raise StorageError("power cut")

    with monkeypatch.context() as patch:
        if dies_at == "objects":
            written = 0
            put = LocalStore.put

            def put_some(self: LocalStore, key: str, body: bytes) -> None:
                nonlocal written
                written += 1
                if written == 4:
                    crash()
                put(self, key, body)

            patch.setattr(LocalStore, "put", put_some)
        elif dies_at == "version":
            patch.setattr("dedup.export.commit_version", crash)
        else:
            patch.setattr(Exporter, "_note", crash_later)
        with pytest.raises(StorageError, match="power cut"):
            await line.export()
    await line.close()
    again = await Line(production, lake).open()
    assert again.exporter.hours_waiting == 1
    await again.export()
    await again.close()
    whole = lake_bytes(lake)

    other = lake.parent / "undisturbed"
    conn = await asyncpg.connect(production)
    await conn.execute("UPDATE lake_hour SET rows_dirty = true; DELETE FROM lake_version")
    await conn.close()
    undisturbed = await Line(production, other).open()
    await undisturbed.export()
    await undisturbed.close()
    assert lake_bytes(other) == whole


async def test_moments_of_export_are_fixed_by_the_tape(production: str, lake: Path) -> None:
    """An hour is due when the tape is closed LAG_US past its end, not before."""
    line = await Line(production, lake).open()
    first = window_output(int(LAG_US // WINDOW_US), ["A"])
    await line.publish(first)
    assert line.exporter.due(first.to_us)  # the first moment: nothing is over yet
    assert await line.export(final=False) is None
    end = T0 + HOUR_US
    assert not line.exporter.due(end + LAG_US - 1)
    assert line.exporter.due(end + LAG_US)
    assert export_hour_of(end + LAG_US) == export_hour_of(end + LAG_US - 1) + 1
    late = window_output(20, ["A"], 4)
    late.from_us, late.to_us = end + LAG_US - WINDOW_US, end + LAG_US
    await line.publish(late)
    assert (await line.export(final=False)).version.version == 1
    assert line.exporter.hours_waiting == 1  # the hour that has just begun
    await line.close()


async def test_proof_that_comes_later_makes_the_hour_new(production: str, lake: Path) -> None:
    """A later frame proves silence: the hour's coverage is written again, not its rows."""
    line = await Line(production, lake).open()
    await line.publish(window_output(0, ["A"]))
    await line.export()
    before = lake_bytes(lake)
    proven = window_output(1, ["A"], 4)
    proven.deltas, proven.snapshots, proven.trades = proven.deltas[:0], [], []
    proven.ticker_rows, proven.audits = [], []
    proven.progress = [
        RunProgress(0, 11, "orderbook", T0, T0 + HOUR_US, ended=True, reason="close")
    ]
    await line.publish(proven)
    assert (await line.export()).version.version == 2
    after = lake_bytes(lake)
    changed = {k for k in before if after.get(k) != before[k]}
    assert {k.split("/")[1] for k in changed} == {"coverage"}
    assert line.exporter.version_sha256 == load_head(open_store(lake)).sha256  # type: ignore[union-attr]
    await line.close()


async def test_a_lake_that_was_lost_is_written_again(production: str, lake: Path) -> None:
    """Production is the source: a new empty lake gets everything, byte for byte."""
    line = await Line(production, lake).open()
    await line.publish(window_output(0, ["A", "B"]))
    await line.export()
    await line.close()
    before = lake_bytes(lake)
    lost = lake.parent / "new"
    again = await Line(production, lost).open()
    await again.export()
    await again.close()
    assert lake_bytes(lost) == before


async def test_markets_carry_what_the_gatherers_learned(
    production: str, lake: Path, postgres_server: EmbeddedPostgres
) -> None:
    """Title and times come from the gatherers' second databases, the newest known by then."""
    metas = [await fresh_database(postgres_server, "gatherer_meta") for _ in range(2)]
    for n, dsn in enumerate(metas):
        conn = await asyncpg.connect(dsn)
        body = {"ticker": "A", "event_ticker": "EV", "title": f"from {n}", "status": "active"}
        await conn.execute(
            "INSERT INTO market_history VALUES ('A', $1, '', 'active', $2)",
            T0 * 1_000 - 10 + n,
            json.dumps(body),
        )
        await conn.execute(
            "INSERT INTO event_history VALUES ('EV', 1, '', $1)",
            json.dumps({"series_ticker": "S", "title": "Rain"}),
        )
        await conn.execute(  # learned after everything that the hour holds
            "INSERT INTO market_history VALUES ('A', $1, '', 'settled', '{}')", T0 * 1_000 * 2
        )
        await conn.close()
    line = await Line(production, lake, metas).open()
    await line.publish(window_output(0, ["A", "B"]))
    await line.export()
    await line.close()
    import pyarrow.parquet as pq

    (path,) = (lake / "parquet" / "markets").rglob("*.parquet")
    rows = pq.read_table(path).to_pylist()
    assert [(r["market_ticker"], r["title"], r["series_ticker"]) for r in rows] == [
        ("A", "from 1", "S"),
        ("B", None, None),
    ]
    (path,) = (lake / "parquet" / "events").rglob("*.parquet")
    (event,) = pq.read_table(path).to_pylist()
    assert (event["event_ticker"], event["series_ticker"], event["title"]) == ("EV", "S", "Rain")
    assert event["first_seen"] == next(r["first_seen"] for r in rows if r["market_ticker"] == "A")


async def test_metadata_that_cannot_be_read_hold_the_export_back(
    production: str, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a table today and another tomorrow would be two answers to one question."""
    monkeypatch.setattr("dedup.described.META_TRIES_MAX", 1)
    away = f"postgresql://postgres@127.0.0.1:{free_port()}/postgres"
    line = await Line(production, lake, [away]).open()
    await line.publish(window_output(0, ["A"]))
    with pytest.raises((StorageError, LakeError)):
        await line.export()
    assert line.exporter.hours_waiting == 1
    await line.close()
