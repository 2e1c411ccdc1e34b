"""P1 and P3: twenty rollouts under 2,000 frames a second, and every event with two witnesses.

The fleet goes back and forth between two revisions by the owner's command, over real SSH and Nix.
Then the tape is compared with the exchange's truth by the code of `tape demo`, its coverage is
looked through, and every event's witnesses are counted. The controls restart gatherers without the
rule, two at once and then all three: sampler, witnesses and coverage must each see it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.onhost import rollout_world
from tests.onhost.hosts import GATHERERS
from tests.onhost.image import run
from tests.onhost.lab import Lab
from tests.onhost.rollout_world import Fleet
from tests.rules.tree import ROOT

pytestmark = [pytest.mark.onhost, pytest.mark.timeout(3 * 3600)]

APART_S = 2.0
ROLLOUTS = int(os.environ.get("KT_ONHOST_ROLLOUTS", "20"))
FRAMES_PER_S_MIN = 1900
OTHER = {"a": "b", "b": "a"}
MADE_BEFORE = os.environ.get("KT_ONHOST_OUTPUTS", "")  # by tests.onhost.cdk_outputs: saves minutes
CDK_PYTHON = ROOT / ".venv-cdk" / "bin" / "python"
TWO_AT_ONCE, ALL_AT_ONCE = "control: two at once", "control: all at once"


@pytest.fixture(scope="module")
def fleet(lab: Lab, tree: Path) -> Iterator[Fleet]:
    with rollout_world.fleet(lab, tree) as made:
        yield made


def test_rollouts_in_a_row_leave_two_recording(fleet: Fleet) -> None:
    """Each ends with 0 and with every host on the other revision."""
    before = fleet.outside.exchange_status()
    took: list[float] = []
    with fleet.window("rollouts"):
        for number in range(ROLLOUTS):
            release = OTHER[fleet.stands]
            ended = fleet.roll(release)
            assert ended.code == 0, f"rollout {number + 1}: {ended.said}"
            took.append(round(ended.seconds, 1))
            print(f"{number + 1}/{ROLLOUTS}: {json.dumps(fleet.seconds_by_host())}", flush=True)
            fleet.check_stands(release)
    after = fleet.outside.exchange_status()
    seen = fleet.windows["rollouts"]
    told = sum(after[kind] - before[kind] for kind in ("events", "trades", "tickers"))
    frames_per_s = told * 1_000_000 // (seen.to_us - seen.from_us)
    print(json.dumps({"rollouts": ROLLOUTS, "seconds each": took, "frames/s": frames_per_s}))
    assert seen.few == 0
    assert frames_per_s >= FRAMES_PER_S_MIN or "KT_ONHOST_EVENTS_PER_S" in os.environ


def test_the_outputs_of_a_real_cdk_deploy_lead_the_rollout(fleet: Fleet) -> None:
    """P3: the CDK's own command line against moto writes the file that the rollout reads."""
    file = fleet.deploy.folder / "outputs.json"
    if MADE_BEFORE:
        shutil.copyfile(MADE_BEFORE, file)
    else:
        run(CDK_PYTHON, "-m", "tests.onhost.cdk_outputs", file, cwd=ROOT)
    release = OTHER[fleet.stands]
    with fleet.window("outputs of cdk deploy"):
        ended = fleet.roll(release, "--outputs", file)
        assert ended.code == 0, ended.said
        fleet.check_stands(release)
    assert fleet.windows["outputs of cdk deploy"].few == 0
    # The control: what it says of the hosts is believed in nothing that topology.toml denies.
    told = json.loads(file.read_text())
    told["KalshiGatherer2"]["PrivateIp"] = "10.0.2.99"
    file.write_text(json.dumps(told))
    ended = fleet.roll(OTHER[release], "--outputs", file)
    assert (ended.code, "10.0.2.99" in ended.said) == (2, True), ended.said


def test_the_sampler_sees_two_gatherers_restarted_at_once(fleet: Fleet) -> None:
    """The control: a rollout that ignores the rule."""
    _restart_without_the_rule(fleet, TWO_AT_ONCE, GATHERERS[:2])
    _restart_without_the_rule(fleet, ALL_AT_ONCE, GATHERERS)


def _restart_without_the_rule(fleet: Fleet, name: str, victims: tuple[str, ...]) -> None:
    # A hole begins at the last time that was proven, before the stop: apart from the window before.
    time.sleep(APART_S)
    with fleet.window(name):
        for victim in victims:
            fleet.host(victim).run("systemctl", "stop", "--no-block", "kalshi-gatherer")
        for victim in victims:
            fleet.host(victim).run("systemctl", "stop", "kalshi-gatherer")
        for victim in victims:
            fleet.host(victim).run("systemctl", "start", "--no-block", "kalshi-gatherer")
        fleet.wait_for_all()
    assert fleet.windows[name].few > 0


def test_the_tape_is_the_truth_complete_and_seen_twice(fleet: Fleet) -> None:
    """After all of it; and the controls' windows are found wanting."""
    for name, seen in fleet.proven_windows().items():
        assert (min(seen.witnesses) < 2) == (name in (TWO_AT_ONCE, ALL_AT_ONCE)), (
            name,
            seen.witnesses,
        )
        assert bool(seen.faults) == (name == ALL_AT_ONCE), (name, seen.faults[:5])
        assert seen.throughout > 0 or name == ALL_AT_ONCE
