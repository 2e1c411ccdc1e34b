"""Every fault once, one after the other, in one world: the short form of `make faults`.

Outages last seconds instead of minutes and there are few kills; REST is down while the disk is
full and the databases are away. After each of the others the gatherer has to be well again by
itself before the next one comes. At the end its rows and its claims are compared with the truth,
and the comparison is shown to see flaws.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.faults import inflict
from tests.faults.judge import Controls, Judgement, controls, judge
from tests.faults.world import Plan, world

PLAN = Plan(
    launcher="tests.faults.stepped",
    scaled={
        "gatherer.sink.REFUSED_TOLD_NS": 1_000_000_000,
        "gatherer.sink.SILENT_S": 1.0,
        "gatherer.rest.BACKOFF_CAP_S": 0.5,
    },
)


async def _life() -> tuple[Judgement, Controls, int]:
    disk = inflict.SmallDisk()
    async with world(PLAN, disk) as made:
        await inflict.poison_frames(made)
        kept = await inflict.poison_rows(made, 0.5)
        await inflict.key_expired(made, 0.5)
        await inflict.storm(made, "orderbook_delta", 1.5)
        await inflict.clock_stepped(made, 0.5, (inflict.HOUR_S,))
        await inflict.gatherer_frozen(made, 1.5)
        await inflict.killed(made, 2, 1.5)
        await made.switch(rest="drop")
        await inflict.disk_full(made, disk, 0.5, and_then=False)
        await inflict.database_frozen(made, 2.0, and_then=False)
        await inflict.databases_stopped(made, 1.0, and_then=False)
        await made.told("exchange", "markets: ")
        await made.switch(rest="up")
        await made.well()
        found = await judge(made)
        return found, await asyncio.to_thread(controls, made, found), kept


@pytest.fixture(scope="module")
def life() -> tuple[Judgement, Controls, int]:
    return asyncio.run(_life())


def test_after_every_fault_all_that_was_received_is_there_once_and_nothing_is_called_complete_falsely(  # noqa: E501
    life: tuple[Judgement, Controls, int],
) -> None:
    """Refused rows are the only ones that are not in their table, and they are kept aside."""
    found, _, kept = life
    found.holds(lost=kept, set_aside=True)


def test_the_comparison_sees_a_removed_row_a_doubled_row_and_a_forged_claim(
    life: tuple[Judgement, Controls, int],
) -> None:
    """Negative controls of everything that the test above believes."""
    seen = life[1]
    assert (seen.row_removed, seen.row_doubled, seen.tape_row_removed) == (1, 1, 1)
    assert seen.complete_forged > 0
