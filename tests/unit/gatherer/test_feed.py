"""One connection and its successors, against a real WebSocket server that follows a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import websockets
from cryptography.hazmat.primitives.asymmetric import rsa
from websockets.asyncio.server import ServerConnection, serve

from gatherer import feed as module
from gatherer.auth import HEADER_SIGNATURE, Signer
from gatherer.feed import FeedConnection, FeedSettings
from gatherer.intake import Decoding, LiveIntake, recover
from marketdata.rows import ControlKind, ControlRow
from marketdata.session import SessionSettings
from runtime.clock import Clock
from runtime.spool import SpoolWriter
from tests import wire_frames as wire

SIGNER = Signer("id", rsa.generate_private_key(public_exponent=65537, key_size=2048))
Script = Callable[[ServerConnection, int], Awaitable[None]]


@dataclass
class Venue:
    """Plays `script(socket, n)` on the n-th connection; keeps signatures and commands."""

    script: Script
    statuses: list[int] = field(default_factory=list)
    signatures: list[str] = field(default_factory=list)
    commands: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    connections: int = 0

    def admit(self, socket: ServerConnection, request: Any) -> Any:
        self.signatures.append(request.headers[HEADER_SIGNATURE])
        if self.statuses and (status := self.statuses.pop(0)) != 101:
            return socket.respond(HTTPStatus(status), "no")
        return None

    async def handle(self, socket: ServerConnection) -> None:
        self.connections += 1
        await self.script(socket, self.connections)


@dataclass
class Rig:
    feed: FeedConnection
    live: LiveIntake
    spool: SpoolWriter
    task: asyncio.Task[None]
    rows: list[ControlRow] = field(default_factory=list)

    def controls(self, kind: str) -> list[ControlRow]:
        batch = self.live.take(Clock().wall_ns())
        assert batch is not None
        self.rows += batch.rows.controls
        return [row for row in self.rows if row.kind == kind]


@asynccontextmanager
async def rig(
    folder: Path, venue: Venue, session: SessionSettings | None = None
) -> AsyncIterator[Rig]:
    holder: list[Decoding] = []

    def state() -> bytes:
        return holder[0].state()

    spool = SpoolWriter.open(folder, state=state, created_ns=1, id_base=10, group_commit_ms=1)
    holder.append(recover(spool))
    live = LiveIntake(spool, holder[0])
    live.hold()
    async with serve(venue.handle, "127.0.0.1", 0, process_request=venue.admit) as server:
        port = server.sockets[0].getsockname()[1]
        venue.url = f"ws://127.0.0.1:{port}/trade-api/ws/v2"
        feed = FeedConnection(
            "books-0",
            FeedSettings(venue.url, reconnect_base_ms=1, reconnect_cap_ms=5),
            session or SessionSettings(),
            SIGNER,
            spool,
            live,
            Clock(),
        )
        committing = asyncio.create_task(spool.run())
        made = Rig(feed, live, spool, asyncio.create_task(feed.run()))
        try:
            yield made
        finally:
            await feed.stop()
            made.task.cancel()
            committing.cancel()
            await asyncio.wait([made.task, committing])
            await spool.close(clean=False)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - several objects change, none tells
            await asyncio.sleep(0.005)


async def _answer(venue: Venue, socket: ServerConnection) -> None:
    """Subscribe as the exchange does, then keep commands."""
    async for text in socket:
        command = json.loads(text)
        venue.commands.append(command)
        if command["cmd"] == "subscribe":
            reply = {"type": "subscribed", "id": command["id"]}
            await socket.send(
                json.dumps({**reply, "msg": {"channel": "orderbook_delta", "sid": 1}})
            )
            for n, market in enumerate(command["params"]["market_tickers"], 1):
                await socket.send(wire.snapshot(n, market).decode())


async def test_a_cut_connection_is_followed_by_another_with_a_new_signature(tmp_path: Path) -> None:
    """For ever, whatever ended it; every life has its own records and runs."""

    async def script(socket: ServerConnection, n: int) -> None:
        if n < 3:
            await socket.recv()
            await socket.send(wire.subscribed(1).decode())
            await socket.send(wire.snapshot(1, "A").decode())
            await socket.close(1012, "restart")
            return
        await _answer(venue, socket)

    venue = Venue(script)
    async with rig(tmp_path, venue) as made:
        made.feed.want(["A"])
        await until(lambda: made.feed.session.subscribed == {"A"} and venue.connections == 3)
        assert len(set(venue.signatures)) == len(venue.signatures) == 3
        opened = made.controls(ControlKind.CONN_OPEN)
        assert len({row.detail["handshake"] for row in opened}) == 3
        assert [row.conn_id for row in opened] == [10, 11, 12]
        closes = made.controls(ControlKind.CONN_CLOSE)
        assert [(r.reason, r.detail["code"]) for r in closes] == [("closed_by_peer", 1012)] * 2
        assert len(made.controls(ControlKind.RUN_START)) == 3
        assert made.feed.status.closes == {"closed_by_peer": 2}


async def test_a_refused_key_is_told_and_tried_again(tmp_path: Path) -> None:
    """The state has to say that it is the key; a key put right must work without a restart."""

    async def script(socket: ServerConnection, _: int) -> None:
        await _answer(venue, socket)

    venue = Venue(script, statuses=[401, 401, 503, 101])
    async with rig(tmp_path, venue) as made:
        states = set()

        def opened() -> bool:
            states.add(made.feed.status.state)
            return made.feed.status.state == "open"

        await until(opened)
        assert len(venue.signatures) == 4
        assert made.feed.status.connects == 1


async def test_a_gap_makes_a_request_for_snapshots(tmp_path: Path) -> None:
    """Continuity sees the gap, the session asks, the feed sends: one effect, end to end."""

    async def script(socket: ServerConnection, _: int) -> None:
        answering = asyncio.create_task(_answer(venue, socket))
        await until(lambda: bool(venue.commands))
        await socket.send(wire.delta(3, "A").decode())
        await socket.send(wire.delta(9, "A").decode())
        await answering

    venue = Venue(script)
    async with rig(tmp_path, venue) as made:
        made.feed.want(["A", "B"])
        await until(lambda: len(venue.commands) > 1)
        params = venue.commands[1]["params"]
        assert params["action"] == "get_snapshot"
        assert sorted(params["market_tickers"]) == ["A", "B"]


async def test_commands_are_in_the_spool_before_their_replies(tmp_path: Path) -> None:
    """A deleted market leaves with the reply: the command must be known by then."""

    async def script(socket: ServerConnection, _: int) -> None:
        async for text in socket:
            command = json.loads(text)
            venue.commands.append(command)
            if command["cmd"] == "subscribe":
                await socket.send(wire.subscribed(1).decode())
                await socket.send(wire.snapshot(1, "A").decode())
                await socket.send(wire.snapshot(2, "B").decode())
            elif command["params"].get("action") == "delete_markets":
                ok = {"type": "ok", "id": command["id"], "sid": 1, "seq": 3, "msg": {}}
                await socket.send(json.dumps(ok))

    venue = Venue(script)
    async with rig(tmp_path, venue) as made:
        made.feed.want(["A", "B"])
        await until(lambda: made.feed.session.n_waiting == 0 and bool(made.feed.session.subscribed))
        made.feed.want(["A"])
        await until(lambda: bool(made.controls(ControlKind.MARKET_REMOVED)))


async def test_a_fault_of_our_own_ends_the_feed_and_keeps_the_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A callback has no caller: the fault must not vanish in a log, the process ends."""

    async def script(socket: ServerConnection, _: int) -> None:
        await socket.send(wire.ticker().decode())
        await socket.wait_closed()

    def broken(*_: object) -> None:
        raise AssertionError("our bug")

    monkeypatch.setattr(module.FeedConnection, "_react", broken)
    async with rig(tmp_path, Venue(script)) as made:
        with pytest.raises(AssertionError, match="our bug"):
            await asyncio.wait_for(made.task, 20)
        batch = made.live.take(Clock().wall_ns())
        assert batch is not None
        assert batch.rows.n_tickers() == 1


