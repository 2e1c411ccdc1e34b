"""P5: hosts that restart, secrets that change, a host made anew, production from its backup.

One fleet, under load all the time: what its hosts are after each, whether two gatherers recorded,
and at the end one tape that is the exchange's truth. What AWS does when a stack is destroyed and
deployed is stood in for by a host with an empty disk and another key (`gatherer_anew`); everything
else is the owner's commands.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.onhost import rollout_world
from tests.onhost.deploy_world import HOSTS
from tests.onhost.hosts import DEDUPLICATOR, GATHERERS
from tests.onhost.lab import Lab
from tests.onhost.network import PRODUCTION
from tests.onhost.rollout_world import Fleet

pytestmark = [pytest.mark.onhost, pytest.mark.timeout(3600)]

G1, G2, G3 = GATHERERS
SOAK = ("--soak-s", "5", "--canary-soak-s", "5")
KEY_ID = "11111111-2222-4333-8444-555555555555"
AWS_DID = ["look", "unprotect", "destroy", "create", "trust"]
BACKUP_S = 300.0
LATER_S = 20.0  # of tape behind the backup
ALL_AGAIN = "all three again"


@pytest.fixture(scope="module")
def fleet(lab: Lab, tree: Path) -> Iterator[Fleet]:
    with rollout_world.fleet(lab, tree) as made:
        yield made


def _told(what: str, code: int, seconds: float) -> None:
    print(f"{what}: exit {code}, {seconds:.1f} s", flush=True)


@pytest.mark.parametrize("name", [G3, DEDUPLICATOR])
def test_a_host_that_lost_its_power_comes_back_by_itself(fleet: Fleet, name: str) -> None:
    """A rollout's links of units outlive a power cut: nobody starts anything."""
    with fleet.window(f"power cut of {name}"):
        before = fleet.running(name)
        fleet.host(name).power_cut()
        fleet.host(name).boot()
        fleet.check_stands(fleet.stands)
        fleet.wait_for_tape(fleet.exchange_us())
        assert fleet.running(name) == before
    assert fleet.windows[f"power cut of {name}"].few == 0


def test_secrets_change_while_everything_records(fleet: Fleet) -> None:
    """Passwords, certificates and the exchange's key, by the owner's commands over SSH."""
    started = {n: fleet.host(n).show("kalshi-gatherer", "InvocationID") for n in GATHERERS}
    pem = fleet.outside.private_key
    acts: dict[str, tuple[str | Path, ...]] = {
        "rotate-passwords": ("rotate-passwords",),
        "set tls": ("set", "tls"),
        "rotate-key": ("rotate-key", "--file", pem, "--key-id", KEY_ID),
    }
    with fleet.window("secrets"):
        for what, words in acts.items():
            ended = fleet.deploy.secrets(*words)
            _told(what, ended.code, ended.seconds)
            assert ended.code == 0, ended.said
            fleet.check_stands(fleet.stands)
        fleet.wait_for_tape(fleet.exchange_us())
    assert fleet.windows["secrets"].few == 0
    for name in GATHERERS:
        host = fleet.host(name)
        assert f"KT_KEY_ID={KEY_ID}" in host.path("/etc/kalshi/gatherer.env").read_text()
        assert host.show("kalshi-gatherer", "InvocationID") != started[name]
        # The middle of the key: no line of it is in what the host wrote down.
        line = pem.read_text().splitlines()[3]
        assert line not in host.run("journalctl", "--no-pager", "--output=cat").stdout
        assert line.encode() not in host.path("/etc/credstore.encrypted/kalshi-key").read_bytes()
    listed = fleet.deploy.secrets("list", "--json")
    rows = [json.loads(row) for row in listed.said.splitlines() if row.startswith("{")]
    assert {row["host"] for row in rows} == set(HOSTS)
    assert {row["state"] for row in rows} <= {"current", "previous"}, rows


def test_a_dead_host_is_made_anew(fleet: Fleet) -> None:
    """Its databases begin empty; two gatherers are the tape's witnesses meanwhile."""
    release = ("--release", fleet.hosts.releases.folders[fleet.stands], *SOAK)
    replace = ("replace", "--host", G2, *release)
    notes = fleet.deploy.folder / "state" / f"replacing-{G2}.json"
    works = fleet.deploy.act("replace", "--host", G1, *release)
    assert (works.code != 0, "works: it would be destroyed" in works.said) == (True, True)
    notes.with_name(f"replacing-{G1}.json").unlink(missing_ok=True)
    with fleet.window("a host made anew"):
        fleet.host(G2).kill()
        began = time.monotonic()
        dead = fleet.deploy.act(*replace)  # sees that it may be, and has no account to ask
        assert dead.code != 0, dead.said
        assert json.loads(notes.read_text()) == ["look"], dead.said
        fleet.sampler.follow(fleet.hosts.gatherer_anew(G2))
        fleet.deploy.learn_keys(fleet.hosts)
        notes.write_text(json.dumps(AWS_DID))
        waits = fleet.deploy.act(*replace)
        assert (waits.code != 0, "waits for what only you have" in waits.said) == (True, True)
        pem = fleet.outside.private_key
        for words in (
            ("set", "key", "--host", G2, "--file", pem, "--key-id", KEY_ID),
            ("set", "tls", "--host", G2),
            ("rotate-passwords",),
        ):
            ended = fleet.deploy.secrets(*words)
            assert ended.code == 0, ended.said
        done = fleet.deploy.act(*replace)
        _told(f"{G2} made anew, with first boot and secrets", done.code, time.monotonic() - began)
        assert done.code == 0, done.said
        assert not notes.exists()
        fleet.check_stands(fleet.stands)
        fleet.wait_for_tape(fleet.exchange_us())
    assert fleet.windows["a host made anew"].few == 0
    with fleet.window(ALL_AGAIN):
        fleet.wait_for_tape(fleet.exchange_us() + int(LATER_S * 1e6))


def test_production_comes_from_its_backup(fleet: Fleet) -> None:
    """Lost and there again, empty: no tape begins in it, the backup does, and goes on."""
    deduplicator, production = fleet.host(DEDUPLICATOR), fleet.host(PRODUCTION)
    with fleet.window("production restored"):
        deduplicator.run("systemctl", "start", "kalshi-backup", timeout_s=BACKUP_S)
        fleet.wait_for_tape(fleet.exchange_us() + int(LATER_S * 1e6))
        fleet.hosts.lose_production(production)
        fleet.hosts.empty_production(production)
        fleet.wait_for_merge("production holds no tape")
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert fleet.hosts.sql(production, f"\\connect kalshi\n{tables}").split()[-1] == "0"
        ended = fleet.deploy.act("restore")
        _told("production restored", ended.code, ended.seconds)
        assert ended.code == 0, ended.said
        fleet.wait_for_tape(fleet.exchange_us())
        fleet.check_stands(fleet.stands)
    assert fleet.windows["production restored"].few == 0


def test_all_of_it_is_one_tape_and_the_truth(fleet: Fleet) -> None:
    """Nothing missing, extra or out of order; two witnesses of each, three in the end."""
    for name, seen in fleet.proven_windows().items():
        assert min(seen.witnesses) >= (3 if name == ALL_AGAIN else 2), (name, seen.witnesses)
        assert not seen.faults, (name, seen.faults[:5])
        assert seen.throughout > 0
