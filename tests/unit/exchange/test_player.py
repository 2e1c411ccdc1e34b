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
from exchange.recorded_venue import RecordedVenue
from exchange.serving import Place
from exchange.timeline import BookItem, DeltaItem, Item
from exchange.venue import Venue
from marketdata.errors import TapeError
from tests import wire_frames as wire
from tests.exchange_client import WS_PATH, Keys
from tests.exchange_worlds import SECOND_US, START_US, ScriptSource, busy_source
from tests.recording_worlds import Script, ScriptedRecording, closed, opening

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
    play: Seekable | ScriptedRecording,
    rate: float | None,
    *,
    paused: bool = False,
    kind: type[Venue] = Venue,
) -> AsyncIterator[tuple[Playback, str]]:
    verifier = Verifier(rsa.generate_private_key(65537, 2048).public_key())
    verifier.any_key = True
    playback = Playback(play, verifier, moment, rate=rate, paused=paused, kind=kind)
    stop, ready = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(playback.run(Place("127.0.0.1", 0), stop, ready.set))
    try:
        await ready.wait()
        yield playback, f"127.0.0.1:{playback.port}"
    finally:
        stop.set()
        await serving


async def subscribed(keys: Keys, at: str, play: Seekable | ScriptedRecording, **limits: Any) -> Any:
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


LONG = 3_000  # changes before a disconnect: more than a socket's buffers hold unread


def cut_off(body: dict[str, Any]) -> ScriptedRecording:
    """Two recorded connections one after the other, with many changes each."""
    lives: Script = []
    for conn in (1, 2):
        changes = [(conn, wire.delta(n, "A")) for n in range(2, LONG + 2)]
        lives += [*opening(conn, "A"), *changes, (conn, body)]
    return ScriptedRecording("A", lives)


async def numbers_of(
    socket: Any, pause_at: int = -1
) -> tuple[list[int], websockets.exceptions.ConnectionClosed]:
    """Every seq up to the end of the connection, and the end; stops reading for a while."""
    numbers: list[int] = []
    while True:
        try:
            frame = json.loads(await socket.recv())
        except websockets.exceptions.ConnectionClosed as end:
            return numbers, end
        if "seq" in frame:
            numbers.append(frame["seq"])
        if len(numbers) == pause_at:
            await asyncio.sleep(0.3)


@pytest.mark.parametrize(
    ("body", "code"),
    [(closed("reset"), 1006), (closed("closed_by_peer", 1012, "restart"), 1012)],
)
async def test_who_is_cut_off_has_read_everything_before_it_and_is_waited_for(
    tmp_path: Path, body: dict[str, Any], code: int
) -> None:
    """At full speed, with a slow reader: a reset must not take what the gatherer still got."""
    play, keys = cut_off(body), Keys.make(tmp_path)
    async with playing(play, None, kind=RecordedVenue) as (playback, at):
        for _ in (1, 2):
            socket = await subscribed(keys, at, play, max_queue=4)
            numbers, end = await numbers_of(socket, pause_at=LONG // 2)
            assert numbers == list(range(1, LONG + 2))
            assert (end.rcvd.code if end.rcvd else 1006) == code
        await until(playback, "done", True)
        told = playback.status()
        assert (told["form"], told["closes"], told["events"]) == ("faithful", 2, 2 * LONG)


async def test_at_a_rate_nobody_is_waited_for(tmp_path: Path) -> None:
    """Frames that came while nobody was there are gone, as for a real client."""
    script = [*opening(1, "A"), *opening(2, "B"), (1, closed())]
    script += [(2, wire.delta(n, "B")) for n in range(2, 3_000)]
    play, keys = ScriptedRecording("AB", script), Keys.make(tmp_path)
    async with playing(play, 1.0, kind=RecordedVenue) as (playback, at):
        socket = await subscribed(keys, at, play)
        await numbers_of(socket)
        await asyncio.sleep(0.1)
        again = await subscribed(keys, at, play)
        frames = [json.loads(await again.recv()) for _ in range(3)]
        assert [f["type"] for f in frames] == [
            "subscribed",
            "orderbook_snapshot",
            "orderbook_delta",
        ]
        held, change = float(frames[1]["msg"]["yes_dollars_fp"][0][1]), frames[2]["msg"]["ts_ms"]
        assert held > 50, "the book of the other connection had moved on meanwhile"
        assert change == 1_786_085_188_000 + int(held) - 5 + 2
        await again.close()
        await until(playback, "done", True)


async def test_a_seek_of_a_recording_brings_the_gatherers_books(tmp_path: Path) -> None:
    changes = [(1, wire.delta(n, "A")) for n in range(2, 4_000)]
    play = ScriptedRecording("A", [*opening(1, "A"), *changes])
    async with playing(play, None, paused=True, kind=RecordedVenue) as (playback, at):
        socket = await subscribed(Keys.make(tmp_path), at, play, max_queue=None)
        await asyncio.sleep(0.2)
        assert (await ask(at, "POST", "seek?to=2"))[0] == 200
        frame = {"type": ""}
        while frame["type"] != "orderbook_snapshot":
            frame = json.loads(await socket.recv())
        assert frame["msg"]["yes_dollars_fp"] == [["0.4000", f"{5 + 2_000 - 3}.00"]]
        assert (await ask(at, "POST", "resume"))[0] == 200
        await until(playback, "done", True)
        await socket.close()
