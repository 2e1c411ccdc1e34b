"""From wishes to journals and records: begun, gone on with, taken back; and the exit codes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy import campaign
from deploy.campaign import Desk
from deploy.errors import PlanError
from deploy.plan import Wish
from tests.fleet_sim import Killed, Nature, SimFleet
from tests.unit.deploy.test_rollout import FLEET, NAMES, NEW, OLD, installed

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
QUICK = Wish(soak_s=2, canary_soak_s=3, await_s=60)


class Office:
    """A desk, a fleet, and what was said."""

    def __init__(self, state: Path, **natures: Nature) -> None:
        self.state, self.hours = state, 0
        self.sim = SimFleet(
            FLEET, installed(OLD), {NEW.closures[name]: nature for name, nature in natures.items()}
        )
        self.said: list[str] = []

    @property
    def desk(self) -> Desk:
        self.hours += 1
        return Desk(self.state, NOON + timedelta(hours=self.hours))

    def say(self, host: str, text: str) -> None:
        self.said.append(f"{host}: {text}")

    async def bring(self, wish: Wish = QUICK) -> int:
        desk = self.desk
        have, ailing = await campaign.survey(self.sim, FLEET)
        journal = campaign.begin(desk, FLEET, NEW, wish, have, ailing)
        return await campaign.carry_out(
            desk, FLEET, self.sim, journal, clock=self.sim, say=self.say
        )

    def records(self) -> list[dict[str, object]]:
        files = sorted(self.state.glob("releases/*/*.json"))
        return [json.loads(file.read_text()) for file in files]


async def test_a_deploy_leaves_its_record_with_the_release_and_on_every_host(
    tmp_path: Path,
) -> None:
    office = Office(tmp_path)
    assert await office.bring() == 0
    (told,) = office.records()
    assert (told["outcome"], told["gaps"], told["revision"]) == ("done", 0, "b")
    assert told["who"] == campaign.who()
    assert set(told["seconds"]) == set(NAMES)  # type: ignore[call-overload]
    assert {name: [json.loads(line) for line in lines] for name, lines in
            office.sim.histories.items()} == {name: [told] for name in NAMES}  # fmt: skip


async def test_it_is_taken_back_to_what_ran_before_and_not_twice(tmp_path: Path) -> None:
    office = Office(tmp_path)
    with pytest.raises(PlanError, match="was brought to an end"):
        campaign.taken_back(office.desk, FLEET, QUICK)
    assert await office.bring() == 0
    desk = office.desk
    journal = campaign.taken_back(desk, FLEET, QUICK)
    code = await campaign.carry_out(
        desk, FLEET, office.sim, journal, clock=office.sim, say=office.say
    )
    assert code == 0
    for host in office.sim.hosts.values():
        assert host.running[host.role] == OLD.closures[host.role]
    # What the last one replaced is the new release again.
    forth = campaign.taken_back(office.desk, FLEET, QUICK)
    paths = {s.host: s.paths for s in forth.story.steps if s.do == "switch"}
    assert paths["gatherer-1"]["gatherer"] == NEW.closures["gatherer"]


async def test_every_end_has_its_own_exit_code(tmp_path: Path) -> None:
    bad = Office(tmp_path / "bad", gatherer=Nature(ready_s=None))
    assert await bad.bring() == 1
    refused = Office(tmp_path / "refused")
    refused.sim.refuse["copy", "gatherer-3"] = "no signature"
    assert await refused.bring() == 2
    assert refused.sim.histories == {}
    between = Office(tmp_path / "between", gatherer=Nature(ready_s=None))
    switch = between.sim.switch

    async def cut(host: str, closure: str, path: str) -> list[str]:
        units = await switch(host, closure, path)
        if host == "gatherer-1":
            between.sim.cut_until_s[host] = between.sim.now_s + 1e6
        return units

    between.sim.switch = cut  # type: ignore[method-assign]
    assert await between.bring() == 4
    with pytest.raises(PlanError, match="has not come to an end"):
        campaign.taken_back(between.desk, FLEET, QUICK)


async def test_a_gap_of_the_tape_is_told_by_the_exit_code(tmp_path: Path) -> None:
    office = Office(tmp_path)
    look = office.sim.look

    async def with_gaps(host: str) -> object:
        found = await look(host)
        if found.status is not None and office.sim.hosts["gatherer-3"].switches:
            found.status["gaps"] = 2  # type: ignore[index]
        return found

    office.sim.look = with_gaps  # type: ignore[method-assign, assignment]
    assert await office.bring() == campaign.EXIT_GAP
    assert office.records()[0]["gaps"] == 2


async def test_what_was_cut_off_is_found_again(tmp_path: Path) -> None:
    office = Office(tmp_path)
    with pytest.raises(PlanError, match="waits to be gone on with"):
        campaign.resumed(office.desk)
    office.sim.kill_at = 40
    with pytest.raises(Killed):
        await office.bring()
    office.sim.kill_at = None
    desk = office.desk
    journal = campaign.resumed(desk)
    code = await campaign.carry_out(
        desk, FLEET, office.sim, journal, clock=office.sim, say=office.say
    )
    assert code == 0
    assert [told["outcome"] for told in office.records()] == ["done"]


async def test_a_host_that_cannot_be_told_changes_no_outcome(tmp_path: Path) -> None:
    office = Office(tmp_path)
    office.sim.refuse["write_down", "gatherer-2"] = "read-only"
    assert await office.bring() == 0
    assert "gatherer-2: not written down or not tidied: gatherer-2: read-only" in office.said


async def test_a_release_that_mends_two_gatherers_goes_to_them_first(tmp_path: Path) -> None:
    """In the usual order the one that still records could not be touched, and nothing would go."""
    office = Office(tmp_path)
    broken = f"/nix/store/{'d' * 32}-broken"
    office.sim.natures[broken] = Nature(ready_s=None)
    for name in ("gatherer-2", "gatherer-3"):
        office.sim.hosts[name].running["gatherer"] = broken
    assert await office.bring() == 0
    assert office.sim.capturing() == ["gatherer-1", "gatherer-2", "gatherer-3"]
    told = office.records()[-1]
    assert list(told["paths"]) == ["deduplicator", "gatherer-1", "gatherer-2", "gatherer-3"]  # type: ignore[call-overload]
    moves = [line for line in office.said if "switch gatherer" in line]
    assert [line.partition(":")[0] for line in moves] == ["gatherer-2", "gatherer-3", "gatherer-1"]


async def test_one_host_is_brought_up_while_another_stays_broken(tmp_path: Path) -> None:
    """Who was not well before and was not asked for is nobody's reason to go back."""
    office = Office(tmp_path)
    broken = f"/nix/store/{'d' * 32}-broken"
    office.sim.natures[broken] = Nature(ready_s=None)
    for name in ("gatherer-2", "gatherer-3"):
        office.sim.hosts[name].running["gatherer"] = broken
    only = Wish(hosts=("gatherer-2",), soak_s=2, canary_soak_s=3, await_s=60)
    assert await office.bring(only) == 0
    assert office.sim.capturing() == ["gatherer-1", "gatherer-2"]


async def test_a_lock_of_a_run_that_ended_here_is_nobodys(tmp_path: Path) -> None:
    """A host that did not answer when its run ended keeps the lock; another desk's stays."""
    office = Office(tmp_path)
    assert await office.bring() == 0
    (told,) = office.records()
    office.sim.hosts["gatherer-2"].lock = str(told["run"])
    assert await office.bring() == 0
    assert office.sim.hosts["gatherer-2"].lock == ""
    office.sim.hosts["gatherer-2"].lock = "of somebody else"
    assert await office.bring() == 2
    assert office.sim.hosts["gatherer-2"].lock == "of somebody else"
