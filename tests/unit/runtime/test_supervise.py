"""runtime.supervise: stop order, verdicts, systemd's protocol over real sockets and signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from runtime.supervise import Notifier, Supervisor


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket as systemd's, in both forms, and the value of NOTIFY_SOCKET."""
    if request.param == "path":
        name = address = str(tmp_path / "n")
    else:
        name = f"@kalshi-tape-test-{os.getpid()}"
        address = "\0" + name[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(address)
        server.settimeout(10)
        yield server, name


def part(log: list[str], name: str) -> tuple[Callable[[], Awaitable[None]], ...]:
    """A well-behaved part: runs until asked, tells when it stopped."""
    asked = asyncio.Event()

    async def run() -> None:
        await asked.wait()
        log.append(f"{name} ended")

    async def stop() -> None:
        log.append(f"{name} asked")
        asked.set()

    return run, stop


async def test_parts_stop_one_by_one_in_reverse_order() -> None:
    """The feed before the spool before the sink: what was taken in is still written."""
    log: list[str] = []
    supervisor = Supervisor("t", notifier=Notifier({}))
    for name in ("sink", "spool", "feed"):
        run, stop = part(log, name)
        supervisor.add(name, run, stop=stop)
    asyncio.get_running_loop().call_later(0.01, supervisor.request_stop, "enough")
    assert await supervisor.run() == 0
    assert supervisor.reason == "enough"
    assert log == [f"{n} {what}" for n in ("feed", "spool", "sink") for what in ("asked", "ended")]


async def test_a_part_that_raises_stops_the_service_with_its_verdict() -> None:
    """Nothing fails quietly: the exit code is 1 and the reason is kept, others stop well."""
    log: list[str] = []
    supervisor = Supervisor("t", notifier=Notifier({}))
    run, stop = part(log, "spool")
    supervisor.add("spool", run, stop=stop)

    async def bad() -> None:
        raise ValueError("boom")

    supervisor.add("bad", bad)
    assert await supervisor.run() == 1
    assert isinstance(supervisor.verdict, ValueError)
    assert supervisor.reason == "bad failed: ValueError: boom"
    assert log == ["spool asked", "spool ended"]


async def test_a_part_that_returns_ends_the_service_well() -> None:
    supervisor = Supervisor("t", notifier=Notifier({}))

    async def once() -> None:
        return

    supervisor.add("work", once)
    assert await supervisor.run() == 0
    assert supervisor.reason == "work ended"


async def test_a_part_that_does_not_stop_is_cancelled_after_its_deadline() -> None:
    log: list[str] = []
    supervisor = Supervisor("t", notifier=Notifier({}))

    async def stubborn() -> None:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            log.append("cancelled")
            raise

    async def ignored() -> None:
        log.append("asked")

    supervisor.add("stubborn", stubborn, stop=ignored, deadline_s=0.02)
    asyncio.get_running_loop().call_soon(supervisor.request_stop, "enough")
    assert await supervisor.run() == 0
    assert log == ["asked", "cancelled"]


async def test_a_stop_that_raises_does_not_keep_the_others_from_stopping() -> None:
    log: list[str] = []
    supervisor = Supervisor("t", notifier=Notifier({}))
    run, stop = part(log, "sink")
    supervisor.add("sink", run, stop=stop)

    async def forever() -> None:
        await asyncio.sleep(600)

    async def bad_stop() -> None:
        raise RuntimeError("cannot stop")

    supervisor.add("feed", forever, stop=bad_stop)
    asyncio.get_running_loop().call_soon(supervisor.request_stop, "enough")
    assert await supervisor.run() == 1
    assert isinstance(supervisor.verdict, RuntimeError)
    assert log == ["sink asked", "sink ended"]


PROGRAM = """
import asyncio, sys
from runtime import logs
from runtime.supervise import Supervisor
logs.setup("t")
async def main():
    supervisor = Supervisor("t")
    asked = asyncio.Event()
    async def run():
        supervisor.ready("working")
        print("ready", flush=True)
        await asked.wait()
        print("drained", flush=True)
    async def stop():
        asked.set()
    supervisor.add("work", run, stop=stop)
    return await supervisor.run()
sys.exit(asyncio.run(main()))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_clean_stop_with_exit_code_0(number: signal.Signals) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    out, _ = child.communicate(timeout=60)
    assert out == "drained\n"
    assert child.returncode == 0


def test_systemd_hears_ready_and_stopping(systemd: tuple[socket.socket, str]) -> None:
    server, name = systemd
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"NOTIFY_SOCKET": name},
    )
    assert server.recv(4096) == b"READY=1\nSTATUS=working"
    child.terminate()
    assert server.recv(4096) == b"STOPPING=1"
    child.communicate(timeout=60)
    assert child.returncode == 0


async def test_watchdog_is_fed_only_while_every_watched_part_makes_progress(
    systemd: tuple[socket.socket, str],
) -> None:
    """An event loop that still turns while nothing is recorded must be restarted."""
    server, name = systemd
    now = 0.0
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000"})
    supervisor = Supervisor("t", notifier=notifier, monotonic=lambda: now)
    supervisor.watch("feed", 5.0)
    supervisor.watch("sink", 5.0)
    feeding = asyncio.create_task(supervisor._feed_watchdog())
    loop = asyncio.get_running_loop()
    server.setblocking(False)

    async def heard(wanted: bytes) -> None:
        async with asyncio.timeout(30):
            while await loop.sock_recv(server, 4096) != wanted:
                pass

    await heard(b"WATCHDOG=1")
    now = 5.5
    supervisor.progress("feed")
    await heard(b"STATUS=no progress: sink")
    assert supervisor.stalled() == ["sink"]
    supervisor.progress("sink")
    await heard(b"WATCHDOG=1")
    feeding.cancel()


def test_watchdog_of_another_process_is_not_ours() -> None:
    assert Notifier({"WATCHDOG_USEC": "1000000"}).watchdog_s == 1.0
    assert Notifier({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog_s is None
    assert Notifier({"WATCHDOG_USEC": "soon"}).watchdog_s is None
    assert Notifier({}).watchdog_s is None


def test_nobody_listening_is_no_error() -> None:
    assert not Notifier({}).send("READY=1")
    assert not Notifier({"NOTIFY_SOCKET": "/nowhere/at/all"}).send("READY=1")


async def test_signal_handlers_are_gone_afterwards() -> None:
    supervisor = Supervisor("t", notifier=Notifier({}))
    asyncio.get_running_loop().call_soon(supervisor.request_stop, "enough")
    await supervisor.run()
    assert not asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    supervisor.status("idle")
