"""P2: whatever goes wrong in a rollout, the fleet records, and stands where the command says.

Broken releases, a line that is cut, disks that fill, and the death of the machine that deploys at
every step of a rollout. After each: the exit code, where every host stands by its profile and its
process, and whether two gatherers recorded all the time. At the end the tape is compared with the
exchange's truth, and every event of these windows must have two witnesses.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.onhost import rollout_world
from tests.onhost.deploy_world import HOSTS, nix_store_paths
from tests.onhost.hosts import GATHERERS
from tests.onhost.lab import Lab
from tests.onhost.network import ADMIN
from tests.onhost.revisions import CRASH_AFTER_S
from tests.onhost.rollout_world import Fleet

pytestmark = [pytest.mark.onhost, pytest.mark.timeout(3600)]

DONE, ROLLED_BACK, REFUSED = 0, 1, 2
G1, G2, G3 = GATHERERS
WAIT_S = 300.0
RESUMES_MAX = 60
SOAK = ("--soak-s", "5", "--canary-soak-s", "5")


@pytest.fixture(scope="module")
def fleet(lab: Lab, tree: Path) -> Iterator[Fleet]:
    with rollout_world.fleet(lab, tree) as made:
        yield made


def _wait(true: Callable[[], bool], process: subprocess.Popen[str], what: str) -> None:
    """Until something is true, while a rollout runs."""
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert process.poll() is None, f"ended before {what}: {process.communicate()[0]}"
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.02)


def _ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=WAIT_S * 2)
    print(f"exit {process.returncode}: {' '.join(said.split())[-300:]}", flush=True)
    return process.returncode, said


def _invocations(fleet: Fleet) -> dict[str, str]:
    """Which start of the gatherer each host is at."""
    return {
        name: host.show("kalshi-gatherer", "InvocationID")["InvocationID"]
        for name, host in fleet.gatherers.items()
    }


@pytest.mark.parametrize(
    ("release", "flags", "says"),
    [
        ("no-start", SOAK, "ends again and again"),
        ("idle", (*SOAK, "--await-s", "20"), "does not answer"),
        ("deaf", (*SOAK, "--await-s", "30"), "works: still not so after 30 s"),
        ("crash", ("--soak-s", "5", "--canary-soak-s", f"{CRASH_AFTER_S + 10}"), "ended while"),
    ],
)
def test_a_release_that_does_not_record_reaches_one_host_and_is_taken_back(
    fleet: Fleet, release: str, flags: tuple[str, ...], says: str
) -> None:
    before = _invocations(fleet)
    with fleet.window(release):
        ended = fleet.roll(release, *flags, soak="")
        assert (ended.code, says in ended.said) == (ROLLED_BACK, True), ended.said
        fleet.check_stands(fleet.stands)
    assert fleet.windows[release].few == 0
    after = _invocations(fleet)
    assert [name for name in GATHERERS if after[name] != before[name]] == [G1]


def test_a_closure_that_nobody_signed_is_refused_before_anything_moves(fleet: Fleet) -> None:
    before = _invocations(fleet)
    with fleet.window("forged"):
        ended = fleet.roll("forged", *SOAK, soak="")
        assert ended.code == REFUSED, ended.said
        assert "signature" in ended.said
        fleet.check_stands(fleet.stands)
    assert fleet.windows["forged"].few == 0
    assert _invocations(fleet) == before


def test_a_line_that_is_cut_while_a_closure_is_copied(fleet: Fleet) -> None:
    """Nothing has moved, and the same command works when the line is back."""
    path = fleet.hosts.releases.paths["big-1"]["gatherer"]
    before, host = _invocations(fleet), fleet.host(G2)
    with fleet.window("line cut"):
        process = fleet.deploy.popen(
            *fleet.deploy.rollout_command("--release", fleet.hosts.releases.folders["big-1"], *SOAK)
        )
        _wait(lambda: Path(path).name in nix_store_paths(host), process, "the copy to begin")
        fleet.hosts.network.cut([(ADMIN, G2)])
        code, said = _ended(process)
        assert (code, G2 in said) == (REFUSED, True), said
        assert host.run("nix-store", "--check-validity", path, check=False).returncode != 0
        fleet.hosts.network.heal()
        fleet.check_stands(fleet.stands)
        assert _invocations(fleet) == before
        ended = fleet.roll("big-1", *SOAK, soak="")
        assert ended.code == DONE, ended.said
        fleet.check_stands("big-1")
    assert fleet.windows["line cut"].few == 0


def test_a_host_whose_disk_is_nearly_full_is_refused(fleet: Fleet) -> None:
    """Before anything is copied."""
    with fleet.window("disk nearly full"):
        _fill(fleet, G2, leave_mib=1024)
        ended = fleet.roll("b", *SOAK, soak="")
        assert (ended.code, f"{G2}: " in ended.said) == (REFUSED, True), ended.said
        fleet.host(G2).run("rm", "/var/filler")
        fleet.check_stands(fleet.stands)
    assert fleet.windows["disk nearly full"].few == 0


def test_a_disk_that_fills_while_a_closure_is_copied(fleet: Fleet) -> None:
    """The gatherer of that host pauses with its disk; the two others do not."""
    path = fleet.hosts.releases.paths["big-2"]["gatherer"]
    host = fleet.host(G2)
    with fleet.window("disk full"):
        process = fleet.deploy.popen(
            *fleet.deploy.rollout_command("--release", fleet.hosts.releases.folders["big-2"], *SOAK)
        )
        _wait(lambda: Path(path).name in nix_store_paths(fleet.host(G1)), process, "the first copy")
        _fill(fleet, G2, leave_mib=64)
        code, said = _ended(process)
        host.run("rm", "/var/filler")
        assert (code, "space" in said) == (REFUSED, True), said
        fleet.check_stands(fleet.stands)
    assert fleet.windows["disk full"].few == 0


def _fill(fleet: Fleet, name: str, leave_mib: int) -> None:
    """Take a host's disk but for so many MiB."""
    fleet.host(name).run(
        "sh", "-euc",
        f"free=$(df --output=avail -B1 /var | tail -1);"
        f" fallocate -l $((free - {leave_mib << 20})) /var/filler",
    )  # fmt: skip