async def test_reading_pauses_while_the_spool_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames that cannot be stored are better left with the exchange than dropped here."""
    full = asyncio.Event()
    monkeypatch.setattr(SpoolWriter, "full", property(lambda _: not full.is_set()))

    async def room(_: SpoolWriter) -> None:
        if seen:
            await full.wait()

    monkeypatch.setattr(SpoolWriter, "room", room)
    seen: list[int] = []

    async def script(socket: ServerConnection, _: int) -> None:
        seen.append(1)
        for _n in range(300):
            await socket.send(wire.ticker().decode())
            await asyncio.sleep(0)
        await socket.wait_closed()

    async with rig(tmp_path, Venue(script)) as made:
        await until(lambda: made.feed.status.frames > 0)
        await asyncio.sleep(0.2)
        held = made.feed.status.frames
        full.set()
        await until(lambda: made.feed.status.frames == 300)
        assert held < 300


async def test_a_stalled_connection_is_given_up(tmp_path: Path) -> None:
    """Pings alive and data dead was seen for 16 minutes: silence is probed, then left."""

    async def script(socket: ServerConnection, n: int) -> None:
        if n > 1:
            await _answer(venue, socket)
            return
        await socket.recv()
        await socket.send(wire.subscribed(1).decode())
        await socket.send(wire.snapshot(1, "A").decode())
        async for _ in socket:
            pass  # takes every command and says nothing

    venue = Venue(script)
    limits = SessionSettings(data_timeout_ns=200_000_000, probe_timeout_ns=200_000_000)
    async with rig(tmp_path, venue, limits) as made:
        made.feed.want(["A"])
        await until(lambda: venue.connections >= 2)
        assert made.controls(ControlKind.CONN_CLOSE)[0].reason == "stall"


async def test_stop_says_goodbye_and_writes_the_close(tmp_path: Path) -> None:
    codes: list[int | None] = []

    async def script(socket: ServerConnection, _: int) -> None:
        try:
            await socket.recv()
            await socket.recv()
        except websockets.exceptions.ConnectionClosed as closed:
            codes.append(closed.rcvd.code if closed.rcvd else None)

    async with rig(tmp_path, Venue(script)) as made:
        made.feed.want(["A"])
        await until(lambda: made.feed.status.state == "open")
        await made.feed.stop()
        await asyncio.wait_for(made.task, 20)
        assert made.controls(ControlKind.CONN_CLOSE)[0].reason == "closed_by_us"
        await until(lambda: bool(codes))
        assert codes == [1000]
        assert made.feed.status.state == "closed"
