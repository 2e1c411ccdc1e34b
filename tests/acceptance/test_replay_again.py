"""Our own gatherer records a replay of a lake: merged again it is the same tape.

`make replay-again`: about two minutes. `tape replay` and `tape capture` as they are typed, from one
lake to the other: every change in order, every trade, every ticker state with its key over all
fields, the book hashes at seven instants. Negative control: of a replay of the same lake short of
one change the comparison says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kalshilake.read import Lake, open_lake
from tests.replay_world import (
    BEGINS,
    SECOND_US,
    contents,
    replay_world,
    write_replay_lake,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TAPE = (sys.executable, "-m", "tape.main")
MARKETS, EVENTS, SECONDS, SEED = 5, 400, 60, 7
RECORD_S = 40  # of wall time: the replay itself takes one


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the servers' account can reach its own folders in."""
    made = Path(tempfile.mkdtemp(prefix="kalshi-tape-replay-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made, ignore_errors=True)


async def record_again(lake: Path, folder: Path) -> Path:
    """The lake that `tape capture` makes of a replay of `lake`."""
    played = await asyncio.create_subprocess_exec(
        *TAPE, "replay", str(lake), "--paused", "--rate", "max", "--port", "0",
        "--out", str(folder / "key"), stdout=subprocess.PIPE, env=os.environ,
    )  # fmt: skip
    assert played.stdout is not None
    try:
        said: list[str] = []
        while not any("replay/status" in line for line in said):
            said.append((await played.stdout.readline()).decode().strip())
        typed = shlex.split(next(line for line in said if line.startswith("tape capture")))
        typed[-1] = str(folder / "again")
        resume = shlex.split(next(line for line in said if line.endswith("/resume")))[-1]
        recorded = await asyncio.create_subprocess_exec(
            *TAPE, *typed[1:], "--seconds", str(RECORD_S), stdout=subprocess.DEVNULL
        )
        while (await asyncio.to_thread(_status, resume))["subscribers"] < 1:
            assert recorded.returncode is None
            await asyncio.sleep(0.2)
        await asyncio.sleep(2)
        request = urllib.request.Request(resume, method="POST")
        await asyncio.to_thread(urllib.request.urlopen, request)
        assert await recorded.wait() == 0
        assert (await asyncio.to_thread(_status, resume))["done"]
    finally:
        played.terminate()
        await played.communicate()
    return folder / "again" / "lake"


def _status(resume: str) -> dict[str, int]:
    url = resume.replace("/resume", "/status")
    with urllib.request.urlopen(url) as answer:
        told: dict[str, int] = json.loads(answer.read())
    return told


def differences(lake: Lake, again: Lake) -> list[str]:
    """What two tapes do not have in common."""
    one, two = contents(lake), contents(again)
    found = [f"{table} differ" for table in one if one[table] != two[table]]
    for name in sorted({str(row[0]) for row in one["orderbook_deltas"]}):
        for share in range(1, 8):
            at = BEGINS + share * SECONDS * SECOND_US // 8
            hashes = [held.book(name, at, on_gap="ignore").book_hash for held in (lake, again)]
            if hashes[0] != hashes[1]:
                found.append(f"{name}: the book at {at} differs")
    return found


@pytest.mark.parametrize("left_out", [False, True])
async def test_a_recorded_replay_is_the_same_tape(open_folder: Path, *, left_out: bool) -> None:
    whole, shown = (replay_world(SEED, MARKETS, EVENTS, SECONDS) for _ in range(2))
    write_replay_lake(open_folder / "lake", whole)
    played = open_folder / "lake"
    if left_out:
        events = shown.markets[2].epochs[0].events
        last = max(n for n, event in enumerate(events) if event.delta > 0)
        if any((e.side, e.price) == (events[last].side, events[last].price)
               for e in events[last + 1 :]):  # fmt: skip
            raise AssertionError("a later change needs the one that is left out: another seed")
        del events[last]
        played = open_folder / "short"
        write_replay_lake(played, shown)
    again = await record_again(played, open_folder)
    found = differences(open_lake(open_folder / "lake"), open_lake(again))
    assert len(contents(open_lake(again))["orderbook_deltas"]) == MARKETS * EVENTS - left_out
    if left_out:
        assert found[0] == "orderbook_deltas differ"
    else:
        assert found == []
