"""Rates of committed batches to moves, and the end of moves by what the feeds cover."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import numpy as np
import pytest

from gatherer import rebalance as module
from gatherer.packing import PackedBatch
from gatherer.rebalance import SAMPLE_NS, Rebalancer
from marketdata import moves
from marketdata.plan import NS_PER_S, RATE_S, Changes, Limits, MarketRef, Plan
from marketdata.rows import DELTA_ROW
from runtime.clock import Clock
from runtime.pgcopy import DELTA_COPY, pack_rows


def batch(counts: dict[int, int], seconds: int) -> PackedBatch:
    """A committed batch with so many changes of each market."""
    rows = np.zeros(sum(counts.values()), DELTA_ROW)
    rows["exchange_us"] = 1_800_000_000_000_000
    rows["market_id"] = np.repeat(list(counts), list(counts.values()))
    packed = pack_rows(DELTA_COPY, rows, batch_id=1)
    return PackedBatch(
        1, uuid.UUID(int=1), ((DELTA_COPY, packed),), {}, len(rows), len(rows), 0, 0, 0,
        seconds * NS_PER_S,
    )  # fmt: skip


class Still(Clock):
    """A clock that a test sets."""

    now_ns = 100 * NS_PER_S

    def monotonic_ns(self) -> int:
        return self.now_ns


class Intake:
    """Ids are the numbers in the tickers."""

    def tickers_by_id(self, market_ids: Any) -> dict[int, str]:
        return {n: f"E-{n}" for n in market_ids if n < 90}


class Feed:
    """A feed that covers everything, or nothing while it is not open."""

    def __init__(self) -> None:
        self.status = type("Status", (), {"state": "open"})()
        self.session = self

    def covers(self, _ticker: str) -> bool:
        return True


def made(interval_s: int = 1) -> tuple[Rebalancer, Plan, Still, list[Changes]]:
    plan = Plan("g1", Limits(3, hot_rate=10 * RATE_S))
    plan.place(MarketRef(f"E-{n}", f"E-{n // 3}") for n in range(6))
    clock, told = Still(), list[Changes]()
    feeds: Any = {"books-0": Feed(), "books-1": Feed()}
    intake: Any = Intake()
    rebalancer = Rebalancer(
        plan, intake, feeds, clock, interval_s=interval_s, on_changes=told.append
    )
    return rebalancer, plan, clock, told


def test_rates_are_those_of_the_sampled_batches() -> None:
    rebalancer, _, clock, _ = made()
    rebalancer.committed(batch({0: 300, 1: 5, 99: 900}, 2))
    rebalancer.committed(batch({0: 9_999}, 2))  # too soon: no sample
    clock.now_ns += SAMPLE_NS
    rebalancer.committed(batch({0: 100, 2: 200}, 8))
    assert rebalancer._rates() == {"E-0": 40 * RATE_S, "E-2": 20 * RATE_S}
    assert rebalancer._frames == {}


def test_nothing_is_sampled_where_nothing_may_move() -> None:
    rebalancer, _, _, _ = made(0)
    rebalancer.committed(batch({0: 300}, 2))
    assert rebalancer._frames == {}


async def test_a_hot_market_moves_to_the_quieter_connection_and_the_old_one_lets_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STEP_S", 0.001)
    monkeypatch.setattr(moves, "OVERLAP_NS", 0)
    rebalancer, plan, clock, told = made()
    home = plan.place_of("E-0").connection  # type: ignore[union-attr]
    other = 1 - home
    plan.remove([next(t for t in plan.books()[other])])
    rebalancer.committed(batch({0: 900, 1: 500, 2: 400}, 2))
    task = asyncio.create_task(rebalancer.run())
    try:
        async with asyncio.timeout(20):
            while len(told) < 1:
                clock.now_ns += NS_PER_S
                await asyncio.sleep(0.005)
            assert told[0].add == {other: ["E-1"]}
            while len(told) < 2:  # noqa: ASYNC110 - a plain list tells nobody
                await asyncio.sleep(0.005)
        assert told[1].drop == {home: ["E-1"]}
        assert rebalancer.numbers() == {
            "moving": 0, "moves_begun": 1, "moves_ended": 1, "moves_given_up": 0,
        }  # fmt: skip
    finally:
        task.cancel()
        await asyncio.wait([task])


def test_a_feed_that_is_not_open_covers_nothing() -> None:
    rebalancer, _, _, _ = made()
    assert rebalancer._covers(0, "E-0")
    rebalancer._feeds["books-0"].status.state = "connecting"
    assert not rebalancer._covers(0, "E-0")
    assert not rebalancer._covers(7, "E-0")
