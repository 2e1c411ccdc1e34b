"""Requests that nobody should send, and too many of them: the service goes on, both ports answer.

Schemathesis makes requests up from the OpenAPI file, good ones and bad ones, and holds the answers
against it. Beside it: slow ones, large ones, broken ones, a flood. What is counted of the service
is what it is for: it must merge a tape meanwhile, whole, as if nobody had called.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from dedup.main import serve
from runtime.door import CONNECTIONS_MAX
from runtime.embedded import EmbeddedPostgres
from tape.fleet import free_port
from tests.databases import fresh_database, postgres_server
from tests.dedup_rig import compare_with_stream, make_recordings, settings
from tests.gatherer_rows import make_stream
from tests.page_world import OPENAPI

__all__ = ["postgres_server"]

PACKAGES = Path(__file__).parents[2] / ".page-packages"
SCHEMATHESIS = PACKAGES / "bin" / "schemathesis"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
JUNK = (
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5_000,
    b"POST /api/overview HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n",
    b"GET /api/book?market=" + b"%41" * 3_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\n" * 100,
    GET * 50,
)


async def fuzzed(url: str, examples: int) -> tuple[int, str]:
    """Schemathesis over every operation of the file."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, str(SCHEMATHESIS), "run", f"{url}/api/openapi.json",
        "--checks", "all", "--max-examples", str(examples), "--rate-limit", "40/s",
        "--exclude-operation-id", "events", "--generation-database", "none", "--no-color",
        "--exclude-checks", "unsupported_method", "--seed", "1", "--request-timeout", "20",
        env={**os.environ, "PYTHONPATH": str(PACKAGES)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await running.communicate()
    return int(running.returncode or 0), out.decode()


async def misuse(port: int, stop: asyncio.Event) -> int:
    """Silent, slow, broken and many connections, until told to stop; how many."""
    made = 0

    async def one(data: bytes, pause_s: float) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                async with asyncio.timeout(10):
                    for at in range(0, len(data), 1 if pause_s else len(data)):
                        if writer.is_closing():
                            return
                        writer.write(data[at : at + 1] if pause_s else data)
                        await asyncio.sleep(pause_s)
                    await reader.read(100)
            finally:
                writer.transport.abort()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    tasks: set[asyncio.Task[None]] = set()
    while not stop.is_set():
        if len(tasks) < 3 * CONNECTIONS_MAX:
            made += 1
            slow = made % 3 == 0
            task = asyncio.create_task(one(GET if slow else JUNK[made % len(JUNK)], 0.2 * slow))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.sleep(0.002)
    await asyncio.gather(*tasks, return_exceptions=True)
    return made


async def answers(url: str, tries: int = 5) -> float:
    """How long an answer took, tried again as a monitor does when it is refused."""
    async with aiohttp.ClientSession() as http:
        for _ in range(tries):
            began_s = time.monotonic()
            try:
                async with http.get(url, timeout=aiohttp.ClientTimeout(total=5)) as answer:
                    await answer.read()
                    if answer.status == 200:
                        return time.monotonic() - began_s
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(0.5)
    raise AssertionError(f"{url} did not answer {tries} times")


@pytest.mark.skipif(not SCHEMATHESIS.exists(), reason="no schemathesis: make page")
async def test_made_up_requests_get_the_answers_that_are_described(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    stream = make_stream(31, events=800, mean_gap_us=40_000)
    made = await make_recordings(postgres_server, stream, gatherers=2, gaps=3, disconnects=1)
    production = await fresh_database(postgres_server, "production")
    port = free_port()
    chosen = settings(made, production, tmp_path, final=False, health_port=port)
    service = asyncio.create_task(serve(chosen))
    try:
        await answers(f"http://127.0.0.1:{port}/health", 60)
        code, out = await fuzzed(f"http://127.0.0.1:{port}", 40)
        print(out[-1_500:])
        assert code == 0, out[-6_000:]
        assert not service.done()
    finally:
        service.cancel()
        await asyncio.gather(service, return_exceptions=True)


async def test_a_service_under_misuse_merges_the_whole_tape_and_answers(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """8080 and 9090 at once, from before the first row to after the last."""
    stream = make_stream(32, events=3_000, mean_gap_us=40_000)
    made = await make_recordings(postgres_server, stream, gaps=1, disconnects=0)
    production = await fresh_database(postgres_server, "production")
    ports = free_port(), free_port()
    chosen = settings(
        made, production, tmp_path, final=False, health_port=ports[0], metrics_port=ports[1]
    )
    service, stop = asyncio.create_task(serve(chosen)), asyncio.Event()
    try:
        await answers(f"http://127.0.0.1:{ports[0]}/health", 60)
        misusing = [asyncio.create_task(misuse(port, stop)) for port in ports]
        took = []
        for _ in range(5):
            took.append(await answers(f"http://127.0.0.1:{ports[0]}/health", 20))
            took.append(await answers(f"http://127.0.0.1:{ports[1]}/metrics", 20))
        async with asyncio.timeout(120):
            while (await compare_with_stream(production, stream))["missing"]:  # noqa: ASYNC110
                await asyncio.sleep(1)
        stop.set()
        sent = sum(await asyncio.gather(*misusing))
        print(f"\n{sent} misuses; answers took up to {max(took) * 1000:.0f} ms")
        assert not service.done()
    finally:
        stop.set()
        service.cancel()
        await asyncio.gather(service, return_exceptions=True)


def test_every_operation_says_that_it_may_refuse() -> None:
    """A client that reads the file knows 503 before it meets it."""
    for path, operations in OPENAPI["paths"].items():
        assert set(operations) == {"get"}, path
        assert "503" in operations["get"]["responses"], path
