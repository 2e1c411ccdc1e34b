"""Two transports that must not be told apart, against a server that speaks raw bytes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from gatherer.transport import (
    MESSAGE_BYTES_MAX,
    SLICE_FRAMES,
    Closed,
    Connection,
    UpgradeRefusedError,
    connect,
)

KINDS = ("websockets", "picows")
TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(opcode: int, payload: bytes, *, fin: bool = True, longest: bool = False) -> bytes:
    """One unmasked server frame; `longest` writes the length in 8 bytes where fewer would do."""
    head = bytes([(0x80 if fin else 0) | opcode])
    n = len(payload)
    if n < 126 and not longest:
        return head + bytes([n]) + payload
    if n < 65_536 and not longest:
        return head + b"\x7e" + struct.pack(">H", n) + payload
    return head + b"\x7f" + struct.pack(">Q", n) + payload


@dataclass
class RawServer:
    """Completes the upgrade and then writes given chunks as they are."""

    chunks: list[bytes]
    then: str = "wait"  # wait | reset | close
    refusal: bytes = b""
    received: list[tuple[int, bytes]] = field(default_factory=list)
    headers: str = ""
    port: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    got: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.headers = (await reader.readuntil(b"\r\n\r\n")).decode()
        if self.refusal:
            writer.write(self.refusal)
            await writer.drain()
            writer.close()
            return
        key = next(
            line.split(":", 1)[1].strip()
            for line in self.headers.splitlines()
            if line.lower().startswith("sec-websocket-key")
        )
        accept = base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept.encode() + b"\r\n\r\n"
        )
        for chunk in self.chunks:
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(0)
        if self.then == "reset":
            writer.transport.abort()
            return
        await self._read(reader, writer)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Keep the client's frames; answer its close."""
        try:
            while True:
                opcode, length = await reader.readexactly(2)
                n = length & 0x7F
                if n == 126:
                    (n,) = struct.unpack(">H", await reader.readexactly(2))
                mask = await reader.readexactly(4)
                body = await reader.readexactly(n)
                payload = bytes(b ^ mask[i % 4] for i, b in enumerate(body))
                self.received.append((opcode & 15, payload))
                self.got.set()
                if opcode & 15 == CLOSE:
                    if self.then != "close":
                        writer.write(frame(CLOSE, payload))
                    writer.close()
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return


@asynccontextmanager
async def serving(server: RawServer) -> AsyncIterator[RawServer]:
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for writer in server.writers:
            writer.transport.abort()


@dataclass
class Heard:
    frames: list[bytes] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    closed: Closed | None = None


async def hear(
    kind: str,
    server: RawServer,
    act: Callable[[Connection, Heard], Awaitable[None]] | None = None,
) -> Heard:
    """Connect, collect until the end."""
    heard = Heard()
    clock = iter(range(1, 10_000_000))

    def on_frames(frames: list[bytes], stamp_ns: int) -> None:
        assert frames
        heard.frames += frames
        heard.stamps += [stamp_ns] * len(frames)

    async with serving(server):
        connection = await connect(
            kind, f"ws://127.0.0.1:{server.port}/x", {"A-B": "c"}, on_frames, lambda: next(clock)
        )
        if act is not None:
            await act(connection, heard)
        async with asyncio.timeout(10):
            heard.closed = await connection.closed()
    return heard


