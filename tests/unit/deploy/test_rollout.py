"""Rollouts over a fleet in virtual time: a fault ends on one revision or is told truthfully."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy import plan, rollout
from deploy.errors import PlanError
from deploy.fleet import Fleet, from_topology
from deploy.journal import Journal
from deploy.plan import Wish
from deploy.release import FORMAT, Release, parse
from deploy.rollout import Options, Rollout
from tests.fleet_sim import GOOD, Killed, Nature, SimFleet
from tests.rules.tree import ROOT

NAMES = ("deduplicator", "gatherer-1", "gatherer-2", "gatherer-3")
FLEET = from_topology(ROOT / "topology.toml")
SYSTEM = "aarch64-linux"


def release_of(letter: str) -> Release:
    closures = {
        name: f"/nix/store/{letter * 32}-kalshi-{name}-1"
        for name in ("gatherer", "deduplicator", "cloudwatch", "postgres")
    }
    closures["postgres"] = f"/nix/store/{'p' * 32}-kalshi-postgres-1"
    told: dict[str, Any] = {"format": FORMAT, "version": "1", "system": SYSTEM, "revision": letter}
    return parse(json.dumps(told | {"topology": FLEET.topology, "closures": closures}), letter)


OLD, NEW = release_of("a"), release_of("b")


def installed(release: Release, fleet: Fleet = FLEET) -> dict[str, dict[str, str]]:
    return {host.name: release.paths(host.role, databases=True) for host in fleet.hosts}


class Play:
    """One fleet, and deploys to it."""

    def __init__(self, folder: Path, fleet: Fleet = FLEET, **natures: Nature) -> None:
        named = {NEW.closures[name]: nature for name, nature in natures.items()}
        self.sim = SimFleet(fleet, installed(OLD, fleet), named)
        self.folder, self.fleet, self.number = folder, fleet, 0
        self.said: list[str] = []

    def journal(self, release: Release = NEW, wish: Wish = Wish()) -> Journal:  # noqa: B008
        self.number += 1
        journal = Journal(self.folder / f"{self.number}.journal.jsonl")
        have = {name: host.profiles.keys() for name, host in self.sim.hosts.items()}
        wanted = plan.targets(self.fleet, release, wish, {n: list(h) for n, h in have.items()})
        journal.note(
            "run", run=f"run-{self.number}", facts={"revision": release.revision},
            steps=[s.as_json() for s in plan.steps(self.fleet, wanted, wish)],
        )  # fmt: skip
        return journal

    async def deploy(self, journal: Journal, **options: Any) -> str:
        self.rollout = Rollout(
            self.sim, self.fleet, journal, Options(SYSTEM, await_s=60, **options),
            clock=self.sim, say=lambda host, text: self.said.append(f"{host}: {text}"),
        )  # fmt: skip
        return await self.rollout.run()

    def on(self, release: Release) -> list[str]:
        """The hosts whose services run a release, by profile and by process."""
        return [
            name
            for name, host in self.sim.hosts.items()
            if host.running[host.role] == host.profiles[host.role] == release.closures[host.role]
        ]


async def test_a_good_release_goes_to_every_host_one_by_one(tmp_path: Path) -> None:
    play = Play(tmp_path)
    assert await play.deploy(play.journal()) == "done"
    assert play.on(NEW) == list(NAMES)
    assert play.sim.capturing_min == 2
    assert all(host.lock == "" for host in play.sim.hosts.values())
    assert play.rollout.tape_gaps == 0
    # Databases were there and stayed as they are.
    assert all(h.running["postgres"] == OLD.closures["postgres"] for h in play.sim.hosts.values())
    again = play.journal()
    assert await play.deploy(again) == "done"
    assert all(len(host.switches) == 2 for host in play.sim.hosts.values())  # nothing restarted


@pytest.mark.parametrize(
    ("nature", "said"),
    [
        (Nature(ready_s=None), "still not so after"),
        (Nature(ready_s=None, crash_s=0.0), "ends again and again"),
        (Nature(crash_s=20.0), "ended while it was watched"),
    ],
)
@pytest.mark.parametrize("closure", ["gatherer", "deduplicator"])
async def test_a_bad_release_is_brought_back(
    tmp_path: Path, closure: str, nature: Nature, said: str
) -> None:
    play = Play(tmp_path, **{closure: nature})
    journal = play.journal(wish=Wish(soak_s=30))
    assert await play.deploy(journal) == "rolled back"
    assert play.on(OLD) == list(NAMES)
    assert said in journal.story.back
    assert play.sim.capturing_min >= 2
    if closure == "gatherer":  # the canary alone has seen it
        assert play.sim.hosts["gatherer-2"].switches == []
    assert all(host.lock == "" for host in play.sim.hosts.values())


@pytest.mark.parametrize(
    ("act", "host"), [("copy", "gatherer-2"), ("lock", "gatherer-3"), ("look", "gatherer-1")]
)
async def test_what_fails_before_anything_moved_changes_nothing(
    tmp_path: Path, act: str, host: str
) -> None:
    play = Play(tmp_path)
    play.sim.refuse[act, host] = "no room"
    assert await play.deploy(play.journal()) == "refused"
    assert all(not h.switches for h in play.sim.hosts.values())
    play.sim.refuse.clear()
    assert all(h.lock == "" or act == "look" for h in play.sim.hosts.values())


async def test_a_host_that_is_not_fit_is_named_before_anything_is_touched(tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.sim.hosts["gatherer-2"].missing = ("/etc/kalshi/tls.pem",)
    play.sim.hosts["gatherer-3"].free = 1 << 20
    journal = play.journal()
    assert await play.deploy(journal) == "refused"
    told = "\n".join(play.said)
    assert "gatherer-2: /etc/kalshi/tls.pem is not there" in told
    assert "gatherer-3: 1 MiB are free in /nix" in told
    assert journal.story.before == {}


async def test_no_gatherer_is_restarted_while_another_is_down(tmp_path: Path) -> None:
    """The rule that everything else serves; and its control: with leave for a gap it goes on."""
    play = Play(tmp_path)
    play.sim.natures[OLD.closures["gatherer"]] = GOOD
    broken = play.sim.hosts["gatherer-3"]
    broken.running["gatherer"] = f"/nix/store/{'d' * 32}-down"
    play.sim.natures[broken.running["gatherer"]] = Nature(ready_s=None)
    play.sim.capturing_min = 3
    assert await play.deploy(play.journal()) == "rolled back"
    assert play.sim.capturing_min == 2
    assert play.sim.hosts["gatherer-1"].switches == []
    forced = Play(tmp_path / "forced")
    forced.sim.natures |= play.sim.natures
    forced.sim.hosts["gatherer-3"].running["gatherer"] = broken.running["gatherer"]
    assert await forced.deploy(forced.journal(wish=Wish(gap=True)), gap=True) == "done"
    assert forced.sim.capturing_min == 1


async def test_a_broken_host_is_healed_by_a_rollout_to_it_alone(tmp_path: Path) -> None:
    play = Play(tmp_path)
    host = play.sim.hosts["gatherer-2"]
    host.running.clear()
    host.profiles.clear()
    assert play.sim.capturing() == ["gatherer-1", "gatherer-3"]
    journal = play.journal(OLD, Wish(hosts=("gatherer-2",)))
    assert await play.deploy(journal) == "done"
    assert play.sim.capturing() == ["gatherer-1", "gatherer-2", "gatherer-3"]
    assert host.running["postgres"] == OLD.closures["postgres"]  # it had none
    assert play.sim.hosts["gatherer-1"].switches == []


async def test_the_first_install_begins_with_nothing(tmp_path: Path) -> None:
    play = Play(tmp_path)
    for host in play.sim.hosts.values():
        host.running.clear()
        host.profiles.clear()
    assert await play.deploy(play.journal()) == "done"
    assert play.on(NEW) == list(NAMES)
    bad = Play(tmp_path / "bad", gatherer=Nature(ready_s=None))
    for host in bad.sim.hosts.values():
        host.running.clear()
        host.profiles.clear()
    assert await bad.deploy(bad.journal()) == "in between"
    assert "had no revision before" in "\n".join(bad.said)


async def test_a_cut_line_is_waited_for_and_a_lost_host_is_told(tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.sim.cut_until_s["gatherer-2"] = play.sim.now_s + 40
    assert await play.deploy(play.journal()) == "done"
    lost = Play(tmp_path / "lost")
    journal = lost.journal()
    switch = lost.sim.switch

    async def then_gone(host: str, closure: str, path: str) -> list[str]:
        units = await switch(host, closure, path)
        if host == "gatherer-2":
            lost.sim.cut_until_s[host] = lost.sim.now_s + 10_000
        return units

    lost.sim.switch = then_gone  # type: ignore[method-assign]
    assert await lost.deploy(journal) == "in between"
    # With gatherer-2 out of sight nobody may touch gatherer-1; the deduplicator went back.
    assert lost.on(OLD) == ["deduplicator", "gatherer-3"]
    assert journal.story.outcome == "in between"
    lost.sim.cut_until_s.clear()
    lost.sim.switch = switch  # type: ignore[method-assign]
    assert await lost.deploy(Journal(journal.path)) == "rolled back"
    assert lost.on(OLD) == list(NAMES)
    assert lost.sim.capturing_min == 2


async def test_two_deploys_do_not_mix(tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.sim.hosts["gatherer-3"].lock = "somebody, yesterday"
    assert await play.deploy(play.journal()) == "refused"
    assert play.sim.hosts["gatherer-3"].lock == "somebody, yesterday"
    assert await play.deploy(play.journal(), by_force=True) == "done"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_the_deploy_machine_killed_anywhere_and_gone_on_with(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Up to three deaths, each before or after any act; releases good and bad."""
    natures = st.sampled_from([GOOD, Nature(ready_s=None), Nature(crash_s=12.0)])  # watched longer
    bad = {name: data.draw(natures) for name in ("gatherer", "deduplicator")}
    play = Play(tmp_path_factory.mktemp("play"), **bad)
    journal = play.journal()
    outcome = None
    for _ in range(data.draw(st.integers(1, 3))):
        play.sim.kill_at = play.sim.acts + data.draw(st.integers(1, 250))
        try:
            outcome = asyncio.run(play.deploy(journal))
            break
        except Killed:
            if data.draw(st.booleans()):  # the last line was being written
                cut = journal.path.read_bytes()
                journal.path.write_bytes(cut + b'{"event": "en')
            journal = Journal(journal.path)
    play.sim.kill_at = None
    if outcome is None:
        outcome = asyncio.run(play.deploy(journal))
    good = all(nature == GOOD for nature in bad.values())
    assert outcome == ("done" if good else "rolled back")
    assert play.on(NEW if good else OLD) == list(NAMES)
    assert play.sim.capturing_min >= 2
    assert all(host.lock == "" for host in play.sim.hosts.values())


