"""Trades lost on every gatherer's sockets are on the tape all the same, and it still proves."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest
from rich.console import Console

from exchange.truth import read_truth
from kalshilake import open_lake
from marketdata.rows import SOURCE_REST
from tape import fleet as fleets
from tape import prove, screen
from tape.demo import ZEROS, wait_for_play, wait_until_answering
from tape.fleet import DemoPlan, Fleet
from tests.acceptance.dropping_proxy import DroppingProxy

MARKETS, SECONDS = 40, 40.0


def is_lost(trade_id: str) -> bool:
    """Half of the trades, the same ones for everybody."""
    return int(trade_id[-1], 16) % 2 == 0


@dataclass(slots=True)
class LosesTrades(DroppingProxy):
    """Passes on everything but the trades that are to be lost."""

    lost_trades: set[str] = field(default_factory=set)

    async def _pass_down(self, client: Any, exchange: Any) -> None:
        async for frame in exchange:
            told = orjson.loads(frame)
            if told["type"] == "trade" and is_lost(told["msg"]["trade_id"]):
                self.lost_trades.add(told["msg"]["trade_id"].replace("-", ""))
                continue
            await client.send(frame)


async def compared_to_s(fleet: Fleet[DemoPlan]) -> int:
    """Every gatherer compared every window before this second."""
    found = []
    for name in fleet.gatherer_names:
        connection = await asyncpg.connect(fleet.databases[f"{name}.hot"].dsn())
        try:
            found.append(
                await connection.fetchval(
                    "SELECT coalesce(max((detail->>'to_s')::bigint), 0) FROM control"
                    " WHERE kind = 'rest_window'"
                )
            )
        finally:
            await connection.close()
    return min(found)


async def record(out: Path) -> tuple[LosesTrades, int]:
    """Two gatherers behind the proxy; REST they ask directly."""
    plan = DemoPlan(
        out=out, frames=None, synthetic=MARKETS, rate="2", seconds=SECONDS, faults="none", seed=3,
        gatherers=2, merge="runs", transport="picows", window_ms=1000,
    )  # fmt: skip
    fleet, readings, stop = Fleet(plan), screen.Readings(), asyncio.Event()
    (out / "logs").mkdir()
    private_key, public_key = fleets.write_test_key(out / "keys")
    proxy: LosesTrades | None = None
    try:
        await asyncio.gather(
            fleets.start_databases(fleet), fleets.start_exchange(fleet, public_key)
        )
        proxy = LosesTrades(f"ws://127.0.0.1:{fleet.ports['exchange']}", 0)
        fleet.ports["proxy"] = await proxy.start()
        await fleets.start_gatherers(fleet, private_key)
        await fleets.start_deduplicator(fleet)
        drawing = asyncio.create_task(screen.show(fleet, readings, Console(quiet=True), stop))
        await wait_for_play(fleet, readings)
        await wait_until_answering(fleet, fleet.gatherer_names)
        for name in fleet.gatherer_names:
            assert await fleet.children[name].stop() == 0, fleet.children[name].log_tail()
        assert await fleet.children["dedup"].wait(120) == 0, fleet.children["dedup"].log_tail()
        to_s = await compared_to_s(fleet)
        stop.set()
        await drawing
    finally:
        await fleets.stop_everything(fleet)
        if proxy is not None:
            await proxy.stop()
    return proxy, to_s


def open_folder() -> Path:
    """A new folder; the servers' account must be able to reach its own folders in it."""
    out = Path(tempfile.mkdtemp(prefix="kalshi-tape-trades-"))
    out.chmod(0o711)
    return out


@pytest.fixture
async def finished() -> AsyncIterator[tuple[Path, LosesTrades, int]]:
    out = open_folder()
    try:
        proxy, to_s = await record(out)
        yield out, proxy, to_s
    finally:
        shutil.rmtree(out, ignore_errors=True)


@pytest.mark.timeout(240)
async def test_trades_that_no_socket_brought_are_on_the_tape_once_and_it_proves(
    finished: tuple[Path, LosesTrades, int],
) -> None:
    out, proxy, to_s = finished
    truth = read_truth(out / "truth").trades
    within = {t["trade_id"].replace("-", "") for t in truth if t["ts_ms"] < to_s * 1000}
    lost = within & proxy.lost_trades
    assert len(within) > 20
    assert len(lost) > 5, "the proxy must have lost some of those that were compared"
    trades = open_lake(str(out / "lake")).trades(on_gap="ignore").to_pylist()
    on_tape = {t["trade_id"].replace("-", ""): t["sources"] for t in trades}
    assert len(on_tape) == len(trades), "each once"
    assert within - on_tape.keys() == set()
    assert {i for i, sources in on_tape.items() if sources & SOURCE_REST} >= lost
    assert not any(on_tape[i] & SOURCE_REST for i in within - lost)
    verdict, _ = prove.prove(out)
    found = {name: getattr(verdict, name) for name in ZEROS if hasattr(verdict, name)}
    assert {name: count for name, count in found.items() if count} == {}
    assert verdict.trades_by_rest >= len(lost)
