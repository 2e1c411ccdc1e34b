"""The early path: it writes, it is silent where it must be, and nothing of it reaches the merge."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dedup import live_path
from dedup.arbitrate import Arbiter
from dedup.live_path import LAG_NS, LivePath
from dedup.publication import publication_of
from dedup.publish import Standing
from runtime.health import Health
from runtime.metrics import Metrics
from runtime.postgres import connect
from tests.hand import QUICK, Hand

BOOK = {100_000: 500}


class Played:
    """One gatherer with market A, a merge and the early path."""

    def __init__(self, dsn: str, *, on: bool = True) -> None:
        self.health = Health("deduplicator")
        self.metrics = Metrics()
        self.now_ns = 0
        self.path = LivePath(dsn, 1, self.health, self.metrics, on=on, now_ns=lambda: self.now_ns)
        self.hand = Hand(0)
        self.hand.start(0)
        self.hand.snap("A", BOOK)
        self.arbiter = Arbiter(1, QUICK)
        self.ids: dict[str, int] = {}
        self.at = 0

    def play(self, steps: int, *, late_ns: int = 0) -> None:
        for _ in range(steps):
            self.at += 100
            self.hand.delta(self.at, "A", 100_000 + self.at * 10, 100)
            batch = self.hand.commit(self.at)
            self.now_ns = batch.max_received_ns + late_ns
            self.path.heard(batch)
            self.arbiter.absorb(batch)
            while (output := self.arbiter.step()) is not None:
                made = publication_of([output], self.ids, {})
                self.ids.update((t, m) for m, t, _ in made.new_markets)
                self.path.closed(made)
                self.path.committed()

    async def until(self, what: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not what():  # noqa: ASYNC110 (a task changes it)
                await asyncio.sleep(0.01)


async def written(dsn: str) -> int:
    conn = await connect(dsn)
    try:
        return int(await conn.fetchval("SELECT count(*) FROM live_delta"))
    finally:
        await conn.close()


async def test_rows_are_written_and_a_new_beginning_removes_them(production: str) -> None:
    played = Played(production)
    await played.path.begin(Standing())
    await played.until(lambda: not played.path.told()["silent"])
    played.play(30)
    given = played.path.told()["given"]
    assert given > 10
    async with asyncio.timeout(10):
        while await written(production) != given:  # noqa: ASYNC110 (a database is asked)
            await asyncio.sleep(0.01)
    assert played.health.get("live") is not None
    assert b"live_receive_to_commit_seconds" in played.metrics.exposition()
    await played.path.begin(Standing())
    await played.until(lambda: not played.path.told()["silent"])
    assert await written(production) == 0
    await played.path.close()


async def test_off_does_nothing(production: str) -> None:
    played = Played(production, on=False)
    await played.path.begin(Standing())
    played.play(20)
    assert played.path.told() == {"on": False, "silent": "KT_LIVE is off"}
    assert await written(production) == 0


async def test_a_backlog_is_not_listened_to(
    production: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_path, "LATE_ROWS_MAX", 0)
    played = Played(production)
    await played.path.begin(Standing())
    await played.until(lambda: not played.path.told()["silent"])
    played.play(30, late_ns=LAG_NS + 1)
    assert played.path.told()["given"] == 0
    assert set(played.path.told()["missed"]) <= {"behind", "no window of the market has closed"}
    played.play(30)
    assert played.path.told()["given"] > 0
    await played.path.close()


async def test_a_stall_is_no_backlog(production: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some late rows are listened to like any other; who is late for longer than the limit has to
    wait for the tape, and who is in time again begins to count anew."""
    monkeypatch.setattr(live_path, "LATE_ROWS_MAX", 5)
    played = Played(production)
    await played.path.begin(Standing())
    await played.until(lambda: not played.path.told()["silent"])
    played.play(30)
    for _ in range(3):
        before = played.path.told()["given"]
        played.play(5, late_ns=LAG_NS + 1)
        assert played.path.told()["given"] == before + 5
        played.play(1)
    missed = played.path.told()["missed"]
    played.play(12, late_ns=LAG_NS + 1)
    assert played.path.told()["given"] < before + 6 + 12
    played.play(30)
    assert played.path.told()["missed"]["behind"] > missed.get("behind", 0)
    await played.path.close()


async def test_production_that_is_away_silences_and_is_tried_again(
    production: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0
    real = live_path.connect

    async def refusing(dsn: str, **more: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ConnectionRefusedError("away")
        return await real(dsn, **more)

    monkeypatch.setattr(live_path, "connect", refusing)
    monkeypatch.setattr(live_path, "backoff_s", lambda _: 0.05)
    played = Played(production)
    await played.path.begin(Standing())
    played.play(30)
    assert played.path.told()["given"] == 0
    await played.until(lambda: (c := played.health.get("live")) and "away" in c.reason)
    await played.until(lambda: played.path.told()["given"])
    assert tries == 3
    assert (said := played.health.get("live")) is not None
    assert said.state == "ok"
    await played.path.close()


async def test_a_fault_of_our_own_ends_the_early_path_and_not_the_merge(production: str) -> None:
    played = Played(production)
    await played.path.begin(Standing())
    batch = played.hand.commit(10)
    played.path.heard(replace(batch, gatherer=7))  # a gatherer that is not there
    played.arbiter.absorb(batch)
    assert played.path.told() == {"on": True, "silent": "given up until the next start"}
    assert (said := played.health.get("live")) is not None
    assert said.state == "degraded"
    assert "given up" in said.reason
    played.play(20)  # nothing is raised
    await played.path.close()
