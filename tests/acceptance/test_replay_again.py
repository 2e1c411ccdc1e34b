"""Our own gatherer records a replay of a lake: merged again it is the same tape.

`make replay-again`: four minutes. `tape replay` and `tape capture` as they are typed, from one
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
from tests.lake_world import Epoch, World
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


def with_a_gap(world: World, number: int) -> None:
    """Takes ten seconds of one market off the tape: a gap, and a second epoch after it."""
    (whole,) = world.markets[number].epochs
    lost_us, back_us = BEGINS + 20 * SECOND_US, BEGINS + 30 * SECOND_US
    before, after = (
        next(n for n, event in enumerate(whole.events) if event.us >= at)
        for at in (lost_us, back_us)
    )
    world.markets[number].epochs = [
        Epoch(1, BEGINS, lost_us, whole.before, whole.events[:before], [0]),
        Epoch(2, back_us, whole.to_us, whole.book_after(after), whole.events[after:], [0]),
    ]


async def test_a_recorded_replay_is_the_same_tape(open_folder: Path) -> None:
    write_replay_lake(open_folder / "lake", replay_world(SEED, MARKETS, EVENTS, SECONDS))
    again = await record_again(open_folder / "lake", open_folder)
    lake = open_lake(open_folder / "lake")
    assert len(contents(lake)["orderbook_deltas"]) == MARKETS * EVENTS
    assert differences(lake, open_lake(again)) == []


async def test_a_gap_of_the_tape_is_a_gap_of_the_tape_recorded_from_it(open_folder: Path) -> None:
    """Everything that was played is there, and nothing between is called complete."""
    world = replay_world(SEED, MARKETS, EVENTS, SECONDS)
    with_a_gap(world, 1)
    write_replay_lake(open_folder / "lake", world)
    lake = open_lake(open_folder / "lake")
    again = open_lake(await record_again(open_folder / "lake", open_folder))
    assert contents(lake) == contents(again)
    name = world.markets[1].ticker
    first, second = world.markets[1].epochs
    last_us, next_us = first.events[-1].us, second.events[0].us
    found = list(again.coverage_map().filled(name, "orderbook", last_us, next_us))
    assert any(i.status == "gap" for i in found)
    proven = [i for i in found if i.status == "complete"]
    assert all(i.to_us <= last_us + 1 or i.from_us >= second.from_us for i in proven), found


async def test_a_replay_short_of_one_change_is_found_out(open_folder: Path) -> None:
    """Negative control of the first."""
    whole, shown = (replay_world(SEED, MARKETS, EVENTS, SECONDS) for _ in range(2))
    write_replay_lake(open_folder / "lake", whole)
    events = shown.markets[2].epochs[0].events
    last = max(n for n, event in enumerate(events) if event.delta > 0)
    left_out = events.pop(last)
    level = (left_out.side, left_out.price)
    assert all((e.side, e.price) != level for e in events[last:]), "take another seed"
    write_replay_lake(open_folder / "short", shown)
    again = open_lake(await record_again(open_folder / "short", open_folder))
    assert len(contents(again)["orderbook_deltas"]) == MARKETS * EVENTS - 1
    found = differences(open_lake(open_folder / "lake"), again)
    assert found[0] == "orderbook_deltas differ"
