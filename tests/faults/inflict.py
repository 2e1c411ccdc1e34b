"""The faults, one function each: begin it, see the gatherer say so, end it, see it well again.

Nothing here helps the gatherer: what is ended is the fault. How long a fault lasts is the caller's
choice, so that the short form and the whole matrix run the same code.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import psutil

from exchange.poison import HARMLESS, MANGLED, STRAYS
from runtime.embedded import EmbeddedPostgres
from tape.fleet import write_test_key
from tests.faults.stepped import step
from tests.faults.world import PATIENCE_S, World

HOUR_S = 3600
DISK_BYTES = 512 << 20  # below 256 MiB free the gatherer says so, fault or not
FILL_CHUNK = bytes(1 << 20)
ENDS = ("slow_client", "left")
"""Whoever is first: the exchange cuts off who does not read, or the gatherer gives a silent
connection up."""


@contextlib.asynccontextmanager
async def lasting(seconds: float) -> AsyncIterator[None]:
    """What is done inside belongs to a fault that lasts at least so long."""
    over = asyncio.create_task(asyncio.sleep(seconds))
    try:
        yield
        await over
    finally:
        over.cancel()


def _servers(database: EmbeddedPostgres) -> list[psutil.Process]:
    assert database.pid is not None
    parent = psutil.Process(database.pid)
    return [parent, *parent.children(recursive=True)]


async def database_frozen(
    world: World, seconds: float, patience_s: float = PATIENCE_S, *, and_then: bool = True
) -> None:
    """SIGSTOP to every process of the hot database: no connection breaks, nobody answers.
    `and_then`: wait until all is well again."""
    frozen = _servers(world.hot)
    try:
        for process in frozen:
            process.suspend()
        async with lasting(seconds):
            await world.told("database", "no answer", "TimeoutError", "refuses")
    finally:
        for process in frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
    if and_then:
        await world.well(patience_s=patience_s)


async def databases_stopped(
    world: World, seconds: float, patience_s: float = PATIENCE_S, *, and_then: bool = True
) -> None:
    """Both clusters are shut down and started again."""
    await asyncio.gather(world.hot.stop(), world.meta.stop())
    async with lasting(seconds):
        await world.told("database", "rows wait in the spool")
    await asyncio.gather(world.hot.start(), world.meta.start())
    if and_then:
        await world.well(patience_s=patience_s)


class SmallDisk:
    """A disk for the spool that can be filled: a tmpfs where we may mount one, else a limit on the
    size of the files that the gatherer writes, set and lifted from outside (RLIMIT_FSIZE)."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.is_mounted = False

    def prepare(self, folder: Path) -> None:
        """Before the gatherer starts."""
        self.folder = folder
        if os.geteuid() != 0:
            return
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0711", "tmpfs", str(folder)],
            check=False,
            capture_output=True,
        )
        self.is_mounted = done.returncode == 0

    def fill(self, world: World) -> None:
        """From now on nothing more can be written."""
        assert self.folder is not None
        if not self.is_mounted:
            limit = (world.out / "logs" / "gatherer.log").stat().st_size + (1 << 20)
            hard = resource.prlimit(world.pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(world.pid, resource.RLIMIT_FSIZE, (limit, hard))
            return
        with (self.folder / "ballast").open("ab", buffering=0) as out:
            for chunk in (FILL_CHUNK, b"x" * 4096, b"x"):
                with contextlib.suppress(OSError):
                    while out.write(chunk) == len(chunk):
                        pass

    def free(self, world: World) -> None:
        """Room again."""
        assert self.folder is not None
        if not self.is_mounted:
            hard = resource.prlimit(world.pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(world.pid, resource.RLIMIT_FSIZE, (hard, hard))
            return
        (self.folder / "ballast").unlink()

    def remove(self) -> None:
        """After everything."""
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)
            self.is_mounted = False


async def disk_full(
    world: World, disk: SmallDisk, seconds: float, *, and_then: bool = True
) -> None:
    """Nothing can be written until memory is as full as it may be: reading stops, the connections
    end, and what the exchange sends meanwhile is lost to us."""
    before = await world.count(*ENDS)
    disk.fill(world)
    try:
        async with lasting(seconds):
            await world.told("spool", "disk:")
            while not (await world.look()).says("spool", "reading is paused"):
                # 16 MiB on each connection: what would take minutes at this rate takes a moment.
                await world.switch(poison=["large"])
                await asyncio.sleep(1.0)
            await world.switch(slow_client_s=min(5.0, seconds / 4))
            await world.counted(before, *ENDS)
    finally:
        disk.free(world)
    await world.switch(slow_client_s=None)
    if and_then:
        await world.well()


async def gatherer_frozen(world: World, seconds: float) -> None:
    """SIGSTOP of the gatherer; the exchange does not wait for it."""
    before = await world.count("slow_client")
    await world.switch(slow_client_s=seconds / 10)
    os.kill(world.pid, signal.SIGSTOP)
    try:
        async with lasting(seconds):
            await world.until(lambda r: r.state == "silent", "nobody answers")
            await world.counted(before, "slow_client")
    finally:
        os.kill(world.pid, signal.SIGCONT)
    await world.switch(slow_client_s=None)
    await world.well()


async def killed(world: World, times: int, longest_life_s: float, seed: int = 1) -> None:
    """kill -9 at random instants, one short life after the other, its beginning included."""
    rng, before = random.Random(seed), world.kills
    for _ in range(times):
        while not world.gatherer.alive:
            assert not world.gatherer.finished, world.log()
            await asyncio.sleep(0.01)
        await asyncio.sleep(rng.uniform(0.0, longest_life_s))
        assert world.kill(), world.log()
        while world.gatherer.restarts < world.kills:  # noqa: ASYNC110 - its death is not seen yet
            await asyncio.sleep(0.01)
    assert world.kills - before == times
    await world.well()


async def clock_stepped(
    world: World, seconds: float, deaths: tuple[int, ...] = (HOUR_S, -HOUR_S)
) -> None:
    """The wall clock is an hour ahead, then right, then an hour behind, then right. Under the
    offsets of `deaths` the gatherer also dies: no signature of its next life is taken before the
    clock is right."""
    for offset_s in (HOUR_S, -HOUR_S):
        step(world.out / "clock", offset_s)
        async with lasting(seconds):
            await world.told("exchange", "timestamp")
            if offset_s in deaths:
                assert world.kill()
                await world.told("exchange", "set this host's clock")
        step(world.out / "clock", 0)
        await world.well()


async def poison_frames(world: World, names: tuple[str, ...] = (*STRAYS, *MANGLED)) -> None:
    """Every frame that no exchange should send, on every book connection."""
    for name in names:
        before = (await world.look()).detail["problems"]
        gaps = (await world.look()).detail["gaps"]
        await world.switch(poison=[name])
        if name not in HARMLESS:
            await world.until(
                lambda r, n=before, g=gaps: (  # type: ignore[misc]
                    r.detail.get("problems", 0) > n or r.detail.get("gaps", 0) > g
                ),
                f"{name} is counted",
            )
    await world.well()


async def poison_rows(world: World, seconds: float) -> int:
    """The table refuses one change in fifty for a while; returns how many rows were kept aside."""
    connection = await asyncpg.connect(world.hot.dsn())
    try:
        await connection.execute(
            "ALTER TABLE orderbook_delta ADD CONSTRAINT poison CHECK (seq % 50 <> 0) NOT VALID"
        )
        async with lasting(seconds):
            await world.told("database", "refused_row")
        await connection.execute("ALTER TABLE orderbook_delta DROP CONSTRAINT poison")
        kept = await connection.fetchval("SELECT count(*) FROM refused_row")
        assert kept > 0
        return int(kept)
    finally:
        await connection.close()


async def rest_down(world: World, seconds: float) -> None:
    """Half of the time REST answers 503, half of it it drops every connection."""
    await world.switch(rest="down")
    async with lasting(seconds / 2):
        await world.told("exchange", "markets: ")
    await world.switch(rest="drop")
    async with lasting(seconds / 2):
        await world.told("exchange", "markets: ")
    await world.switch(rest="up")
    await world.well()


async def storm(world: World, channel: str, seconds: float) -> None:
    """Error 25 on every sid of a channel, again and again."""
    before = await world.count("storm_ends")
    await world.switch(storm={"channel": channel, "seconds": seconds, "every_s": 0.02})
    await world.told("capture", "not complete now")
    await world.counted(before, "storm_ends")
    await world.well()


async def key_expired(world: World, seconds: float) -> None:
    """The key runs out, everybody is cut off; a new one is put into the file, with its id."""
    await world.switch(key="expired")
    async with lasting(seconds):
        await world.told("exchange", "key file")
        world.key_file.with_name("half").write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAA")
        world.key_file.with_name("half").replace(world.key_file)
        await world.told("exchange", "is not a PEM private key")
    private, public = write_test_key(world.out / "keys" / "second")
    await world.switch(key={"pem": public.read_text(), "id": "second"})
    rotated = world.out / "keys" / "rotated.pem"
    rotated.write_bytes(b"key-id: second\n" + private.read_bytes())
    rotated.replace(world.key_file)
    await world.well()