def test_the_deploy_machine_dies_at_every_step(fleet: Fleet) -> None:
    """One rollout, killed at the beginning of each of its steps and resumed, until it is done."""
    release = "b" if fleet.stands != "b" else "a"
    killed: list[str] = []
    earlier = len(fleet.journals())
    with fleet.window("deploy machine killed"):
        words = fleet.deploy.rollout_command(
            "--release", fleet.hosts.releases.folders[release], *SOAK
        )
        code = -1
        for _ in range(RESUMES_MAX):
            process = fleet.deploy.popen(*words)
            step = _next_step(fleet, process, set(killed), earlier)
            if not step:
                code, said = _ended(process)
                break
            time.sleep(0.05 * len(killed) % 1.0)  # not always at the same moment of a step
            fleet.kill_deploy_machine()
            process.communicate(timeout=WAIT_S)
            killed.append(step)
            print(f"killed at {step}", flush=True)
            words = fleet.deploy.rollout_command("--resume", *SOAK)
        if code == REFUSED and fleet.journal()[-1].get("outcome") == "done":
            code = DONE  # it died after its last note: nothing waited to be gone on with
        assert code == DONE, said
        fleet.check_stands(release)
    print(json.dumps({"killed at": killed}))
    steps = {f"{s['do']} {s.get('host', '')}" for s in fleet.journal()[0]["steps"]}
    assert steps - set(killed) <= {"unlock "}
    assert fleet.windows["deploy machine killed"].few == 0


def _next_step(fleet: Fleet, process: subprocess.Popen[str], known: set[str], earlier: int) -> str:
    """The first step that begins and was not begun before; "" when the rollout ends first.

    `earlier`: how many journals there are of other rollouts."""
    while process.poll() is None:
        for told in fleet.journal() if len(fleet.journals()) > earlier else ():
            step = f"{told.get('do')} {told.get('host', '')}"
            if told.get("event") == "begin" and step not in known:
                return step
        time.sleep(0.02)
    return ""


def test_the_tape_is_the_truth_and_every_event_has_two_witnesses(fleet: Fleet) -> None:
    """Through all of it."""
    assert set(fleet.where()) == set(HOSTS)
    for name, seen in fleet.proven_windows().items():
        assert min(seen.witnesses) >= 2, (name, seen.witnesses)
        assert not seen.faults, (name, seen.faults[:5])
        assert seen.throughout > 0
