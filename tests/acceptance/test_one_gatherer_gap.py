"""One gatherer, one lost frame: the gap is told for exactly the markets of that subscription."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest
from rich.console import Console

from kalshilake import Lake, open_lake
from marketdata.errors import IncompleteTape
from marketdata.units import parse_ts_us
from tape import fleet as fleets
from tape import screen
from tape.demo import wait_for_play, wait_until_answering
from tape.fleet import DemoPlan, Fleet
from tests.acceptance.dropping_proxy import DroppingProxy

DROP_AT = 60
MARKETS, PER_CONNECTION = 40, 20


def open_folder() -> Path:
    """A new folder; the servers' account must be able to reach its own folders in it."""
    out = Path(tempfile.mkdtemp(prefix="kalshi-tape-gap-"))
    out.chmod(0o711)
    return out


async def record(out: Path) -> DroppingProxy:
    """A gatherer with two book subscriptions behind a proxy that loses one delta."""
    plan = DemoPlan(
        out=out, frames=None, synthetic=MARKETS, rate="1", seconds=12.0, faults="none", seed=5,
        gatherers=1, merge="runs", transport="picows", window_ms=1000,
        markets_per_connection=PER_CONNECTION,
    )  # fmt: skip
    fleet, readings, stop = Fleet(plan), screen.Readings(), asyncio.Event()
    (out / "logs").mkdir()
    private_key, public_key = fleets.write_test_key(out / "keys")
    proxy: DroppingProxy | None = None
    try:
        await asyncio.gather(
            fleets.start_databases(fleet), fleets.start_exchange(fleet, public_key)
        )
        proxy = DroppingProxy(f"ws://127.0.0.1:{fleet.ports['exchange']}", DROP_AT)
        fleet.ports["proxy"] = await proxy.start()
        await fleets.start_gatherers(fleet, private_key)
        await fleets.start_deduplicator(fleet)
        drawing = asyncio.create_task(screen.show(fleet, readings, Console(quiet=True), stop))
        await wait_for_play(fleet, readings)
        await wait_until_answering(fleet, fleet.gatherer_names)
        assert await fleet.children["g1"].stop() == 0, fleet.children["g1"].log_tail()
        assert await fleet.children["dedup"].wait(120) == 0, fleet.children["dedup"].log_tail()
        stop.set()
        await drawing
    finally:
        await fleets.stop_everything(fleet)
        if proxy is not None:
            await proxy.stop()
    return proxy


def holes_around(lake: Lake, market: str, at_us: int) -> list[tuple[int, int, str]]:
    """Intervals of the market's book that hold `at_us` and are not complete."""
    rows = lake.coverage(market).to_pylist()
    return [
        (r["from_ts"].timestamp(), r["to_ts"].timestamp(), r["status"])
        for r in rows
        if r["channel"] == "orderbook"
        and r["status"] != "complete"
        and r["from_ts"].timestamp() <= at_us / 1e6 <= r["to_ts"].timestamp()
    ]


@pytest.mark.timeout(240)
async def test_a_lost_frame_is_a_gap_of_its_subscription_and_of_nobody_else() -> None:
    """With one gatherer nobody can fill it: reading over it raises; the next snapshot ends it."""
    out = open_folder()
    try:
        proxy = await record(out)
        assert proxy.lost is not None, "the play was too quiet to lose a frame"
        lost_us = parse_ts_us(proxy.lost["msg"]["ts"])
        lake = open_lake(str(out / "lake"))
        with_gap = {m for m in proxy.all_markets if holes_around(lake, m, lost_us)}
        assert with_gap == proxy.lost_markets
        assert proxy.all_markets - proxy.lost_markets, "both subscriptions must have markets"
        market = proxy.lost["msg"]["market_ticker"]
        with pytest.raises(IncompleteTape) as refused:
            lake.deltas(market, lost_us - 1, lost_us + 1)
        assert refused.value.intervals[0][0] == market
        assert lake.deltas(market, on_gap="ignore").num_rows > 0
        after = [
            r for r in lake.coverage(market).to_pylist()
            if r["channel"] == "orderbook" and r["status"] == "complete"
            and r["from_ts"].timestamp() * 1e6 > lost_us
        ]  # fmt: skip
        assert after, "the snapshot that was asked for ends the gap"
    finally:
        shutil.rmtree(out, ignore_errors=True)
