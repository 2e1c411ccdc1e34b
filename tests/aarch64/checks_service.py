"""Checks of the gatherer as a service: `gatherer.main`, emulated, against the simulated exchange.

The whole process: settings, discovery over REST, signed upgrade, sessions, spool, both databases,
and the end that SIGTERM asks for. Every row it stored is compared with the exchange's own log of
what it sent, by tests.gatherer_rig, which knows nothing of the gatherer's code.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import asyncpg
import psutil

from exchange.truth import Truth, read_truth
from tests import gatherer_rig
from tests.aarch64.checks_capture import make_databases
from tests.aarch64.emulator import TRIAL, serving
from tests.aarch64.trial import FailedError, Trial, expect
from tests.exchange_client import Keys, Running
from tests.gatherer_rig import Findings, GathererProcess, compare, read_recording

MARKETS, SECONDS, CHANGES_MIN = 60, 20, 900
READY_WITHIN_S = 60
PLAYED_WITHIN_S = 600
STOPPED_WITHIN_S = 120
FAULTS = ("unnamed", "doubled", "altered", "wrong_hash", "lost", "floating")


class EmulatedGatherer(GathererProcess):
    """`gatherer.main` inside; paths are named as the inside knows them."""

    trial: Trial

    def start(self) -> None:
        """Start it, as its command in the closure does."""
        here = str(self.trial.folder)
        inside = {name: value.replace(here, str(TRIAL)) for name, value in self.environment.items()}
        self.process = self.trial.emulator.start(
            "gatherer", "-m", "gatherer.main", environment=inside, log=self.log
        )

    async def stop(self) -> int:
        """SIGTERM to the emulated program itself, and its exit code."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children():
            os.kill(child.pid, signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, STOPPED_WITHIN_S)


@asynccontextmanager
async def exchange(folder: Path) -> AsyncIterator[Running]:
    """The simulated exchange without faults; begins to play when the first client is there."""
    keys, ready, truth = Keys.make(folder), folder / "exchange.ready", folder / "truth"
    play = ("--synthetic", str(MARKETS), "--seconds", str(SECONDS), "--rate", "max")
    files = ("--truth", str(truth), "--public-key", str(keys.public_file))
    command = ("-m", "exchange.main", *files, "--ready-file", str(ready), *play)
    with serving(*command, "--faults", "none", "--expect-clients", "1") as child:
        deadline = time.monotonic() + READY_WITHIN_S
        while not ready.exists():
            if child.poll() is not None or time.monotonic() > deadline:
                raise FailedError("the simulated exchange did not start")
            await asyncio.sleep(0.05)
        process: Any = child
        yield Running(process, json.loads(ready.read_bytes()), truth, keys)


async def _record(trial: Trial, folder: Path, hot: str, meta: str) -> int:
    """Let the emulated gatherer record a whole play; its exit code."""
    with mock.patch.object(gatherer_rig, "GathererProcess", EmulatedGatherer):
        async with (
            exchange(folder) as running,
            gatherer_rig.gatherer(folder, running, hot, meta, transport="picows") as process,
        ):
            async with asyncio.timeout(PLAYED_WITHIN_S):
                await running.done()
            await asyncio.sleep(2.0)  # what is on its way arrives
            code = await process.stop()
            running.stop()
    return int(code)


def _recorded(trial: Trial) -> tuple[int, str, Truth]:
    """The recording, made once: exit code, database, the exchange's log."""
    if trial.service is None:
        folder = trial.folder / "service"
        folder.mkdir()
        EmulatedGatherer.trial = trial
        server = trial.postgres()
        asyncio.run(make_databases(server.dsn(), ["service_hot", "service_meta"]))
        hot, meta = server.dsn("service_hot"), server.dsn("service_meta")
        try:
            code = asyncio.run(_record(trial, folder, hot, meta))
        except TimeoutError:
            log = (folder / "gatherer.log").read_text()[-2000:]
            raise FailedError(f"the emulated gatherer did not record: {log}") from None
        trial.service = (code, hot, read_truth(folder / "truth"))
    return trial.service


def _found(trial: Trial) -> tuple[Findings, Any]:
    _, hot, truth = _recorded(trial)
    recording = asyncio.run(read_recording(hot))
    return compare(recording, truth), recording


def service(trial: Trial) -> str:
    """Every change that the exchange sent is stored, under its name, with the right book hash."""
    code, _, truth = _recorded(trial)
    found, recording = _found(trial)
    log = (trial.folder / "service" / "gatherer.log").read_text()
    expect(code == 0, f"the gatherer ended with {code}: {log[-2000:]}")
    wrong = {name: count for name, count in asdict(found).items() if name in FAULTS and count}
    expect(not wrong, f"{wrong} of {found.compared} rows: {log[-2000:]}")
    expect(found.compared >= found.sent > CHANGES_MIN, f"{found}")
    expect(len(recording.trades) == len(truth.trades), f"{len(recording.trades)} trades")
    kinds = [row["kind"] for row in recording.controls]
    expect(kinds[-1] == "gatherer_end", f"the last it said is {kinds[-1]}")
    return (
        f"gatherer.main on {MARKETS} markets: {found.compared} changes and"
        f" {len(recording.trades)} trades stored, each as the exchange's log has it, each with the"
        " exchange's own book hash; SIGTERM ends it with 0"
    )


async def _spoil(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "UPDATE orderbook_delta SET price = price + 10000, book_hash = book_hash + 1"
        " WHERE ctid = (SELECT ctid FROM orderbook_delta LIMIT 1)"
    )
    await connection.close()


def service_control(trial: Trial) -> str:
    """One row changed in the database is found, as altered and as another book."""
    _, hot, _ = _recorded(trial)
    asyncio.run(_spoil(hot))
    found, _ = _found(trial)
    expect((found.altered, found.wrong_hash) == (1, 1), f"one changed row was found as {found}")
    return "one changed row is found: one altered, one wrong book hash"
