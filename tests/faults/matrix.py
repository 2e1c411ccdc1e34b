"""The whole fault matrix at real lengths, a world for each fault: `make faults`.

What is shorter than its name: REST is down for five minutes with a round of discovery every 2 s, as
many rounds as in two and a half hours with the default of 60 s; the key is expired for a minute.
Everything else lasts as long as it says.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Awaitable, Callable

import pytest

from exchange.faults import FrameKind, TimeKind
from tests.faults import inflict
from tests.faults.judge import controls, judge
from tests.faults.world import Plan, World, world

QUIET = Plan()
FULL_RATE = Plan(markets=400, per_connection=100, events_per_s=2_000.0)
STEPPED = Plan(launcher="tests.faults.stepped")
LONG_S = 1_200.0

Fault = Callable[[World], Awaitable[int]]
"""Carries a fault out; returns how many rows it kept out of the table."""


async def _through(plan: Plan, fault: Fault, *, set_aside: bool = False) -> None:
    """One world, one fault, one verdict, told in one line."""
    disk, began_s = inflict.SmallDisk(), time.monotonic()
    async with world(plan, disk if fault is _disk else None) as made:
        made.disk = disk
        kept = await fault(made)
        outage_s = time.monotonic() - began_s
        found = await judge(made)
        print(
            f"{fault.__name__.strip('_')}: {outage_s:.0f} s, {made.kills} kills,"
            f" sent {found.rows.sent}, stored {found.rows.compared}, lost {found.rows.lost},"
            f" kept aside {kept}, doubled {found.rows.doubled},"
            f" received {found.tape.events_truth}, missing {found.tape.missing},"
            f" quarantined {sum(found.quarantined.values())},"
            f" false complete {found.tape.false_complete}, books checked"
            f" {found.tape.books_checked}, wrong {found.tape.books_wrong};"
            f" judged in {time.monotonic() - began_s - outage_s:.0f} s",
            flush=True,
        )
        found.holds(lost=kept, set_aside=set_aside)
        if fault is _gatherer_frozen:
            seen = await asyncio.to_thread(controls, made, found)
            print(f"negative controls: {seen}", flush=True)
            assert (seen.row_removed, seen.row_doubled, seen.tape_row_removed) == (1, 1, 1)
            assert seen.complete_forged > 0


@pytest.mark.parametrize("level", ["standard", "harsh"])
async def test_every_fault_of_the_simulator(level: str) -> None:
    """Two minutes of play; every kind of fault must have happened."""

    async def simulated(made: World) -> int:
        while not (await made.exchange_status())["done"]:  # noqa: ASYNC110
            await asyncio.sleep(1.0)
        told = (await made.exchange_status())["faults"]
        names = {f"{k}_begins" if k in ("stall", "stall_reset") else str(k) for k in TimeKind}
        names |= {str(k) for k in FrameKind} | {"late_snapshot", "rest_429", "rest_503"}
        # A plan draws what each cut is; all kinds come with harsh's many cuts.
        assert names <= set(told) or level == "standard", names - set(told)
        return 0

    await _through(dataclasses.replace(QUIET, faults=level, seconds=120.0), simulated)


async def _database_stopped(made: World) -> int:
    await inflict.databases_stopped(made, 600.0, patience_s=LONG_S)
    return 0


async def _database_frozen(made: World) -> int:
    await inflict.database_frozen(made, 600.0, patience_s=LONG_S)
    return 0


async def _disk(made: World) -> int:
    await inflict.disk_full(made, made.disk, 120.0)
    return 0


async def _gatherer_frozen(made: World) -> int:
    await inflict.gatherer_frozen(made, 30.0)
    return 0


async def _killed(made: World) -> int:
    await inflict.killed(made, 200, 2.0, seed=random.SystemRandom().randrange(1 << 30))
    return 0


async def _clock(made: World) -> int:
    await inflict.clock_stepped(made, 30.0)
    return 0


async def _poison_frames(made: World) -> int:
    for _ in range(5):
        await inflict.poison_frames(made)
    return 0


async def _poison_rows(made: World) -> int:
    kept = await inflict.poison_rows(made, 30.0)
    await made.well(patience_s=LONG_S)  # the words about it stay for a while
    return kept


async def _rest_down(made: World) -> int:
    await inflict.rest_down(made, 300.0)
    return 0


async def _storms(made: World) -> int:
    for channel in ("orderbook_delta", "trade", "ticker"):
        await inflict.storm(made, channel, 30.0)
    return 0


async def _key_expired(made: World) -> int:
    await inflict.key_expired(made, 60.0)
    return 0


@pytest.mark.parametrize("fault", [_database_stopped, _database_frozen])
async def test_ten_minutes_without_the_database_at_full_rate(fault: Fault) -> None:
    """2,000 changes a second for ten minutes: late, never lost."""
    await _through(FULL_RATE, fault)


@pytest.mark.parametrize("fault", [_disk, _gatherer_frozen, _killed, _rest_down, _storms])
async def test_a_fault_of_the_host_or_the_exchange(fault: Fault) -> None:
    """A full disk, SIGSTOP, kill -9 at 200 random instants, no REST, error 25."""
    await _through(QUIET, fault)


async def test_a_key_that_expires_in_mid_run() -> None:
    """Renewed in its file, without a restart."""
    await _through(QUIET, _key_expired)


async def test_a_clock_an_hour_wrong_either_way() -> None:
    """Stepped under a living connection, and started with."""
    await _through(STEPPED, _clock)


@pytest.mark.parametrize("fault", [_poison_frames, _poison_rows])
async def test_poison(fault: Fault) -> None:
    """What cannot be read or stored is kept and never called complete."""
    await _through(QUIET, fault, set_aside=True)