def _split(data: bytes, rng: random.Random) -> list[bytes]:
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(12)))
    edges = [0, *cuts, len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


def _traffic(rng: random.Random) -> tuple[bytes, list[bytes]]:
    """Random wire bytes ending with a close, and the messages in them."""
    wire, messages = bytearray(), []
    for _ in range(rng.randrange(1, 25)):
        size = rng.choice([0, 1, 125, 126, 127, 300, 5_000, 65_535, 65_536, 70_000])
        payload = rng.randbytes(size)
        opcode = rng.choice([TEXT, TEXT, TEXT, BINARY])
        messages.append(payload)
        parts = rng.choice([1, 1, 1, 2, 4])
        step = size // parts + 1
        pieces = [payload[i * step : (i + 1) * step] for i in range(parts)]
        for i, piece in enumerate(pieces):
            wire += frame(
                opcode if i == 0 else CONTINUATION,
                piece,
                fin=i == parts - 1,
            )
            if rng.random() < 0.2:
                wire += frame(PING, b"heartbeat")
            if rng.random() < 0.1:
                wire += frame(PONG, b"")
    wire += frame(CLOSE, struct.pack(">H", 1001) + b"bye")
    return bytes(wire), messages


@pytest.mark.parametrize("seed", range(12))
async def test_both_transports_deliver_the_same_messages_however_the_bytes_are_cut(
    seed: int,
) -> None:
    """The fast transport is only worth its speed if it is the reference in everything else."""
    wire, messages = _traffic(random.Random(seed))
    chunks = _split(wire, random.Random(seed + 100))
    heard = [await hear(kind, RawServer(list(chunks), then="close")) for kind in KINDS]
    for one in heard:
        assert one.frames == messages
        assert one.stamps == sorted(one.stamps)
        assert one.stamps[0] > 0
        assert one.closed == Closed("closed_by_peer", 1001, "bye")


@pytest.mark.parametrize("kind", KINDS)
async def test_pings_are_answered_with_their_payload(kind: str) -> None:
    """The exchange pings every ten seconds and wants `heartbeat` back."""
    server = RawServer([frame(PING, b"heartbeat"), frame(TEXT, b"x")])

    async def act(connection: Connection, _: Heard) -> None:
        async with asyncio.timeout(5):
            await server.got.wait()
        connection.close()

    heard = await hear(kind, server, act)
    assert (PONG, b"heartbeat") in server.received
    assert heard.closed is not None
    assert heard.closed.reason == "closed_by_us"


@pytest.mark.parametrize("control", [frame(PING, b"heartbeat"), frame(PONG, b"")])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_message_that_a_control_frame_follows_in_one_read_does_not_wait(
    kind: str, control: bytes
) -> None:
    """Nothing else comes on a quiet channel: it would be held until the probe's reply is given up
    (reply and heartbeat came together now and then, and the connection was dropped)."""
    server = RawServer([frame(TEXT, b"a reply") + control])

    async def act(connection: Connection, heard: Heard) -> None:
        async with asyncio.timeout(5):
            while not heard.frames:  # noqa: ASYNC110 - delivery is what is waited for
                await asyncio.sleep(0.01)
        connection.close()

    heard = await hear(kind, server, act)
    assert heard.frames == [b"a reply"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_reset_after_data_keeps_the_data(kind: str) -> None:
    """What was read before the line broke is delivered before the end is told."""
    sent = [frame(TEXT, b"%d" % n) for n in range(50)]
    heard = await hear(kind, RawServer([b"".join(sent)], then="reset"))
    assert heard.frames == [b"%d" % n for n in range(50)][: len(heard.frames)]
    assert heard.closed == Closed("reset")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "bad",
    [
        frame(CONTINUATION, b"x"),
        frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"),
        b"\xc1\x01x",  # reserved bit: compression nobody asked for
        b"\x83\x01x",  # unknown opcode
    ],
)
async def test_a_protocol_violation_ends_the_connection_and_keeps_what_came_before(
    kind: str, bad: bytes
) -> None:
    heard = await hear(kind, RawServer([frame(TEXT, b"good") + bad]))
    assert heard.frames == [b"good"]
    assert heard.closed is not None
    assert heard.closed.reason == "protocol"


@pytest.mark.parametrize(
    "bad",
    [
        frame(CONTINUATION, b"x" * 126),
        b"\xc1" + frame(TEXT, b"x" * 126)[1:],  # a reserved bit
    ],
)
async def test_a_long_message_with_a_wrong_head_is_one_more_message_to_picows_alone(
    bad: bytes,
) -> None:
    """The difference that the module admits: what it is told here it must go on being."""
    wire = frame(TEXT, b"good") + bad + frame(TEXT, b"more") + frame(CLOSE, b"\x03\xe8")
    reference, fast = [await hear(kind, RawServer([wire])) for kind in ("websockets", "picows")]
    assert reference.frames == [b"good"]
    assert reference.closed is not None
    assert reference.closed.reason == "protocol"
    assert fast.frames == [b"good", b"x" * 126, b"more"]
    assert fast.closed is not None
    assert fast.closed.reason == "closed_by_peer"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [125, 126])
