"""The second database: one row for each distinct content, and patience."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import asyncpg
import pytest

from gatherer import history as module
from gatherer.history import History, HistoryRow, history_row
from runtime.embedded import EmbeddedPostgres


def _market(ticker: str, **more: Any) -> dict[str, Any]:
    return {"ticker": ticker, "event_ticker": "E-1", "status": "active", "title": "t", **more}


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_history_keeps_one_row_for_each_content_over_restarts(dsn: str) -> None:
    """Prices change with every trade; what a market is does not."""
    history = History(dsn)
    task = asyncio.create_task(history.run())
    for n in range(3):
        body = _market("A", volume_fp=f"{n}.00", yes_bid_dollars="0.1000")
        history.offer(history_row("market", "A", "active", body, 100 + n))
        await until(lambda: history.pending == 0)
    history.offer(history_row("market", "A", "closed", _market("A", status="closed"), 200))
    history.offer(history_row("event", "E-1", "", {"event_ticker": "E-1"}, 200))
    history.offer(history_row("series", "E", "", {"ticker": "E", "text": "a\x00b"}, 200))
    await history.stop()
    await asyncio.wait_for(task, 60)
    again = History(dsn)
    task = asyncio.create_task(again.run())
    await until(lambda: bool(again._newest["market"]))
    again.offer(history_row("market", "A", "closed", _market("A", status="closed"), 300))
    assert again.pending == 0
    await again.stop()
    await asyncio.wait_for(task, 60)
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch("SELECT * FROM market_history ORDER BY valid_from_ns")
    assert [(r["valid_from_ns"], r["status"]) for r in rows] == [(100, "active"), (200, "closed")]
    assert "volume_fp" not in json.loads(rows[0]["body"])
    assert await connection.fetchval("SELECT count(*) FROM event_history") == 1
    assert await connection.fetchval("SELECT count(*) FROM series_history") == 1
    await connection.close()


async def test_a_stop_in_the_middle_of_a_write_is_heard(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write ends with nothing left, and takes back the word that there is something to do."""
    history, values = History(dsn), module._values

    def stopped_meanwhile(row: HistoryRow) -> Any:
        history._stopping.set()
        history._wake.set()
        return values(row)

    monkeypatch.setattr(module, "_values", stopped_meanwhile)
    task = asyncio.create_task(history.run())
    history.offer(history_row("market", "A", "active", _market("A"), 1))
    await asyncio.wait_for(task, 20)
    assert (history.pending, history.rows_written) == (0, 1)


async def test_rows_wait_while_the_database_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata is late then; recording does not notice."""
    monkeypatch.setattr(module, "PENDING_ROWS_MAX", 2)
    told: list[str] = []
    history = History("postgresql://127.0.0.1:1/none", on_state=told.append)
    task = asyncio.create_task(history.run())
    for n in range(4):
        history.offer(history_row("market", f"M{n}", "active", _market(f"M{n}"), 1))
    await until(lambda: bool(told))
    assert (history.pending, history.rows_left_out) == (2, 2)
    task.cancel()
    await asyncio.wait([task])


async def test_a_database_that_refuses_us_is_tried_again(
    cluster: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role locked by mistake once ended the whole recorder; the metadata can wait."""
    monkeypatch.setattr(module, "backoff_s", lambda _: 0.01)
    admin = await asyncpg.connect(cluster.dsn())
    await admin.execute("CREATE ROLE keeper NOLOGIN")
    await admin.execute("CREATE DATABASE kept OWNER keeper")
    told: list[str] = []
    refused = re.sub(r"//[^@]+@", "//keeper@", cluster.dsn("kept"))
    assert "keeper" in refused
    history = History(refused, on_state=told.append)
    history.offer(history_row("market", "M", "active", _market("M"), 1))
    task = asyncio.create_task(history.run())
    try:
        await until(lambda: len(told) >= 2)
        assert "refuses us" in told[-1]
        assert not task.done()
        await admin.execute("ALTER ROLE keeper LOGIN")
        await until(lambda: history.rows_written == 1)
        assert told[-1] == ""
        await history.stop()
        await asyncio.wait_for(task, 60)
    finally:
        task.cancel()
        await asyncio.wait([task])
        await admin.close()


async def test_contents_that_came_while_the_database_was_away_are_all_written(dsn: str) -> None:
    """In their order; a content that came back is a change too."""
    history = History(dsn)
    for n, title in enumerate("xyyx"):
        history.offer(history_row("market", "A", "active", _market("A", title=title), n))
    assert history.pending == 3
    task = asyncio.create_task(history.run())
    await until(lambda: history.pending == 0)
    await history.stop()
    await asyncio.wait_for(task, 60)
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch("SELECT valid_from_ns, body FROM market_history ORDER BY 1")
    told = [(row["valid_from_ns"], json.loads(row["body"])["title"]) for row in rows]
    await connection.close()
    assert told == [(0, "x"), (1, "y"), (3, "x")]


async def test_a_forgotten_content_is_not_written_twice_and_results_are_told(dsn: str) -> None:
    """What memory has let go of, the statement itself compares. The control: other content is."""
    history = History(dsn)
    task = asyncio.create_task(history.run())
    ended = {"result": "yes", "settlement_value_dollars": "1.0000", "status": "finalized"}
    for n, more in enumerate(({}, {}, ended, ended)):
        history.forget("market", "A")
        status = str(more.get("status", "active"))
        history.offer(history_row("market", "A", status, _market("A", **more), n))
        await until(lambda: history.pending == 0)
    await history.stop()
    await asyncio.wait_for(task, 60)
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch("SELECT valid_from_ns, status FROM market_history ORDER BY 1")
    assert [tuple(row) for row in rows] == [(0, "active"), (2, "finalized")]
    told = await connection.fetch("SELECT * FROM market_result")
    assert [(r["ticker"], r["result"], r["settlement_value_dollars"]) for r in told] == [
        ("A", "yes", "1.0000")
    ]
    await connection.close()