async def test_a_rollout_without_the_rule_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of `capturing_min`."""

    async def never(self: Rollout, host: str, *more: object) -> None: ...

    monkeypatch.setattr(Rollout, "_check", never)
    monkeypatch.setattr(Rollout, "_await", never)
    monkeypatch.setattr(Rollout, "_soak", never)
    play = Play(tmp_path)
    assert await play.deploy(play.journal()) == "done"
    assert play.sim.capturing_min < 2


async def test_where_the_fleet_stands_and_what_is_written_down(tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.sim.cut_until_s["gatherer-3"] = play.sim.now_s + 5
    found = await rollout.stand(play.sim, FLEET)
    assert "no route" in found["gatherer-3"]["unknown"]
    assert found["gatherer-1"]["running"] == OLD.closures["gatherer"]
    journal = play.journal()
    outcome = await play.deploy(journal)
    told = json.loads(rollout.record(journal, play.rollout, outcome))
    assert (told["outcome"], told["gaps"], told["revision"]) == ("done", 0, "b")
    assert told["paths"]["gatherer-1"] == NEW.paths("gatherer", databases=False)
    assert set(told["seconds"]) == set(NAMES)


def test_a_fleet_that_cannot_cover_is_moved_only_with_leave() -> None:
    small = from_topology(ROOT / "topology.toml", ["gatherer-1", "deduplicator"])
    wanted = plan.targets(small, NEW, Wish(), {})
    with pytest.raises(PlanError, match="1 gatherers cannot cover"):
        plan.steps(small, wanted, Wish())
    assert plan.steps(small, wanted, Wish(gap=True))
