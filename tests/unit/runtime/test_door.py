"""Who comes in and who does not: real sockets, and a clock of our own for the rate."""

from __future__ import annotations

import asyncio

import pytest

from runtime import door
from runtime.door import BURST, CONNECTIONS_MAX, HEAD_BYTES, REQUESTS_PER_S, Door
from runtime.health import Health, HealthServer
from runtime.metrics import Metrics

GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


async def say(port: int, *parts: bytes, wait_s: float = 0.0) -> bytes:
    """Everything that is answered until the server ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(wait_s)
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def server() -> HealthServer:
    health = Health("g1", "feed")
    health.set("feed", "ok")
    return HealthServer(health, Metrics())


async def test_a_request_is_answered_and_the_connection_ends() -> None:
    """In one piece, in many, with a second one behind it, with a body that nobody asked for."""
    async with server() as running:
        port = running.health_port
        for parts in (
            (GET,),
            tuple(bytes([b]) for b in GET),
            (GET + GET,),
            (b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", b"hello"),
        ):
            answer = await say(port, *parts)
            assert answer.startswith(b"HTTP/1.1 200 OK"), answer
            assert answer.count(b"HTTP/1.1") == 1
            assert b"Connection: close" in answer
        assert running.doors[0].open == 0


@pytest.mark.parametrize(
    "junk",
    [
        b"\x00\xff\x16\x03\x01\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nBad Header\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: nonsense\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
    ],
)
async def test_what_is_no_request_is_refused_and_changes_nothing(
    junk: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even the journal: nonsense is not worth a line of it."""
    async with server() as running:
        for port in (running.health_port, running.metrics_port):
            answer = await say(port, junk)
            assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer
        assert (await say(running.health_port, GET)).startswith(b"HTTP/1.1 200")
    assert [r for r in caplog.records if r.levelname == "ERROR"] == []


async def test_a_head_that_is_too_large_is_refused_before_it_is_read() -> None:
    async with server() as running:
        head = b"GET /health HTTP/1.1\r\nX: " + b"a" * (2 * HEAD_BYTES)
        answer = await say(running.health_port, head)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431")
        long = b"GET /" + b"a" * (HEAD_BYTES - 100) + b" HTTP/1.1\r\nHost: a\r\n\r\n"
        assert (await say(running.health_port, long)).startswith(b"HTTP/1.1 4")
        assert (await say(running.health_port, GET)).startswith(b"HTTP/1.1 200")


async def test_whoever_says_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "HEAD_S", 0.2)
    async with server() as running:
        assert (await say(running.health_port)).startswith(b"HTTP/1.1 408")
        slow = [bytes([b]) for b in GET]
        answer = await say(running.health_port, *slow, wait_s=0.05)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 408")
        assert running.doors[0].open == 0


async def test_the_silent_do_not_keep_the_port_shut() -> None:
    """More connections than there is room for, all silent: who asks is answered."""
    async with server() as running:
        port = running.health_port
        silent = [
            await asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS_MAX + 20)
        ]
        assert (await say(port, GET)).startswith(b"HTTP/1.1 200")
        assert running.doors[0].open <= CONNECTIONS_MAX
        first = await silent[0][0].read()
        assert first.startswith(b"HTTP/1.1 408")
        for _, writer in silent:
            writer.close()


async def test_more_requests_than_allowed_get_503_with_a_reason() -> None:
    """The budget comes back with time; the other port has one of its own."""
    async with server() as running:
        running.doors[0]._tokens = 2.0
        running.doors[0]._monotonic = lambda: running.doors[0]._filled_s
        answers = [await say(running.health_port, GET) for _ in range(4)]
        assert [a[9:12] for a in answers] == [b"200", b"200", b"503", b"503"]
        assert str(REQUESTS_PER_S).encode() in answers[3]
        assert b"Retry-After" in answers[3]
        assert running.doors[0].refused == 2
        metrics = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
        assert (await say(running.metrics_port, metrics)).startswith(b"HTTP/1.1 200")


def test_the_budget_fills_at_its_rate_up_to_its_burst() -> None:
    now = [0.0]
    made = Door(asyncio.Protocol, lambda: now[0])
    assert made._tokens == BURST
    made._tokens = 0.0
    now[0] = 1.0
    guest = door.Guest(made, asyncio.Protocol)
    assert made.admit(guest) is None
    assert made._tokens == REQUESTS_PER_S - 1
    now[0] = 1e6
    assert made.admit(guest) is None
    assert made._tokens == BURST - 1


async def test_a_full_house_of_those_who_asked_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody who is being answered is turned out for a newcomer."""
    monkeypatch.setattr(door, "CONNECTIONS_MAX", 1)
    made = Door(asyncio.Protocol)
    first, second = (door.Guest(made, asyncio.Protocol) for _ in range(2))
    assert made.admit(first) is None
    made.asked(first)
    assert made.admit(second) == door.FULL
    made.left(first, refused=False)
    assert made.admit(second) is None


async def test_an_answer_that_nobody_takes_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "ANSWER_S", 0.3)
    rows = ({"n": "x" * 1000} for _ in range(100_000))
    health = HealthServer(Health("g1"), Metrics(), lines={"/rows": lambda: rows})
    async with health as running:
        _, writer = await asyncio.open_connection("127.0.0.1", running.health_port, limit=1024)
        writer.write(b"GET /rows HTTP/1.1\r\nHost: a\r\n\r\n")
        async with asyncio.timeout(20):
            while not running.doors[0].open:  # noqa: ASYNC110 - a reading
                await asyncio.sleep(0.01)
            while running.doors[0].open:  # noqa: ASYNC110 - a reading
                await asyncio.sleep(0.05)
        writer.close()
