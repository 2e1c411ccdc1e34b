"""gatherer.reconcile with a real spool, a real database and a REST list over real HTTP."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import asyncpg
import pytest

from gatherer import reconcile as module
from gatherer.spool_rebuild import rebuild
from marketdata.rows import TradeFlag
from runtime.clock import Clock
from runtime.embedded import EmbeddedPostgres
from tests.trade_witness import T0_S, Listing, Rig, body, rest, rig, stored, windows

BY_REST = int(TradeFlag.REST)


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.01)


def numbers(rows: list[asyncpg.Record], flags: int) -> list[int]:
    return [row["trade_id"].int for row in rows if row["flags"] == flags]


async def started(running: Rig) -> None:
    """The exchange's time is known and windows begin at T0_S."""
    running.time_is(T0_S)
    async with asyncio.timeout(60):
        while not running.reconciler.status.done_s:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_what_no_frame_brought_is_stored_once_and_says_where_it_came_from(
    tmp_path: Path, dsn: str
) -> None:
    """Ten trades happened, frames brought the even ones; one is a block trade."""
    listing = Listing([body(n, T0_S + n) for n in range(1, 10)], page=4)
    listing.trades.append(body(10, T0_S + 10, is_block_trade=True))
    async with rest(listing) as client, rig(tmp_path, dsn, client) as running:
        await started(running)
        running.frames((n, T0_S + n) for n in range(2, 10, 2))
        running.time_is(T0_S + 36.9)
        await asyncio.sleep(0.2)
        assert not listing.asked, "the window is not closed for long enough"
        running.time_is(T0_S + 37)
        await running.done(T0_S + 30)
        running.time_is(T0_S + 70)
        await running.done(T0_S + 60)
        assert running.reconciler.status.missing == 6
    rows = await stored(dsn)
    assert numbers(rows, 0) == [2, 4, 6, 8]
    assert numbers(rows, BY_REST) == [1, 3, 5, 7, 9]
    assert numbers(rows, BY_REST | TradeFlag.BLOCK) == [10]
    assert all('"path": "/markets/trades"' in r["detail"] for r in rows if r["flags"] & BY_REST)
    assert await windows(dsn) == [
        {"reason": "", "path": "/markets/trades", "from_s": T0_S, "to_s": T0_S + 30, "listed": 10,
         "missing": 6, "pages": 3},
        {"reason": "", "path": "/markets/trades", "from_s": T0_S + 30, "to_s": T0_S + 60,
         "listed": 0, "missing": 0, "pages": 1},
    ]  # fmt: skip
    asked = [query for _, query in listing.asked]
    assert (asked[0]["min_ts"], asked[0]["max_ts"]) == (str(T0_S - 2), str(T0_S + 32))


async def test_a_trade_at_the_border_of_two_windows_is_stored_once(
    tmp_path: Path, dsn: str
) -> None:
    """Both windows list it, for they are asked for wider than they are."""
    listing = Listing([body(1, T0_S + 29.5), body(2, T0_S + 30), body(3, T0_S + 31.5)])
    async with rest(listing) as client, rig(tmp_path, dsn, client) as running:
        await started(running)
        running.time_is(T0_S + 80)
        await running.done(T0_S + 60)
    assert numbers(await stored(dsn), BY_REST) == [1, 2, 3]
    assert [w["listed"] for w in await windows(dsn)] == [3, 3]


async def test_a_rebuild_from_the_spool_has_the_same_rows(
    tmp_path: Path, dsn: str, cluster: EmbeddedPostgres
) -> None:
    listing = Listing([body(n, T0_S + n, f"M{n % 3}") for n in range(1, 40)])
    listing.trades.append({"trade_id": "odd", "created_time": listing.trades[0]["created_time"]})
    async with rest(listing) as client, rig(tmp_path, dsn, client) as running:
        await started(running)
        running.frames((n, T0_S + n) for n in range(5, 20))
        running.time_is(T0_S + 100)
        await running.done(T0_S + 60)
        running.frames((n, T0_S + 100 + n) for n in range(100, 110))
    again = cluster.dsn("reconcile_again")
    admin = await asyncpg.connect(cluster.dsn())
    await admin.execute("CREATE DATABASE reconcile_again")
    await admin.close()
    await rebuild(tmp_path, again, Clock(0))
    assert len(numbers(await stored(dsn), BY_REST)) == 39 - 15
    assert await stored(again) == await stored(dsn)
    assert await windows(again) == await windows(dsn)


async def test_an_outage_of_an_hour_is_filled_after_a_restart(tmp_path: Path, dsn: str) -> None:
    """The process dies; an hour later another one goes on where the first one's windows ended."""
    listing = Listing([body(n, T0_S + 10 * n) for n in range(1, 361)])
    async with rest(listing) as client:
        async with rig(tmp_path, dsn, client, clean=False) as running:
            await started(running)
            running.frames((n, T0_S + 10 * n) for n in range(1, 7))
            await running.done(T0_S + 30)
        async with rig(tmp_path, dsn, client) as running:
            running.frames([(360, T0_S + 3600), (1000, T0_S + 3700)])
            await running.done(T0_S + 3660)
    rows = await stored(dsn)
    brought = {1, 2, 3, 4, 5, 6, 360, 1000}
    assert set(numbers(rows, 0)) == brought
    assert numbers(rows, BY_REST) == [n for n in range(1, 361) if n not in brought]
    told = await windows(dsn)
    assert told[0]["from_s"] == T0_S
    assert all(a["to_s"] == b["from_s"] for a, b in pairwise(told))


