"""The pace: real time by a factor, or as fast as clients read; bounded waits."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from exchange.conductor import RECONNECT_WAIT_S, Pace
from tests.exchange_client import Recorder, exchange


async def test_the_play_waits_for_the_expected_clients_then_begins(tmp_path: Path) -> None:
    """A play that begins before its gatherers has lost events that nobody could have."""
    flags = ("--synthetic", "5", "--seconds", "2", "--rate", "max", "--expect-clients", "2")
    async with exchange(tmp_path, *flags) as running:
        tickers = json.loads((running.truth / "markets.json").read_bytes())
        first = asyncio.create_task(Recorder(running.keys, running.ready["ws_url"], tickers).run())
        await asyncio.sleep(0.5)
        status = await running.status()
        assert (status["started"], status["events"]) == (False, 0)
        assert status["waiting_for"] == "start"
        second = asyncio.create_task(Recorder(running.keys, running.ready["ws_url"], tickers).run())
        assert (await running.done())["events"] > 0
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)


async def test_the_play_is_over_when_its_last_frames_were_read(tmp_path: Path) -> None:
    """`done` tells the demo that it may stop the gatherers: nothing is on the way any more."""
    flags = ("--synthetic", "30", "--seconds", "5", "--rate", "max", "--expect-clients", "1")
    async with exchange(tmp_path, *flags) as running:
        tickers = json.loads((running.truth / "markets.json").read_bytes())
        recorder = Recorder(running.keys, running.ready["ws_url"], tickers)
        task = asyncio.create_task(recorder.run())
        status = await running.status()
        while not status["done"]:
            status = await running.status()
        sent = status["frames_sent"]
        # Read by the client's socket; what its own queue holds needs one turn of the loop.
        await asyncio.sleep(0.1)
        assert len(recorder.sessions[0].frames) == sent
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_wait_for_clients_is_bounded_and_told(tmp_path: Path) -> None:
    """A missing gatherer must not hang the demo for ever."""
    flags = ("--synthetic", "5", "--seconds", "1", "--rate", "max", "--expect-clients", "2")
    async with exchange(tmp_path, *flags, "--start-timeout", "0.2") as running:
        status = await running.done()
        assert status["faults"]["start_without_all"] == 1


async def test_a_rate_is_a_multiple_of_engine_time(tmp_path: Path) -> None:
    """Ten engine seconds at ten times the speed: not over at once, and over."""
    flags = ("--synthetic", "5", "--seconds", "10", "--rate", "10")
    async with exchange(tmp_path, *flags) as running:
        status = await running.status()
        began = time.monotonic()
        played_us = status["virtual_us"] - status["start_us"]
        await running.done()
        # Lower bound only: the exchange may be late, it may never be early.
        assert (time.monotonic() - began) * 10 >= (10_000_000 - played_us) / 1e6 - 1.0


def test_a_pace_without_rate_is_full_speed() -> None:
    """None is the value for `max`; the reconnect wait is a named bound."""
    assert Pace(None, 1.0).rate is None
    assert 0 < RECONNECT_WAIT_S <= 5