async def test_a_half_message_is_finished_by_its_rest_whatever_their_sizes(
    kind: str, size: int
) -> None:
    first, rest = b"a" * size, b"b" * size
    wire = frame(TEXT, first, fin=False) + frame(CONTINUATION, rest) + frame(TEXT, rest)
    heard = await hear(kind, RawServer([wire + frame(CLOSE, b"\x03\xe8")]))
    assert heard.frames == [first + rest, rest]


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_counts_after_a_goodbye(kind: str) -> None:
    wire = frame(TEXT, b"good") + frame(CLOSE, b"\x03\xe8") + frame(TEXT, b"x" * 200)
    heard = await hear(kind, RawServer([wire]))
    assert heard.frames == [b"good"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_message_beyond_the_limit_ends_the_connection(kind: str) -> None:
    """A length field alone must not make us wait for 2^40 bytes."""
    head = b"\x81\x7f" + struct.pack(">Q", MESSAGE_BYTES_MAX + 1)
    heard = await hear(kind, RawServer([head + b"x" * 1000]))
    assert heard.frames == []
    assert heard.closed is not None
    assert heard.closed.reason == "protocol"


@pytest.mark.parametrize("kind", KINDS)
async def test_messages_are_sent_as_text_and_headers_go_with_the_upgrade(kind: str) -> None:
    server = RawServer([])

    async def act(connection: Connection, _: Heard) -> None:
        connection.send(b'{"id":1}')
        async with asyncio.timeout(5):
            await server.got.wait()
        connection.close()

    await hear(kind, server, act)
    assert server.received[0] == (TEXT, b'{"id":1}')
    assert "a-b: c" in server.headers.lower()
    assert "sec-websocket-extensions" not in server.headers.lower()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refused_upgrade_tells_status_and_text(kind: str) -> None:
    """A wrong key must show as what it is, not as a network that is down."""
    body = b'{"error":{"code":"header_timestamp_expired"}}'
    answer = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with pytest.raises(UpgradeRefusedError) as refused:
        await hear(kind, RawServer([], refusal=answer))
    assert refused.value.status == 401
    assert "header_timestamp_expired" in refused.value.body


@pytest.mark.parametrize("kind", KINDS)
async def test_nobody_listening_is_told_plainly(kind: str) -> None:
    async with serving(RawServer([])) as server:
        port = server.port
    with pytest.raises(UpgradeRefusedError) as refused:
        await connect(kind, f"ws://127.0.0.1:{port}/x", {}, lambda *_: None, lambda: 1)
    assert refused.value.status == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_paused_connection_delivers_after_it_is_resumed(kind: str) -> None:
    """Reading pauses while the spool is full; nothing is lost by it."""
    sent = [frame(TEXT, b"%d" % n * 1000) for n in range(200)]

    async def act(connection: Connection, heard: Heard) -> None:
        connection.pause()
        await asyncio.sleep(0.05)
        before = len(heard.frames)
        connection.resume()
        async with asyncio.timeout(5):
            while len(heard.frames) < 200:  # noqa: ASYNC110 - frames are counted, not signalled
                await asyncio.sleep(0.01)
        assert before <= 200
        connection.close()

    heard = await hear(kind, RawServer(sent), act)
    assert heard.frames == [b"%d" % n * 1000 for n in range(200)]


MANY = 5 * SLICE_FRAMES + 7


async def _many(*, is_reset: bool, pause: bool = False) -> tuple[Heard, list[int]]:
    """So many messages in one write that they come as slices; the sizes of what was handed over."""
    wire = b"".join(frame(TEXT, b"%d" % n) for n in range(MANY))
    server = RawServer([wire] if is_reset else [wire, frame(CLOSE, b"")])
    server.then = "reset" if is_reset else "close"
    sizes: list[int] = []
    heard = Heard()

    def on_frames(frames: list[bytes], _: int) -> None:
        heard.frames += frames
        sizes.append(len(frames))

    async with serving(server):
        url = f"ws://127.0.0.1:{server.port}/x"
        connection = await connect("picows", url, {}, on_frames, lambda: 1)
        if pause:
            while not sizes:  # noqa: ASYNC110 - slices are counted, not signalled
                await asyncio.sleep(0)
            connection.pause()
            await asyncio.sleep(0.05)
            connection.resume()
        async with asyncio.timeout(10):
            heard.closed = await connection.closed()
    return heard, sizes


@pytest.mark.parametrize("is_reset", [True, False])
@pytest.mark.parametrize("pause", [True, False])
async def test_a_flood_comes_in_slices_whole_and_in_order(is_reset: bool, pause: bool) -> None:
    """Commits get their turns while megabytes wait, and an end in their midst loses none."""
    heard, sizes = await _many(is_reset=is_reset, pause=pause)
    assert max(sizes) <= SLICE_FRAMES
    assert heard.frames == [b"%d" % n for n in range(MANY)]
    assert heard.closed is not None


@pytest.mark.parametrize("kind", KINDS)
async def test_abort_ends_at_once(kind: str) -> None:
    async def act(connection: Connection, _: Heard) -> None:
        assert connection.local.startswith("127.0.0.1:")
        connection.abort()

    heard = await hear(kind, RawServer([frame(TEXT, b"x")]), act)
    assert heard.closed is not None
    assert heard.closed.reason == "closed_by_us"


async def test_a_length_longer_than_needed_is_read_by_one_and_refused_by_the_other() -> None:
    """The one known difference, told in the module: if a library changes its mind we see it."""
    wire = frame(TEXT, b"x", longest=True) + frame(CLOSE, struct.pack(">H", 1000))
    reference = await hear("websockets", RawServer([wire], then="close"))
    assert reference.frames == [b"x"]
    fast = await hear("picows", RawServer([wire], then="close"))
    assert fast.closed is not None
    assert (fast.frames, fast.closed.reason) == ([], "protocol")


async def test_an_unknown_transport_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="carrier pigeon"):
        await connect("carrier pigeon", "ws://x", {}, lambda *_: None, lambda: 1)
