"""The player: real sockets, pause, seek, a client that does not read."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import websockets
from cryptography.hazmat.primitives.asymmetric import rsa

from exchange.auth import Verifier
from exchange.player import Playback
from exchange.serving import Place
from exchange.timeline import BookItem, DeltaItem, Item
from marketdata.errors import TapeError
from tests.exchange_client import WS_PATH, Keys
from tests.exchange_worlds import SECOND_US, START_US, ScriptSource, busy_source

MARKETS = 3


class Seekable(ScriptSource):
    """A script that can begin anywhere, by a plain loop over its items."""

    def items_from(self, at_us: int) -> Iterator[Item]:
        books: list[dict[tuple[int, int], int]] = [{} for _ in self.markets]
        rest: list[Item] = []
        for item in self._items:
            if item.at_us >= at_us:
                rest.append(item)
            elif isinstance(item, DeltaItem):
                key = (item.side, item.price)
                books[item.market][key] = books[item.market].get(key, 0) + item.delta
        for number, book in enumerate(books):
            yes, no = (sorted((p, q) for (s, p), q in book.items() if s == side and q)
                       for side in (0, 1))  # fmt: skip
            yield BookItem(at_us, number, yes, no)
        yield from rest


def source(events: int, step_us: int) -> Seekable:
    made = busy_source(MARKETS, events, step_us=step_us)
    return Seekable(made.markets, list(made.items()), seconds=events * step_us // SECOND_US + 1)


def moment(text: str) -> int:
    if not text.isdigit():
        raise TapeError(f"{text} is no moment")
    return START_US + int(text) * SECOND_US


@asynccontextmanager
async def playing(
    play: Seekable, rate: float | None, *, paused: bool = False
) -> AsyncIterator[tuple[Playback, str]]:
    verifier = Verifier(rsa.generate_private_key(65537, 2048).public_key())
    verifier.any_key = True
    playback = Playback(play, verifier, moment, rate=rate, paused=paused)
    stop, ready = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(playback.run(Place("127.0.0.1", 0), stop, ready.set))
    try:
        await ready.wait()
        yield playback, f"127.0.0.1:{playback.port}"
    finally:
        stop.set()
        await serving


async def subscribed(keys: Keys, at: str, play: Seekable, **limits: Any) -> Any:
    """A client with the books of all markets; its key is not the replay's."""
    socket = await websockets.connect(
        f"ws://{at}{WS_PATH}", additional_headers=keys.headers("GET", WS_PATH),
        compression=None, **limits,
    )  # fmt: skip
    tickers = [spec.ticker for spec in play.markets]
    params = {"channels": ["orderbook_delta"], "market_tickers": tickers}
    await socket.send(json.dumps({"id": 1, "cmd": "subscribe", "params": params}))
    return socket


async def ask(at: str, method: str, path: str) -> tuple[int, dict[str, Any]]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"http://{at}/replay/{path}") as answer,
    ):
        return answer.status, await answer.json()


async def deltas(socket: Any, count: int) -> list[tuple[Any, ...]]:
    """So many changes, as they came."""
    found: list[tuple[Any, ...]] = []
    while len(found) < count:
        frame = json.loads(await socket.recv())
        if frame["type"] == "orderbook_delta":
            msg = frame["msg"]
            found.append(tuple(msg[k] for k in ("market_ticker", "side", "price_dollars", "ts")))
    return found


async def until(playback: Playback, name: str, value: object) -> None:
    while playback.status()[name] != value:  # noqa: ASYNC110 (another task changes it)
        await asyncio.sleep(0.02)


def expected(play: Seekable) -> list[tuple[str, int]]:
    changes = [item for item in play.items() if isinstance(item, DeltaItem)]
    return [(play.markets[item.market].ticker, item.exchange_us) for item in changes]


async def test_nothing_is_played_before_the_first_client_and_then_all_in_order(
    tmp_path: Path,
) -> None:
    """In the tape's order over all markets, on a connection whose key nobody knows (PLAY-3)."""
    play = source(2_000, 10_000)
    async with playing(play, None) as (playback, at):
        await asyncio.sleep(0.3)
        assert playback.status()["events"] == 0
        socket = await subscribed(Keys.make(tmp_path), at, play)
        got = await deltas(socket, 2_000)
        assert [row[0] for row in got] == [name for name, _ in expected(play)]
        await socket.close()


async def test_who_does_not_read_holds_the_play_and_loses_nothing(tmp_path: Path) -> None:
    """PLAY-1: the bytes under way are bounded, and all of them arrive."""
    play = source(30_000, 1_000)
    async with playing(play, None) as (playback, at):
        socket = await subscribed(Keys.make(tmp_path), at, play, max_queue=1)
        await until(playback, "waiting_for", "slow client")
        await asyncio.sleep(0.5)
        held = playback.status()
        assert held["waiting_for"] == "slow client"
        assert held["events"] < 10_000
        assert playback.status()["events"] == held["events"]
        assert len(await deltas(socket, 30_000)) == 30_000
        await socket.close()


async def test_pause_holds_resume_goes_on_and_does_not_hurry(tmp_path: Path) -> None:
    """PLAY-2."""
    play = source(3_000, 10_000)  # 30 seconds
    async with playing(play, 5.0) as (playback, at):
        socket = await subscribed(Keys.make(tmp_path), at, play, max_queue=None)
        await deltas(socket, 10)
        assert (await ask(at, "POST", "pause"))[1]["paused"] is True
        await asyncio.sleep(0.1)
        before = (await ask(at, "GET", "status"))[1]
        await asyncio.sleep(1.0)
        assert (await ask(at, "GET", "status"))[1]["events"] == before["events"]
        began_s = time.monotonic()
        assert (await ask(at, "POST", "resume"))[0] == 200
        await asyncio.sleep(0.4)
        moved_us = playback.status()["at_us"] - before["at_us"]
        assert moved_us <= (time.monotonic() - began_s) * 5 * SECOND_US + 200_000
        assert moved_us > 0
        await socket.close()


async def test_a_seek_brings_the_books_of_that_time_and_plays_on(tmp_path: Path) -> None:
    """Forward, and back from the end."""
    play = source(1_000, 10_000)  # 10 seconds
    async with playing(play, None, paused=True) as (playback, at):
        socket = await subscribed(Keys.make(tmp_path), at, play)
        for second in (7, 2):
            assert (await ask(at, "POST", "pause"))[0] == 200
            assert (await ask(at, "POST", f"seek?to={second}"))[0] == 200
            wanted = [us for _, us in expected(play) if us >= START_US + second * SECOND_US]
            books = 0
            while books < MARKETS:
                frame = json.loads(await socket.recv())
                books += frame["type"] == "orderbook_snapshot" and frame["seq"] > MARKETS
            # They came while it was paused.
            assert (await ask(at, "POST", "resume"))[0] == 200
            assert len(await deltas(socket, len(wanted))) == len(wanted)
            await until(playback, "done", True)
        await socket.close()


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("seek", "needs"),
        ("seek?to=x", "no moment"),
        ("seek?to=99999", "not of the interval"),
    ],
)
async def test_a_wrong_seek_is_refused_and_changes_nothing(path: str, told: str) -> None:
    async with playing(source(10, 10_000), None, paused=True) as (playback, at):
        await until(playback, "waiting_for", "resume")
        before = playback.status()
        code, answer = await ask(at, "POST", path)
        assert code == 400
        assert told in answer["error"]
        assert playback.status() == before