async def test_what_is_longer_ago_than_the_lookback_is_left_out_and_told(
    tmp_path: Path, dsn: str
) -> None:
    listing = Listing([body(n, T0_S + 10 * n) for n in range(1, 361)])
    async with rest(listing) as client:
        async with rig(tmp_path, dsn, client) as running:
            await started(running)
            running.time_is(T0_S + 40)
            await running.done(T0_S + 30)
        async with rig(tmp_path, dsn, client, lookback_s=600) as running:
            running.time_is(T0_S + 3600)
            await running.done(T0_S + 3560)
            assert running.reconciler.status.skipped_s == 3600 - 600 - 30
    skipped = [w for w in await windows(dsn) if w["reason"] == "lookback"]
    assert skipped == [{"reason": "lookback", "from_s": T0_S + 30, "to_s": T0_S + 3000}]
    found = numbers(await stored(dsn), BY_REST)
    assert found[:3] == [1, 2, 3]
    assert min(n for n in found if n > 3) == 300


async def test_old_windows_are_asked_for_as_history_and_a_refusal_is_told(
    tmp_path: Path, dsn: str
) -> None:
    """What the exchange does not give any more is counted, and does not hold up the rest."""
    day = 24 * 3600
    listing = Listing([body(1, T0_S + 5), body(2, T0_S + day + 65)], historical_status=404)
    listing.cutoff = "2026-08-07T06:46:45Z"  # T0_S + 45
    async with rest(listing) as client:
        async with rig(tmp_path, dsn, client) as running:
            running.intake.control(
                {"k": "rest_window", "from_s": T0_S - 60, "to_s": T0_S, "reason": ""}, 1
            )
        async with rig(tmp_path, dsn, client, window_s=60, lookback_s=2 * day) as running:
            running.time_is(T0_S + day + 30)
            await running.done(T0_S + 120)
            assert running.reconciler.status.refused == 1
            paths = [path for path, _ in listing.asked]
            assert paths[:2] == ["/historical/cutoff", "/historical/trades"]
            assert paths.count("/historical/cutoff") == 1
    told = [w for w in await windows(dsn) if w["reason"] == "404"]
    assert [(w["from_s"], w["to_s"]) for w in told] == [(T0_S, T0_S + 60)]


async def test_a_refusal_of_a_young_window_is_asked_again(tmp_path: Path, dsn: str) -> None:
    """Whatever is wrong with the asking, the trades are there: none is given up."""
    listing = Listing([body(1, T0_S + 5)], status=400)
    async with rest(listing) as client, rig(tmp_path, dsn, client) as running:
        await started(running)
        running.time_is(T0_S + 50)
        async with asyncio.timeout(30):
            while len(listing.asked) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert "status 400" in running.reconciler.status.reason
        assert running.reconciler.status.done_s == T0_S
        listing.status = 200
        await running.done(T0_S + 30)
        assert running.reconciler.status.reason == ""
    assert numbers(await stored(dsn), BY_REST) == [1]


async def test_while_the_database_is_away_windows_wait_and_nothing_is_stored_twice(
    tmp_path: Path,
) -> None:
    """Frames come meanwhile and wait in the spool: they are not taken for missing."""
    listing = Listing([body(n, T0_S + n) for n in range(1, 60)])
    async with EmbeddedPostgres() as server:
        admin = await asyncpg.connect(server.dsn())
        await admin.execute("CREATE DATABASE hot")
        await admin.close()
        dsn = server.dsn("hot")
        async with rest(listing) as client, rig(tmp_path, dsn, client) as running:
            await started(running)
            server.kill()
            async with asyncio.timeout(60):  # a backend may outlive its server by a commit
                while running.sink.status.state != "database_down":  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            running.frames((n, T0_S + n) for n in range(1, 60) if n != 31)
            running.time_is(T0_S + 120)
            async with asyncio.timeout(30):
                while running.reconciler.status.reason != "waits for the database":  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert running.reconciler.status.done_s == T0_S
            server.start_blocking()
            await running.done(T0_S + 90)
        rows = await stored(dsn)
    assert numbers(rows, BY_REST) == [31]
    assert len(rows) == 59


async def test_ids_that_are_not_those_of_the_frames_are_not_taken_for_missing_trades(
    tmp_path: Path, dsn: str
) -> None:
    """That the two are the same was never seen live: if not, every trade would be there twice."""
    listing = Listing([body(1000 + n, T0_S + n) for n in range(1, 25)])
    async with rest(listing) as client, rig(tmp_path, dsn, client) as running:
        await started(running)
        running.frames((n, T0_S + n) for n in range(1, 25))
        running.time_is(T0_S + 40)
        async with asyncio.timeout(30):
            while "none of 24 ids" not in running.reconciler.status.reason:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert running.reconciler.status.done_s == T0_S
        listing.trades = [body(n, T0_S + n) for n in range(1, 26)]
        await running.done(T0_S + 30)
    assert numbers(await stored(dsn), BY_REST) == [25]


async def test_the_exchanges_date_holds_back_a_frame_with_a_time_of_the_future(
    tmp_path: Path, dsn: str
) -> None:
    """A false time in one frame would else close windows that have not happened yet."""
    async with rest(Listing()) as client, rig(tmp_path, dsn, client) as running:
        running.reconciler._date_us = lambda: (T0_S + 7) * 1_000_000
        running.time_is(T0_S + 10_000)
        assert running.reconciler.now_us() == (T0_S + 7) * 1_000_000
        running.reconciler._date_us = lambda: 0
        assert running.reconciler.now_us() == (T0_S + 10_000) * 1_000_000
